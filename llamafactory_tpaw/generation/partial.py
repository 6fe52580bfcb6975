# SPDX-License-Identifier: Apache-2.0
r"""A triplet file while it is being generated: rows in the order in which they came, kept as a whole or not at all.

The first line says what is generated. After it come commits: rows as the finished file will have them, and a line that
names their requests and holds their checksum. What follows the last such line was being written when the process was
ended, and is cut off. Of each row only the place in the file is kept in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..data.files import parse_row
from ..errors import DataError


COMMIT = b'{"commit": '
MISSING = -1
AGAIN = "Restore the file, or delete it to generate the round again."
# Keys of the run file, where an identity names them otherwise.
KEYS = {"iteration": "tpaw_iteration", "samples": "tpaw_samples_per_prompt"}


@dataclass(frozen=True)
class NewRow:
    """A row to keep: its request's index, its line without a line break, and what it adds to the counts."""

    index: int
    line: str
    counts: Mapping[str, int]


class PartialFile:
    r"""The half-done file of a round, read and cut to its last commit, or begun.

    `identity` is what is generated: plain values, in which a file must agree to be continued. Each row belongs to one
    of so many `requests`.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], requests: int) -> None:
        self.path = path
        self.offsets = np.full(requests, MISSING, dtype=np.int64)  # where the row of each request begins
        self.done, self.seconds = 0, 0.0  # requests that have a row, and time spent on the rows
        self.counts: Counter[str] = Counter()
        self.version, self.facts = "", {}  # what the engine that gave the newest row says of itself
        self._end = 0
        if path.is_symlink():  # which would be written through, wherever it leads
            raise DataError(f"{path} is a link. Delete it, or put the file itself there.")
        if path.exists():
            with path.open("rb") as stream:
                self._read(stream, identity)
        # Written with the first rows, so that a run whose engine cannot be started leaves nothing that binds the next.
        self._header = b"" if self._end else json.dumps(identity).encode() + b"\n"
        self._writer = path.open("ab", buffering=0)
        self._writer.truncate(self._end)

    @property
    def left(self) -> np.ndarray:
        """Indices of the requests without a row, ascending, (M,) int64."""
        return np.flatnonzero(self.offsets == MISSING)

    def append(self, rows: Sequence[NewRow], seconds: float, version: str = "", facts: Any = None) -> None:
        r"""Keep rows, on which `seconds` were spent: after this they are on the disk, whatever happens.

        `version` and `facts`, a dict of plain values, are what the engine says of itself. Where rows cannot be written
        (an OSError, with the file's name), the file is as before.
        """
        indices = [row.index for row in rows]
        if not self._lack_rows(indices):
            raise ValueError(f"requests that were answered before, or never asked: some of {indices}")
        lines = [row.line.encode() + b"\n" for row in rows]
        body = b"".join(lines)
        commit = {
            "commit": indices,
            "crc32": zlib.crc32(body),
            "seconds": round(seconds, 6),
            "counts": sum((Counter(row.counts) for row in rows), Counter()),
            "version": version,
            "facts": facts or {},
        }
        commit["own_crc32"] = zlib.crc32(json.dumps(commit).encode())
        content = self._header + body + json.dumps(commit).encode() + b"\n"
        view = memoryview(content)
        try:
            while view:
                view = view[self._writer.write(view) :]
            os.fsync(self._writer.fileno())
        except OSError as error:
            error.filename = str(self.path)
            with contextlib.suppress(OSError):
                self._writer.truncate(self._end)
            raise
        starts = self._end + len(self._header) + np.cumsum([0, *map(len, lines)])
        self._take(commit, starts[:-1])
        self._end, self._header = self._end + len(content), b""

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Give the rows in the order of the requests: the index and the line; those without a row are left out."""
        with self.path.open("rb") as stream:
            for index in np.flatnonzero(self.offsets != MISSING).tolist():
                stream.seek(self.offsets[index])
                yield index, stream.readline()

    def close(self) -> None:
        """Write no more."""
        self._writer.close()

    def _read(self, stream: BinaryIO, identity: Mapping[str, Any]) -> None:
        """Take over what was committed."""
        header = stream.readline()
        if not header.endswith(b"\n"):
            return
        if different := _differences(parse_row(self.path, 1, header), identity):
            raise DataError(
                f"{self.path} was begun otherwise: {'; '.join(different)}. Restore the settings or the checkpoint to "
                "continue it, or delete it to begin again."
            )
        self._end = position = len(header)
        pending: list[int] = []
        checksum = 0
        for number, line in enumerate(stream, start=2):
            if not line.endswith(b"\n"):
                break
            start, position = position, position + len(line)
            if not line.startswith(COMMIT):
                pending.append(start)
                checksum = zlib.crc32(line, checksum)
                continue
            commit = parse_row(self.path, number, line)
            indices, own = commit["commit"], commit.pop("own_crc32", None)  # which older files lack
            whole = commit.keys() - {"facts"} == {"commit", "crc32", "seconds", "counts", "version"}
            whole = whole and isinstance(indices, list) and own in (None, zlib.crc32(json.dumps(commit).encode()))
            if (
                not whole
                or (len(pending), checksum) != (len(indices), commit["crc32"])
                or not self._lack_rows(indices)
            ):
                raise DataError(
                    f"{self.path}, row {number}: the {len(pending)} rows before it are not those that were written, "
                    f"one for each request. {AGAIN}"
                )
            self._take(commit, np.asarray(pending, dtype=np.int64))
            self._end = position
            pending, checksum = [], 0

    def _lack_rows(self, indices: Sequence[int]) -> bool:
        """Whether these are requests, each named once, that have no row."""
        left = [index for index in set(indices) if 0 <= index < len(self.offsets) and self.offsets[index] == MISSING]
        return len(left) == len(indices)

    def _take(self, commit: Mapping[str, Any], offsets: np.ndarray) -> None:
        self.offsets[np.asarray(commit["commit"], dtype=np.int64)] = offsets
        self.done += len(offsets)
        self.seconds += commit["seconds"]
        self.counts.update(commit["counts"])
        self.version = commit["version"] or self.version
        self.facts = commit.get("facts") or self.facts


def _differences(begun: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """What an identity holds otherwise than a file's first line: numbers with their values."""
    said = []
    for key, new in sorted(identity.items()):
        old = begun.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            said += _differences(old, new)
        elif old != new:
            numbers = type(old) in (int, float)
            said.append(f"`{KEYS.get(key, key)}` was {old} and is {new} now" if numbers else f"another {key}")
    return said
