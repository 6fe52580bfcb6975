# SPDX-License-Identifier: Apache-2.0
"""The machine as it looks without torch: processors, memory, disk, the NVIDIA driver. Sizes are bytes."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


SHARED_MEMORY = Path("/dev/shm")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
# Whatever of these is set changes what a run does. None holds a secret.
VARIABLES = (
    "LLAMAFACTORY_TPAW",
    "LLAMAFACTORY_VERBOSITY",
    "USE_V1",
    "USE_MCA",
    "USE_RAY",
    "USE_KT",
    "FORCE_TORCHRUN",
    "NNODES",
    "NPROC_PER_NODE",
    "ALLOW_EXTRA_ARGS",
    "DISABLE_VERSION_CHECK",
    "USE_MODELSCOPE_HUB",
    "USE_OPENMIND_HUB",
    "HF_HUB_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_CUDA_ALLOC_CONF",
    "OMP_NUM_THREADS",
)
QUERY_S = 20


def machine(folder: Path) -> dict[str, Any]:
    """Describe the machine, and the disk of `folder`."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "shared_memory": _disk(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None,
        "folder": str(folder),
        "folder_writable": os.access(folder, os.W_OK),
        "disk": _disk(folder),
        "nvidia": _nvidia(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _disk(path: Path) -> dict[str, int]:
    usage = shutil.disk_usage(path)
    return {"total": usage.total, "free": usage.free}


def _memory() -> dict[str, int] | None:
    """Total and available memory, a container's own limit respected; None where the system does not say."""
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        available = os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    found = {"total": page * total, "available": page * available}
    with contextlib.suppress(OSError, KeyError, ValueError):  # not Linux
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found["available"] = int(fields["MemAvailable"].split()[0]) * 1024  # kB; counts what caches would give back
    with contextlib.suppress(OSError, ValueError):  # no limit
        found["total"] = min(found["total"], int(CGROUP_LIMIT.read_text()))
    return found | {"available": min(found.values())}


def _nvidia() -> dict[str, Any] | None:
    """Driver and names of the NVIDIA devices, whether torch can use them or not; None without a driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    rows = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    if done.returncode != 0 or not rows:
        return None
    return {"driver": rows[0][0], "devices": [name for _, name in rows]}
