# SPDX-License-Identifier: Apache-2.0
"""One writer at a time, named, and never locked out by one that is dead."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llamafactory_tpaw.data import locks
from llamafactory_tpaw.data.locks import Holder, locked
from llamafactory_tpaw.errors import DataError, EnvironmentProblem, InUseError


SCRIPT = """
import sys
from pathlib import Path
from llamafactory_tpaw.data.locks import locked
with locked(Path(sys.argv[1]), "It"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "saves" / "play_iter0"


@pytest.fixture
def other(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock of the path."""
    command = [sys.executable, "-c", SCRIPT, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


@pytest.fixture
def no_os_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that answers every lock with an error."""

    def acquire(self: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.FileLock, "acquire", acquire)


def take(path: Path) -> None:
    with locked(path, f"`output_dir: {path}`"):
        pass


def record_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock.json")


def test_holder_is_named(path: Path, other: subprocess.Popen[bytes]) -> None:
    with pytest.raises(InUseError) as caught:
        take(path)
    (message,) = caught.value.problems
    since = json.loads(record_of(path).read_text())["since"]
    assert message == (
        f"`output_dir: {path}` is in use: process {other.pid} on {socket.gethostname()} has been at work there since "
        f"{since}. Wait for it, or stop it and start again: what it finished is kept."
    )
    assert isinstance(caught.value, DataError)


def test_lock_of_a_dead_process_is_free(path: Path, other: subprocess.Popen[bytes]) -> None:
    other.kill()
    other.wait()
    assert record_of(path).exists()
    take(path)
    assert not record_of(path).exists()


def test_it_is_given_back_after_an_error(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(path, "It"):
        raise ZeroDivisionError
    take(path)
    assert not path.exists()


def test_others_beside_it_are_free(path: Path, other: subprocess.Popen[bytes]) -> None:
    take(path.with_name("play_iter1"))


def test_holder_that_is_just_writing_its_record(path: Path, other: subprocess.Popen[bytes]) -> None:
    for content in (None, "{", "[]", '{"pid": 1}'):
        record_of(path).unlink() if content is None else record_of(path).write_text(content)
        with pytest.raises(InUseError, match="is in use: another process is at work there"):
            take(path)


def test_folder_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.parent.joinpath("saves").touch()
    with pytest.raises(EnvironmentProblem, match=r"cannot be locked: .*Make its folder writable"):
        take(path)


@pytest.mark.usefixtures("no_os_locks")
class TestWithoutLocksOfTheSystem:
    def test_record_is_the_lock(self, path: Path) -> None:
        with locked(path, "It"), pytest.raises(InUseError, match=f"process {os.getpid()} on .* delete .*lock.json"):
            take(path)
        take(path)

    @pytest.mark.parametrize(
        "gone",
        [
            lambda holder: replace(holder, pid=_dead_process()),
            lambda holder: replace(holder, started=holder.started - 3600),  # the number was given to another one
        ],
    )
    def test_record_of_a_dead_process_is_removed(self, path: Path, gone: Callable[[Holder], Holder]) -> None:
        path.parent.mkdir()
        record_of(path).write_text(json.dumps(asdict(gone(Holder.here()))))
        take(path)

    def test_record_of_another_machine_is_believed(self, path: Path) -> None:
        path.parent.mkdir()
        record_of(path).write_text(json.dumps(asdict(replace(Holder.here(), host="gpu7", pid=_dead_process()))))
        with pytest.raises(InUseError, match=r"on gpu7 .* If that process is gone, delete"):
            take(path)


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
