# SPDX-License-Identifier: Apache-2.0
"""Which datasets are which rounds: D_t, D_{t-1}, … and other ranking data, and whether each is there and valid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, TpawError
from .source import Entry, find_entry, is_triplet_file
from .triplets import meta_path, read_meta


if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Round:
    """Triplets that one θ generated: the number of that θ and the entry that holds them."""

    iteration: int
    entry: Entry

    @property
    def path(self) -> Path:
        """The triplet file."""
        return self.entry.path

    @property
    def complete(self) -> bool:
        """Whether the file is whole: its meta file is written last."""
        return self.path.is_file() and meta_path(self.path).is_file()


@dataclass(frozen=True)
class Opponents:
    """The datasets of an iteration.

    Attributes:
        rounds: Rounds that are used, oldest first.
        foreign: Other ranking entries, used whole.
        ignored: Names of older rounds, beyond the team size.
        proto: D_0 for T-SPIN from iteration 1, else None.
    """

    rounds: list[Round]
    foreign: list[Entry]
    ignored: list[str]
    proto: Round | None

    @property
    def missing(self) -> list[Round]:
        """Rounds whose file is not there or not whole."""
        return [round_ for round_ in self.rounds if not round_.complete]


def split_names(names: str | Sequence[str] | None) -> list[str]:
    """`a, b` or a list → a list of names, as LlamaFactory reads `dataset`."""
    parts = names.split(",") if isinstance(names, str) else list(names or [])
    return [part.strip() for part in parts if part.strip()]


def list_opponents(tpaw_args: Any, names: Sequence[str], dataset_dir: str) -> Opponents:
    r"""Sort the entries of `dataset` into rounds and other ranking data.

    Args:
        tpaw_args: The `tpaw_*` keys.
        names: Entries of `dataset`, the rounds oldest first.
        dataset_dir: Folder of `dataset_info.json`.

    Raises:
        ConfigError: If an entry does not exist, rounds are missing, or `tpaw_proto` is needed and absent.
    """
    problems: list[str] = []
    entries = []
    for name in names:
        try:
            entries.append(find_entry(name, dataset_dir))
        except TpawError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    own, foreign = [], []
    for entry in entries:
        (own if _is_round(entry, tpaw_args.tpaw_prompts) else foreign).append(entry)
    size = 1 if tpaw_args.tpaw_objective == "tspin" else tpaw_args.tpaw_team_size
    first = tpaw_args.tpaw_iteration + 1 - len(own)
    rounds = [Round(first + index, entry) for index, entry in enumerate(own)]
    problems += _round_problems(rounds, foreign, size, tpaw_args)
    proto = None
    try:
        proto = _proto_round(tpaw_args, dataset_dir)
    except TpawError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    return Opponents(rounds[-size:], foreign, [round_.entry.name for round_ in rounds[:-size]], proto)


def round_problems(round_: Round, *, may_be_generated: bool) -> list[str]:
    r"""Check one round's file without reading its rows.

    Args:
        round_: The round.
        may_be_generated: Whether a file that is not there is no problem.
    """
    if not round_.complete:
        if may_be_generated:
            return []
        theta = f"theta_{round_.iteration}"
        return [
            f"`dataset: {round_.entry.name}` holds the triplets of {theta}, but {round_.path} and its meta file are "
            f"not there. Run iteration {round_.iteration} (or `llamafactory-tpaw generate` with its YAML) first."
        ]
    try:
        meta = read_meta(round_.path)
    except DataError as error:
        return [str(error)]
    if meta.iteration != round_.iteration:
        return [
            f"`dataset: {round_.entry.name}` stands where the triplets of theta_{round_.iteration} belong, but "
            f"{meta_path(round_.path)} says that theta_{meta.iteration} generated them. List the rounds oldest first, "
            "the last one of this iteration."
        ]
    return []


def _is_round(entry: Entry, tpaw_prompts: str | None) -> bool:
    """A triplet file, or a local file that is not there yet and will be generated."""
    if entry.path is None or not entry.ranking:
        return False
    return is_triplet_file(entry.path) or (tpaw_prompts is not None and not entry.path.exists())


def _round_problems(rounds: list[Round], foreign: list[Entry], size: int, tpaw_args: Any) -> list[str]:
    problems = [
        f"`dataset: {entry.name}` is not a ranking set (`ranking: true`), so it has no generated responses. SFT sets "
        "go into `tpaw_prompts`; `dataset` takes triplets, oldest round first."
        for entry in foreign
        if not entry.ranking
    ]
    problems += [
        f"`dataset: {entry.name}` names {entry.path}, which does not exist, and without `tpaw_prompts` nothing is "
        "generated. Set `tpaw_prompts`, or correct `file_name`."
        for entry in foreign
        if entry.ranking and entry.path is not None and not entry.path.exists()
    ]
    iteration = tpaw_args.tpaw_iteration
    needed = min(iteration + 1, size)
    if not foreign and len(rounds) < needed:
        problems.append(
            f"`dataset` lists {len(rounds)} round(s) of triplets, but iteration {iteration} with a team of {size} "
            f"plays against {needed}: D_{iteration + 1 - needed} to D_{iteration}, oldest first. Add the missing "
            "entries."
        )
    if len(rounds) > iteration + 1:
        problems.append(
            f"`dataset` lists {len(rounds)} rounds of triplets, but iteration {iteration} has at most "
            f"{iteration + 1}: D_0 to D_{iteration}. Remove the others, or correct `tpaw_iteration`."
        )
    return problems


def _proto_round(tpaw_args: Any, dataset_dir: str) -> Round | None:
    if tpaw_args.tpaw_objective != "tspin" or tpaw_args.tpaw_iteration == 0:
        return None
    if tpaw_args.tpaw_proto is None:
        raise ConfigError(
            "`tpaw_objective: tspin` needs `tpaw_proto` from iteration 1 on: the entry with the triplets of "
            "iteration 0."
        )
    return Round(0, find_entry(tpaw_args.tpaw_proto, dataset_dir))
