# SPDX-License-Identifier: Apache-2.0
"""The half-done file: what was committed is there after any end of the process, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.generation.partial import NewRow, PartialFile


IDENTITY = {"generator": "a", "sampling": {"seed": 1}}
COUNT = 7
COMMITS = ((5, 0), (), (2, 6, 1))


def row(index: int) -> NewRow:
    return NewRow(index, json.dumps({"id": f"{index}-0", "text": "ä\n" * index}, ensure_ascii=False), {"stop": 1})


def line(index: int) -> bytes:
    return row(index).line.encode() + b"\n"


def open_file(path: Path, identity: dict[str, object] = IDENTITY) -> contextlib.closing[PartialFile]:
    return contextlib.closing(PartialFile(path, identity, COUNT))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with three commits."""
    path = tmp_path / "d.jsonl.partial"
    with open_file(path) as partial:
        for commit in COMMITS:
            partial.append([row(index) for index in commit], 0.5, "1.0")
    return path


def state(partial: PartialFile) -> tuple[Any, ...]:
    rows, left = list(partial.rows()), partial.left.tolist()
    return rows, left, partial.done, partial.seconds, dict(partial.counts), partial.version


def test_rows_come_in_the_order_of_the_requests(path: Path) -> None:
    with open_file(path) as partial:
        rows = [(index, line(index)) for index in (0, 1, 2, 5, 6)]
        assert state(partial) == (rows, [3, 4], 5, 1.5, {"stop": 5}, "1.0")
        partial.append([row(3)], 0.25, "1.1", {"served": "theta"})
        appended = state(partial)
    assert appended[1:] == ([4], 6, 1.75, {"stop": 6}, "1.1")
    with open_file(path) as partial:
        assert state(partial) == appended
        assert partial.facts == {"served": "theta"}


@pytest.mark.parametrize("indices", [(3, 3), (4, 5), (COUNT,)])
def test_a_request_has_one_row(path: Path, indices: Sequence[int]) -> None:
    content = path.read_bytes()
    with open_file(path) as partial, pytest.raises(ValueError, match="answered before, or never asked"):
        partial.append([row(index) for index in indices], 0.5)
    assert path.read_bytes() == content


def test_cut_anywhere_it_holds_the_whole_commits(path: Path) -> None:
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    lines = content.splitlines(keepends=True)
    ends = [header, *(sum(map(len, lines[: n + 1])) for n, text in enumerate(lines) if text.startswith(b'{"commit"'))]
    sizes = {size for end in ends for size in range(end - 2, end + 3) if size <= len(content)}
    for size in sorted({*range(0, len(content), 7), *sizes}):
        path.write_bytes(content[:size])
        with open_file(path) as partial:
            whole = sum(size >= end for end in ends[1:])
            done = [index for commit in COMMITS[:whole] for index in commit]
            assert [index for index, _ in partial.rows()] == sorted(done)
        assert path.read_bytes() == content[: max(end for end in [0, *ends] if end <= size)]


class Disk(io.RawIOBase):
    """Writes no more than some bytes at a time; after so many writes it is full."""

    def __init__(self, raw: Any, at_once: int, writes: int) -> None:
        self.raw, self.at_once, self.writes = raw, at_once, writes
        self.fileno, self.truncate = raw.fileno, raw.truncate

    def write(self, content: memoryview) -> int:
        if self.writes == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.writes -= 1
        return self.raw.write(content[: self.at_once])


def test_short_writes_are_continued_and_flushed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("os.fsync", flushed.append)
    with open_file(path) as partial:
        partial._writer = Disk(partial._writer, 100, 3)
        partial.append([row(3), row(4)], 0.0)
        assert flushed == [partial._writer.fileno()]
    with open_file(path) as partial:
        assert list(partial.rows()) == [(index, line(index)) for index in range(COUNT)]


def test_a_full_disk_leaves_the_file_as_it_was(path: Path) -> None:
    content = path.read_bytes()
    with open_file(path) as partial:
        partial._writer = Disk(partial._writer, 10, 1)
        with pytest.raises(OSError, match="No space left") as caught:
            partial.append([row(3)], 0.0)
        assert caught.value.filename == str(path)
        assert partial.left.tolist() == [3, 4]
    assert path.read_bytes() == content


def test_a_file_without_a_row_binds_no_other_run(tmp_path: Path) -> None:
    """As it is left behind by an engine that could not be started."""
    path = tmp_path / "d.jsonl.partial"
    for name in ("b", "a"):
        with open_file(path, {"generator": name}) as partial:
            assert partial.left.tolist() == list(range(COUNT))


@pytest.mark.parametrize(
    ("spoil", "number"),
    [
        (lambda lines: [lines[0], lines[1].replace(b"5-0", b"4-0"), *lines[2:]], 4),
        (lambda lines: [lines[0], *lines[2:]], 3),
        (lambda lines: [*lines, *lines[1:4]], 12),
        (lambda lines: [*lines[:3], lines[3].replace(b"[5, 0]", b"[5, 5]"), *lines[4:]], 4),
        (lambda lines: [*lines, b'{"commit": [\n'], 10),
        (lambda lines: [b"[]\n", *lines[1:]], 1),
    ],
)
def test_damage_before_the_last_commit_is_refused(
    path: Path, spoil: Callable[[Sequence[bytes]], list[bytes]], number: int
) -> None:
    path.write_bytes(b"".join(spoil(path.read_bytes().splitlines(keepends=True))))
    spoilt = path.read_bytes()
    with pytest.raises(DataError, match=f"partial, row {number}"):
        open_file(path)
    assert path.read_bytes() == spoilt
