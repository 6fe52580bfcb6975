# SPDX-License-Identifier: Apache-2.0
"""Who plays: the checkpoints θ_0 … θ_t by name, the team chosen from them, and what is wrong with their folders."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments.fields import WITHOUT_TEAM
from ..arguments.start import Start, is_adapter, same_place
from ..errors import ConfigError, DataError
from ..lf import facade
from .checkpoint import check_checkpoint_complete
from .fingerprint import changed_files
from .manifest import MANIFEST, path_from, read_manifest


if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What is downloaded of a player, beside code where that is trusted.
DOWNLOADED = ("*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.safetensors")


@dataclass(frozen=True)
class Player:
    """A checkpoint: its number in the run and where it is."""

    theta: int
    path: str  # what was saved of it, a folder or a hub name: a whole model, or an adapter
    below: tuple[str, ...] = ()  # of an adapter the model that it is put on, and the adapters that come before it
    label: str = ""  # what messages call a model that generates in place of θ_t, and is no player of the team

    @property
    def name(self) -> str:
        """As metrics and messages call it."""
        return self.label or f"theta_{self.theta}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The model and the adapters on it."""
        return (*self.below, self.path)

    @property
    def base(self) -> str:
        """The model."""
        return self.parts[0]

    @property
    def is_local(self) -> bool:
        """Whether all of it is in folders on this machine, or can only be meant to be."""
        # From θ_1 on a player is an output folder: `saves/iter0` beside other saves is none of the hub's names.
        own = self.theta > 0 and Path(self.path).parent.is_dir()
        return all(
            Path(name).exists() or not HUB_NAME.fullmatch(name) or (own and name == self.path) for name in self.parts
        )

    def places(self, model_args: Any) -> list[Path]:
        """Return the folders of the model and of each adapter on it; names of a hub are downloaded first."""
        hub = [name for name in self.parts if HUB_NAME.fullmatch(name) and not Path(name).exists()]
        return [self._download(name, model_args) if name in hub else Path(name) for name in self.parts]

    def _download(self, name: str, model_args: Any) -> Path:
        """Download it as LlamaFactory's arguments say, whose switches for ModelScope and openMind hold here, too."""
        from huggingface_hub import snapshot_download

        other_hub = copy.copy(model_args)
        other_hub.model_name_or_path = name
        downloaded = Path(facade.download_from_other_hub(other_hub))
        if downloaded.is_dir():
            return downloaded
        code = ["*.py"] if getattr(model_args, "trust_remote_code", False) else []
        try:
            folder = snapshot_download(
                name,
                revision=model_args.model_revision,
                cache_dir=model_args.cache_dir,
                token=model_args.hf_hub_token,
                allow_patterns=[*DOWNLOADED, *code],
            )
        except (OSError, ValueError) as error:
            cause = " ".join(str(error).split()).rstrip(".")
            raise DataError(
                f"{self.name} is `{name}`, which is no folder here and cannot be had from the hub: {cause}. Correct "
                "the path."
            ) from error
        return Path(folder)


def list_players(tpaw_args: Any, start: Start) -> list[Player]:
    r"""Number the checkpoints of `tpaw_players`, oldest first and θ_t last.

    Where the key is absent, iteration 0 and objectives without a team have the model itself.
    """
    iteration, paths = tpaw_args.tpaw_iteration, tpaw_args.tpaw_players
    own = (start.model, *start.adapters)
    if not paths and (iteration == 0 or tpaw_args.tpaw_objective in WITHOUT_TEAM):
        return [Player(iteration, own[-1], own[:-1])]
    chains = [(model, *adapters) for model, adapters in map(start.parse, paths or [])]
    needed = 1 if tpaw_args.tpaw_objective in WITHOUT_TEAM else min(iteration + 1, tpaw_args.tpaw_team_size)
    problems = []
    if not needed <= len(chains) <= iteration + 1:
        wanted = f"{needed}" if needed == iteration + 1 else f"{needed} to {iteration + 1}"
        problems.append(
            f"`tpaw_players` lists {len(chains)}, but iteration {iteration} "
            f"with `tpaw_team_size: {tpaw_args.tpaw_team_size}` takes {wanted} checkpoints, the oldest first and "
            f"theta_{iteration} last. Correct the list, `tpaw_iteration` or `tpaw_team_size`."
        )
    if chains and not _same(chains[-1], own):
        problems.append(
            f"`tpaw_players` ends with {paths[-1]}, but its last checkpoint must be theta_{iteration}, which is "
            f"`{start.spelled}` by `model_name_or_path` and `adapter_name_or_path`. Write the players oldest first, "
            "or correct the model."
        )
    repeated = sorted(
        {path for path, chain in zip(paths or [], chains, strict=True) if sum(_same(chain, x) for x in chains) > 1}
    )
    if repeated:
        problems.append(
            f"`tpaw_players` names {', '.join(repeated)} more than once. Each player is another checkpoint: "
            "correct the list."
        )
    if problems:
        raise ConfigError(problems)
    return [Player(theta, chain[-1], chain[:-1]) for theta, chain in enumerate(chains, iteration + 1 - len(chains))]


def player_problems(players: Sequence[Player], expected: Collection[Path] = ()) -> list[str]:
    r"""Check local checkpoints without reading weights; resolved folders that are `expected` may not be there yet."""
    problems, seen = [], set()
    for before, player in zip([None, *players], players, strict=False):
        if not player.is_local:
            continue
        incomplete = []
        for name in player.parts:
            if Path(name).resolve() in expected or name in seen:
                continue
            seen.add(name)
            found = check_checkpoint_complete(Path(name))
            if not found and is_adapter(name) and name == player.base:
                found = [
                    f"{name} is an adapter, but a model is asked for. Name the model that it was trained on, and the "
                    "adapter by `adapter_name_or_path`."
                ]
            elif not found and not is_adapter(name) and name != player.base:
                found = [f"{name} is a whole model, but an adapter is asked for. Write it by itself."]
            policy_key = "model_name_or_path" if name == player.base else "adapter_name_or_path"
            key = policy_key if player is players[-1] else "tpaw_players"
            incomplete += [f"{player.name} (`{key}`): {problem}" for problem in found]
        problems += incomplete
        if not incomplete and Path(player.path).resolve() not in expected:
            problems += lineage_problems(player, Path(player.path), before)
    return problems


def lineage_problems(player: Player, folder: Path, before: Player | None = None) -> list[str]:
    """A player from θ_1 on is what the iteration before saved, trained from the one `before`; θ_0 may be any."""
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return error.problems
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
    described = {player: manifest.result} if manifest else {}
    if manifest and before and same_place(path_from(str(manifest.policy.get("path")), folder), before.path):
        described[before] = manifest.policy
    return [
        f"{one.name} ({one.path}) was changed since {player.name} was trained: {changed}. Restore it from a copy."
        for one, recorded in described.items()
        if (changed := changed_files(one.path, recorded.get("files", {})))
    ]


def _same(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two chains of a model and its adapters are one."""
    return len(first) == len(second) and all(map(same_place, first, second))
