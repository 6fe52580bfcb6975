# SPDX-License-Identifier: Apache-2.0
"""The half-done file: what was committed is there after any end of the process, and nothing else."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.generation.partial import NewRow, PartialFile


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

IDENTITY = {"generator": "a", "sampling": {"seed": 1}}
COUNT = 7
COMMITS = ((5, 0), (), (2, 6, 1))


def row(index: int) -> NewRow:
    return NewRow(index, json.dumps({"id": f"{index}-0", "text": "ä\n" * index}, ensure_ascii=False), {"stop": 1})


def open_file(path: Path, identity: dict[str, object] = IDENTITY, count: int = COUNT) -> PartialFile:
    return PartialFile(path, identity, count)


def line(index: int) -> bytes:
    return row(index).line.encode() + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with three commits."""
    path = tmp_path / "d.jsonl.partial"
    with open_file(path) as partial:
        for commit in COMMITS:
            partial.append([row(index) for index in commit], 0.5, "1.0")
    return path


def state(partial: PartialFile) -> tuple[list[tuple[int, bytes]], list[int], int, float, dict[str, int], str]:
    return (
        list(partial.rows()),
        partial.left.tolist(),
        partial.done,
        partial.seconds,
        dict(partial.counts),
        partial.version,
    )


def test_rows_come_in_the_order_of_the_requests(path: Path) -> None:
    with open_file(path) as partial:
        assert state(partial) == (
            [(index, line(index)) for index in (0, 1, 2, 5, 6)],
            [3, 4],
            5,
            1.5,
            {"stop": 5},
            "1.0",
        )
        partial.append([row(3)], 0.25, "1.1")
        appended = state(partial)
    assert appended[1:] == ([4], 6, 1.75, {"stop": 6}, "1.1")
    with open_file(path) as partial:
        assert state(partial) == appended
        partial.remove()
    assert not path.exists()


def test_each_commit_is_one_write_that_is_flushed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("os.fsync", lambda _: calls.append("fsync"))
    with open_file(path) as partial:
        write = partial._writer.write

        class Counting:
            def __getattr__(self, name: str) -> object:
                return getattr(writer, name)

            def write(self, content: memoryview) -> int:
                calls.append("write")
                return write(content)

        writer, partial._writer = partial._writer, Counting()
        partial.append([row(3), row(4)], 0.0)
    assert calls == ["write", "fsync"]


def test_cut_anywhere_it_holds_the_whole_commits(path: Path) -> None:
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    ends = [header]
    for end in (place + 1 for place in range(len(content)) if content[place : place + 1] == b"\n"):
        if content[:end].rsplit(b"\n", 2)[-2].startswith(b'{"commit"'):
            ends.append(end)
    assert len(ends) == 4
    sizes = {size for end in ends for size in range(end - 2, end + 3) if size <= len(content)}
    for size in sorted({*range(0, len(content), 7), *sizes}):
        path.write_bytes(content[:size])
        with open_file(path) as partial:
            whole = sum(size >= end for end in ends[1:])
            done = [index for commit in COMMITS[:whole] for index in commit]
            assert [index for index, _ in partial.rows()] == sorted(done)
        assert path.read_bytes() == content[: max(end for end in ends if end <= max(size, header))]


def test_short_writes_are_continued(path: Path) -> None:
    with open_file(path) as partial:
        raw = partial._writer

        class Short(io.RawIOBase):
            def write(self, content: memoryview) -> int:
                return raw.write(content[:3])

            def fileno(self) -> int:
                return raw.fileno()

        partial._writer = Short()
        partial.append([row(3), row(4)], 0.0)
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


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        ({"generator": "b" * 64}, "another generator"),
        ({"sampling": {"seed": 2}, "more": 1}, "another more; `seed` was 1 and is 2 now"),
    ],
)
def test_another_identity_is_refused(path: Path, identity: dict[str, object], named: str) -> None:
    content = path.read_bytes()
    with pytest.raises(DataError, match=rf"partial was begun otherwise: {named}\. Restore .* or delete it"):
        open_file(path, IDENTITY | identity)
    assert path.read_bytes() == content


def test_a_file_without_a_row_is_begun_anew_with_another_identity(tmp_path: Path) -> None:
    """As it is left behind by an engine that could not be started; the rows after the header were never whole."""
    path = tmp_path / "d.jsonl.partial"
    open_file(path, {"generator": "b"}).__exit__()
    path.write_bytes(path.read_bytes() + line(1) + line(2))
    with open_file(path) as partial:
        assert partial.left.tolist() == list(range(COUNT))
        partial.append([row(3)], 0.5)
    with open_file(path) as partial:
        assert state(partial)[0] == [(3, line(3))]


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def change_row(lines: Sequence[bytes]) -> list[bytes]:
    return [*lines[:1], lines[1].replace(b"5-0", b"4-0"), *lines[2:]]


def drop_row(lines: Sequence[bytes]) -> list[bytes]:
    return [*lines[:1], *lines[2:]]


def repeat_commit(lines: Sequence[bytes]) -> list[bytes]:
    return [*lines, *lines[1:4]]


def twice_in_one(lines: Sequence[bytes]) -> list[bytes]:
    return [*lines[:3], lines[3].replace(b"[5, 0]", b"[5, 5]"), *lines[4:]]


def beyond(lines: Sequence[bytes]) -> list[bytes]:
    return [*lines[:3], lines[3].replace(b"[5, 0]", b"[5, 7]"), *lines[4:]]


def bare(lines: Sequence[bytes]) -> list[bytes]:
    return [*lines, b'{"commit": []}\n']


def broken(lines: Sequence[bytes]) -> list[bytes]:
    return [*lines, b'{"commit": [\n']


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change_row, r"partial, row 4: the 2 rows before it are not the 2 that were written\. Restore the file"),
        (drop_row, r"partial, row 3: the 1 rows before it are not the 2 that were written\."),
        (repeat_commit, r"partial, row 12: the file has two rows for request 5\."),
        (twice_in_one, r"partial, row 4: the file has two rows for request 5\."),
        (beyond, r"partial, row 4 names a request that is none of the 7 there are\."),
        (bare, r"partial, row 10 ends a part of the file, but lacks what belongs there\."),
        (broken, r"partial, row 10 is not valid JSON"),
        (lambda lines: [b"[]\n", *lines[1:]], r"partial, row 1 must be a JSON object"),
    ],
)
def test_damage_before_the_last_commit_is_refused(
    path: Path, spoil: Callable[[Sequence[bytes]], list[bytes]], message: str
) -> None:
    path.write_bytes(b"".join(spoil(lines_of(path))))
    spoilt = path.read_bytes()
    with pytest.raises(DataError, match=message):
        open_file(path)
    assert path.read_bytes() == spoilt


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_file(tmp_path)
