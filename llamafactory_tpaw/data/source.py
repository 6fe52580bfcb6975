# SPDX-License-Identifier: Apache-2.0
"""Rows of the datasets that `dataset_info.json` names, as LlamaFactory reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError, DataError, EnvironmentProblem, TpawError
from ..lf import facade
from ..lf.failures import explain, places_of
from .files import read_json
from .local import check_files, files_of, read_files
from .triplets import meta_path


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .encoding import Message

DATASET_INFO = "dataset_info.json"
# Where LlamaFactory finds an entry's rows.
SOURCES = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
SFT_ENTRY = {"file_name": "my_set.jsonl", "columns": {"prompt": "question", "response": "answer"}}
TRIPLET_COLUMNS = ("id", "iteration", "finish_reason")
# Columns of LlamaFactory's common form.
ROW_KEYS = ("_prompt", "_response", "_system", "_tools", "_images", "_videos", "_audios")
# Rows that are read from the dataset at once, which takes a tenth of one by one.
BLOCK_ROWS = 1000


@dataclass(frozen=True)
class Entry:
    """One entry of `dataset_info.json`."""

    name: str
    attributes: dict[str, Any]
    path: Path | None  # the local file or folder it names; None where it names a hub, a script or a cloud file

    @property
    def ranking(self) -> bool:
        """Whether rows hold a better and a worse response."""
        return bool(self.attributes.get("ranking"))


class AlignedRow(NamedTuple):
    """One row in LlamaFactory's common form: the messages of the prompt, then one response or two (ranking)."""

    prompt: list[Message]
    responses: list[Message]
    system: str
    tools: str
    has_media: bool


def read_rows(dataset: Any, places: Sequence[int]) -> Iterator[AlignedRow]:
    """Read rows of what `load_rows` returns from its memory-mapped file, block by block, in any order."""
    for start in range(0, len(places), BLOCK_ROWS):
        columns = dataset[places[start : start + BLOCK_ROWS]]
        for prompt, responses, system, tools, *media in zip(*(columns[key] for key in ROW_KEYS), strict=True):
            yield AlignedRow(prompt, responses, system or "", tools or "", any(media))


def read_info(path: Path) -> dict[str, Any]:
    """Read a `dataset_info.json`: attributes by the name of their entry."""
    info = read_json(path)
    if not isinstance(info, dict):
        raise DataError(f"{path} must hold one JSON object with an entry for each dataset. Repair the file.")
    return info


def find_entry(name: str, dataset_dir: str, key: str = "dataset") -> Entry:
    """Look up the entry that `key` names; one that is not there or says too little is a `ConfigError`."""
    info_path = Path(dataset_dir) / DATASET_INFO
    if not info_path.is_file():
        raise ConfigError(
            f"`dataset_dir` is {dataset_dir!r}, but {info_path} does not exist. Stage `tpaw` needs a local folder "
            f"with {DATASET_INFO}; run the command from the project's root or set `dataset_dir`."
        )
    info = read_info(info_path)
    example = json.dumps(triplet_entry(name) if key in ("dataset", "tpaw_proto") else SFT_ENTRY)
    if name not in info:
        raise ConfigError(
            f"`{key}: {name}` is not an entry of {info_path}. Correct the name, or add the entry, for example: "
            f'"{name}": {example}'
        )
    attributes = info[name]
    if not isinstance(attributes, dict) or not any(isinstance(attributes.get(source), str) for source in SOURCES):
        raise ConfigError(
            f"`{name}` in {info_path} must be an object that says where its rows are, with one of "
            f"{', '.join(SOURCES)} and a text, for example: {example}. Correct it."
        )
    file_name = attributes.get("file_name")
    local = file_name is not None and not any(source in attributes for source in SOURCES[1:])
    return Entry(name, attributes, Path(dataset_dir) / file_name if local else None)


def triplet_entry(name: str) -> dict[str, Any]:
    """What `dataset_info.json` says of a generated triplet file, so that other stages can train on it too."""
    return {
        "file_name": f"tpaw/{name}.jsonl",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations"} | {name: name for name in ("chosen", "rejected", "system", "tools")},
    }


def is_triplet_file(path: Path) -> bool:
    """Whether a local file has a meta file, or a first row with the columns that make it one of this package."""
    if not path.is_file():
        return False
    if meta_path(path).is_file():
        return True
    with path.open("rb") as stream:  # of a JSON array, the first line may be the whole file
        first = stream.readline() if stream.peek(1).startswith(b"{") else b""
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and all(column in row for column in TRIPLET_COLUMNS)


def load_rows(entry: Entry, model_args: Any, data_args: Any, training_args: Any) -> Any:
    """Read an entry through LlamaFactory's converters: a dataset for `read_rows`, with the bad rows."""
    what, attr, rows = f"`{entry.name}` ({entry.path or 'on the hub'}) cannot be read", None, ()
    try:
        attr = facade.get_dataset_list([entry.name], {entry.name: entry.attributes})[0]
        if entry.path is None or attr.num_samples is not None:  # which rows those are, LlamaFactory chooses
            return facade.load_aligned_dataset(attr, model_args, data_args, training_args)
        convert = facade.get_dataset_converter(attr.formatting, attr, data_args)
        options = {"cache_dir": model_args.cache_dir, "num_proc": data_args.preprocessing_num_workers}
        rows = read_files(files_of(entry.path, f"`{entry.name}`"), split=attr.split, **options)
        if data_args.max_samples is not None:
            rows = rows.select(range(min(data_args.max_samples, len(rows))))
        return facade.align_dataset(rows, attr, data_args, training_args)
    except TpawError:
        raise
    except Exception as error:  # loaders raise what they like
        if problem := explain(error, places_of({"cache_dir": model_args.cache_dir}, ["cache_dir"])):
            raise EnvironmentProblem(f"{what}. {problem}") from error
        place, cause = "", error
        if rows and isinstance(error, UnicodeDecodeError):  # which is seen when the text is used
            check_files(files_of(entry.path))
        number = 0
        try:
            for row in rows:
                number += 1
                convert(row)
        except Exception as of_row:
            place, cause = f" {locate(entry, number)}:" if number else "", of_row
        reason = " ".join(str(cause.__cause__ or cause).split()).rstrip(".") or repr(cause)
        if isinstance(cause, KeyError):  # what LlamaFactory looked up in vain
            is_named = attr is None or cause.args[0] in vars(attr).values()
            reason = f"there is no {'column or key' if is_named else 'tag for the role'} {reason}"
        raise DataError(
            f"{what} as its entry in {DATASET_INFO} says:{place} {reason}. Correct the entry, or the row."
        ) from error


def locate(entry: Entry, number: int) -> str:
    """Name a row by its number in its file, with the file of a folder, and with an unknown role or empty cell."""
    attr = facade.get_dataset_list([entry.name], {entry.name: entry.attributes})[0]
    if entry.path is None or (attr.num_samples, attr.split) != (None, "train"):
        return f"row {number}"
    for path in files_of(entry.path):
        rows = read_files([path])
        if number <= len(rows):
            break
        number -= len(rows)
    place, row = f"row {number}" if path == entry.path else f"{path}, row {number}", rows[number - 1]
    if path.suffix == ".csv" and None in row.values():
        return f"{place} with an empty cell, which in CSV None, NA, null and nan are too"
    turns = row.get(attr.messages) if attr.formatting != "alpaca" else None
    roles = [turn.get(attr.role_tag) for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    unknown = [role for role in roles if role not in vars(attr).values()]
    return f"{place} with the unknown role {unknown[0]!r}" if unknown else place
