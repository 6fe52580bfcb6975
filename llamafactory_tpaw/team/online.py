# SPDX-License-Identifier: Apache-2.0
"""Players that score every training batch as it comes: models of their own, or adapters on the policy's model."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .engine import shard, sharding_of
from .forward import response_logps


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import PreTrainedModel

    from .loading import PlayerLoader
    from .members import Member
    from .scorer import TeamScorer

NAME = "player_{}"


class Seat(NamedTuple):
    r"""Where a player sits.

    Attributes:
        model: Its model.
        guest: Whether that is the policy's.
        adapter: Of a guest its adapter's name there; None where all adapters are off.
        head: Whether its log-probs come from the hidden states.
    """

    model: torch.nn.Module
    guest: bool
    adapter: str | None
    head: bool


class OnlineTeam:
    r"""All players in memory: the plain way, kept for comparison.

    A player that is made of the model under the policy's adapter sits there: its own adapter is added and switched to
    for its turn. All others are models of their own.

    Args:
        scorer: Knows how players are loaded and scored.
        team: The players, oldest first.
        policy: As LlamaFactory loaded it, on its device, before anything is put around it.
        seated: θ_t, which says what the policy is made of.
    """

    def __init__(self, scorer: TeamScorer, team: Sequence[Member], policy: PreTrainedModel, seated: Member) -> None:
        self.scorer = scorer
        adapters = [_guest_adapter(scorer.players, member, seated) for member in team]
        self.seats: list[Seat] = []
        for index, (member, adapter) in enumerate(zip(team, adapters, strict=True)):
            if adapter is None:
                model = shard(scorer.players.load(member), scorer.run.training, scorer.precision)
                self.seats.append(Seat(model, False, None, scorer.shortcuts_of(model).head))
                continue
            name = NAME.format(index) if adapter else None
            if name:
                add_guest(policy, adapter, name)
            self.seats.append(Seat(policy, True, name, False))
        if any(seat.guest for seat in self.seats):
            head = scorer.shortcuts_of(policy).head
            self.seats = [seat._replace(head=head) if seat.guest else seat for seat in self.seats]

    @torch.no_grad()
    def score(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Score a batch of S sequences: (S, J) in nats, players oldest first."""
        scores = []
        for seat in self.seats:
            with switched(seat.model, seat.adapter) if seat.guest else contextlib.nullcontext():
                scores.append(response_logps(seat.model, batch, self.scorer.autocast(), head=seat.head).sums)
        return torch.stack(scores, dim=1)


def add_guest(policy: Any, adapter: str, name: str) -> None:
    r"""Add a player's adapter to the policy's model, frozen; it stays out of what is saved.

    Args:
        policy: A `PeftModel`.
        adapter: The player's adapter, a folder.
        name: Of the adapter there.
    """
    own = policy.active_adapter
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    policy.load_adapter(adapter, adapter_name=name, is_trainable=False)
    policy.set_adapter(own)
    policy.requires_grad_(False)
    for weight in trained:
        weight.requires_grad_(True)
    if "save_pretrained" not in vars(policy):
        policy.save_pretrained = partial(policy.save_pretrained, selected_adapters=[own])


@contextlib.contextmanager
def switched(policy: Any, adapter: str | None) -> Iterator[None]:
    """Let the policy's model be a player meanwhile: with another adapter, or with none."""
    own, trained = policy.active_adapter, [weight for weight in policy.parameters() if weight.requires_grad]
    in_training = policy.training
    policy.eval()
    try:
        if adapter is None:
            with policy.disable_adapter():
                yield
        else:
            policy.base_model.set_adapter(adapter, inference_mode=True)
            yield
    finally:
        policy.base_model.set_adapter(own, inference_mode=True)
        for weight in trained:
            weight.requires_grad_(True)
        policy.train(in_training)


def _guest_adapter(players: PlayerLoader, member: Member, seated: Member) -> str | None:
    """The adapter that makes the policy's model this player: empty for none; None where no adapter does."""
    own, other = players.stack_of(seated), players.stack_of(member)
    if not players.start.is_lora or sharding_of(players.run.training) or own[:2] != other[:2]:
        return None
    return str(other.apart or "")
