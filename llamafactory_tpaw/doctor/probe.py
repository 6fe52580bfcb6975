# SPDX-License-Identifier: Apache-2.0
"""What only a process that imports torch and LlamaFactory can tell: `llamafactory-tpaw doctor` starts it and reads.

It takes the names of steps and writes two JSON objects a step, a line each: `{"begin": STEP}`, then `{"step": STEP}`
with what was found. What a step kills the process with is thus known by name to the process that waits.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from .. import _hook
from ..hook import bootstrap, start


HOOK, DEVICES, SEAMS, DEPENDENCIES = "hook", "devices", "seams", "dependencies"
IMPORT = "import "


def main() -> None:
    """Take the steps that the command line names."""
    # Packages write to stdout when they are imported; what is asked for goes through a channel of its own.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        for name in sys.argv[1:]:
            for line in _take(name):
                channel.write(json.dumps(line) + "\n")
                channel.flush()


def _take(name: str) -> Iterator[dict[str, Any]]:
    yield {"begin": name}
    step = STEPS.get(name) or (lambda: importlib.import_module(name.removeprefix(IMPORT)) and None)
    try:
        found, error = step(), None
    except (Exception, SystemExit) as problem:
        found, error = None, last_line(problem)
    yield {"step": name, "found": found, "error": error}


def last_line(error: BaseException) -> str:
    """Return the last line of what the error's traceback would show, with that of its cause where it has one."""
    *_, line = "".join(traceback.format_exception_only(error)).strip().splitlines() or [type(error).__name__]
    cause = error.__cause__
    return line if cause is None or str(cause) in line else f"{line} (caused by {last_line(cause)})"


def _hook_state() -> dict[str, Any]:
    """Tell whether the hook was there when the interpreter had started, and register it for the next steps."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    state = {
        "active": _hook.active_finder() is not None,
        "switched_off": os.environ.pop(_hook.SWITCH, None) == "0",
        "by_pythonpath": str(bootstrap.STARTUP_FOLDER) in folders,
    }
    start.install()
    return state


def _devices() -> dict[str, Any]:
    """Tell what torch was built for and which devices it can use; memory in bytes."""
    import torch

    found: dict[str, Any] = {"cuda": torch.version.cuda, "rocm": torch.version.hip, "devices": [], "error": None}
    accelerator = getattr(torch, "accelerator", None)
    kind = accelerator.current_accelerator() if accelerator and accelerator.is_available() else None
    found["accelerator"] = kind and kind.type
    if not torch.cuda.is_available():
        found["error"] = _cuda_error(torch)
        return found
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        device = {"name": properties.name, "total": properties.total_memory, "free": None}
        device["capability"] = f"{properties.major}.{properties.minor}"
        found["devices"].append(device)
        try:
            device["free"] = torch.cuda.mem_get_info(index)[0]
        except Exception as error:  # a device that another process has for itself alone
            found["error"] = last_line(error)
    return found


def _cuda_error(torch: Any) -> str | None:
    """Return why torch, where it was built for CUDA, cannot use it."""
    if torch.version.cuda is None and torch.version.hip is None:
        return None
    try:
        torch.cuda.init()
    except Exception as error:
        return last_line(error)
    return None


def _seams() -> dict[str, Any]:
    """Import what the seams extend, each by itself, and tell what became of them."""
    from ..hook.seams import seam_status
    from ..lf.status import PACKAGE, installed_version

    package = importlib.import_module(PACKAGE)
    reason = _hook.inactive_reason()
    for seam in seam_status():
        if reason is None and seam.state == "waiting":
            try:
                importlib.import_module(seam.module)
            except (Exception, SystemExit) as error:
                seam.miss(f"`{seam.module}` cannot be imported: {last_line(error)}")
    return {
        "version": installed_version(),
        "folder": os.path.dirname(package.__file__ or ""),
        "reason": reason,
        "seams": [vars(seam) for seam in seam_status()],
    }


def _dependencies() -> str | None:
    """Let LlamaFactory judge the versions of its dependencies, as it does whenever it reads a run file."""
    from ..lf import facade

    try:
        facade.check_dependencies()
    except ImportError as error:
        return " ".join(str(error).split())
    return None


STEPS: dict[str, Callable[[], Any]] = {
    HOOK: _hook_state,
    DEVICES: _devices,
    SEAMS: _seams,
    DEPENDENCIES: _dependencies,
}
