# SPDX-License-Identifier: Apache-2.0
"""Who plays: the checkpoints θ_0 … θ_t, the team chosen from them, and the checks that they are the right ones."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments.start import Start, is_adapter, same_place
from ..errors import ConfigError, DataError
from .fingerprint import check_checkpoint_complete
from .manifest import MANIFEST, read_manifest
from .places import HUB_NAME, place_of


if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


@dataclass(frozen=True)
class Player:
    r"""A checkpoint: its number in the run and where it is.

    Attributes:
        theta: Its number.
        path: What was saved of it, a folder or a hub name: a whole model, or an adapter.
        below: Of an adapter the model that it is put on, and the adapters that come before it.
    """

    theta: int
    path: str
    below: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As metrics and messages call it."""
        return f"theta_{self.theta}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The model and the adapters upon it."""
        return (*self.below, self.path)

    @property
    def base(self) -> str:
        """The model."""
        return self.parts[0]

    @property
    def spelled(self) -> str:
        """As `tpaw_players` names it: `model+adapter`."""
        return "+".join([self.base, *self.parts[1:]])

    @property
    def is_local(self) -> bool:
        """Whether all of it is in folders on this machine, or can only be meant to be."""
        return all(self._is_local(name) for name in self.parts)

    def _is_local(self, name: str) -> bool:
        path = Path(name)
        # From θ_1 on a player is an output folder: `saves/iter0` beside other saves is none of the hub's names.
        own = self.theta > 0 and name == self.path and path.parent.is_dir()
        return path.exists() or not HUB_NAME.fullmatch(name) or own

    def places(self, model_args: Any) -> list[Path]:
        r"""The folders of the model and of each adapter upon it; hub names are downloaded first.

        Raises:
            DataError: If the hub does not give one of them.
        """
        return [place_of(name, self.name, model_args) for name in self.parts]


def list_players(tpaw_args: Any, policy: Start | str) -> list[Player]:
    r"""Number the checkpoints of `tpaw_players`, oldest first.

    Args:
        tpaw_args: The `tpaw_*` keys.
        policy: θ_t, with its adapters; the name alone of a whole model.

    Returns:
        All of them; the last is θ_t. Where the key is absent, T-SPIN and iteration 0 have the model itself.

    Raises:
        ConfigError: If there are too few, the last is not the model, or one is named twice.
    """
    start = policy if isinstance(policy, Start) else Start(policy, finetuning_type="full")
    iteration, paths = tpaw_args.tpaw_iteration, tpaw_args.tpaw_players
    if not paths and (iteration == 0 or tpaw_args.tpaw_objective == "tspin"):
        return [_player(iteration, start.model, start.adapters)]
    paths = paths or []
    chains = [start.parse(path) for path in paths]
    needed = min(iteration + 1, tpaw_args.tpaw_team_size) if tpaw_args.tpaw_objective == "tpaw" else 1
    problems = []
    if not needed <= len(paths) <= iteration + 1:
        wanted = f"{needed}" if needed == iteration + 1 else f"{needed} to {iteration + 1}"
        given = f"lists {_counted(len(paths), 'checkpoint')}" if paths else "is missing"
        problems.append(
            f"`tpaw_players` {given}, but iteration {iteration} with `tpaw_team_size: {tpaw_args.tpaw_team_size}` "
            f"takes {wanted}: {_thetas(iteration + 1 - needed, iteration)}, oldest first. "
            f"{'Correct' if paths else 'Give'} the list, or correct `tpaw_iteration` or `tpaw_team_size`."
        )
    if paths and not _same(chains[-1], (start.model, start.adapters)):
        problems.append(
            f"`tpaw_players` ends with {paths[-1]}, but its last checkpoint must be theta_{iteration}, which is "
            f"{_written(start)}. Write the players oldest first, or correct the model."
        )
    repeated = sorted(
        {path for path, chain in zip(paths, chains, strict=True) if sum(_same(chain, other) for other in chains) > 1}
    )
    if repeated:
        problems.append(
            f"`tpaw_players` names {', '.join(repeated)} more than once. Each player is another checkpoint: "
            "correct the list."
        )
    if problems:
        raise ConfigError(problems)
    first = iteration + 1 - len(paths)
    return [_player(first + index, *chain) for index, chain in enumerate(chains)]


def team_of(players: Sequence[Player], team_size: int) -> list[Player]:
    """The newest `team_size` players, oldest first."""
    return list(players[-team_size:])


def player_problems(players: Sequence[Player], expected: Collection[Path] = ()) -> list[str]:
    r"""Check local checkpoints without reading weights: complete, finished, in the right order.

    Args:
        players: Oldest first.
        expected: Resolved folders that need not be there yet.

    Returns:
        One message a problem; empty where all is well.
    """
    problems, seen = [], set()
    for player in players:
        if not player.is_local:
            continue
        incomplete = []
        for name in player.parts:
            if Path(name).resolve() not in expected and name not in seen:
                seen.add(name)
                key = _key_of(name, player, is_policy=player is players[-1])
                incomplete += [f"{player.name} (`{key}`): {problem}" for problem in _part_problems(name, player)]
        problems += incomplete
        if not incomplete and Path(player.path).resolve() not in expected:
            problems += lineage_problems(player, Path(player.path))
    return problems


def _part_problems(name: str, player: Player) -> list[str]:
    """Say what a model or adapter lacks, and whether it is in the place of the other."""
    problems = check_checkpoint_complete(Path(name))
    if problems:
        return problems
    if name == player.base and is_adapter(name):
        return [
            f"{name} is an adapter, but a model is asked for. Name the model that it was trained on, and the adapter "
            "by `adapter_name_or_path`."
        ]
    if name != player.base and not is_adapter(name):
        return [f"{name} is a whole model, but stands where an adapter is asked for. Write it by itself."]
    return []


def _key_of(name: str, player: Player, *, is_policy: bool) -> str:
    if not is_policy:
        return "tpaw_players"
    return "model_name_or_path" if name == player.base else "adapter_name_or_path"


def lineage_problems(player: Player, folder: Path) -> list[str]:
    """A player from θ_1 on is the output of the iteration before; θ_0 may be any checkpoint."""
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return [str(error)]
    if manifest is None and player.theta > 0:
        return [
            f"`tpaw_players` has {player.path} as {player.name}, but it has no {MANIFEST}, so no iteration made it. "
            "Only theta_0 may be a checkpoint of another kind: write the players oldest first."
        ]
    if manifest is not None and manifest.status == "training":
        return [
            f"{player.name} is {player.path}, whose {MANIFEST} says that its training is not finished. Run iteration "
            f"{manifest.iteration} again: it continues."
        ]
    if manifest is not None and manifest.produces != player.theta > 0:
        return [
            f"`tpaw_players` has {player.path} as {player.name}, but its {MANIFEST} says that it is theta_"
            f"{manifest.produces}. Write the players oldest first, without gaps, or correct `tpaw_iteration`."
        ]
    return []


def parent_problems(
    players: Sequence[Player], fingerprints: dict[str, str], folders: dict[str, Path] | None = None
) -> list[str]:
    r"""Check that each player is what its iteration saved, trained from the one before it.

    Args:
        players: Oldest first.
        fingerprints: Fingerprint of each by name.
        folders: Where they are, by name; needed of those that were downloaded.
    """
    places = {player.name: Path(player.path) for player in players} | (folders or {})
    manifests = {player.name: read_manifest(places[player.name]) for player in players if player.theta > 0}
    problems = [
        f"{player.name} ({player.path}) has fingerprint {fingerprints[player.name][:12]}, but its {MANIFEST} says "
        f"{manifest.result['fingerprint'][:12]}: the weights were changed after the iteration. Restore them, or "
        f"repeat iteration {manifest.iteration} with `overwrite_output_dir: true`."
        for player in players
        if (manifest := manifests.get(player.name))
        and manifest.result  # a checkpoint that training saved on its way has none
        and manifest.result["fingerprint"] != fingerprints[player.name]
    ]
    for parent, child in itertools.pairwise(players):
        manifest = manifests.get(child.name)
        if manifest is not None and manifest.policy["fingerprint"] != fingerprints[parent.name]:
            problems.append(
                f"{child.name} ({child.path}) was trained from a checkpoint with fingerprint "
                f"{manifest.policy['fingerprint'][:12]}, but `tpaw_players` has {parent.path} with "
                f"{fingerprints[parent.name][:12]} as {parent.name}. Name the checkpoint it was trained from."
            )
    return problems


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _thetas(first: int, last: int) -> str:
    return f"theta_{last}" if first == last else f"theta_{first} to theta_{last}"


def _player(theta: int, model: str, adapters: tuple[str, ...]) -> Player:
    return Player(theta, adapters[-1], (model, *adapters[:-1])) if adapters else Player(theta, model)


def _same(first: tuple[str, tuple[str, ...]], second: tuple[str, tuple[str, ...]]) -> bool:
    """Whether two chains of a model and its adapters are one."""
    one, other = (first[0], *first[1]), (second[0], *second[1])
    return len(one) == len(other) and all(map(same_place, one, other))


def _written(start: Start) -> str:
    """Name θ_t by the keys that say it."""
    model = f"`model_name_or_path: {start.model}`"
    if not start.adapters:
        return model
    return f"{model} with `adapter_name_or_path: {','.join(start.adapters)}`: `{start.spelled}`"
