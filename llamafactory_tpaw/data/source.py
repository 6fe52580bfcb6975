# SPDX-License-Identifier: Apache-2.0
"""Rows of the datasets that `dataset_info.json` names, as LlamaFactory reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import ConfigError, DataError
from ..plugin import facade
from .files import read_json
from .progress import BYTES, Progress


if TYPE_CHECKING:
    from .encoding import Message

DATASET_INFO = "dataset_info.json"
TRIPLET_COLUMNS = ("id", "iteration", "finish_reason")


@dataclass(frozen=True)
class Entry:
    """One entry of `dataset_info.json`.

    Attributes:
        name: Its key.
        attributes: Its value.
        path: The local file or folder it names, or None where it names a hub, a script or a cloud file.
    """

    name: str
    attributes: dict[str, Any]
    path: Path | None

    @property
    def ranking(self) -> bool:
        """Whether rows hold a better and a worse response."""
        return bool(self.attributes.get("ranking"))


@dataclass(frozen=True)
class AlignedRow:
    """One row in LlamaFactory's common form: the messages of the prompt, then one response or two (ranking)."""

    prompt: list[Message]
    responses: list[Message]
    system: str
    tools: str
    has_media: bool


class AlignedRows(Sequence[AlignedRow]):
    """The rows of a dataset in LlamaFactory's common form, read from disk one by one."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> AlignedRow:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self._dataset[index]
        return AlignedRow(
            prompt=row["_prompt"],
            responses=row["_response"],
            system=row["_system"] or "",
            tools=row["_tools"] or "",
            has_media=any(row[key] for key in ("_images", "_videos", "_audios")),
        )


def find_entry(name: str, dataset_dir: str) -> Entry:
    r"""Look up an entry.

    Raises:
        ConfigError: If `dataset_dir` is not a folder with a `dataset_info.json`, or the entry is not in it.
    """
    info_path = Path(dataset_dir) / DATASET_INFO
    if not info_path.is_file():
        raise ConfigError(
            f"`dataset_dir` is {dataset_dir!r}, but {info_path} does not exist. Stage `tpaw` needs a local folder "
            f"with {DATASET_INFO}; run the command from the project's root or set `dataset_dir`."
        )
    info = read_json(info_path)
    if name not in info:
        raise ConfigError(
            f"`{name}` is not an entry of {info_path}. Add it, for example: "
            f"{json.dumps({name: triplet_entry(name)})}, or correct the name."
        )
    attributes = info[name]
    if not isinstance(attributes, dict):
        raise ConfigError(
            f"`{name}` in {info_path} is {attributes!r}, but must be an object, for example: "
            f"{json.dumps(triplet_entry(name))}. Correct it."
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
        "columns": {
            "messages": "conversations",
            "chosen": "chosen",
            "rejected": "rejected",
            "system": "system",
            "tools": "tools",
        },
    }


def is_triplet_file(path: Path) -> bool:
    """Whether the first row of a local file has the columns that make it a triplet file of this package."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        first = stream.readline()
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and all(column in row for column in TRIPLET_COLUMNS)


def load_rows(entry: Entry, model_args: Any, data_args: Any, training_args: Any) -> AlignedRows:
    r"""Read an entry through LlamaFactory's loader and converters, in the order of its rows.

    Args:
        entry: The entry; alpaca, sharegpt or openai format, local or hub.
        model_args: LlamaFactory's model arguments (hub tokens and cache folder).
        data_args: LlamaFactory's data arguments; `max_samples` keeps its meaning of the first rows.
        training_args: The training arguments.

    Returns:
        Every row, also those that no prompt can be made of.

    Raises:
        DataError: If the file is absent, empty or not JSON objects (naming the row), lacks a column the entry names,
            or cannot be read as the entry says.
    """
    from datasets.exceptions import DatasetsError

    if entry.path is not None:
        _check_local_file(entry)
    attr = facade.get_dataset_list([entry.name], data_args.dataset_dir)[0]
    try:
        rows = facade.load_aligned_dataset(attr, model_args, data_args, training_args)
    except StopIteration:
        raise DataError(f"`{entry.name}` has no rows. Give a dataset with at least one row.") from None
    except KeyError as error:
        raise DataError(
            f"`{entry.name}` has no column {error}, which its entry in {DATASET_INFO} asks for. Correct `columns` "
            "there."
        ) from error
    except (AttributeError, DatasetsError, LookupError, OSError, TypeError, ValueError) as error:
        raise DataError(
            f"`{entry.name}` ({entry.path or 'on the hub'}) cannot be read as its entry in {DATASET_INFO} says: "
            f"{error.__cause__ or error}. Correct the entry, or the row: in a column all values have one type."
        ) from error
    return AlignedRows(rows)


def _check_local_file(entry: Entry) -> None:
    """Name file and row of what a JSON parser would stumble over, before any other work."""
    path = Path(entry.path)
    if path.is_dir():
        return
    if not path.is_file():
        raise DataError(
            f"`{entry.name}` names {path}, which does not exist. Put the file there or correct `file_name` in "
            f"{DATASET_INFO}."
        )
    if path.suffix not in (".json", ".jsonl"):
        return
    with path.open(encoding="utf-8", errors="replace") as stream:
        first = next((line.lstrip() for line in stream if line.strip()), "")
        if not first:
            raise DataError(f"`{entry.name}`: {path} is empty. Give a dataset with at least one row.")
        stream.seek(0)
        if first.startswith("["):
            _check_json_array(path, stream)
        else:
            _check_json_lines(path, stream)


def _check_json_array(path: Path, stream: TextIO) -> None:
    try:
        rows = json.load(stream)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}. Correct the file.") from error
    if not rows:
        raise DataError(f"{path} has no rows. Give a dataset with at least one row.")
    for number, row in enumerate(rows, start=1):
        _check_object(path, number, row)


def _check_json_lines(path: Path, stream: TextIO) -> None:
    with Progress(f"checking {path.name}", path.stat().st_size, BYTES) as progress:
        for number, line in enumerate(stream, start=1):
            progress.update(len(line.encode(errors="replace")))
            if line.strip():
                _check_object(path, number, _parse_line(path, number, line))


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, row {number} is not valid JSON: {error}. Correct or remove the row.") from error


def _check_object(path: Path, number: int, row: Any) -> None:
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, row {number} must be a JSON object in braces, got {type(row).__name__}. Correct or remove the "
            "row."
        )
