# SPDX-License-Identifier: Apache-2.0
"""The SFT set: an entry that is there already, or a file whose format is found out; and some of its rows."""

from __future__ import annotations

import csv
import difflib
import json
import os
import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...data.files import parse_json, read_json
from ...data.source import DATASET_INFO
from ...errors import ConfigError, DataError
from .columns import find_columns
from .settings import Settings, slug


ENDINGS = (".json", ".jsonl", ".csv", ".parquet")
SAMPLE_ROWS = 2000
SAMPLE_SEED = 0
GENERIC_NAMES = {"train", "data", "dataset", "sft", "train_sft", "all", "main"}


@dataclass(frozen=True)
class SftSet:
    r"""Where the prompts and targets come from.

    Attributes:
        name: Its key in `dataset_info.json`.
        entry: Its value there.
        is_new: Whether it is to be written there.
        path: The file, or None where the entry names a folder, a hub or a script.
        rows: A sample of the file's rows; empty without a file.
        numbers: Their numbers in the file, from 1.
        total: How many rows the file has; None where that is not known yet.
    """

    name: str
    entry: dict[str, Any]
    is_new: bool
    path: Path | None = None
    rows: Sequence[dict[str, Any]] = ()
    numbers: Sequence[int] = ()
    total: int | None = None


def find_sft_set(settings: Settings) -> SftSet:
    r"""Look up an entry, or read a file and find out what its columns are.

    Raises:
        ConfigError: If there is no such entry or file, or the entry is of another kind.
        DataError: If the file is empty, cannot be read or has columns that nobody knows.
    """
    known = read_info(settings)
    if settings.data in known:
        return _from_entry(settings, known[settings.data])
    path = Path(settings.data).expanduser()
    if not path.is_file():
        raise ConfigError(_unknown_data(settings, known))
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"`--data {settings.data}` must end in {', '.join(ENDINGS)}. Convert the file.")
    sample = _read_sample(path)
    entry = find_columns(str(path), sample.rows, settings.columns)
    file_name = _file_name(path, settings)
    for name, other in known.items():
        if isinstance(other, dict) and _names_file(other, path, settings) and _same(other, entry):
            return SftSet(name, other, False, path, *sample)
    return SftSet(_entry_name(path, known, settings), {"file_name": file_name, **entry}, True, path, *sample)


def read_info(settings: Settings) -> dict[str, Any]:
    """Return what `dataset_info.json` holds; nothing where there is none yet."""
    path = settings.folder / settings.dataset_dir / DATASET_INFO
    if not path.exists():
        return {}
    info = read_json(path)
    if not isinstance(info, dict):
        raise DataError(f"{path} must hold a JSON object with an entry for each dataset. Repair or remove it.")
    return info


def _from_entry(settings: Settings, entry: Any) -> SftSet:
    info = settings.folder / settings.dataset_dir / DATASET_INFO
    if not isinstance(entry, dict):
        raise DataError(f"`{settings.data}` in {info} is {entry!r}, but must be an object. Correct it.")
    problems = []
    if entry.get("ranking"):
        problems.append(f"`--data {settings.data}` is a ranking set in {info}, but self-play starts from an SFT set.")
    if entry.get("num_samples") is not None:
        problems.append(
            f"`--data {settings.data}` has `num_samples` in {info}, which would choose other rows with every `seed`. "
            "Remove it and give `--max-prompts`."
        )
    if settings.columns:
        problems.append(
            f"`--columns` is for a file, but `--data {settings.data}` is an entry of {info}. Leave it out."
        )
    if problems:
        raise ConfigError(problems)
    if entry.get("file_name") is None or any(key.endswith("_url") for key in entry):
        return SftSet(settings.data, entry, False)
    path = settings.folder / settings.dataset_dir / entry["file_name"]
    if path.is_dir():
        return SftSet(settings.data, entry, False)
    if not path.is_file():
        raise DataError(
            f"`--data {settings.data}` names {path} in {info}, which does not exist. Put the file there, or correct "
            "`file_name`."
        )
    if path.suffix.lower() not in ENDINGS:
        return SftSet(settings.data, entry, False)
    return SftSet(settings.data, entry, False, path, *_read_sample(path))


def _unknown_data(settings: Settings, known: dict[str, Any]) -> str:
    info = settings.folder / settings.dataset_dir / DATASET_INFO
    nearest = difflib.get_close_matches(settings.data, known, n=1)
    advice = f"Did you mean `{nearest[0]}`? " if nearest else ""
    return (
        f"`--data {settings.data}` is neither a file nor an entry of {info}"
        f"{'' if info.is_file() else ' (which does not exist)'}. {advice}Name a file ({', '.join(ENDINGS)}); for a "
        "set on a hub, add an entry with `hf_hub_url` there and give its name."
    )


def _file_name(path: Path, settings: Settings) -> str:
    """As LlamaFactory joins it to `dataset_dir`: relative where the file moves along with the run."""
    base, file = (settings.folder / settings.dataset_dir).resolve(), path.resolve()
    return Path(os.path.relpath(file, base)).as_posix() if file.is_relative_to(base.parent) else file.as_posix()


def _names_file(entry: dict[str, Any], path: Path, settings: Settings) -> bool:
    name = entry.get("file_name")
    return isinstance(name, str) and (settings.folder / settings.dataset_dir / name).resolve() == path.resolve()


def _same(other: dict[str, Any], entry: dict[str, Any]) -> bool:
    return {key: other.get(key) for key in entry} == entry and not other.get("ranking") and "num_samples" not in other


def _entry_name(path: Path, known: dict[str, Any], settings: Settings) -> str:
    """The file's name, with its folder's where that says nothing or is taken."""
    stem, folder = slug(path.stem), slug(path.resolve().parent.name)
    names = [stem, f"{folder}_{stem}", f"{settings.name or 'sft'}_{stem}"]
    if stem.lower() in GENERIC_NAMES or not stem:
        names = names[1:]
    numbered = (f"{names[-1]}_{number}" for number in range(2, len(known) + 3))
    return next(name for name in [*names, *numbered] if name not in known)


class _Sample(NamedTuple):
    rows: list[Any]
    numbers: list[int]
    total: int


def _read_sample(path: Path) -> _Sample:
    """Read a file's rows, or of a large one some that are spread evenly by chance, the same ones each time."""
    read = {".parquet": _read_parquet, ".csv": _read_csv}.get(path.suffix.lower(), _read_json)
    try:
        sample = read(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}. Check the file and its permissions.") from error
    if not sample.total:
        raise DataError(f"{path} has no rows. Give an SFT set with at least one row.")
    for number, row in zip(sample.numbers, sample.rows, strict=True):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {number} must be a JSON object in braces, got {type(row).__name__}. Correct or "
                "remove the row."
            )
    return sample


def _choose(read: Callable[[], Iterable[Any]]) -> _Sample:
    """Go through a file twice, to count its rows and to take some: all of them need not fit in memory."""
    total = sum(1 for _ in read())
    picked = _pick(total)
    numbered, rows = enumerate(read()), []
    for wanted in picked:
        rows.append(next(row for index, row in numbered if index == wanted))
    return _Sample(rows, [int(index) + 1 for index in picked], total)


def _pick(total: int) -> Sequence[int]:
    """Choose the same rows of a file each time."""
    if total <= SAMPLE_ROWS:
        return range(total)
    return sorted(random.Random(SAMPLE_SEED).sample(range(total), SAMPLE_ROWS))


def _read_json(path: Path) -> _Sample:
    with path.open("rb") as stream:
        if not stream.peek(1).lstrip().startswith(b"["):
            return _read_json_lines(path)
    items = parse_json(path.read_bytes(), str(path), "Correct the file.")
    return _choose(lambda: items)


def _read_json_lines(path: Path) -> _Sample:
    lines = _choose(lambda: _full_lines(path))
    rows = []
    for number, line in zip(lines.numbers, lines.rows, strict=True):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, row {number} is not valid JSON: {error}. Correct the row; a file that holds one JSON "
                "value over several lines must be a list in brackets."
            ) from error
    return lines._replace(rows=rows)


def _full_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from (line for line in stream if line.strip())


def _read_csv(path: Path) -> _Sample:
    return _choose(lambda: _csv_rows(path))


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        yield from csv.DictReader(stream)


def _read_parquet(path: Path) -> _Sample:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            total, begin = file.metadata.num_rows, 0
            picked, rows = _pick(total), []
            for batch in file.iter_batches(batch_size=SAMPLE_ROWS):
                end = begin + batch.num_rows
                places = picked[bisect_left(picked, begin) : bisect_left(picked, end)]
                rows += batch.take(pyarrow.array([place - begin for place in places], "int64")).to_pylist()
                begin = end
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no parquet file that can be read: {error}. Write it again.") from error
    return _Sample(rows, [int(index) + 1 for index in picked], total)
