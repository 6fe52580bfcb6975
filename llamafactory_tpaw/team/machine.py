# SPDX-License-Identifier: Apache-2.0
"""When, on what and with which versions something was made: what `tpaw.json` and meta files record of it."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .. import __version__


PACKAGES = (
    "llamafactory",
    "transformers",
    "torch",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "deepspeed",
)


def now() -> str:
    """Return the time in UTC to the second: `2026-05-01T12:00:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those that change numbers, where they are installed."""
    found = {"llamafactory_tpaw": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Describe a device and how many processes use one like it."""
    described = {"device": device.type, "name": platform.processor() or platform.machine(), "processes": processes}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {"name": properties.name, "memory_bytes": properties.total_memory}
    return described | {"cpus": os.cpu_count()}
