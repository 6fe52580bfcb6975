# SPDX-License-Identifier: Apache-2.0
"""All players in memory, to score every training batch as it comes: the plain way, kept for comparison."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .forward import response_logps
from .sharding import shard, sharding_of
from .shortcuts import find_shortcuts


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from .members import Member
    from .scorer import TeamScorer


class OnlineTeam:
    r"""Scores batches under all players.

    A player that is made of the model under the policy's adapter has only its own adapter added there, which is
    switched to for its turn. All others are models by themselves. The policy is as LlamaFactory loaded it, before
    anything is put around it; `theta` says what it is made of.
    """

    def __init__(self, scorer: TeamScorer, team: Sequence[Member], policy: PreTrainedModel, theta: Member) -> None:
        self.scorer = scorer
        own = scorer.players.stack_of(theta)
        shared = scorer.players.start.is_lora and not sharding_of(scorer.run.training)
        # Model of each player, and what is entered for its turn.
        self.players = []
        for number, member in enumerate(team):
            stack = scorer.players.stack_of(member)
            if shared and stack.whole == own.whole:
                name = f"player_{number}" if stack.apart else None
                if name:
                    _add_player(policy, stack.apart, name)
                self.players.append((policy, partial(_switched, policy, name)))
            else:
                model = shard(scorer.players.load(member), scorer.run.training, scorer.precision)
                self.players.append((model, contextlib.nullcontext))
        arguments = scorer.run.training, scorer.run.finetuning
        heads = {id(model): find_shortcuts(model, *arguments).head for model, _ in self.players}
        self.heads = [heads[id(model)] for model, _ in self.players]

    @torch.no_grad()
    def score(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Score a batch of S sequences: (S, J) in nats, players oldest first."""
        scores = []
        for (model, turn), head in zip(self.players, self.heads, strict=True):
            with turn():
                scores.append(response_logps(model, batch, self.scorer.precision.autocast, head=head).sums)
        return torch.stack(scores, dim=1)


def _add_player(policy: Any, adapter: Path, name: str) -> None:
    """Add a player's adapter to the policy's model under a name, frozen; it stays out of what is saved."""
    own = policy.active_adapter
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    policy.load_adapter(str(adapter), adapter_name=name, is_trainable=False)
    policy.set_adapter(own)
    policy.requires_grad_(False)
    for weight in trained:
        weight.requires_grad_(True)
    if "save_pretrained" not in vars(policy):
        policy.save_pretrained = partial(policy.save_pretrained, selected_adapters=[own])


@contextlib.contextmanager
def _switched(policy: Any, adapter: str | None) -> Iterator[None]:
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
