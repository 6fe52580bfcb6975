# SPDX-License-Identifier: Apache-2.0
"""Whether checkpoints belong together: parents, the models under adapters, vocabularies and positions."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments.start import ADAPTER_CONFIG, same_place
from ..data.files import read_json
from .checkpoint import check_checkpoint_complete, read_object
from .fingerprint import fingerprint_checkpoint
from .manifest import MANIFEST, read_manifest


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .members import Member


def parent_problems(members: Sequence[Member]) -> list[str]:
    r"""Check that each player is what its iteration saved, trained from the one before it.

    Args:
        members: The players, oldest first.
    """
    manifests = [read_manifest(member.home) if member.player.theta > 0 else None for member in members]
    problems = [
        f"{member.player.name} ({member.player.path}) has fingerprint {member.fingerprint[:12]}, but its {MANIFEST} "
        f"says {manifest.result['fingerprint'][:12]}: the weights were changed after the iteration. Restore them, or "
        f"repeat iteration {manifest.iteration} with `overwrite_output_dir: true`."
        for member, manifest in zip(members, manifests, strict=True)
        if manifest is not None
        and manifest.result  # a checkpoint that training saved on its way has none
        and manifest.result["fingerprint"] != member.fingerprint
    ]
    for (parent, _), (child, manifest) in itertools.pairwise(zip(members, manifests, strict=True)):
        if manifest is not None and manifest.policy["fingerprint"] != parent.fingerprint:
            problems.append(
                f"{child.player.name} ({child.player.path}) was trained from a checkpoint with fingerprint "
                f"{manifest.policy['fingerprint'][:12]}, but `tpaw_players` has {parent.player.path} with "
                f"{parent.fingerprint[:12]} as {parent.player.name}. Name the checkpoint it was trained from."
            )
    return problems


def stacking_problems(members: Sequence[Member]) -> list[str]:
    """Refuse an adapter of stage `tpaw` that is put on something else than it was trained on."""
    problems = []
    for member in members:
        manifest = read_manifest(member.home) if member.adapters else None
        recorded = (manifest.result if manifest else {}).get("below")
        if not recorded or recorded[-1]["fingerprint"] == member.below[-1]:
            continue
        was = "+".join(os.path.normpath(member.home / part["path"]) for part in recorded)
        is_ = "+".join(member.player.below)
        problems.append(
            f"{member.player.name}: {member.player.path} was trained on {was} with fingerprint "
            f"{recorded[-1]['fingerprint'][:12]} (its {MANIFEST} says so), but is put on {is_} with "
            f"{member.below[-1][:12]}. Write the player as it was trained, the model and its adapters in order: "
            f"`{was}+{member.player.path}`."
        )
    return problems


def base_problems(members: Sequence[Member], store: Path) -> list[str]:
    r"""Refuse an adapter whose config names another model, in a folder here, than the one that it is put on.

    Args:
        members: The players.
        store: Where fingerprints are kept.
    """
    problems = []
    for member in members:
        for adapter in member.adapters:
            named = read_object(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
            recorded = Path(str(named or ""))
            if not named or same_place(str(recorded), str(member.folder)) or check_checkpoint_complete(recorded):
                continue
            then = fingerprint_checkpoint(recorded, store)
            if then != member.below[0]:
                problems.append(
                    f"{member.player.name}: {adapter} was trained on {recorded} with fingerprint {then[:12]} (its "
                    f"{ADAPTER_CONFIG} says so), but is put on {member.player.base} with {member.below[0][:12]}. "
                    f"Correct `model_name_or_path`, or write the player out: `{recorded}+{adapter}`."
                )
    return list(dict.fromkeys(problems))


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
    """Yield every setting of rotary positions with the configuration it is in; there may be one a layer type."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name) or {}
        yield from ((config, part) for part in (rope, *rope.values()) if isinstance(part, dict))
    if isinstance(config.get("text_config"), dict):
        yield from _rope_settings(config["text_config"])


def _vocabulary_size(folder: Path) -> int:
    config = read_json(folder / "config.json")
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 0))
