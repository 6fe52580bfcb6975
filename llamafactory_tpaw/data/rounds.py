# SPDX-License-Identifier: Apache-2.0
"""Which datasets are which rounds: D_t, D_{t-1}, … and other ranking data, and whether each is there and valid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, Findings
from .source import Entry, find_entry, is_triplet_file
from .triplets import SERVED, TripletMeta, generator_place, meta_path, read_meta


if TYPE_CHECKING:
    from collections.abc import Sequence


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
    def partial(self) -> Path:
        """Where finished rows are kept until the file is whole."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def complete(self) -> bool:
        """Whether the file is whole: its meta file is written last."""
        return self.path.is_file() and meta_path(self.path).is_file()


@dataclass(frozen=True)
class Opponents:
    """The datasets of an iteration."""

    rounds: list[Round]  # those that are used, oldest first
    foreign: list[Entry]  # other ranking entries, used whole
    ignored: list[str]  # names of older rounds, beyond the team size
    proto: Round | None  # D_0 for T-SPIN from iteration 1

    @property
    def used(self) -> list[Round]:
        """Rounds that are read, D_0 for T-SPIN the last."""
        return [*self.rounds, *([self.proto] if self.proto else [])]

    @property
    def missing(self) -> list[Round]:
        """Rounds whose file is not there or not whole."""
        return [round_ for round_ in self.rounds if not round_.complete]


def split_names(names: Any) -> list[str]:
    """`a, b` or a list → a list of names, as LlamaFactory reads `dataset`; empty for None."""
    parts = names if isinstance(names, list | tuple) else str(names or "").split(",")
    return [name for part in parts if (name := str(part).strip())]


def list_opponents(tpaw_args: Any, names: Sequence[str], dataset_dir: str) -> Opponents:
    """Sort the entries of `dataset`, rounds oldest first, into rounds and other ranking data, and find D_0."""
    own, foreign = [], []
    with Findings() as findings:
        for name in names:
            with findings.note():
                entry = find_entry(name, dataset_dir)
                local = entry.ranking and entry.path is not None
                # A local file that is not there yet will be generated.
                absent = local and tpaw_args.tpaw_prompts is not None and not entry.path.exists()
                (own if absent or (local and is_triplet_file(entry.path)) else foreign).append(entry)
    size = tpaw_args.rounds_played
    first = tpaw_args.tpaw_iteration + 1 - len(own)
    rounds = [Round(first + index, entry) for index, entry in enumerate(own)]
    proto = None
    with Findings() as findings:
        findings.refuse(ConfigError, _number_problems(rounds, foreign, size, tpaw_args.tpaw_iteration))
        with findings.note():
            proto = _proto_round(tpaw_args, dataset_dir)
    return Opponents(rounds[-size:], foreign, [round_.entry.name for round_ in rounds[:-size]], proto)


def _number_problems(rounds: list[Round], foreign: list[Entry], size: int, iteration: int) -> list[str]:
    problems = []
    for entry in foreign:
        if not entry.ranking:
            problems.append(
                f"`dataset: {entry.name}` is not a ranking set (`ranking: true`), so it has no generated responses. "
                "SFT sets go into `tpaw_prompts`; `dataset` takes triplets, oldest round first."
            )
        elif entry.path is not None and not entry.path.exists():
            problems.append(
                f"`dataset: {entry.name}` names {entry.path}, which does not exist, and without `tpaw_prompts` "
                "nothing is generated. Set `tpaw_prompts`, or correct `file_name`."
            )
    needed = min(iteration + 1, size)
    if not problems and (rounds or not foreign) and len(rounds) < needed:
        problems.append(
            f"`dataset` lists {len(rounds)} round{'' if len(rounds) == 1 else 's'} of triplets, but iteration "
            f"{iteration} with a team of {size} plays against {needed}: D_{iteration + 1 - needed} to D_{iteration}, "
            "oldest first. Add the missing entries."
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
            "iteration 0. Add it."
        )
    entry = find_entry(tpaw_args.tpaw_proto, dataset_dir, "tpaw_proto")
    if entry.path is None or (entry.path.exists() and not is_triplet_file(entry.path)):
        raise ConfigError(
            f"`tpaw_proto: {entry.name}` is not a file of triplets that were generated here. Name the entry with the "
            "triplets of iteration 0."
        )
    return Round(0, entry)


def check_round(round_: Round, *, may_be_generated: bool) -> None:
    """Check one round's file without reading its rows; where it may be generated, it need not be there."""
    theta, name = f"theta_{round_.iteration}", f"`dataset: {round_.entry.name}`"
    if round_.complete:
        meta = read_meta(round_.path)
        if meta.iteration != round_.iteration:
            raise DataError(
                f"{name} stands where the triplets of {theta} belong, but {meta_path(round_.path)} says that "
                f"theta_{meta.iteration} generated them. List the rounds oldest first, the last one of this iteration."
            )
    elif not may_be_generated:
        raise DataError(
            f"{name} holds the triplets of {theta}, but {round_.path} and its meta file are not there. Run iteration "
            f"{round_.iteration} (or `llamafactory-tpaw generate` with its YAML) first."
        )


def origin_problems(metas: Sequence[tuple[Round, TripletMeta]], players: dict[int, tuple[str, str]]) -> list[str]:
    r"""Check that rounds were generated by the players of their numbers, given with path and fingerprint.

    Rounds of numbers without a player, and those that an opponent model generated, are not checked here.
    """
    problems = []
    for round_, meta in metas:
        path, fingerprint = players.get(round_.iteration, ("", meta.generator))
        if meta.generator != fingerprint and not meta.opponent:
            problems.append(
                f"{round_.path} was generated by a checkpoint with fingerprint {meta.generator[:12]} "
                f"({generator_place(round_.path, meta)}), but theta_{round_.iteration} is {path} with "
                f"{fingerprint[:12]}. Name the checkpoint that generated it, or {_anew(round_)}."
            )
    return problems


def opponent_problems(
    round_: Round, meta: TripletMeta, named: str | None, fingerprint: str | None = None
) -> list[str]:
    r"""Check that the model `named` by `tpaw_opponent_model` generated the round of this iteration, or without it θ_t.

    `fingerprint` is of that model's weights, where they are here: a checkpoint that was moved is still the same.
    """
    theta, place = f"theta_{round_.iteration}", generator_place(round_.path, meta)
    if bool(meta.opponent) == bool(named):
        by_content = fingerprint and not meta.generator.startswith(SERVED)
        if not named or (
            fingerprint == meta.generator if by_content else Path(place).resolve() == Path(named).resolve()
        ):
            return []
    made = f"the opponent {place}" if meta.opponent else f"{theta} itself ({place})"
    asked = f"is {named}" if named else "is not set"
    return [
        f"{round_.path} was generated by {made}, fingerprint {meta.generator[:12]}, but `tpaw_opponent_model` {asked}"
        f"{f' with {fingerprint[:12]}' if fingerprint else ''}. Correct the key, or {_anew(round_)}."
    ]


def _anew(round_: Round) -> str:
    return f"delete {round_.path} and {meta_path(round_.path)} to generate it again"


def prompts_problems(rounds: Sequence[tuple[Round, Any]]) -> list[str]:
    """Check by the digests in rounds' metas that their prompts are the same: a team is compared on one set."""
    if len({meta.prompts_digest for _, meta in rounds}) <= 1:
        return []
    asked, listed = [], []
    for _, meta in rounds:
        kept = {"digest": meta.prompts_digest[:12], "prompts": meta.prompts, "tpaw_prompts": meta.prompts_entry}
        asked.append(kept | {"cutoff_len": meta.cutoff_len} | meta.selection)
    for (round_, _), keys in zip(rounds, asked, strict=True):
        differing = (f"{key} {keys[key]}" for key in keys if any(keys[key] != other.get(key) for other in asked))
        listed.append(f"{round_.path} has {', '.join(differing)}")
    return [
        f"The rounds of `dataset` answer different prompts: {'; '.join(listed)}. Generate them from one SFT set with "
        "the same `tpaw_max_prompts`, `tpaw_prompts_seed`, `tpaw_turn`, `cutoff_len` and template."
    ]
