# SPDX-License-Identifier: Apache-2.0
"""Rows of the datasets that `dataset_info.json` names, as LlamaFactory reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError, DataError
from ..lf import facade
from .files import parse_json, parse_row, read_json
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
        for row in zip(*(columns[key] for key in ROW_KEYS), strict=True):
            prompt, responses, system, tools, *media = row
            yield AlignedRow(prompt, responses, system or "", tools or "", any(media))


def find_entry(name: str, dataset_dir: str, key: str = "dataset") -> Entry:
    """Look up the entry that `key` names; one that is not there or says too little is a `ConfigError`."""
    info_path = Path(dataset_dir) / DATASET_INFO
    if not info_path.is_file():
        raise ConfigError(
            f"`dataset_dir` is {dataset_dir!r}, but {info_path} does not exist. Stage `tpaw` needs a local folder "
            f"with {DATASET_INFO}; run the command from the project's root or set `dataset_dir`."
        )
    info = read_json(info_path)
    if not isinstance(info, dict):
        raise DataError(f"{info_path} must hold one JSON object with an entry for each dataset. Repair the file.")
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
    local = file_name is not None and not any(key.endswith("_url") for key in attributes)
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
    r"""Read an entry through LlamaFactory's loader and converters: a dataset for `read_rows`, with the bad rows.

    Raises:
        DataError: If the file is absent, empty or not JSON objects (naming the row), lacks a column the entry names,
            or cannot be read as the entry says.
    """
    from datasets.exceptions import DatasetsError

    if entry.path is not None and not entry.path.exists():
        raise DataError(
            f"`{entry.name}` names {entry.path}, which does not exist. Put the file there or correct `file_name` in "
            f"{DATASET_INFO}."
        )
    attr = facade.get_dataset_list([entry.name], data_args.dataset_dir)[0]
    try:
        return facade.load_aligned_dataset(attr, model_args, data_args, training_args)
    except (AttributeError, DatasetsError, LookupError, OSError, StopIteration, TypeError, ValueError) as error:
        if entry.path is not None and entry.path.suffix in (".json", ".jsonl") and entry.path.is_file():
            refuse_broken_row(entry.path)
        cause = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise DataError(
            f"`{entry.name}` ({entry.path or 'on the hub'}) cannot be read as its entry in {DATASET_INFO} says: "
            f"{'it has no column ' if isinstance(error, KeyError) else ''}{cause}. Correct the entry, or the row: in "
            "a column all values have one type."
        ) from error


def refuse_broken_row(path: Path) -> None:
    """Name the row of a JSON file that could not be read, which `datasets` does not."""
    content = path.read_bytes()
    rows = content.splitlines()
    if content.lstrip().startswith(b"["):
        rows = [json.dumps(row).encode() for row in parse_json(content, str(path), "Correct the file.")]
    for number, row in enumerate(rows, start=1):
        if row.strip():
            parse_row(path, number, row, "Correct or remove the row.")
    if not any(row.strip() for row in rows):
        raise DataError(f"{path} has no rows. Give a dataset with at least one row.")
