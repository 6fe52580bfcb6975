# SPDX-License-Identifier: Apache-2.0
"""The half-done file: what was committed is there after any end of the process, and nothing else."""

from __future__ import annotations

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


def open_file(path: Path, identity: dict[str, object] = IDENTITY) -> PartialFile:
    return PartialFile(path, identity, COUNT)


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
        partial.remove()
    assert not path.exists()


def test_what_an_earlier_release_wrote_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.partial"
    path.write_bytes(
        b'{"generator": "a", "sampling": {"seed": 1}}\n{"id": "5-0"}\n{"commit": [5], "crc32": 2140903057, '
        b'"seconds": 0.5, "counts": {"stop": 1}, "version": "1.0"}\n'
    )
    with open_file(path) as partial:
        assert state(partial) == ([(5, b'{"id": "5-0"}\n')], [0, 1, 2, 3, 4, 6], 1, 0.5, {"stop": 1}, "1.0")


def test_cut_anywhere_it_holds_the_whole_commits(path: Path) -> None:
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    lines = content.splitlines(keepends=True)
    ends = [header, *(sum(map(len, lines[: n + 1])) for n, text in enumerate(lines) if text.startswith(b'{"commit"'))]
    assert len(ends) == 4
    sizes = {size for end in ends for size in range(end - 2, end + 3) if size <= len(content)}
    for size in sorted({*range(0, len(content), 7), *sizes}):
        path.write_bytes(content[:size])
        with open_file(path) as partial:
            whole = sum(size >= end for end in ends[1:])
            done = [index for commit in COMMITS[:whole] for index in commit]
            assert [index for index, _ in partial.rows()] == sorted(done)
        assert path.read_bytes() == content[: max(end for end in ends if end <= max(size, header))]


def test_a_commit_is_flushed_and_short_writes_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("os.fsync", lambda _: calls.append("fsync"))
    with open_file(path) as partial:
        raw = partial._writer

        class Short(io.RawIOBase):
            def write(self, content: memoryview) -> int:
                calls.append("write")
                return raw.write(content[:100])

            def fileno(self) -> int:
                return raw.fileno()

        partial._writer = Short()
        partial.append([row(3), row(4)], 0.0)
    assert calls == ["write", "write", "fsync"]
    with open_file(path) as partial:
        assert list(partial.rows()) == [(index, line(index)) for index in range(COUNT)]


def test_a_full_disk_leaves_the_file_as_it_was(path: Path) -> None:
    content = path.read_bytes()
    with open_file(path) as partial:
        raw = partial._writer

        class Full(io.RawIOBase):
            def write(self, content: memoryview) -> int:
                raw.write(content[:10])
                raise OSError(errno.ENOSPC, "No space left on device")

            def truncate(self, size: int | None = None) -> int:
                return raw.truncate(size)

        partial._writer = Full()
        with pytest.raises(OSError) as caught:
            partial.append([row(3)], 0.0)
        assert caught.value.filename == str(path)
        assert partial.left.tolist() == [3, 4]
    assert path.read_bytes() == content


def test_a_file_without_a_row_is_begun_again_with_another_identity(tmp_path: Path) -> None:
    """As it is left behind by an engine that could not be started; the rows after the header were never whole."""
    path = tmp_path / "d.jsonl.partial"
    open_file(path, {"generator": "b"}).__exit__()
    path.write_bytes(path.read_bytes() + line(1) + line(2))
    with open_file(path) as partial:
        assert partial.left.tolist() == list(range(COUNT))
        partial.append([row(3)], 0.5)
    with open_file(path) as partial:
        assert state(partial)[0] == [(3, line(3))]


@pytest.mark.parametrize(
    ("spoil", "number"),
    [
        (lambda lines: [lines[0], lines[1].replace(b"5-0", b"4-0"), *lines[2:]], 4),
        (lambda lines: [lines[0], *lines[2:]], 3),
        (lambda lines: [*lines, *lines[1:4]], 12),
        (lambda lines: [*lines[:3], lines[3].replace(b"[5, 0]", b"[5, 5]"), *lines[4:]], 4),
        (lambda lines: [*lines[:3], lines[3].replace(b"[5, 0]", b"[5, 7]"), *lines[4:]], 4),
        (lambda lines: [*lines, b'{"commit": []}\n'], 10),
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
