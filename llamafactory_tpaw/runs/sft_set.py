# SPDX-License-Identifier: Apache-2.0
"""The SFT set of a new run: an entry that is there, or a file whose columns have the usual names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..data.local import files_of, read_files
from ..data.source import DATASET_INFO, find_entry, read_info
from ..errors import ConfigError, DataError


USUAL = {
    "prompt": ("instruction", "prompt", "question", "query", "problem"),
    "query": ("input",),  # beside a column that asks, it is what the question is about
    "response": ("output", "response", "answer", "completion", "solution", "target"),
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "chat"),
    "system": ("system", "system_prompt", "system_message"),
    "tools": ("tools",),
}
COLUMN_ROLES = ("prompt", "query", "response", "history", "messages", "system", "tools")
# Messages with `from` and `value` need none: theirs are LlamaFactory's defaults.
ROLE_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
ROLE_TAGS |= {"observation_tag": "tool", "function_tag": "function", "system_tag": "system"}


class SftSet(NamedTuple):
    """The SFT set: its name and entry, and where it is local, its file and how many rows that has."""

    name: str
    entry: dict[str, Any]
    path: Path | None = None
    total: int | None = None


def find_sft_set(base: Path, data: str, given: Mapping[str, str]) -> SftSet:
    """Look up an entry, or read a file and tell what its columns are, by `given` (role to column) or usual names."""
    info, path = base / DATASET_INFO, Path(data).expanduser()
    if info.exists() and data in read_info(info):
        if given:
            raise ConfigError(f"`--columns` is for a file, but `--data {data}` is an entry of {info}. Leave it out.")
        entry = find_entry(data, str(base), "--data")
        total = None if entry.path is None else len(read_files(files_of(entry.path)))
        return SftSet(data, entry.attributes, entry.path, total)
    if not path.is_file():
        raise ConfigError(
            f"`--data {data}` is neither a file nor an entry of {info}. Name a .json, .jsonl, .csv or .parquet file; "
            "for a set on a hub add an entry with `hf_hub_url` there."
        )
    rows, file = read_files(files_of(path)), path.resolve()
    is_inside = file.is_relative_to(base.resolve().parent)
    name = Path(os.path.relpath(file, base.resolve())).as_posix() if is_inside else file.as_posix()
    return SftSet(slug(path.stem), {"file_name": name, **_describe(data, rows, given)}, path, len(rows))


def _describe(file: str, rows: Any, given: Mapping[str, str]) -> dict[str, Any]:
    """Make the entry of a file, without its `file_name`, by what is given of its columns, else by their names."""
    names = rows.column_names
    wrong = [f"{role}={column}" for role, column in given.items() if role not in COLUMN_ROLES or column not in names]
    columns = dict(given or _usual_columns(names))
    if wrong or ("messages" not in columns and not {"prompt", "response"} <= columns.keys()):
        what = f"`--columns {','.join(wrong)}` does not fit" if wrong else "Prompt and response cannot be told in"
        raise DataError(
            f"{what} {file}, whose columns are {', '.join(names)}. Say which is which with "
            "`--columns prompt=...,response=...` or `--columns messages=...`."
        )
    if "messages" not in columns:
        return {"columns": columns}
    first = (rows[0][columns["messages"]] or [None])[0]
    for keys, tags in (({"role", "content"}, {"tags": ROLE_TAGS}), ({"from", "value"}, {})):
        if isinstance(first, dict) and keys <= first.keys():
            return {"formatting": "sharegpt", "columns": columns, **tags}
    raise DataError(
        f"`{columns['messages']}` of {file} must be lists of messages with `role` and `content`, or `from` and "
        "`value`. Rename them, or write its entry of dataset_info.json yourself."
    )


def _usual_columns(names: list[str]) -> dict[str, str]:
    found = {role: [name for name in usual if name in names] for role, usual in USUAL.items()}
    if found["messages"]:
        found |= {"prompt": [], "query": [], "response": []}
    elif not found["prompt"]:
        found |= {"prompt": found["query"], "query": []}
    return {role: fits[0] for role, fits in found.items() if len(fits) == 1}


def slug(text: str) -> str:
    """Return a text with what a name may not have replaced by `_`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")
