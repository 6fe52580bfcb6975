# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, JSON with errors that name the place, digests, and locks that end with their process."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafactory_tpaw.data import files
from llamafactory_tpaw.data.triplets import meta_path, read_meta, write_meta
from llamafactory_tpaw.errors import DataError
from tests.unit.report.played import META


def test_a_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    files.write_atomic(path, "first\r\nähnlich\n")
    assert path.read_bytes() == "first\r\nähnlich\n".encode()
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


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", b"{} {}", b"[" * 100_000])
def test_read_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json is not (valid JSON|UTF-8)"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"no\.json cannot be read: No such file"):
        files.read_json(tmp_path / "no.json")


@pytest.mark.parametrize("other", ["257", "NaN"])
def test_a_changed_meta_file_is_told_by_its_own_digest(tmp_path: Path, other: str) -> None:
    path = tmp_path / "d.jsonl"
    write_meta(path, META)
    assert read_meta(path) == META
    changed = meta_path(path)
    changed.write_text(changed.read_text().replace('"cutoff_len": 256', f'"cutoff_len": {other}'))
    with pytest.raises(DataError, match=f"^{changed} was changed since it was written"):
        read_meta(path)


def test_digests() -> None:
    assert files.sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.digest_json({"b": [1, 2.5], "a": "ü"}) == hashlib.sha256(b'{"a":"\\u00fc","b":[1,2.5]}').hexdigest()
    assert len({files.digest_json(value) for value in ([1, 2], [2, 1], ["1", 2], {"1": 2}, [1, 2, None])}) == 5
    with pytest.raises(ValueError):
        files.digest_json(float("inf"))


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(lock: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.FileLock, "acquire", acquire)
    with files.locked(tmp_path / "x", "It"):
        assert "has no locks: see to it that one process works there at a time" in caplog.text
