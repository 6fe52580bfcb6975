# SPDX-License-Identifier: Apache-2.0
"""Token ids in a memory-mapped file without a name, which goes with the process: data need not fit in memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import numpy as np


FIRST_BYTES = 1 << 18
FILE_BYTES = 1 << 26


class TokenStore:
    r"""Keeps arrays of token ids in files that the system may write out and read back as memory allows.

    Args:
        folder: On a file system with room for the data.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._free = np.empty(0, dtype=np.int32)
        self._next_bytes = min(FIRST_BYTES, FILE_BYTES)
        self._common: dict[str, tuple[np.ndarray, ...]] = {}

    def keep(self, ids: np.ndarray) -> np.ndarray:
        """Return a read-only int32 array of the same ids in a file."""
        if len(ids) > len(self._free):
            self._free = self._map(max(self._next_bytes, ids.size * np.dtype(np.int32).itemsize))
            self._next_bytes = min(2 * self._next_bytes, FILE_BYTES)
        kept, self._free = self._free[: len(ids)], self._free[len(ids) :]
        kept[:] = ids
        kept.flags.writeable = False
        return kept

    def keep_common(self, name: str, *parts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Keep arrays that come again under one name, such as a prompt and its target in every round, once."""
        known = self._common.get(name)
        if known is not None and all(map(np.array_equal, known, parts)):
            return known
        self._common[name] = tuple(self.keep(part) for part in parts)
        return self._common[name]

    def _map(self, size: int) -> np.ndarray:
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            self._reserve(file.fileno(), size)
            # The mapping keeps the file after it is closed, and the arrays keep the mapping.
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.int32)

    def _reserve(self, descriptor: int, size: int) -> None:
        """Take the space now: writing to a mapping whose disk is full ends the process without a word."""
        if not hasattr(os, "posix_fallocate"):
            os.truncate(descriptor, size)
            return
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            error.filename = str(self.folder)
            raise
