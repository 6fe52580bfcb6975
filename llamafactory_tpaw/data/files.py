# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, JSON and JSON lines with errors that name the place, and digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError


TEMP_SUFFIX = ".tmp"


class JsonlPrefix(NamedTuple):
    """What `read_jsonl_prefix` found."""

    rows: list[dict[str, Any]]
    """The objects of all complete lines."""
    end: int
    """Bytes up to the end of the last complete line: truncate the file to this before appending."""
    torn_bytes: int
    """Bytes after `end`: a line whose writer was killed. 0 where there is none."""


def write_atomic(path: str | Path, content: str | bytes) -> None:
    r"""Write a file so that readers, and whoever comes after a crash, see the old or the new one and nothing between.

    The content goes to a temporary file in the same folder (`.<name>.<random>.tmp`), is flushed to the disk and
    renamed. Missing parent folders are made. Text is written as UTF-8.

    Raises:
        OSError: If the folder cannot be written to; the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMP_SUFFIX}")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    # Some network file systems cannot flush a folder. The rename is atomic there too, only later on the disk.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json_atomic(path: str | Path, value: Any) -> None:
    r"""Write `value` as indented JSON, as `write_atomic` does.

    Raises:
        ValueError: If a number is NaN or inf, which JSON does not have.
        TypeError: If `value` holds something that JSON does not have.
    """
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    r"""Read a JSON file.

    Raises:
        DataError: If the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}). Repair or delete the file.") from error
    except OSError as error:
        raise DataError(_cannot_read(path, error)) from error


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Iterate over the objects of a JSON lines file.

    Yields:
        Row number, counted in lines from 1, and the object. Blank lines are skipped but counted.

    Raises:
        DataError: If the file is missing or a row is no JSON object, naming the file and the row.
    """
    try:
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _parse_row(path, number, line)
    except OSError as error:
        raise DataError(_cannot_read(path, error)) from error


def read_jsonl_prefix(path: str | Path) -> JsonlPrefix:
    r"""Read what an interrupted writer of JSON lines finished.

    A last line without its newline is torn, even if it happens to parse: it is left out, and the file must be cut to
    `end` bytes before more is appended. A missing file is an empty one.

    Raises:
        DataError: If a complete line is no JSON object, naming the file and the row, or the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return JsonlPrefix([], 0, 0)
    except OSError as error:
        raise DataError(_cannot_read(path, error)) from error
    end = content.rfind(b"\n") + 1
    lines = content[:end].split(b"\n")
    rows = [_parse_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return JsonlPrefix(rows, end, len(content) - end)


def _parse_row(path: str | Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        start = line[:80].decode(errors="replace").rstrip()
        raise DataError(f"{path}, row {number} is not valid JSON ({error}): {start}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, row {number} must be a JSON object in braces, got {type(row).__name__}.")
    return row


def _cannot_read(path: str | Path, error: OSError) -> str:
    return f"{path} cannot be read: {error.strerror or error}. Check the path and its permissions."


def sha256_hex(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: str | Path) -> str:
    r"""Return the SHA-256 of a file's bytes as 64 hex digits.

    Raises:
        DataError: If the file is missing or cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(_cannot_read(path, error)) from error


def digest_json(value: Any) -> str:
    r"""Return the SHA-256 of a value's canonical JSON: sorted keys, no spaces, ASCII. 1 and 1.0 differ.

    Raises:
        ValueError: If a number is NaN or inf.
        TypeError: If `value` holds something that JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return sha256_hex(text.encode("ascii"))
