# SPDX-License-Identifier: Apache-2.0
"""The players with their weights at hand: found, fingerprinted, and checked to share one tokenizer and vocabulary."""

from __future__ import annotations

import copy
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..arguments.start import Start
from ..data.encoding import TurnEncoder, tokenizer_digest
from ..data.files import read_json
from ..errors import ConfigError, DataError, Findings
from ..lf import facade
from .checkpoint import check_checkpoint_complete, read_tensors
from .fingerprint import chain_fingerprints, fingerprint_checkpoint
from .manifest import MANIFEST, read_manifest
from .players import Player, lineage_problems, list_players, player_problems
from .select import select_team


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..arguments.parsed import RunArguments

LEARNED = re.compile("wpe|position")  # in names of tensors with a row for each position
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class Member:
    """A player whose weights are at hand: where they are and what they are."""

    player: Player
    folder: Path  # its model, a whole one; of a player with adapters the one below them
    fingerprint: str  # of all of it
    adapters: tuple[Path, ...] = ()  # on the model, in order
    below: tuple[str, ...] = ()  # fingerprints of the model, and of it with each adapter but the last
    score: float | None = None  # by which `tpaw_team_select` chose it

    @property
    def home(self) -> Path:
        """What was saved of it: the last adapter, or the whole model."""
        return self.adapters[-1] if self.adapters else self.folder


class Team(NamedTuple):
    """The players, oldest first and none for T-SPIN; θ_t, its tokenizer, processor or None, and encoder."""

    members: list[Member]
    policy: Member
    tokenizer: Any
    processor: Any
    encoder: TurnEncoder

    @property
    def readers(self) -> list[Member]:
        """Everyone whose tokenizer and lineage matter: the players, or θ_t alone."""
        return self.members or [self.policy]


def load_team(run: RunArguments, findings: Findings) -> Team:
    """Find and check the players and θ_t's tokenizer, without loading a model."""
    members, policy = load_members(run)
    with findings.note():
        check_parents(members or [policy])
    tokenizer, processor, encoder = load_encoder(run)
    team = Team(members, policy, tokenizer, processor, encoder)
    with findings.note():
        check_tokenizers(team.readers, run, encoder)
    check_positions(run, policy.folder, findings)
    return team


def load_encoder(run: RunArguments, module: dict[str, Any] | None = None) -> tuple[Any, Any, TurnEncoder]:
    """Load θ_t's tokenizer and processor, or take those of `module`, and LlamaFactory's template, with the encoder."""
    module = module or load_tokenizer(run.model, "`model_name_or_path`")
    own = module["tokenizer"].chat_template
    template = facade.get_template_and_fix_tokenizer(module["tokenizer"], run.data)
    try:
        encoder = TurnEncoder(module["tokenizer"], template, own)
    except TypeError as error:
        raise ConfigError(
            f"`template: {run.data.template}` writes tokens that the tokenizer of {run.model.model_name_or_path} "
            "does not have. Use the template of the model, as in the `sft` stage."
        ) from error
    return module["tokenizer"], module["processor"], encoder


def load_members(run: RunArguments) -> tuple[list[Member], Member]:
    """Find the weights of the team, oldest first and empty for T-SPIN, and of θ_t: (team, θ_t)."""
    players = list_players(run.finetuning, Start.of(vars(run.model) | vars(run.finetuning)))
    needed = players[-run.finetuning.candidates :]
    problems = player_problems(needed)
    if problems:
        raise DataError(problems)
    members = [member_of(player, run.model, Path(run.finetuning.tpaw_cache_dir)) for player in needed]
    members = select_team(members, run.finetuning)
    return ([] if run.finetuning.tpaw_objective == "tspin" else members), members[-1]


def member_of(player: Player, model_args: Any, store: Path) -> Member:
    """Find a player's weights, download them with LlamaFactory's arguments if need be, and fingerprint them."""
    model, *adapters = player.places(model_args)
    *below, fingerprint = chain_fingerprints([model, *adapters], store)
    return Member(player, model, fingerprint, tuple(adapters), tuple(below))


def check_parents(members: Sequence[Member]) -> None:
    """Check that each player is what its iteration saved, trained from the one before it."""
    problems = [problem for member in members for problem in lineage_problems(member.player, member.home)]
    if problems:
        raise DataError(problems)
    manifests = [read_manifest(member.home) if member.player.theta > 0 else None for member in members]
    for member, manifest in zip(members, manifests, strict=True):
        # A checkpoint that training saved on its way has no result.
        if manifest is not None and manifest.result.get("fingerprint", member.fingerprint) != member.fingerprint:
            player, below = member.player, manifest.result.get("below", ())
            was = "+".join([*(os.path.normpath(member.home / part["path"]) for part in below), player.path])
            problems.append(
                f"{player.name} ({player.path}) has fingerprint {member.fingerprint[:12]}, but its {MANIFEST} says "
                f"{manifest.result['fingerprint'][:12]}: its weights were changed after the iteration, or are put on "
                f"others. Restore `{was}`, or repeat iteration {manifest.iteration} with `overwrite_output_dir: true`."
            )
    for (parent, _), (child, manifest) in itertools.pairwise(zip(members, manifests, strict=True)):
        is_next = child.player.theta == parent.player.theta + 1  # `tpaw_team_select` may leave some out between
        if is_next and manifest is not None and manifest.policy["fingerprint"] != parent.fingerprint:
            problems.append(
                f"{child.player.name} ({child.player.path}) was trained from a checkpoint with fingerprint "
                f"{manifest.policy['fingerprint'][:12]}, but `tpaw_players` has {parent.player.path} with "
                f"{parent.fingerprint[:12]} as {parent.player.name}. Name the checkpoint it was trained from."
            )
    if problems:
        raise DataError(problems)


def check_tokenizers(members: Sequence[Member], run: RunArguments, encoder: TurnEncoder) -> None:
    """Check that all players read text as the same tokens and have rows for all of them."""
    problems, newest = [], members[-1]
    for member in members[:-1]:
        if member.folder == newest.folder:
            continue  # adapters read what the model below them reads
        model_args = copy.copy(run.model)
        model_args.model_name_or_path = str(member.folder)
        other = load_tokenizer(model_args, f"{member.player.name} (`tpaw_players`)")["tokenizer"]
        facade.get_template_and_fix_tokenizer(other, run.data)
        if tokenizer_digest(other) != encoder.tokenizer_digest:
            problems.append(
                f"{member.player.name} ({member.player.path}) has another tokenizer than {newest.player.name} "
                f"({newest.player.path}): {len(other)} and {len(encoder.tokenizer)} tokens, not the same ones. All "
                "players must share one; copy the tokenizer files of the SFT model into the checkpoint, or use "
                "checkpoints of one run."
            )
    sizes = {member.player.name: int(_text_config(member.folder).get("vocab_size", 0)) for member in members}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        problems.append(
            f"The players' vocabularies differ ({listed}), so they cannot judge the same tokens; `resize_vocab` does "
            "not help. Use checkpoints of one model."
        )
    too_small = [name for name, size in sizes.items() if size < len(encoder.tokenizer)]
    if too_small:
        problems.append(
            f"The tokenizer has {len(encoder.tokenizer)} tokens, but {', '.join(too_small)} only "
            f"{min(sizes.values())}: `resize_vocab` would give each player other random rows, so stage `tpaw` "
            "refuses. Choose a template whose tokens are in the vocabulary and leave `add_tokens` out, or resize and "
            "train the tokens in the `sft` stage first."
        )
    if problems:
        raise DataError(problems)


def check_positions(run: RunArguments, folder: Path, findings: Findings) -> None:
    """Hold `cutoff_len` to a local model's positions; rotary ones must not depend on the longest row of a batch."""
    config, key = _text_config(folder) if folder.is_dir() else {}, "original_max_position_embeddings"
    path, cutoff_len = run.model.model_name_or_path, run.data.cutoff_len
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    parts = [part for part in (rope, *rope.values()) if isinstance(part, dict)]  # there may be one a layer type
    positions, problems = config.get("max_position_embeddings") or config.get("n_positions"), []
    for part in parts:
        kind = part.get("rope_type") or part.get("type")
        if kind in ("dynamic", "longrope"):
            limit = part.get(key) or config.get(key) or config.get("max_position_embeddings", 0)
            if cutoff_len > limit:
                problems.append(
                    f"`cutoff_len` is {cutoff_len}, but {path} changes its rotary positions (`{kind}`) for all rows "
                    f"of a batch where one is longer than {limit}, so log-probs would depend on their neighbours. Set "
                    f"`cutoff_len` to {limit} or less."
                )
    if positions and cutoff_len > positions and not problems:
        text = f"`cutoff_len` is {cutoff_len}, but {path} has {positions} positions"
        if any(len(each.shape) == 2 and LEARNED.search(each.name) for each in read_tensors(folder)):
            problems.append(f"{text} and none beyond. Set `cutoff_len` to {positions} or less.")
        elif not (run.model.rope_scaling or any("factor" in part for part in parts)):
            findings.warnings.append(f"{text}: longer rows are new to it. Lower `cutoff_len`, or set `rope_scaling`.")
    findings.refuse(ConfigError, problems)


def load_opponent(run: RunArguments, policy: Member, encoder: TurnEncoder) -> Member | None:
    """Find the weights of `tpaw_opponent_model`; None where the run names none, or one that only a server has."""
    named, served = run.finetuning.tpaw_opponent_model, run.finetuning.tpaw_engine == "openai"
    if not named or (served and not Path(named).is_dir()):
        return None
    player = Player(policy.player.theta, str(named), label="the opponent (`tpaw_opponent_model`)")
    member = member_of(player, run.model, Path(run.finetuning.tpaw_cache_dir))
    if not served:
        try:
            check_tokenizers([member, policy], run, encoder)
        except DataError as error:
            advice = "Or serve the opponent and use `tpaw_engine: openai`: its texts are encoded then."
            raise DataError([f"{problem} {advice}" for problem in error.problems]) from error
    return member


def opponent_fingerprint(named: str | None, store: Path) -> str | None:
    """Fingerprint of an opponent whose weights are in a folder here; None of any other."""
    if not named or not Path(named).is_dir() or check_checkpoint_complete(Path(named)):
        return None
    return fingerprint_checkpoint(Path(named), store)


def load_tokenizer(model_args: Any, whose: str) -> dict[str, Any]:
    """Load a tokenizer and processor with LlamaFactory; an error says whose they are."""
    folder, advice = Path(model_args.model_name_or_path), "Copy the tokenizer files of the SFT model into the folder."
    # Without files transformers makes a tokenizer that knows no text instead of failing.
    if folder.is_dir() and not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise DataError(f"{whose}: {folder} holds no tokenizer. {advice}")
    if not folder.is_dir():
        advice = "It is no folder here: correct the path, or let this machine reach the hub."
    try:
        return facade.load_tokenizer(model_args)
    except (OSError, ValueError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{whose}: the tokenizer in {folder} cannot be loaded ({cause}). {advice}") from error


def load_config(model_args: Any) -> Any:
    """Load with LlamaFactory what a model's config says of its language model."""
    try:
        return facade.load_config(model_args).get_text_config()
    except Exception as error:  # values of other types raise what they like
        where, cause = Path(model_args.model_name_or_path) / "config.json", " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{where} cannot be used: {cause}. Restore the file.") from error


def _text_config(folder: Path) -> dict[str, Any]:
    """The language model's part of a checkpoint's config."""
    config = read_json(folder / "config.json")
    return config.get("text_config") or config
