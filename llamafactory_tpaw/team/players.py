# SPDX-License-Identifier: Apache-2.0
"""Who plays: the checkpoints θ_0 … θ_t, the team chosen from them, and the checks that they are the right ones."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import read_json
from ..errors import ConfigError, DataError
from ..plugin import facade
from .fingerprint import check_checkpoint_complete
from .manifest import MANIFEST, read_manifest


if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What is downloaded of a player: config, tokenizer, tpaw.json and weights; `.bin` only where there is nothing else.
SMALL_FILES = ["*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja"]
SAFE_WEIGHTS = ["*.safetensors"]
BIN_WEIGHTS = ["pytorch_model*.bin"]
CODE = ["*.py"]


@dataclass(frozen=True)
class Player:
    """A checkpoint: its number in the run and where it is (a folder or a hub name)."""

    theta: int
    path: str

    @property
    def name(self) -> str:
        """As metrics and messages call it."""
        return f"theta_{self.theta}"

    @property
    def is_local(self) -> bool:
        """Whether the path is a folder on this machine, or can only be meant as one."""
        path = Path(self.path)
        # From θ_1 on a player is an output folder: `saves/iter0` beside other saves is none of the hub's names.
        return path.exists() or not HUB_NAME.fullmatch(self.path) or (self.theta > 0 and path.parent.is_dir())

    def folder(self, model_args: Any) -> Path:
        r"""The folder with the weights; a hub name is downloaded (or found in the hub's cache) first.

        LlamaFactory's switches for ModelScope and openMind hold here, too.

        Raises:
            DataError: If the hub does not give it.
        """
        if self.is_local:
            return Path(self.path)
        other_hub = copy.copy(model_args)
        other_hub.model_name_or_path = self.path
        downloaded = Path(facade.download_from_other_hub(other_hub))
        if downloaded.is_dir():
            return downloaded
        code = CODE if getattr(model_args, "trust_remote_code", False) else []
        folder = self._download(model_args, [*SMALL_FILES, *code, *SAFE_WEIGHTS])
        if not any(folder.glob("*.safetensors")):
            folder = self._download(model_args, [*SMALL_FILES, *code, *BIN_WEIGHTS])
        return folder

    def _download(self, model_args: Any, patterns: list[str]) -> Path:
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(
                self.path,
                revision=model_args.model_revision,
                cache_dir=model_args.cache_dir,
                token=model_args.hf_hub_token,
                allow_patterns=patterns,
            )
        except (OSError, ValueError) as error:
            cause = " ".join(str(error).split()).rstrip(".")
            raise DataError(
                f"{self.name} is `{self.path}`, which is no folder here and cannot be had from the hub: {cause}. "
                "Correct the path."
            ) from error
        return Path(folder)


def list_players(tpaw_args: Any, model_name_or_path: str) -> list[Player]:
    r"""Number the checkpoints of `tpaw_players`, oldest first.

    Args:
        tpaw_args: The `tpaw_*` keys.
        model_name_or_path: θ_t.

    Returns:
        All of them; the last is θ_t. Where the key is absent, T-SPIN and iteration 0 have the model itself.

    Raises:
        ConfigError: If there are too few, the last is not the model, or one is named twice.
    """
    iteration, paths = tpaw_args.tpaw_iteration, tpaw_args.tpaw_players
    if not paths and (iteration == 0 or tpaw_args.tpaw_objective == "tspin"):
        return [Player(iteration, model_name_or_path)]
    paths = paths or []
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
    if paths and not same_path(paths[-1], model_name_or_path):
        problems.append(
            f"`tpaw_players` ends with {paths[-1]}, but its last checkpoint must be theta_{iteration}, which is "
            f"`model_name_or_path: {model_name_or_path}`. Write the players oldest first, or correct the model."
        )
    repeated = sorted({path for path in paths if sum(same_path(path, other) for other in paths) > 1})
    if repeated:
        problems.append(
            f"`tpaw_players` names {', '.join(repeated)} more than once. Each player is another checkpoint: "
            "correct the list."
        )
    if problems:
        raise ConfigError(problems)
    first = iteration + 1 - len(paths)
    return [Player(first + index, path) for index, path in enumerate(paths)]


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
    problems = []
    for player in players:
        if not player.is_local or Path(player.path).resolve() in expected:
            continue
        incomplete = check_checkpoint_complete(Path(player.path))
        key = "model_name_or_path" if player is players[-1] else "tpaw_players"
        problems += [f"{player.name} (`{key}`): {problem}" for problem in incomplete]
        if not incomplete:
            problems += lineage_problems(player, Path(player.path))
    return problems


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


def vocabulary_problems(folders: dict[str, Path], tokenizer_size: int) -> list[str]:
    r"""Check that all players have one vocabulary and that the tokenizer fits into it.

    Args:
        folders: Folder of each player by name.
        tokenizer_size: Number of tokens of the tokenizer.
    """
    sizes = {name: _vocabulary_size(folder) for name, folder in folders.items()}
    problems = []
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        problems.append(
            f"The players' vocabularies differ ({listed}), so they cannot judge the same tokens; `resize_vocab` does "
            "not help. Use checkpoints of one model."
        )
    too_small = [name for name, size in sizes.items() if size < tokenizer_size]
    if too_small:
        problems.append(
            f"The tokenizer has {tokenizer_size} tokens, but {', '.join(too_small)} only "
            f"{min(sizes.values())}: `resize_vocab` would give each player other random rows, so stage `tpaw` "
            "refuses. Choose a template whose tokens are in the vocabulary and leave `add_tokens` out, or resize and "
            "train the tokens in the `sft` stage first."
        )
    return problems


def position_problems(path: str, folder: Path, cutoff_len: int) -> list[str]:
    r"""Refuse rotary positions that depend on the longest row of a batch: a log-prob would depend on its neighbours.

    Args:
        path: The checkpoint, as the user names it.
        folder: Where it is.
        cutoff_len: Most tokens of a row.
    """
    problems = []
    for config, rope in _rope_settings(read_json(folder / "config.json")):
        kind = rope.get("rope_type") or rope.get("type")
        limit = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        if kind == "dynamic":
            problems.append(
                f"{path} has rotary positions of type `dynamic`, which depend on the longest row of a batch, so its "
                "log-probs would depend on their neighbours. Use another type (`rope_type` in its config.json)."
            )
        elif kind == "longrope" and limit and cutoff_len > limit:
            problems.append(
                f"`cutoff_len` is {cutoff_len}, but {path} changes its rotary positions (`longrope`) for all rows of "
                f"a batch where one is longer than {limit}, so log-probs would depend on their neighbours. Set "
                f"`cutoff_len` to {limit} or less."
            )
    return problems


def _rope_settings(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield every setting of rotary positions with the configuration it stands in; there may be one a layer type."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name) or {}
        for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
            if part.get("rope_type") or part.get("type"):
                yield config, part
    if isinstance(config.get("text_config"), dict):
        yield from _rope_settings(config["text_config"])


def _vocabulary_size(folder: Path) -> int:
    config = read_json(folder / "config.json")
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 0))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _thetas(first: int, last: int) -> str:
    return f"theta_{last}" if first == last else f"theta_{first} to theta_{last}"


def same_path(first: str, second: str) -> bool:
    """Whether two names mean one checkpoint."""
    if Path(first).exists() and Path(second).exists():
        return Path(first).resolve() == Path(second).resolve()
    return first.rstrip("/") == second.rstrip("/")
