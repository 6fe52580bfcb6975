# SPDX-License-Identifier: Apache-2.0
"""The entries of `dataset_info.json` that LlamaBoard offers: SFT sets as prompts, ranking sets as opponents."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.files import read_json
from ..data.source import DATASET_INFO, SOURCES, is_triplet_file
from ..data.triplets import meta_path, read_meta
from ..errors import DataError
from .places import Places


@dataclass(frozen=True)
class OpponentSet:
    r"""A ranking set.

    Attributes:
        name: Its entry.
        path: The local file, None where the rows are elsewhere.
        state: `whole` triplets with their meta file; `partial` while they are generated, or where that was
            interrupted; `missing` where the file is not there (an iteration generates it); `damaged`, see `problem`;
            `foreign` for any other ranking set.
        iteration: Which theta generated it; None where that is not known.
        rows: Number of triplets, None where that is not known.
        counts: Of whole triplets: `stop`, `length` (truncated) and `equal`, and more.
        problem: What is wrong with it.
    """

    name: str
    path: Path | None
    state: Literal["whole", "partial", "missing", "damaged", "foreign"]
    iteration: int | None = None
    rows: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def rows_file(self) -> Path | None:
        """The file that holds its triplets, or those that are generated so far; None where there is none."""
        if self.path is None:
            return None
        files = (self.path, self.path.with_name(f"{self.path.name}.partial"))
        return next((file for file in files if os.path.isfile(file)), None)


def dataset_info(places: Places) -> dict[str, dict[str, Any]]:
    r"""Return the entries of `dataset_info.json`; those that are no objects are left out, all where there is none.

    Raises:
        DataError: If the file is damaged.
    """
    path = places.dataset_dir / DATASET_INFO
    if not path.is_file():
        return {}
    info = read_json(path)
    if not isinstance(info, dict):
        raise DataError(f"{path} must hold one JSON object with an entry for each dataset. Repair the file.")
    return {name: entry for name, entry in info.items() if isinstance(entry, dict)}


def prompt_sets(places: Places) -> list[str]:
    """Return the names of the SFT sets, in the order of `dataset_info.json`; none where that is damaged."""
    return [
        name
        for name, entry in _entries(places).items()
        if not entry.get("ranking") and any(isinstance(entry.get(source), str) for source in SOURCES)
    ]


def opponent_sets(places: Places) -> list[OpponentSet]:
    """Return the ranking sets, in the order of `dataset_info.json`; none where that is damaged."""
    return [_opponent_set(name, entry, places) for name, entry in _entries(places).items() if entry.get("ranking")]


def _entries(places: Places) -> dict[str, dict[str, Any]]:
    try:
        return dataset_info(places)
    except DataError:
        return {}  # `unreadable` of the runs says so


def _opponent_set(name: str, entry: dict[str, Any], places: Places) -> OpponentSet:
    file_name = entry.get("file_name")
    if not isinstance(file_name, str) or any(key.endswith("_url") for key in entry):
        return OpponentSet(name, None, "foreign")
    path = places.dataset_dir / file_name
    try:
        if not path.is_file():
            partial = path.with_name(f"{path.name}.partial").is_file()
            return OpponentSet(name, path, "partial" if partial else "foreign" if path.is_dir() else "missing")
        if not is_triplet_file(path):
            return OpponentSet(name, path, "foreign")
        if not meta_path(path).is_file() and path.with_name(f"{path.name}.partial").is_file():
            return OpponentSet(name, path, "partial")
        meta = read_meta(path)
    except (DataError, OSError, ValueError) as error:
        return OpponentSet(name, path, "damaged", problem=str(error))
    return OpponentSet(name, path, "whole", meta.iteration, meta.rows, dict(meta.counts))
