# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are there whole or not at all, as far as a process that fails can see to it."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch


State = dict[Path, tuple[int, int]]


@contextlib.contextmanager
def undone_on_failure(folder: str | Path) -> Iterator[None]:
    """Remove the files that were written to a folder when writing them fails: a half one would pass for a whole one.

    A folder that was not there is removed with all that is in it, so that its space is free again.
    """
    folder = Path(folder)
    existed, before = folder.exists(), _state(folder)
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        for path, state in _state(folder).items():
            if before.get(path) != state:
                path.unlink()
        raise


def _state(folder: Path) -> State:
    """Time of change and size of every file directly in the folder."""
    stats = {path: path.stat() for path in folder.glob("*") if path.is_file()}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


@functools.cache
def let_torch_load_to_cpu() -> None:
    """Let the Trainer load the optimizer's state where it trains in several processes on the CPU.

    It asks for the process's device, which accelerate calls `cpu:<n>` there, and torch knows only `cpu`.
    """
    torch.serialization.register_package(
        0, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
    )
