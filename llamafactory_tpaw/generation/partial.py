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

from ..data.files import cannot_read, parse_row, write_atomic
from ..errors import DataError


COMMIT = b'{"commit": '
MISSING = -1
AGAIN = "Restore the file, or delete it to generate the round again."
# Keys of the run file, where an identity names them otherwise.
KEYS = {"engine": "tpaw_engine", "iteration": "tpaw_iteration", "samples": "tpaw_samples_per_prompt"}
SHOWN_CHARACTERS = 24


@dataclass(frozen=True)
class NewRow:
    """A row to keep: its request's index, its line without a line break, and what it adds to the counts."""

    index: int
    line: str
    counts: Mapping[str, int]


class PartialFile:
    r"""The half-done file of a round, read and cut to its last commit, or begun.

    Args:
        path: Where it is.
        identity: What is generated: plain values, which a file must agree in to be continued.
        requests: Number of requests; rows belong to one each.

    Raises:
        DataError: If the file was begun with another identity, or is damaged before its last commit.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], requests: int) -> None:
        self.path = path
        self.offsets = np.full(requests, MISSING, dtype=np.int64)  # where the row of each request begins
        self.done, self.seconds = 0, 0.0  # requests that have a row, and time spent on the rows
        self.counts: Counter[str] = Counter()
        self.version, self.facts = "", {}  # what the engine that gave the newest row says of itself
        self._end = 0
        try:
            with path.open("rb") as stream:
                self._read(stream, identity)
        except FileNotFoundError:
            pass  # nothing is done yet
        except OSError as error:
            raise DataError(cannot_read(path, error)) from error
        if not self._end:
            header = json.dumps(identity) + "\n"
            write_atomic(path, header)
            self._end = len(header)
        os.truncate(path, self._end)
        self._writer = path.open("ab", buffering=0)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    @property
    def left(self) -> np.ndarray:
        """Indices of the requests without a row, ascending, (M,) int64."""
        return np.flatnonzero(self.offsets == MISSING)

    def append(self, rows: Sequence[NewRow], seconds: float, version: str = "", facts: Any = None) -> None:
        r"""Keep rows: after this they are on the disk, whatever happens.

        Args:
            rows: Of requests that have none yet.
            seconds: Time spent on them.
            version: Of the engine.
            facts: What the engine says of itself besides: a dict of plain values.

        Raises:
            OSError: If they cannot be written, with the file's name; the file is as before.
        """
        lines = [row.line.encode() + b"\n" for row in rows]
        body = b"".join(lines)
        commit = {
            "commit": [row.index for row in rows],
            "crc32": zlib.crc32(body),
            "seconds": round(seconds, 6),
            "counts": sum((Counter(row.counts) for row in rows), Counter()),
            "version": version,
            "facts": facts or {},
        }
        content = body + json.dumps(commit).encode() + b"\n"
        self._write(content)
        offsets = self._end + np.cumsum([0, *map(len, lines[:-1])])
        self._take(commit, offsets[: len(rows)])
        self._end += len(content)

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Give the rows in the order of the requests: the index and the line; those without a row are left out."""
        with self.path.open("rb") as stream:
            for index in range(len(self.offsets)):
                if self.offsets[index] != MISSING:
                    stream.seek(self.offsets[index])
                    yield index, stream.readline()

    def remove(self) -> None:
        """Delete the file: all of it is somewhere else now."""
        self._writer.close()
        self.path.unlink()

    def _write(self, content: bytes) -> None:
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

    def _read(self, stream: BinaryIO, identity: Mapping[str, Any]) -> None:
        """Take over what was committed; where nothing was, the file is begun again, whatever it was begun with."""
        header = stream.readline()
        if not header.endswith(b"\n"):
            return
        begun = parse_row(self.path, 1, header)
        different = _differences(begun, identity)
        position = stream.tell()
        self._end = 0 if different else position
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
            if different:
                raise DataError(
                    f"{self.path} was begun otherwise: {'; '.join(different)}. Restore the settings or the checkpoint "
                    "to continue it, or delete it to begin again."
                )
            commit = parse_row(self.path, number, line)
            self._check(number, commit, pending, checksum)
            self._take(commit, np.asarray(pending, dtype=np.int64))
            self._end = position
            pending, checksum = [], 0

    def _check(self, number: int, commit: Mapping[str, Any], pending: Sequence[int], checksum: int) -> None:
        """Refuse rows that are not those that were written, one for each request that has none."""
        indices = commit["commit"] if {"crc32", "seconds", "counts", "version"} <= commit.keys() else []
        if (
            not isinstance(indices, list)
            or (len(pending), checksum) != (len(indices), commit.get("crc32"))
            or not all(type(index) is int and 0 <= index < len(self.offsets) for index in indices)
            or len(set(indices)) < len(indices)
            or (self.offsets[np.asarray(indices, dtype=np.int64)] != MISSING).any()
        ):
            raise DataError(
                f"{self.path}, row {number}: the {len(pending)} rows before it are not those that were written, one "
                f"for each request. {AGAIN}"
            )

    def _take(self, commit: Mapping[str, Any], offsets: np.ndarray) -> None:
        self.offsets[np.asarray(commit["commit"], dtype=np.int64)] = offsets
        self.done += len(offsets)
        self.seconds += commit["seconds"]
        self.counts.update(commit["counts"])
        self.version = commit["version"] or self.version
        self.facts = commit.get("facts") or self.facts


def _differences(begun: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """What an identity holds otherwise than a file's first line: values where they are short, else names alone."""
    said = []
    for key in sorted(key for key in identity if begun.get(key) != identity[key]):
        old, new = begun.get(key), identity[key]
        if isinstance(old, dict) and isinstance(new, dict):
            said += _differences(old, new)
        elif all(type(value) in (str, int, float) and len(str(value)) <= SHOWN_CHARACTERS for value in (old, new)):
            said.append(f"`{KEYS.get(key, key)}` was {old} and is {new} now")
        else:
            said.append(f"another {key}")
    return said
