# SPDX-License-Identifier: Apache-2.0
"""Measures one iteration from inside its process: time of the whole and of each optimizer step, and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


MEBIBYTE = 1 << 20
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what to write into `clear_refs` to set the peak back to what is resident now


class StepClock(TrainerCallback):
    """Notes when training begins, when each optimizer step ends, when training ends, and what was logged."""

    def __init__(self) -> None:
        self.begin = 0.0
        self.step_ends: list[float] = []
        self.end = 0.0
        self.logged: list[dict[str, Any]] = []

    def on_train_begin(self, *positional: Any, **named: Any) -> None:
        self.begin = now()

    def on_step_end(self, *positional: Any, **named: Any) -> None:
        self.step_ends.append(now())

    def on_train_end(self, *positional: Any, **named: Any) -> None:
        self.end = now()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **named: Any) -> None:
        self.logged.append(dict(logs or {}))

    @property
    def step_seconds(self) -> list[float]:
        """Time between the ends of steps; the first step, which allocates, counts only where it is alone."""
        seconds = [later - earlier for earlier, later in itertools.pairwise([self.begin, *self.step_ends])]
        return seconds[1:] or seconds


def now() -> float:
    """Seconds, after all work of the device is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> int:
    """The largest resident size of this process so far, or since `reset_peaks`."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peaks() -> None:
    """Give back what earlier iterations left, and begin to look for peaks again where the system allows it."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            CLEAR.write_text(RESET_PEAK)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def device_peak_mib() -> float | None:
    """The largest size of all tensors on the GPU since `reset_peaks`."""
    return torch.cuda.max_memory_allocated() / MEBIBYTE if torch.cuda.is_initialized() else None
