# SPDX-License-Identifier: Apache-2.0
"""What can be known of an iteration from its settings and the names and headers of files: every problem at once."""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments.checks import SAMPLING_NUMBERS, read_tpaw_args, setting_problems
from ..arguments.fields import FIELDS, parse_value
from ..arguments.recorded import different_settings
from ..arguments.start import Start, same_place
from ..data.prompts import selection
from ..data.rounds import Opponents, Round, list_opponents, opponent_problems, round_problems, split_names
from ..data.source import find_entry
from ..data.triplets import read_meta
from ..errors import ConfigError, DataError, EnvironmentProblem, Findings, TpawError
from ..generation.base import SamplingSettings
from ..lf import facade
from ..lf.given import is_true, unknown_key_problems, value_problems
from ..team.checkpoint import check_checkpoint_complete, read_pruned
from ..team.fingerprint import chain_fingerprints, hash_weights, identity
from ..team.manifest import MANIFEST, Manifest, read_manifest
from ..team.members import OpponentPlayer, opponent_fingerprint, opponent_folder_problems
from ..team.players import Player, list_players, player_problems, team_of
from .folders import folder_problems


if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ..arguments.fields import TpawArguments


@dataclass(frozen=True)
class Plan:
    """An iteration whose settings hold together.

    Attributes:
        given: What the user gave.
        tpaw_args: The `tpaw_*` keys.
        players: All checkpoints listed, oldest first; the last is θ_t.
        opponents: The datasets.
    """

    given: dict[str, Any]
    tpaw_args: TpawArguments
    players: list[Player]
    opponents: Opponents

    @property
    def to_generate(self) -> list[Round]:
        """Rounds whose triplets are missing and can be sampled: that of this iteration."""
        return [round_ for round_ in self.opponents.missing if round_.iteration == self.tpaw_args.tpaw_iteration]


# Keys on which players and rounds depend; where one is wrong, what would be said of those is not to be relied on.
LAYOUT_KEYS = ("tpaw_iteration", "tpaw_team_size", "tpaw_objective")


def key_problems(given: dict[str, Any]) -> list[str]:
    """Say what is wrong with the keys by themselves: unknown, out of range, or not for this stage."""
    checks = (unknown_key_problems, _value_problems, lambda keys: read_tpaw_args(keys)[1], setting_problems)
    return [problem for check in (*checks, _template_problems) for problem in check(given)]


def _value_problems(given: dict[str, Any]) -> list[str]:
    return value_problems(given, SAMPLING_NUMBERS)


def refuse_other_stage(given: dict[str, Any], command: str) -> None:
    r"""Refuse a run file that is no iteration of self-play.

    Raises:
        ConfigError: Then.
    """
    stage = given.get("stage")
    if stage != "tpaw":
        what = "`stage` is missing" if stage is None else f"`stage: {stage}` is not `tpaw`"
        raise ConfigError(
            f"{what}, but `llamafactory-tpaw {command}` is for an iteration of self-play. Give the run file of one."
        )


def make_plan(given: dict[str, Any], expected: Collection[Path] = ()) -> Plan:
    r"""Check the settings of an iteration and find its players and datasets.

    Args:
        given: What the user gave, see `lf.given.read_given`.
        expected: Resolved paths of checkpoints and triplet files that an earlier run will make: that they are not
            there yet is no problem.

    Raises:
        TpawError: With every problem found.
    """
    tpaw_args, _ = read_tpaw_args(given)
    players: list[Player] = []
    opponents: Opponents | None = None
    reliable = not any(parse_value(key, given[key])[1] for key in LAYOUT_KEYS if key in given)
    with Findings() as findings:
        findings.refuse(ConfigError, key_problems(given))
        if reliable and given.get("model_name_or_path"):
            with findings.note():
                players = list_players(tpaw_args, Start.of(given))
                needed = tpaw_args.rounds_played
                findings.refuse(DataError, player_problems(team_of(players, needed), expected))
            findings.refuse(ConfigError, _output_problems(given, players))
        findings.refuse(EnvironmentProblem, folder_problems(given))
        if reliable and given.get("dataset"):
            with findings.note():
                opponents = list_opponents(tpaw_args, split_names(given["dataset"]), _dataset_dir(given))
                _check_opponents(opponents, tpaw_args, given, expected, findings)
            _check_entries("eval_dataset", split_names(given.get("eval_dataset")), given, findings)
    return Plan(given, tpaw_args, players, opponents)


def finished_manifest(given: dict[str, Any]) -> Manifest | None:
    r"""Look whether `output_dir` holds this very iteration, finished or begun.

    Returns:
        Its manifest, or None where the folder holds none or is to be overwritten.

    Raises:
        ConfigError: If the folder holds a run with other settings or checkpoints, naming the keys.
        DataError: If the iteration is finished, but its checkpoint is damaged.
    """
    folder = given.get("output_dir")
    if not folder or is_true(given, "overwrite_output_dir"):
        return None
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    differing = different_settings(manifest.settings, given, _defaults()) + _different_checkpoints(manifest, given)
    if differing and (manifest.status == "finished" or any(Path(folder).glob("checkpoint-*"))):
        state = "finished" if manifest.status == "finished" else "begun"
        raise ConfigError(
            f"`output_dir: {folder}` holds a run that was {state} with other settings: {'; '.join(differing)}. "
            "Restore them, choose another `output_dir`, or set `overwrite_output_dir: true` to repeat the iteration."
        )
    if manifest.status == "finished" and read_pruned(Path(folder)) is None:
        _check_result(Path(folder), manifest, given)
    return manifest


def _check_result(folder: Path, manifest: Manifest, given: dict[str, Any]) -> None:
    """See that a finished checkpoint is whole and still the one that was saved."""
    mend = "Restore the file, or set `overwrite_output_dir: true` to repeat the iteration."
    damaged = check_checkpoint_complete(folder)
    if damaged:
        raise DataError(
            f"`output_dir: {folder}` holds theta_{manifest.produces}, finished, but damaged since: {damaged[0]} {mend}"
        )
    weights = hash_weights(folder, _store(given))
    recorded = manifest.result.get("fingerprint")
    now = identity(weights.fingerprint, manifest.result)
    if now != recorded:
        files = manifest.result.get("files", {})
        changed = [name for name, digest in weights.files.items() if files and files.get(name) != digest]
        raise DataError(
            f"`output_dir: {folder}` holds theta_{manifest.produces}, finished, but {', '.join(changed) or 'weights'} "
            f"changed since: the fingerprint is {now[:12]} now, and {MANIFEST} says "
            f"{str(recorded)[:12]}. {mend}"
        )


def _dataset_dir(given: dict[str, Any]) -> str:
    return str(given.get("dataset_dir", "data"))


def _template_problems(given: dict[str, Any]) -> list[str]:
    name = given.get("template")
    if not name or name in facade.TEMPLATES:
        return []
    nearest = difflib.get_close_matches(str(name), list(facade.TEMPLATES), n=1)
    advice = f"Did you mean `{nearest[0]}`?" if nearest else "LlamaFactory's README lists them; correct the key."
    return [f"`template: {name}` is not a template of LlamaFactory. {advice}"]


def _output_problems(given: dict[str, Any], players: list[Player]) -> list[str]:
    """Refuse to write over a player, or over a model that no iteration made."""
    folder = given.get("output_dir")
    if not folder:
        return []
    for player in players:
        if player.is_local and any(same_place(part, str(folder)) for part in player.parts):
            return [
                f"`output_dir: {folder}` is the folder of {player.name}, which would be overwritten. Choose another "
                "folder."
            ]
    occupied = any(any(Path(folder).glob(pattern)) for pattern in ("checkpoint-*", "*.safetensors", "*.bin"))
    if (
        not occupied
        or (Path(folder) / MANIFEST).is_file()
        or is_true(given, "overwrite_output_dir")
        or given.get("resume_from_checkpoint")
    ):
        return []
    return [
        f"`output_dir: {folder}` holds a model or checkpoints, but no {MANIFEST}, so no iteration of stage `tpaw` "
        "wrote them. Choose another folder, or set `overwrite_output_dir: true` to write over them."
    ]


def _check_opponents(
    opponents: Opponents,
    tpaw_args: TpawArguments,
    given: dict[str, Any],
    expected: Collection[Path],
    findings: Findings,
) -> None:
    for round_ in [*opponents.rounds, *([opponents.proto] if opponents.proto else [])]:
        if round_.path.resolve() in expected:
            continue
        own = round_.iteration == tpaw_args.tpaw_iteration and tpaw_args.tpaw_prompts is not None
        found = _meta_problems(round_) or round_problems(round_, may_be_generated=own)
        findings.refuse(DataError, found)
        if own and not round_.complete:
            _check_entries("tpaw_prompts", [str(tpaw_args.tpaw_prompts)], given, findings)
            findings.refuse(DataError, _missing_opponent(tpaw_args, expected))
        elif own and not found:
            findings.refuse(ConfigError, _origin_problems(round_, tpaw_args, given))
        if not found and round_.complete and round_.iteration == tpaw_args.tpaw_iteration:
            findings.refuse(DataError, _other_generator(round_, tpaw_args, given))


def _meta_problems(round_: Round) -> list[str]:
    """Refuse to write over triplets that lost their meta file; while they are generated it is not there yet."""
    partial = round_.path.with_name(round_.path.name + ".partial")
    if not round_.path.is_file() or partial.exists():
        return []
    try:
        read_meta(round_.path)
    except DataError as error:
        return [str(error)]
    return []


def _check_entries(key: str, names: list[str], given: dict[str, Any], findings: Findings) -> None:
    """Check that datasets are known and, where they are local, there."""
    for name in names:
        with findings.note():
            entry = find_entry(name, _dataset_dir(given), key)
            if entry.path is not None and not entry.path.exists():
                raise DataError(
                    f"`{key}: {name}` names {entry.path}, which does not exist. Put the file there, or correct "
                    "`file_name` in dataset_info.json."
                )


def _origin_problems(round_: Round, tpaw_args: TpawArguments, given: dict[str, Any]) -> list[str]:
    """A finished file whose prompts were chosen, or whose responses were sampled, otherwise than asked for now."""
    try:
        meta, asked = read_meta(round_.path), SamplingSettings.of(given).as_dict()
    except TpawError as error:
        return error.problems
    except ValueError:
        return []  # what is wrong with the keys is said of the keys
    known = _defaults() | given | vars(tpaw_args)
    asked |= {"tpaw_prompts": tpaw_args.tpaw_prompts, "cutoff_len": known["cutoff_len"], **selection(known)}
    made = {**meta.sampling, "tpaw_prompts": meta.prompts_entry, "cutoff_len": meta.cutoff_len, **meta.selection}
    asked["tpaw_samples_per_prompt"] = tpaw_args.tpaw_samples_per_prompt
    made["tpaw_samples_per_prompt"] = meta.samples
    differing = [
        f"`{key}` was {made.get(key)} and is {asked[key]} now" for key in asked if made.get(key) != asked[key]
    ]
    if not differing:
        return []
    return [
        f"{round_.path} was made with other settings: {'; '.join(differing)}. Restore them, or delete the file and "
        "its meta file to sample anew."
    ]


def _missing_opponent(tpaw_args: TpawArguments, expected: Collection[Path]) -> list[str]:
    """Say that the model which is to generate is not there; names of servers and hubs are not looked up."""
    named = tpaw_args.tpaw_opponent_model
    if not named or Path(named).resolve() in expected:
        return []
    player = OpponentPlayer(tpaw_args.tpaw_iteration, str(named))
    if not player.is_local or (tpaw_args.tpaw_engine == "openai" and not Path(named).is_dir()):
        return []
    return opponent_folder_problems(str(named))


def _other_generator(round_: Round, tpaw_args: TpawArguments, given: dict[str, Any]) -> list[str]:
    """A finished file that another model generated than the run names: an opponent model, or θ_t itself."""
    try:
        meta = read_meta(round_.path)
        named = tpaw_args.tpaw_opponent_model
        return opponent_problems(round_, meta, named, opponent_fingerprint(named, _store(given)))
    except TpawError:
        return []  # said of the files themselves


def _different_checkpoints(manifest: Manifest, given: dict[str, Any]) -> list[str]:
    """Compare θ_t and the other players with the recorded ones."""
    tpaw_args, _ = read_tpaw_args(given)
    start = Start.of(given)
    key = "adapter_name_or_path" if start.adapters else "model_name_or_path"
    differing = _difference(key, manifest.policy, (start.model, *start.adapters), given)
    differing += _different_opponent(manifest, tpaw_args.tpaw_opponent_model, given)
    if manifest.objective != "tpaw":
        return differing
    asked = team_of(list_players(tpaw_args, start), tpaw_args.tpaw_team_size)
    # The newest player is θ_t; another number of players comes with another `tpaw_iteration` or `tpaw_team_size`.
    for recorded, player in zip(manifest.players[:-1], asked[:-1], strict=False):
        differing += _difference("tpaw_players", recorded, player.parts, given)
    return differing


def _different_opponent(manifest: Manifest, named: str | None, given: dict[str, Any]) -> list[str]:
    """Compare who generated the iteration's own triplets: an opponent model, or θ_t itself."""
    own = next((source for source in manifest.triplets if source.get("iteration") == manifest.iteration), None)
    if own is None or not (named or own.get("opponent")):
        return []
    if named and own.get("opponent"):
        recorded = {"name": "the opponent", "path": own["opponent"], "fingerprint": own["generator"]}
        return _difference("tpaw_opponent_model", recorded, (str(named),), given)
    then = _recorded_place(str(own.get("opponent") or ""), given)
    was, now = (name or f"none (theta_{manifest.iteration})" for name in (then, named))
    return [f"`tpaw_opponent_model` was {was} and is {now} now"]


def _difference(key: str, recorded: dict[str, Any], parts: Sequence[str], given: dict[str, Any]) -> list[str]:
    """Compare by content where it is at hand, else by place: a player may be deleted once it is not needed."""
    then_at = [_recorded_place(part["path"], given) for part in (*recorded.get("below", ()), recorded)]
    in_place = len(then_at) == len(parts) and all(
        place == path or Path(place).resolve() == Path(path).resolve()
        for place, path in zip(then_at, parts, strict=True)
    )
    place, path = "+".join(then_at), "+".join(parts)
    if all(Path(part).is_dir() and not check_checkpoint_complete(Path(part)) for part in parts):
        then, now = recorded["fingerprint"], chain_fingerprints([Path(part) for part in parts], _store(given))[-1]
        if now == then:
            return []
        if in_place:
            return [
                f"`{key}`: the weights of {recorded['name']} ({path}) had fingerprint {then[:12]} and have {now[:12]} "
                "now (once they are restored, `llamafactory-tpaw lineage --verify` reads them anew)"
            ]
        return [f"`{key}`: {recorded['name']} was {place} with fingerprint {then[:12]} and is {path} with {now[:12]}"]
    return [] if in_place else [f"`{key}`: {recorded['name']} was {place} and is {path} now"]


def _recorded_place(path: str, given: dict[str, Any]) -> str:
    """Where a path leads that was recorded as seen from the output folder, whose siblings most players are."""
    if not path.startswith(os.pardir):
        return path  # names of a hub or a server stay as they are
    return os.path.relpath((Path(given["output_dir"]) / path).resolve())


def _store(given: dict[str, Any]) -> Path:
    return Path(given.get("tpaw_cache_dir", FIELDS["tpaw_cache_dir"].default))


def with_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """The run's keys, those that are not given or empty with their defaults."""
    return _defaults() | {key: value for key, value in given.items() if value is not None}


def _defaults() -> dict[str, Any]:
    return {
        spec.name: spec.default
        for kind in facade.TRAIN_ARGS
        for spec in dataclasses.fields(kind)
        if spec.default is not dataclasses.MISSING
    }
