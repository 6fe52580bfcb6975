# SPDX-License-Identifier: Apache-2.0
"""One writer at a time for a triplet file or an output folder, and who it is.

The lock is one of the operating system, which ends with its process however that ends. Beside it a record names the
holder. Where the file system knows no locks, the record itself is the lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ..errors import DataError, EnvironmentProblem, InUseError
from .files import read_json, write_json_atomic


# NFS without its lock service, FUSE, object stores.
WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
SAME_START_S = 60.0  # clocks are set


@dataclass(frozen=True)
class Holder:
    r"""Who holds a lock.

    Attributes:
        host: Name of its machine.
        pid: Its process there.
        started: When that process began, in seconds since the epoch, so that a later one of the same number is known.
        since: When it took the lock, as a reader wants it.
    """

    host: str
    pid: int
    started: float
    since: str

    @classmethod
    def here(cls) -> Holder:
        """This process, now."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time(), since)

    def is_gone(self) -> bool:
        """Whether it is known to have ended; of another machine nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > SAME_START_S
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


@contextlib.contextmanager
def locked(path: Path, subject: str) -> Iterator[None]:
    r"""Be the only process that writes a file or folder.

    Args:
        path: What is written. The lock is `.<name>.lock` beside it, the record `.<name>.lock.json`.
        subject: How the message calls it, as the beginning of a sentence.

    Raises:
        InUseError: If another process does; the message names host, process and time.
        EnvironmentProblem: If no lock can be made there.
    """
    lock_file = path.with_name(f".{path.name}.lock")
    record = path.with_name(f".{path.name}.lock.json")
    with contextlib.ExitStack() as stack:
        try:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(lock_file, timeout=0)
            lock.acquire()
            stack.callback(lock.release)
            write_json_atomic(record, asdict(Holder.here()))
        except Timeout:
            raise InUseError(_in_use(subject, _read_holder(record))) from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
                raise EnvironmentProblem(
                    f"{subject} cannot be locked: {lock_file}: {error.strerror or error}. Make its folder writable, "
                    "or choose another one."
                ) from error
            _take_record(record, subject)
        stack.callback(record.unlink, missing_ok=True)
        yield


def _take_record(record: Path, subject: str) -> None:
    """Make the record, which only one process can; one that a dead process left is removed before."""
    for _ in range(2):
        try:
            descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            holder = _read_holder(record)
            if holder is None or not holder.is_gone():
                advice = (
                    f" If that process is gone, delete {record}: this file system has no locks that end by themselves."
                )
                raise InUseError(_in_use(subject, holder) + advice) from None
            record.unlink(missing_ok=True)
            continue
        with os.fdopen(descriptor, "w") as stream:
            json.dump(asdict(Holder.here()), stream)
        return
    raise InUseError(_in_use(subject, _read_holder(record)))


def _read_holder(record: Path) -> Holder | None:
    try:
        return Holder(**read_json(record))
    except (DataError, TypeError):
        return None  # It is being written right now; the message does without it.


def _in_use(subject: str, holder: Holder | None) -> str:
    who = (
        f"process {holder.pid} on {holder.host} has been at work there since {holder.since}"
        if holder
        else "another process is at work there"
    )
    return f"{subject} is in use: {who}. Wait for it, or stop it and start again: what it finished is kept."
