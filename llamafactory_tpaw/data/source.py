# SPDX-License-Identifier: Apache-2.0
"""Rows of the datasets that `dataset_info.json` names, as LlamaFactory reads them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import ConfigError, DataError
from ..lf import facade
from .files import parse_json, read_json
from .json_array import ArrayReader
from .progress import BYTES, Progress
from .triplets import meta_path


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .encoding import Message

DATASET_INFO = "dataset_info.json"
# Where LlamaFactory finds an entry's rows.
SOURCES = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
SFT_ENTRY = {"file_name": "my_set.jsonl", "columns": {"prompt": "question", "response": "answer"}}
TRIPLET_COLUMNS = ("id", "iteration", "finish_reason")
# Columns of LlamaFactory's common form.
MEDIA_KEYS = ("_images", "_videos", "_audios")
ROW_KEYS = ("_prompt", "_response", "_system", "_tools", *MEDIA_KEYS)
# Rows that are read from the dataset at once.
BLOCK_ROWS = 1000
HEAD_BYTES = 1 << 12


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
    """The rows of a dataset in LlamaFactory's common form, read from its memory-mapped file when asked for."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> AlignedRow:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _aligned(self._dataset[index])

    def __iter__(self) -> Iterator[AlignedRow]:
        return (row for _, row in self.read(range(len(self))))

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, AlignedRow]]:
        """Yield rows with their indices; they are fetched in blocks, which takes a tenth of one by one."""
        for start in range(0, len(indices), BLOCK_ROWS):
            block = indices[start : start + BLOCK_ROWS]
            yield from zip(map(int, block), self.take(block), strict=True)

    def take(self, indices: Sequence[int]) -> list[AlignedRow]:
        """Read some rows at once, in any order."""
        if len(indices) == 0:
            return []
        first, last = int(indices[0]), int(indices[-1])
        together = last - first == len(indices) - 1 and bool((np.diff(indices) == 1).all())
        columns = self._dataset[first : last + 1] if together else self._dataset[list(map(int, indices))]
        return [_aligned({key: columns[key][place] for key in ROW_KEYS}) for place in range(len(indices))]


def _aligned(row: Mapping[str, Any]) -> AlignedRow:
    return AlignedRow(
        prompt=row["_prompt"],
        responses=row["_response"],
        system=row["_system"] or "",
        tools=row["_tools"] or "",
        has_media=any(row[key] for key in MEDIA_KEYS),
    )


# Entries that will be in dataset_info.json before they are needed.
_PLANNED: ContextVar[Mapping[str, Any]] = ContextVar("planned entries")


@contextlib.contextmanager
def planned_entries(entries: Mapping[str, dict[str, Any]]) -> Iterator[None]:
    """Let `find_entry` find entries that are not written yet; those of `dataset_info.json` go before them."""
    token = _PLANNED.set(entries)
    try:
        yield
    finally:
        _PLANNED.reset(token)


def find_entry(name: str, dataset_dir: str, key: str = "dataset") -> Entry:
    r"""Look up an entry.

    Args:
        name: Its name.
        dataset_dir: Folder of `dataset_info.json`.
        key: The key that names it, for messages.

    Raises:
        ConfigError: If `dataset_dir` is not a folder with a `dataset_info.json`, or the entry is not in it or wrong.
        DataError: If `dataset_info.json` is damaged.
    """
    info_path = Path(dataset_dir) / DATASET_INFO
    if not info_path.is_file():
        raise ConfigError(
            f"`dataset_dir` is {dataset_dir!r}, but {info_path} does not exist. Stage `tpaw` needs a local folder "
            f"with {DATASET_INFO}; run the command from the project's root or set `dataset_dir`."
        )
    info = read_json(info_path)
    if not isinstance(info, dict):
        raise DataError(f"{info_path} must hold one JSON object with an entry for each dataset. Repair the file.")
    info = {**_PLANNED.get({}), **info}
    example = json.dumps(triplet_entry(name) if key in ("dataset", "tpaw_proto") else SFT_ENTRY)
    if name not in info:
        raise ConfigError(
            f"`{key}: {name}` is not an entry of {info_path}. Correct the name, or add the entry, for example: "
            f'"{name}": {example}'
        )
    attributes = info[name]
    if not isinstance(attributes, dict):
        raise ConfigError(
            f"`{name}` in {info_path} is {attributes!r}, but must be an object, for example: {example}. Correct it."
        )
    file_name = attributes.get("file_name")
    if not any(isinstance(attributes.get(source), str) for source in SOURCES):
        raise ConfigError(
            f"`{name}` in {info_path} does not say where its rows are: it has none of {', '.join(SOURCES)} with a "
            f"text, for example: {example}. Correct it."
        )
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
    """Whether a local file has a meta file, or a first row with the columns that make it one of this package."""
    if not path.is_file():
        return False
    if meta_path(path).is_file():
        return True
    with path.open("rb") as stream:
        first = b"" if first_byte(stream) == b"[" else stream.readline()
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
            f"{' '.join(str(error.__cause__ or error).split()).rstrip('.')}. Correct the entry, or the row: in a "
            "column all values have one type."
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
    with path.open("rb") as stream:
        first = first_byte(stream)
        if not first:
            raise DataError(f"`{entry.name}`: {path} is empty. Give a dataset with at least one row.")
        with Progress(f"checking {path.name}", path.stat().st_size, BYTES) as progress:
            check = _check_json_array if first == b"[" else _check_json_lines
            check(path, stream, progress)


def first_byte(stream: BinaryIO) -> bytes:
    """The first byte that is no space, empty where there is none; a line may be as long as the whole file."""
    head = b""
    while not head and (block := stream.read(HEAD_BYTES)):
        head = block.lstrip()
    stream.seek(0)
    return head[:1]


def _check_json_array(path: Path, stream: BinaryIO, progress: Progress) -> None:
    number = 0
    for number, row in enumerate(ArrayReader(stream, str(path), "Correct the file.", progress.update), start=1):
        _check_object(path, number, row)
    if not number:
        raise DataError(f"{path} has no rows. Give a dataset with at least one row.")


def _check_json_lines(path: Path, stream: BinaryIO, progress: Progress) -> None:
    for number, line in enumerate(stream, start=1):
        progress.update(len(line))
        if line.strip():
            _check_object(path, number, parse_json(line, f"{path}, row {number}", "Correct or remove the row."))


def _check_object(path: Path, number: int, row: Any) -> None:
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, row {number} must be a JSON object in braces, got {type(row).__name__}. Correct or remove the "
            "row."
        )
