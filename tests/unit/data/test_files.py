# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, JSON with errors that name the place, digests, and locks that end with their process."""

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
from llamafactory_tpaw.errors import DataError, InUseError


def test_a_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    previous = os.umask(0o022)
    try:
        files.write_atomic(path, "first\r\nähnlich\n")
    finally:
        os.umask(previous)
    assert path.read_bytes() == "first\r\nähnlich\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    parts = [b"first\r\n", b"", b"\x00\xff"]
    assert files.write_parts_atomic(str(path), iter(parts)) == files.sha256_hex(b"".join(parts))
    assert files.digest_file(path) == files.sha256_hex(path.read_bytes())
    assert list(path.parent.iterdir()) == [path]


def test_a_write_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), flush(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), rename(*paths))[1])
    files.write_atomic(tmp_path / "a", "x")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    files.write_atomic(path, "old")

    def parts() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        files.write_parts_atomic(path, parts())

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full") as caught:
        files.write_atomic(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def run_python(script: str, path: Path, **settings: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[3], **settings)


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json_atomic(path, {"version": 1})
    script = (
        "import os, signal, sys\n"
        "from llamafactory_tpaw.data import files\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_json_atomic(sys.argv[1], {'version': 2})\n"
    )
    assert run_python(script, path).wait() == -signal.SIGKILL
    assert files.read_json(path) == {"version": 1}
    (rest,) = (entry.name for entry in tmp_path.iterdir() if entry != path)
    assert rest.startswith(".a.json.")
    assert rest.endswith(files.TEMP_SUFFIX)


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"text": "Übung\n\u2028"}}
    files.write_json_atomic(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert "Übung" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError):
        files.write_json_atomic(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", b"{} {}", b"[" * 100_000])
def test_read_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json is not (valid JSON|UTF-8)"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"no\.json cannot be read: No such file"):
        files.read_json(tmp_path / "no.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', r"a\.jsonl, row 2 is not valid JSON: Expecting .* at character 8\. Repair the row"),
        (b"a\xff", r"a\.jsonl, row 2 is not UTF-8: 0xff at byte 2\."),
        (b"[1]", r"a\.jsonl, row 2 must be a JSON object in braces, got list"),
    ],
)
def test_bad_rows_are_named(line: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        files.parse_row("a.jsonl", 2, line + b"\n")
    assert files.parse_row("a.jsonl", 1, '{"a": "x\u2028y"}\r\n'.encode()) == {"a": "x\u2028y"}


def test_digests() -> None:
    assert files.sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.digest_json({"b": [1, 2.5], "a": "ü"}) == hashlib.sha256(b'{"a":"\\u00fc","b":[1,2.5]}').hexdigest()
    assert len({files.digest_json(value) for value in ([1, 2], [2, 1], ["1", 2], {"1": 2}, [1, 2, None])}) == 5
    with pytest.raises(ValueError):
        files.digest_json(float("inf"))


def take(path: Path) -> None:
    with files.locked(path, f"`output_dir: {path}`"):
        pass


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "saves" / "play_iter0"
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from llamafactory_tpaw.data.files import locked\n"
        "with locked(Path(sys.argv[1]), 'It'):\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with run_python(script, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        take(path.with_name("play_iter1"))
        with pytest.raises(
            InUseError, match=r"`output_dir: .*play_iter0` is in use: another process is at work there"
        ):
            take(path)
        other.kill()  # its lock ends with it
        other.wait()
    take(path)
    with pytest.raises(ZeroDivisionError), files.locked(path, "It"):
        raise ZeroDivisionError
    take(path)


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(lock: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.FileLock, "acquire", acquire)
    with files.locked(tmp_path / "x", "It"):
        assert "has no locks: see to it that one process works there at a time" in caplog.text
