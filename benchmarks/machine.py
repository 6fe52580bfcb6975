# SPDX-License-Identifier: Apache-2.0
"""What a result was measured on: machine, versions, command. Imports nothing heavy."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from llamafactory_tpaw.lf.status import installed_version

from .workload import processors


PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "trl",
    "datasets",
    "llamafactory-tpaw",
    "flash-attn",
)


def describe(device: str) -> dict[str, Any]:
    """Describe machine, versions and command."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
        "platform": platform.platform(),
        "processor": _processor(),
        "processors": processors(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu() if device == "cuda" else None,
        "versions": {"python": platform.python_version(), "llamafactory": installed_version()}
        | {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Name of the processor where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()[0].strip() or None
