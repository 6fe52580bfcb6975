# SPDX-License-Identifier: Apache-2.0
"""What can be known of an iteration from its settings and the names and headers of files: every problem at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments.checks import read_tpaw_args, setting_problems
from ..arguments.fields import FIELDS
from ..arguments.recorded import different_settings
from ..data.rounds import Opponents, Round, list_opponents, round_problems, split_names
from ..data.triplets import read_meta
from ..errors import ConfigError, TpawError
from ..generation.base import SamplingSettings
from ..plugin import facade
from ..plugin.given import unknown_key_problems
from ..team.fingerprint import check_checkpoint_complete, fingerprint_checkpoint
from ..team.manifest import Manifest, read_manifest
from ..team.players import Player, list_players, player_problems, team_of


if TYPE_CHECKING:
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


def make_plan(given: dict[str, Any]) -> Plan:
    r"""Check the settings of an iteration and find its players and datasets.

    Args:
        given: What the user gave, see `plugin.given.read_given`.

    Raises:
        ConfigError: With every problem found.
    """
    problems = unknown_key_problems(given)
    tpaw_args, wrong = read_tpaw_args(given)
    problems += wrong + setting_problems(given)
    players: list[Player] = []
    opponents: Opponents | None = None
    if given.get("model_name_or_path"):
        try:
            players = list_players(tpaw_args, str(given["model_name_or_path"]))
            problems += player_problems(team_of(players, tpaw_args.tpaw_team_size))
        except ConfigError as error:
            problems += error.problems
    if given.get("dataset"):
        try:
            opponents = list_opponents(tpaw_args, split_names(given["dataset"]), str(given.get("dataset_dir", "data")))
            problems += _opponent_problems(opponents, tpaw_args, given)
        except ConfigError as error:
            problems += error.problems
    if problems or opponents is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    return Plan(given, tpaw_args, players, opponents)


def finished_manifest(given: dict[str, Any]) -> Manifest | None:
    r"""Look whether `output_dir` holds this very iteration, finished or begun.

    Returns:
        Its manifest, or None where the folder holds none or is to be overwritten.

    Raises:
        ConfigError: If the folder holds a run with other settings, naming the keys.
    """
    folder = given.get("output_dir")
    if not folder or str(given.get("overwrite_output_dir", False)).lower() == "true":
        return None
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    differing = different_settings(manifest.settings, given, _defaults()) + _different_policy(manifest, given)
    if differing and (manifest.status == "finished" or any(Path(folder).glob("checkpoint-*"))):
        state = "finished" if manifest.status == "finished" else "begun"
        raise ConfigError(
            f"`output_dir: {folder}` holds a run that was {state} with other settings: {'; '.join(differing)}. "
            "Restore them, choose another `output_dir`, or set `overwrite_output_dir: true` to repeat the iteration."
        )
    return manifest


def _opponent_problems(opponents: Opponents, tpaw_args: TpawArguments, given: dict[str, Any]) -> list[str]:
    problems = []
    for round_ in [*opponents.rounds, *([opponents.proto] if opponents.proto else [])]:
        own = round_.iteration == tpaw_args.tpaw_iteration and tpaw_args.tpaw_prompts is not None
        problems += round_problems(round_, may_be_generated=own)
        if own and round_.complete and not problems:
            problems += _sampling_problems(round_, given)
    return problems


def _sampling_problems(round_: Round, given: dict[str, Any]) -> list[str]:
    """A finished file that was sampled otherwise than asked for now."""
    try:
        sampled, asked = read_meta(round_.path).sampling, SamplingSettings.of(given).as_dict()
    except (TpawError, ValueError) as error:
        return [str(error)]
    differing = [
        f"`{key}` was {sampled.get(key)} and is {asked[key]} now" for key in asked if sampled.get(key) != asked[key]
    ]
    if not differing:
        return []
    return [
        f"{round_.path} was sampled with other settings: {'; '.join(differing)}. Restore them, or delete the file "
        "and its meta file to sample anew."
    ]


def _different_policy(manifest: Manifest, given: dict[str, Any]) -> list[str]:
    """Compare θ_t by place, then by content: the checkpoint may have been trained again since."""
    model, folder = str(given.get("model_name_or_path")), Path(given["output_dir"])
    recorded, fingerprint = manifest.policy["path"], manifest.policy["fingerprint"]
    if recorded != model and (folder / recorded).resolve() != Path(model).resolve():
        return [f"`model_name_or_path` was {recorded} (from {folder}) and is {model} now"]
    if not Path(model).is_dir() or check_checkpoint_complete(Path(model)):
        return []
    store = Path(given.get("tpaw_cache_dir", FIELDS["tpaw_cache_dir"].default))
    now = fingerprint_checkpoint(Path(model), store)
    if now == fingerprint:
        return []
    return [f"`model_name_or_path: {model}` had fingerprint {fingerprint[:12]} and has {now[:12]} now"]


def _defaults() -> dict[str, Any]:
    return {
        spec.name: spec.default
        for kind in facade.TRAIN_ARGS
        for spec in dataclasses.fields(kind)
        if spec.default is not dataclasses.MISSING
    }
