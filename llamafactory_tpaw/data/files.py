# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, JSON with errors that name the place, digests, and one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from ..errors import DataError, EnvironmentProblem, InUseError


try:
    import fcntl
except ImportError:  # Windows, where temporary files of killed processes stay
    fcntl = None

TEMP_SUFFIX, SEAL = ".tmp", "own_digest"
SHOWN, ADAPTER = 3, functools.cache(TypeAdapter)  # wrong values of a file


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader, also one that comes after a crash, sees the old or the new one, never a part."""
    write_parts_atomic(path, [content.encode() if isinstance(content, str) else content])


def write_parts_atomic(path: str | Path, parts: Iterable[bytes]) -> str:
    """Write a file as `write_atomic` does from parts, of which one at a time is in memory; return its SHA-256.

    They go to a temporary file in the same folder, which is flushed and renamed; what killed ones left is removed.
    """
    path, digest = Path(path), hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".*.{'?' * 12}{TEMP_SUFFIX}") if fcntl else ():
        with contextlib.suppress(OSError), open(left, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(stream.fileno()).st_mtime > 1:  # else its process may not have locked it yet
                left.unlink()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMP_SUFFIX}")
    try:
        with open(temporary, "xb") as stream:
            with contextlib.suppress(OSError, AttributeError):  # without locks
                fcntl.flock(stream, fcntl.LOCK_SH)
            for part in parts:
                digest.update(part)
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a write names no file, and the temporary one means nothing to a reader
        raise
    # Some network file systems cannot flush a folder. The rename is atomic there too, only later on the disk.
    with contextlib.suppress(OSError):
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return digest.hexdigest()


def write_json_atomic(path: str | Path, value: Any, *, seal: bool = False) -> None:
    """Write indented JSON as `write_atomic` does, with `seal` its digest in it; NaN and inf are a ValueError."""
    value = value | {SEAL: digest_json(value)} if seal else value
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; one that is missing, cannot be read, is not JSON or not what was sealed is a `DataError`."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    value = parse_json(content, str(path), "Repair or restore the file.")
    seal = value.pop(SEAL, None) if isinstance(value, dict) else None
    if seal and seal != digest_json(value, allow_nan=True):
        raise DataError(f"{path} was changed since it was written: its `{SEAL}` is of another content. Restore it.")
    return value


def decode(content: bytes, where: str) -> str:
    """Read UTF-8, with or without a byte order mark; otherwise a `DataError` says `where` and the byte."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: 0x{content[error.start]:02x} at byte {error.start + 1}. Save the file as UTF-8."
        ) from error


def parse_json(content: bytes, where: str, advice: str) -> Any:
    """Read JSON that is UTF-8; otherwise a `DataError` says `where`, the place in it, and `advice`."""
    try:
        return json.loads(decode(content, where))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, character" if b"\n" in content.rstrip(b"\n") else "character"
        raise DataError(
            f"{where} is not valid JSON: {error.msg.removesuffix(' at')} at {place} {error.colno}. {advice}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {error}. {advice}") from error


def parse_row(
    path: str | Path, number: int, line: bytes, advice: str = "Repair the row, or delete the file."
) -> dict[str, Any]:
    """Read one line of a JSON lines file; one that is no JSON object is a `DataError` that names file and row."""
    where = f"{path}, row {number}"
    row = parse_json(line.rstrip(b"\r\n"), where, advice)
    if not isinstance(row, dict):
        raise DataError(f"{where} must be a JSON object in braces, got {type(row).__name__}. {advice}")
    return row


def key_problems(kind: type, content: Any) -> list[str]:
    """Say what keeps JSON from becoming a dataclass: keys that it lacks or has too many, values of other types."""
    try:
        ADAPTER(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        return [f"`{'.'.join(map(str, each['loc'])) or 'it'}`: {each['msg']}" for each in error.errors()[:SHOWN]]
    return [f"it has `{name}`, which is unknown" for name in content.keys() - {spec.name for spec in fields(kind)}]


def cannot_read(path: str | Path, error: OSError) -> str:
    """Say which file cannot be read and why."""
    return f"{path} cannot be read: {error.strerror or error}. Check the path and its permissions."


def sha256_hex(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits; one that cannot be read is a `DataError`."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error


def digest_json(value: Any, *, allow_nan: bool = False) -> str:
    """Return the SHA-256 of a value's canonical JSON: sorted keys, no spaces, ASCII. 1 and 1.0 differ."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=allow_nan)
    return sha256_hex(text.encode("ascii"))


# NFS without its lock service, FUSE, object stores.
WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


@contextlib.contextmanager
def locked(path: Path, subject: str) -> Iterator[None]:
    """Be the only process that writes `path`, else `InUseError`; `.<name>.lock` beside it ends with its process."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InUseError(
            f"{subject} is in use: another process is at work there. Wait for it, or stop it and start again: what it "
            "finished is kept."
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
            raise EnvironmentProblem(
                f"{subject} cannot be locked: {lock.lock_file}: {error.strerror or error}. Make its folder writable, "
                "or choose another one."
            ) from error
        logging.getLogger(__name__).warning(
            f"The file system of {lock.lock_file} has no locks: see to it that one process works there at a time."
        )
    try:
        yield
    finally:
        lock.release()


def readable_bytes(amount: float) -> str:
    """Write a number of bytes as KiB, MiB, GiB: `14.3 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.{0 if unit == 'B' else 1}f} {unit}"
        amount /= 1024
