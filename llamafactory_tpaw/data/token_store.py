# SPDX-License-Identifier: Apache-2.0
"""Numbers in memory-mapped files without a name, which go with the process: data need not fit in memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

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
        with _unnamed_file(self.folder) as file:
            _reserve(file.fileno(), size, self.folder)
            # The mapping keeps the file after it is closed, and the arrays keep the mapping.
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.int32)


class GrowingArray:
    r"""One array that grows at its end, in one file that is mapped anew whenever it becomes longer.

    Args:
        dtype: Of the items.
        folder: On a file system with room for the data; None keeps the items in memory, for a few of them.
    """

    def __init__(self, dtype: Any, folder: Path | None) -> None:
        self.folder = folder
        self._room = np.empty(0, dtype=dtype)
        self._count = 0
        self._file = None

    def __len__(self) -> int:
        return self._count

    @property
    def array(self) -> np.ndarray:
        """The items so far, without a copy; an array that was taken earlier keeps its length."""
        return self._room[: self._count]

    def append(self, item: Any) -> None:
        """Add one item."""
        self._make_room(self._count + 1)
        self._room[self._count] = item
        self._count += 1

    def extend(self, items: np.ndarray) -> None:
        """Add all items of an array."""
        end = self._count + len(items)
        self._make_room(end)
        self._room[self._count : end] = items
        self._count = end

    def _make_room(self, count: int) -> None:
        if count <= len(self._room):
            return
        item_bytes = self._room.itemsize
        size = max(FIRST_BYTES, count * item_bytes, self._room.nbytes + min(self._room.nbytes, FILE_BYTES))
        size = -(-size // item_bytes) * item_bytes
        if self.folder is None:
            grown = np.empty(size // item_bytes, dtype=self._room.dtype)
            grown[: self._count] = self.array
        else:
            self._file = self._file or _unnamed_file(self.folder)
            _reserve(self._file.fileno(), size, self.folder)
            # Arrays over the shorter mapping stay valid: both show the same pages of the file.
            grown = np.frombuffer(mmap.mmap(self._file.fileno(), size), dtype=self._room.dtype)
        self._room = grown


def _unnamed_file(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


def _reserve(descriptor: int, size: int, folder: Path) -> None:
    """Take the space now: writing to a mapping whose disk is full ends the process without a word."""
    if not hasattr(os, "posix_fallocate"):
        os.truncate(descriptor, size)
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        error.filename = str(folder)
        raise
