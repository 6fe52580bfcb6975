# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, JSON and JSON lines with errors that name the place, torn last lines, digests."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafactory_tpaw.data import files
from llamafactory_tpaw.errors import DataError


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    files.write_atomic(path, "first\r\nähnlich\n")
    assert path.read_bytes() == "first\r\nähnlich\n".encode()
    files.write_atomic(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_parts_are_written_one_by_one_and_digested(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    parts = [b"first\r\n", b"", b"\x00\xff"]
    assert files.write_parts_atomic(path, iter(parts)) == files.sha256_hex(b"".join(parts)) == files.digest_file(path)
    assert path.read_bytes() == b"".join(parts)

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        files.write_parts_atomic(path, broken())
    assert path.read_bytes() == b"".join(parts)
    assert list(path.parent.iterdir()) == [path]


def test_write_atomic_respects_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        files.write_atomic(tmp_path / "a", "x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_write_atomic_flushes_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), flush(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), rename(*paths))[1])
    files.write_atomic(tmp_path / "a", "x")
    assert calls == ["fsync", "replace", "fsync"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    files.write_atomic(path, "old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full") as caught:
        files.write_atomic(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """A process killed between writing and renaming leaves the old file and a hidden temporary one."""
    path = tmp_path / "a.json"
    files.write_json_atomic(path, {"version": 1})
    script = (
        "import os, signal, sys\n"
        "from llamafactory_tpaw.data import files\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_json_atomic(sys.argv[1], {'version': 2})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == -signal.SIGKILL
    assert files.read_json(path) == {"version": 1}
    rest = [entry.name for entry in tmp_path.iterdir() if entry != path]
    assert len(rest) == 1
    assert rest[0].startswith(".a.json.")
    assert rest[0].endswith(files.TEMP_SUFFIX)


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"text": "Übung\n\u2028"}}
    files.write_json_atomic(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert "Übung" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(("value", "error"), [({"x": float("nan")}, ValueError), ({"x": {1}}, TypeError)])
def test_write_json_refuses_what_json_has_not(tmp_path: Path, value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        files.write_json_atomic(tmp_path / "a.json", value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", b"{} {}", b"[" * 100_000])
def test_read_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json is not (valid JSON|UTF-8)"):
        files.read_json(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.json cannot be read: No such file"):
        files.read_json(tmp_path / "no.json")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        files.read_json(tmp_path)


def test_a_row_is_one_object() -> None:
    assert files.parse_row("a.jsonl", 1, '{"a": "x\u2028y"}\r\n'.encode()) == {"a": "x\u2028y"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', r"a\.jsonl, row 2 is not valid JSON: Expecting .*\. Repair the row"),
        (b"\xff\xff\xff", r"a\.jsonl, row 2 is not UTF-8: 0xff at byte 1\."),
        (b"[1]", r"a\.jsonl, row 2 must be a JSON object in braces, got list"),
        (b"null", r"a\.jsonl, row 2 must be a JSON object in braces, got NoneType"),
    ],
)
def test_bad_rows_are_named(line: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        files.parse_row("a.jsonl", 2, line + b"\n")


def test_digests() -> None:
    assert files.sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.digest_json({"b": [1, 2.5], "a": "ü"}) == hashlib.sha256(b'{"a":"\\u00fc","b":[1,2.5]}').hexdigest()
    assert files.digest_json({"a": 1, "b": 2}) == files.digest_json({"b": 2, "a": 1})
    assert len({files.digest_json(value) for value in ([1, 2], [2, 1], ["1", 2], {"1": 2}, [1, 2, None])}) == 5
    with pytest.raises(ValueError):
        files.digest_json(float("inf"))
