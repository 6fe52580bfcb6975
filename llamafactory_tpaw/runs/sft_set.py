# SPDX-License-Identifier: Apache-2.0
"""The SFT set of a new run: an entry that is there, or a file whose columns have the usual names."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.files import read_json
from ..data.source import DATASET_INFO
from ..errors import ConfigError, DataError


PROMPTS = ("instruction", "prompt", "question", "query", "problem", "input")
RESPONSES = ("output", "response", "answer", "completion", "solution", "target")
MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
SYSTEMS = ("system", "system_prompt", "system_message")
ROLES = {
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt", "model", "bot", "chatgpt"),
    "system_tag": ("system",),
    "observation_tag": ("observation", "tool", "function_response"),
    "function_tag": ("function_call", "function"),
}
COLUMN_ROLES = ("prompt", "query", "response", "history", "messages", "system", "tools")
COLUMN_ROWS = 500
GENERIC_NAMES = ("train", "data", "dataset", "sft", "main")  # those of the folder say more


class SftSet(NamedTuple):
    """The SFT set: its name and entry, whether that is new, its file if it is local, and how many rows that has."""

    name: str
    entry: dict[str, Any]
    is_new: bool
    path: Path | None = None
    total: int | None = None


def find_sft_set(base: Path, data: str, given: Mapping[str, str]) -> SftSet:
    r"""Look up an entry, or read a file and find out what its columns are.

    Args:
        base: Folder of `dataset_info.json`.
        data: Name of an entry, or a file.
        given: Which column of a file is what.

    Raises:
        ConfigError: If there is no such entry or file, or the entry is of another kind.
        DataError: If the file is empty, cannot be read or has other columns than the usual ones.
    """
    info = base / DATASET_INFO
    known = read_json(info) if info.exists() else {}
    if data in known:
        entry = known[data]
        if not isinstance(entry, dict) or entry.get("ranking") or entry.get("num_samples") is not None or given:
            raise ConfigError(
                f"`--data {data}` names an entry of {info}, which must be an SFT set without `ranking` and "
                "`num_samples` and needs no `--columns`. Name another, or correct it."
            )
        path = base / entry["file_name"] if "file_name" in entry else None
        if path is not None and not path.exists():
            raise DataError(f"`--data {data}` names {path} in {info}, which does not exist. Put the file there.")
        if path is None or path.is_dir():
            return SftSet(data, entry, False)
        return SftSet(data, entry, False, path, len(read_rows(path)))
    path = Path(data).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"`--data {data}` is neither a file nor an entry of {info}. Name a .json, .jsonl, "
            ".csv or .parquet file; for a set on a hub add an entry with `hf_hub_url` there."
        )
    rows = read_rows(path)
    file = path.resolve()
    moves = file.is_relative_to(base.resolve().parent)
    name = Path(os.path.relpath(file, base.resolve())).as_posix() if moves else file.as_posix()
    entry = {"file_name": name, **find_columns(str(path), rows[:COLUMN_ROWS], given)}
    for other, there in known.items():
        if there == entry:
            return SftSet(other, there, False, path, len(rows))
    stem = slug(path.stem)
    free = [stem, slug(f"{file.parent.name}_{stem}"), *(f"{stem}_{number}" for number in range(2, len(known) + 3))]
    free = free[stem in GENERIC_NAMES :]
    return SftSet(next(name for name in free if name not in known), entry, True, path, len(rows))


def read_rows(path: Path) -> Sequence[Mapping[str, Any]]:
    r"""Read the rows of a file.

    Raises:
        DataError: If it is empty, cannot be read or has a row that is no object.
    """
    number = 0
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            rows = parquet.read_table(path).to_pylist()
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as stream:
                rows = list(csv.DictReader(stream))
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text(encoding="utf-8")
            if text.lstrip().startswith("["):
                rows = json.loads(text)
            else:
                rows = []
                for line in filter(str.strip, text.split("\n")):
                    number += 1
                    rows.append(json.loads(line))
        else:
            raise DataError(f"`--data {path}` must end in .json, .jsonl, .csv or .parquet. Convert the file.")
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's and json's errors are ValueErrors
        where = f"{path}, row {number}" if number else str(path)
        raise DataError(f"{where} cannot be read: {' '.join(str(error).split())}. Correct the file.") from error
    wrong = next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
    if not rows or wrong:
        what = f"row {wrong} is no JSON object" if wrong else "it has no rows"
        raise DataError(f"{path}: {what}. Give an SFT set with an object a row.")
    return rows


def find_columns(path: str, rows: Sequence[Mapping[str, Any]], given: Mapping[str, str]) -> dict[str, Any]:
    r"""Make the entry of a file, without its `file_name`.

    Args:
        path: As messages call it.
        rows: Some of its rows, at least one.
        given: What the user says of the columns, by LlamaFactory's names: `prompt`, `response`, `messages` and so on.

    Raises:
        DataError: If nothing fits, or more than one thing fits.
    """
    names = list(dict.fromkeys(key for row in rows for key in row))
    advice = f"It has {_listed(names)}; say which is which with `--columns prompt=…,response=…` or `messages=…`."
    wrong = [f"{role}={column}" for role, column in given.items() if role not in COLUMN_ROLES or column not in names]
    if wrong or (not given and {"chosen", "rejected"} <= set(names)):
        what = f"`--columns {','.join(wrong)}` does not fit {path}" if wrong else f"{path} is a preference set"
        raise DataError(f"{what}, and self-play starts from an SFT set. {advice}")
    filled = {name: [row[name] for row in rows if row.get(name)] for name in names}
    found = dict(given)
    for role, known in (("messages", MESSAGES), ("system", SYSTEMS), ("tools", ("tools",))):
        kind = list if role == "messages" and not given else str
        fits = [name for name in known if filled.get(name) and all(isinstance(value, kind) for value in filled[name])]
        if fits and role not in found and (role != "messages" or not given):
            found[role] = fits[0]
    if "messages" in found:
        return _of_messages(path, found, [message for value in filled[found["messages"]] for message in value])
    for role, known in (("prompt", PROMPTS), ("response", RESPONSES)):
        fits = [found[role]] if role in found else [name for name in known if name in names]
        if role == "prompt" and len(fits) > 1 and "input" in fits:
            fits.remove("input")  # beside a column that asks, `input` is what the question is about
            found.setdefault("query", "input")
        if len(fits) != 1:
            raise DataError(f"Which column of {path} is the {role} cannot be told by its name. {advice}")
        found[role] = fits[0]
    order = ("prompt", "query", "response", "history", "system", "tools")
    return {"columns": {role: found[role] for role in order if role in found}}


def _of_messages(path: str, found: dict[str, str], messages: Sequence[Any]) -> dict[str, Any]:
    shapes = [
        shape for shape in (("from", "value"), ("role", "content")) if all(set(shape) <= set(m) for m in messages)
    ]
    roles = list(dict.fromkeys(str(message[shapes[0][0]]) for message in messages)) if shapes else []
    tags = {tag: next((role for role in roles if role in words), None) for tag, words in ROLES.items()}
    if set(roles) - set(tags.values()) or not tags["user_tag"] or not tags["assistant_tag"]:
        raise DataError(
            f"`{found['messages']}` of {path} must hold messages with `role` and `content`, or `from` and `value`, of "
            f"user and assistant; it has the roles {_listed(roles)}. Rename them, or write its entry yourself."
        )
    called = any(message.get("tool_calls") for message in messages)
    tags["function_tag"] = tags["function_tag"] or ("function" if called else None)
    tags = {"role_tag": shapes[0][0], "content_tag": shapes[0][1]} | {tag: word for tag, word in tags.items() if word}
    columns = {role: found[role] for role in ("messages", "system", "tools") if role in found}
    return {"formatting": "openai" if called else "sharegpt", "columns": columns, "tags": tags}


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words) or "none"


def slug(text: str) -> str:
    """Return a text with what a name may not have replaced by `_`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")
