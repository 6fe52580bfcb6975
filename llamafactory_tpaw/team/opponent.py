# SPDX-License-Identifier: Apache-2.0
"""The model of `tpaw_opponent_model`, which generates a round in place of θ_t: its weights, or who serves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.files import digest_json
from ..data.triplets import SERVED
from ..errors import DataError
from .fingerprint import check_checkpoint_complete, fingerprint_checkpoint
from .members import Member, check_tokenizers, member_of
from .players import Player


if TYPE_CHECKING:
    from ..arguments.parsed import RunArguments
    from ..data.encoding import TurnEncoder


@dataclass(frozen=True)
class OpponentPlayer(Player):
    """An opponent model: it plays the part of θ_t in generation, and is no player of the team."""

    @property
    def name(self) -> str:
        """As messages call it."""
        return "the opponent (`tpaw_opponent_model`)"


def load_opponent(run: RunArguments, policy: Member, encoder: TurnEncoder) -> Member | None:
    r"""Find the weights of `tpaw_opponent_model`.

    Args:
        run: The run's arguments.
        policy: θ_t.
        encoder: Its tokenizer and template.

    Returns:
        The checkpoint that generates the round, or None where the run names none, or one that only a server has.

    Raises:
        DataError: If it is not there or damaged, or reads text as other tokens than θ_t where it is sent tokens.
    """
    named = run.finetuning.tpaw_opponent_model
    if not named:
        return None
    player = OpponentPlayer(policy.player.theta, str(named))
    served = run.finetuning.tpaw_engine == "openai"
    if served and not Path(player.path).is_dir():
        return None
    problems = local_problems(str(named)) if player.is_local else []
    if problems:
        raise DataError(problems)
    member = member_of(player, run.model, Path(run.finetuning.tpaw_cache_dir))
    if not served:
        try:
            check_tokenizers([member, policy], run, encoder)
        except DataError as error:
            raise DataError(
                [
                    f"{problem} Or serve the opponent and use `tpaw_engine: openai`: its texts are encoded then."
                    for problem in error.problems
                ]
            ) from error
    return member


def local_problems(named: str) -> list[str]:
    """Say what an opponent's folder lacks, without reading weights."""
    return [f"`tpaw_opponent_model: {named}`: {problem}" for problem in check_checkpoint_complete(Path(named))]


def opponent_fingerprint(named: str | None, store: Path) -> str | None:
    """Fingerprint of an opponent whose weights are in a folder here; None of any other."""
    if not named or not Path(named).is_dir() or check_checkpoint_complete(Path(named)):
        return None
    return fingerprint_checkpoint(Path(named), store)


def served_identity(name: str) -> str:
    r"""Identity of a model that only a server has, for `generator` of a meta file.

    Args:
        name: Under which the server has it; not its address, which may change.
    """
    return SERVED + digest_json({"name": name})
