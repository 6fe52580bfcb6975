# SPDX-License-Identifier: Apache-2.0
"""The Plan of an iteration: its settings, read and checked once, its players and rounds, and how far it is.

Everything that can be known from the settings and from the names and headers of files is checked here, every problem
at once. Processes that a command starts are handed the plan and do not read the run file again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments.checks import read_tpaw_args, refuse_backends, setting_problems
from ..arguments.fields import parse_value
from ..arguments.recorded import different_settings
from ..arguments.start import Start, same_place
from ..data.local import files_of
from ..data.prompts import selection
from ..data.rounds import Opponents, Round, check_round, list_opponents, opponent_problems, split_names
from ..data.source import find_entry
from ..data.triplets import read_meta
from ..errors import ConfigError, DataError, EnvironmentProblem, Findings
from ..generation.base import SamplingSettings
from ..lf import facade
from ..lf.failures import nearest_folder, places_of
from ..lf.given import is_true, unknown_key_problems, value_problems
from ..team.checkpoint import check_checkpoint_complete, is_pruned
from ..team.fingerprint import chain_fingerprints, changed_files
from ..team.manifest import MANIFEST, Manifest, path_from, read_manifest
from ..team.members import opponent_fingerprint
from ..team.players import Player, list_players, player_problems


if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ..arguments.fields import TpawArguments
    from ..data.triplets import TripletMeta

# Keys on which players and rounds depend; where one is wrong, what would be said of those is not to be relied on.
LAYOUT_KEYS = ("tpaw_iteration", "tpaw_team_size", "tpaw_objective")


@dataclass(frozen=True)
class Plan:
    """An iteration whose settings hold together."""

    given: dict[str, Any]  # by the user: what `tpaw.json` records, and what other processes are handed
    tpaw_args: TpawArguments
    players: list[Player]  # all checkpoints listed, oldest first; the last is θ_t
    opponents: Opponents | None
    earlier: Manifest | None = None  # what `output_dir` holds of this very iteration and is not to be overwritten

    @property
    def is_finished(self) -> bool:
        """Whether θ_{t+1} is there, made with these settings: nothing else was checked then."""
        return self.earlier is not None and self.earlier.status == "finished"

    @property
    def to_generate(self) -> list[Round]:
        """Rounds whose triplets are missing and can be sampled: that of this iteration."""
        missing = self.opponents.missing if self.opponents else []
        return [round_ for round_ in missing if round_.iteration == self.tpaw_args.tpaw_iteration]

    @property
    def store(self) -> Path:
        """Where log-probs and fingerprints are kept."""
        return Path(self.tpaw_args.tpaw_cache_dir)


def make_plan(given: dict[str, Any], expected: Collection[Path] = ()) -> Plan:
    """Check the settings of an iteration and find its players and datasets; every problem found is raised at once.

    `expected` are resolved paths of checkpoints and triplet files that an earlier run will make: that they are not
    there yet is no problem.
    """
    refuse_backends()
    args, _ = read_tpaw_args(given)
    plan = Plan(given, args, [], None)
    with Findings() as findings:
        problems = key_problems(given)
        findings.refuse(ConfigError, problems)
        if not problems and is_true(given, "do_train"):
            plan = dataclasses.replace(plan, earlier=_earlier(plan))
            if plan.is_finished:
                return plan
        reliable = not any(parse_value(key, given[key])[1] for key in LAYOUT_KEYS if key in given)
        if reliable and given.get("model_name_or_path"):
            with findings.note():
                plan = dataclasses.replace(plan, players=list_players(args, Start.of(given)))
                team = plan.players[-args.candidates :]
                findings.refuse(DataError, player_problems(team, expected) + _score_problems(team, args, expected))
        findings.refuse(ConfigError, _output_problems(plan))
        findings.refuse(EnvironmentProblem, _folder_problems(given))
        if reliable and given.get("dataset"):
            with findings.note():
                opponents = list_opponents(args, split_names(given["dataset"]), _dataset_dir(given))
                plan = dataclasses.replace(plan, opponents=opponents)
                _check_opponents(plan, expected, findings)
            _check_entries("eval_dataset", split_names(given.get("eval_dataset")), given, findings)
    return plan


def handed_plan(given: dict[str, Any]) -> Plan:
    """Return the plan of settings that the process which started this one has checked."""
    args, _ = read_tpaw_args(given)
    opponents = list_opponents(args, split_names(given["dataset"]), _dataset_dir(given))
    earlier = None if is_true(given, "overwrite_output_dir") else read_manifest(given["output_dir"])
    return Plan(given, args, list_players(args, Start.of(given)), opponents, earlier)


def key_problems(given: dict[str, Any]) -> list[str]:
    """Say what is wrong with the keys by themselves: unknown, out of range, or not for this stage."""
    idle = "Neither `do_train` nor `do_eval` is true, so there is nothing to do. Set `do_train: true`."
    return [
        *([] if is_true(given, "do_train") or is_true(given, "do_eval") else [idle]),
        *unknown_key_problems(given),
        *value_problems(given),
        *read_tpaw_args(given)[1],
        *setting_problems(given),
        *_template_problems(given),
    ]


def refuse_other_stage(given: dict[str, Any], command: str) -> None:
    """Refuse a run file that is no iteration of self-play."""
    stage = given.get("stage")
    if stage != "tpaw":
        what = "`stage` is missing" if stage is None else f"`stage: {stage}` is not `tpaw`"
        raise ConfigError(
            f"{what}, but `llamafactory-tpaw {command}` is for an iteration of self-play. Give the run file of one."
        )


def with_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """The run's keys, those that are not given or empty with their defaults."""
    defaults = {
        spec.name: spec.default
        for kind in facade.TRAIN_ARGS
        for spec in dataclasses.fields(kind)
        if spec.default is not dataclasses.MISSING
    }
    return defaults | {key: value for key, value in given.items() if value is not None}


def _dataset_dir(given: dict[str, Any]) -> str:
    return str(given.get("dataset_dir", "data"))


def _template_problems(given: dict[str, Any]) -> list[str]:
    name = given.get("template")
    if not name or str(name) in facade.TEMPLATES:
        return []
    nearest = difflib.get_close_matches(str(name), list(facade.TEMPLATES), n=1)
    advice = f"Did you mean `{nearest[0]}`?" if nearest else "LlamaFactory's README lists them; correct the key."
    return [f"`template: {name}` is not a template of LlamaFactory. {advice}"]


def _output_problems(plan: Plan) -> list[str]:
    """Refuse to write over a player, or over a model that no iteration made."""
    given, folder = plan.given, str(plan.given.get("output_dir") or "")
    if not folder:
        return []
    for player in plan.players:
        if player.is_local and any(same_place(part, folder) for part in player.parts):
            return [f"`output_dir: {folder}` is the folder of {player.name}, which it would replace. Choose another."]
    occupied = any(any(Path(folder).glob(pattern)) for pattern in ("checkpoint-*", "*.safetensors", "*.bin"))
    allowed = is_true(given, "overwrite_output_dir") or given.get("resume_from_checkpoint")
    if not occupied or allowed or (Path(folder) / MANIFEST).is_file():
        return []
    return [
        f"`output_dir: {folder}` holds a model or checkpoints, but no {MANIFEST}, so no iteration of stage `tpaw` "
        "wrote them. Choose another folder, or set `overwrite_output_dir: true` to write over them."
    ]


def _score_problems(team: list[Player], args: TpawArguments, expected: Collection[Path]) -> list[str]:
    """Say which of the checkpoints that are there and may be chosen by their scores have none."""
    if args.tpaw_team_select != "best" or not 1 < args.rounds_played < len(team):
        return []
    bare = [Path(player.path) for player in team[:-1] if not Path(player.path, "eval.json").is_file()]
    what = "has no eval.json, which `tpaw_team_select: best` needs. Run `llamafactory-tpaw eval"
    return [f"{path} {what} {path}`." for path in bare if path.is_dir() and path.resolve() not in expected]


def _folder_problems(given: dict[str, Any]) -> list[str]:
    """Say which of a run's folders cannot be made or written to; nothing is made."""
    problems = []
    for name, path in places_of(given, ("output_dir", "tpaw_cache_dir")).items():
        nearest = nearest_folder(path)
        shown = os.path.relpath(nearest)
        if not nearest.is_dir():
            problems.append(f"{name} cannot be a folder: {shown} is a file. Move it, or choose another folder.")
        elif not os.access(nearest, os.W_OK | os.X_OK):
            problems.append(
                f"{name} cannot be written to: {shown} does not let this user write. Give yourself the right to, or "
                "choose another folder."
            )
    return problems


# -- rounds of triplets


def _check_opponents(plan: Plan, expected: Collection[Path], findings: Findings) -> None:
    args, opponents = plan.tpaw_args, plan.opponents
    for round_ in opponents.used:
        if round_.path.resolve() in expected:
            continue
        newest = round_.iteration == args.tpaw_iteration
        own = newest and args.tpaw_prompts is not None
        with findings.note():
            if round_.path.is_file() and not round_.partial.exists():
                read_meta(round_.path)  # triplets that lost their meta file would be written over
            check_round(round_, may_be_generated=own)
            if not round_.complete:
                _check_entries("tpaw_prompts", [str(args.tpaw_prompts)], plan.given, findings)
                findings.refuse(DataError, _missing_opponent(args, expected))
            elif newest:
                meta, named = read_meta(round_.path), args.tpaw_opponent_model
                if own:
                    findings.refuse(ConfigError, _origin_problems(round_, meta, plan))
                generator = opponent_fingerprint(named, plan.store)
                findings.refuse(DataError, opponent_problems(round_, meta, named, generator))


def _check_entries(key: str, names: list[str], given: dict[str, Any], findings: Findings) -> None:
    """Check that datasets are known and, where they are local, there."""
    for name in names:
        with findings.note():
            if path := find_entry(name, _dataset_dir(given), key).path:
                files_of(path, f"`{key}: {name}`")


def _origin_problems(round_: Round, meta: TripletMeta, plan: Plan) -> list[str]:
    """A finished file whose prompts were chosen, or whose responses were sampled, otherwise than asked for now."""
    args, known = plan.tpaw_args, with_defaults(plan.given) | vars(plan.tpaw_args)
    asked = {"tpaw_prompts": args.tpaw_prompts, "cutoff_len": known["cutoff_len"], **selection(known)}
    asked["tpaw_samples_per_prompt"] = args.tpaw_samples_per_prompt
    with contextlib.suppress(OverflowError, TypeError, ValueError):  # what is wrong is said of the keys
        asked = dataclasses.asdict(SamplingSettings.of(plan.given)) | asked
    made = {**meta.sampling, "tpaw_prompts": meta.prompts_entry, "cutoff_len": meta.cutoff_len, **meta.selection}
    made["tpaw_samples_per_prompt"] = meta.samples
    changed = [(key, made.get(key), now) for key, now in asked.items() if made.get(key) != now]
    differing = "; ".join(f"`{key}` was {then} and is {now} now" for key, then, now in changed)
    advice = "Restore them, or delete the file and its meta file to sample it again."
    return [f"{round_.path} was made with other settings: {differing}. {advice}"] if changed else []


def _missing_opponent(args: TpawArguments, expected: Collection[Path]) -> list[str]:
    """Say that the model which is to generate is not there; names of servers and hubs are not looked up."""
    named = str(args.tpaw_opponent_model or "")
    known = not named or Path(named).resolve() in expected or not Player(args.tpaw_iteration, named).is_local
    if known or (args.tpaw_engine == "openai" and not Path(named).is_dir()):
        return []
    return [f"`tpaw_opponent_model: {named}`: {problem}" for problem in check_checkpoint_complete(Path(named))]


# -- what an earlier command left in the output folder


def _earlier(plan: Plan) -> Manifest | None:
    """Return what `output_dir` holds of this very iteration; another run there, or a damaged result, is refused."""
    given, folder = plan.given, Path(str(plan.given["output_dir"]))
    manifest = None if is_true(given, "overwrite_output_dir") else read_manifest(folder)
    if manifest is None:
        return None
    differing = different_settings(manifest.settings, given, with_defaults({}))
    differing += _different_checkpoints(manifest, plan)
    if differing and (manifest.status == "finished" or any(folder.glob("checkpoint-*"))):
        state = "finished" if manifest.status == "finished" else "begun"
        raise ConfigError(
            f"`output_dir: {folder}` holds a run that was {state} with other settings: {'; '.join(differing)}. "
            "Restore them, choose another `output_dir`, or set `overwrite_output_dir: true` to repeat the iteration."
        )
    damaged = check_checkpoint_complete(folder) if manifest.status == "finished" else []
    if damaged and not is_pruned(folder):
        raise DataError(
            f"`output_dir: {folder}` holds theta_{manifest.produces}, finished, but damaged since: "
            f"{damaged[0].partition('. ')[0]}. Restore the file, or set `overwrite_output_dir: true` to repeat the "
            "iteration."
        )
    return manifest


def _different_checkpoints(manifest: Manifest, plan: Plan) -> list[str]:
    """Compare θ_t, the other players and the model that generated with the recorded ones."""
    args, start = plan.tpaw_args, Start.of(plan.given)
    key = "adapter_name_or_path" if start.adapters else "model_name_or_path"
    parts = (start.model, *start.adapters)
    differing = _difference(key, manifest.policy, parts, plan)
    if manifest.status == "training" and (changed := changed_files(parts[-1], manifest.policy.get("files", {}))):
        differing.append(f"`{key}`: {parts[-1]} was changed: {changed}")
    own = next((source for source in manifest.triplets if source.get("iteration") == manifest.iteration), {})
    if own and (own.get("opponent") or args.tpaw_opponent_model):
        none = f"none (theta_{manifest.iteration})"
        then = {"name": "the opponent", "path": own.get("opponent") or none, "fingerprint": own["generator"]}
        differing += _difference("tpaw_opponent_model", then, (str(args.tpaw_opponent_model or none),), plan)
    asked = {player.name: player for player in list_players(args, start)} if manifest.objective == "tpaw" else {}
    # The newest player is θ_t; others than those recorded come with another `tpaw_iteration` or `tpaw_team_size`.
    for recorded in manifest.players[:-1]:
        if recorded["name"] in asked:
            differing += _difference("tpaw_players", recorded, asked[recorded["name"]].parts, plan)
    return differing


def _difference(key: str, recorded: dict[str, Any], parts: Sequence[str], plan: Plan) -> list[str]:
    """Compare by content where it is at hand, else by place: a player may be deleted once it is not needed."""
    places = [path_from(part["path"], plan.given["output_dir"]) for part in (*recorded.get("below", ()), recorded)]
    was, now, then = f"`{key}`: {recorded['name']} was {'+'.join(places)}", "+".join(parts), recorded["fingerprint"]
    if any(check_checkpoint_complete(Path(part)) for part in parts):
        in_place = [*map(os.path.realpath, places)] == [*map(os.path.realpath, parts)]
        return [] if in_place else [f"{was} and is {now} now"]
    found = chain_fingerprints([Path(part) for part in parts], plan.store)[-1]
    return [] if found == then else [f"{was} with fingerprint {then[:12]} and is {now} with {found[:12]}"]
