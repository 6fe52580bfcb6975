# SPDX-License-Identifier: Apache-2.0
"""Local files of rows as `datasets` reads them, and which row keeps it from doing so."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, TpawError
from ..lf.failures import explain
from .files import decode, parse_json, parse_row


if TYPE_CHECKING:
    from collections.abc import Sequence

# How `datasets` reads a file, by its ending.
KINDS = {".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
BOM = b"\xef\xbb\xbf"
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def files_of(path: Path, what: str = "`--data`") -> list[Path]:
    """A file, or those of a folder by name: file systems list them in any order. Hidden ones hold no rows."""
    if not path.exists():
        raise DataError(
            f"{what} names {path}, which does not exist. Put the file there, or correct `file_name` in "
            "dataset_info.json."
        )
    files = sorted(file for file in path.iterdir() if not file.name.startswith(".")) if path.is_dir() else [path]
    kind = next(filter(None, (KINDS.get(file.suffix) for file in files)), None)
    for file in (file for file in files if KINDS.get(file.suffix) != kind) if kind else [path]:
        raise DataError(
            f"{what} names {file}, but rows are in one file, or in a folder of files of one kind, that ends in "
            f"{', '.join(KINDS)}. Convert it, or move it away."
        )
    return files


def read_files(files: Sequence[Path], cache_dir: str | None = None, split: str = "train", **options: Any) -> Any:
    """Read files in this order, whose names are no patterns; a `DataError` names the file and row that cannot be."""
    from datasets import load_dataset
    from datasets.data_files import DataFilesDict, DataFilesList

    kind, where = KINDS[files[0].suffix], files[0] if len(files) == 1 else files[0].parent
    try:
        stamps = [(str(path.stat().st_mtime),) for path in files]  # a changed file is read again
        named = DataFilesDict(train=DataFilesList([os.path.abspath(path) for path in files], stamps))
        for path in files if kind == "json" else ():
            with path.open("rb") as stream:  # of an array, half a character would be dropped without a word
                if stream.read(64).lstrip().startswith(b"[") and SURROGATE.search(path.read_bytes()):
                    check_json(path)
        rows = load_dataset(kind, data_files=named, split=split, cache_dir=cache_dir, **options)
        rows.data.table.validate(full=True)  # else damaged ones, or `[null, "a"]` in JSON, would crash the process
    except Exception as error:  # `datasets` and what it reads with raise what they like
        if isinstance(error, TpawError) or explain(error, {}):
            raise
        rows = check_files(files) and "corresponds to no data" not in str(error)
        for path in files if len(files) > 1 else ():  # which names the one that cannot be read by itself
            read_files([path], cache_dir)
        if rows:
            cause = " ".join(str(error.__cause__ or error).partition("\n\nPlease")[0].split()).rstrip(".")
            raise DataError(
                f"{where} cannot be read: {cause}. Correct the file: in a column all values have one type."
            ) from error
    if not rows:
        raise DataError(f"{where} has no rows. Give a dataset with at least one row.")
    return rows


def check_files(files: Sequence[Path]) -> bool:
    """Whether there may be rows; a `DataError` names the first one that is not of its file's format, or no UTF-8."""
    kind = KINDS[files[0].suffix]
    for path in files if kind in ("csv", "text") else ():
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            decode(line, f"{path}, line {number}")
    return kind != "json" or sum(map(check_json, files)) > 0


def check_json(path: Path) -> int:
    """Count the rows of a JSON file; a `DataError` names the first one, from 1, with which it cannot be read."""
    import pyarrow
    from pyarrow.json import ReadOptions, read_json

    content, advice = path.read_bytes(), "Correct or remove the row."
    text = content.removeprefix(BOM)
    lines, is_array = [line for line in text.splitlines() if line.strip()], text.lstrip().startswith(b"[")
    if lines[:1] == [b"{"]:
        raise DataError(f"{path} has rows on several lines, which only short files may. Write each row on one line.")
    if is_array and content != text:
        raise DataError(f"{path} has a byte order mark before its array. Save it as UTF-8 without one.")
    if is_array:
        lines = [json.dumps(row).encode() for row in parse_json(text, str(path), "Correct the file.")]
    for number, line in enumerate(lines, start=1):
        parse_row(path, number, line, advice)
    try:
        read_json(io.BytesIO(b"\n".join(lines)), read_options=ReadOptions(block_size=len(text) * 2 + 1))
    except pyarrow.ArrowException as error:
        reason, _, number = str(error).removeprefix("JSON parse error: ").rpartition(" in row ")  # from 0
        if number.isdecimal():
            raise DataError(f"{path}, row {int(number) + 1}: {reason.rstrip('.')}. {advice}") from error
    for number, line in enumerate(lines, start=1):
        try:
            read_json(io.BytesIO(line), read_options=ReadOptions(block_size=len(line) * 2 + 1)).validate(full=True)
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}, row {number}: a list begins with null, which pyarrow loses. {advice}") from error
    return len(lines)
