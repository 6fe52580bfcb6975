# SPDX-License-Identifier: Apache-2.0
"""IRIS, a Renyi objective over the whole batch: a reconstruction, because the paper's equations were not at hand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_logps, check_number
from .tpaw import reward


# In place of alpha - 1 at alpha = 1, so small that the log of the mean is the mean of the logs.
LIMIT = 1e-6


class IrisLoss(NamedTuple):
    """What `iris_loss` returns, in float32 (float64 where an input is). Only `loss` and `losses` carry grad."""

    loss: Tensor  # mean of `losses`, shape ()
    losses: Tensor  # shape (B,); each has the whole batch's loss as its value, the mean of the gradients is the loss's
    target_rewards: Tensor  # r of the targets, shape (B, 1)
    generated_rewards: Tensor  # r of the generated responses, shape (B, 1)
    target_weights: Tensor  # e^((alpha - 1) * r) over its mean in the whole batch, shape (B, 1)
    generated_weights: Tensor  # e^(alpha * r) over its mean in the whole batch, shape (B, 1)
    # Of these triplets, float64 (3,): logs of the sums of both exponentials and of B. Parts join by logsumexp.
    log_sums: Tensor


def iris_value(log_sums: Tensor, alpha: float) -> Tensor:
    """Compute the loss of a batch, shape (), from its `log_sums`."""
    target, generated = log_sums[:2] - log_sums[2]
    return generated / alpha - target / (alpha - 1.0 or LIMIT)


def iris_loss(
    policy_target_logps: Tensor,
    policy_generated_logps: Tensor,
    player_target_logps: Tensor,
    player_generated_logps: Tensor,
    reward_scale: float = 0.1,
    alpha: float = 0.5,
    log_sums: Tensor | None = None,
) -> IrisLoss:
    r"""Compute 1/alpha * log mean e^(alpha * r(x, y_gen)) - 1/(alpha - 1) * log mean e^((alpha - 1) * r(x, y)).

    r = lambda * (log pi_theta - log pi_theta_t). The means are over the whole batch, so that a part of one needs the
    `log_sums` of all parts. The gradient is that of a weighted sum of r, with `target_weights` and
    `generated_weights` as constants. Errors are those of `tpaw_loss`.

    Args:
        policy_target_logps, policy_generated_logps, player_target_logps, player_generated_logps: As for `tpaw_loss`,
            with theta_t as the only player.
        reward_scale: lambda, > 0.
        alpha: Order of the Renyi divergence, > 0. At 1 it is Kullback's, and targets count alike.
        log_sums: Of the whole batch; None where these triplets are all of it.

    Source: a description of IRIS, arXiv 2604.20933. The fixed alpha, lambda within r and the means over the global
        batch are this package's reconstruction.
    """
    check_number("reward_scale", reward_scale, 0.0, exclusive=True)
    check_number("alpha", alpha, 0.0, exclusive=True)
    policy_target, policy_generated, player_target, player_generated = check_logps(
        {"policy_target_logps": policy_target_logps, "policy_generated_logps": policy_generated_logps},
        {"player_target_logps": player_target_logps, "player_generated_logps": player_generated_logps},
        players_count=1,
    )
    target_rewards = reward(policy_target, player_target, reward_scale)
    generated_rewards = reward(policy_generated, player_generated, reward_scale)
    # In float64, because the targets' exponents are small where alpha is near 1.
    both = torch.cat(
        [(alpha - 1.0 or LIMIT) * target_rewards.double(), alpha * generated_rewards.double()], 1
    ).detach()
    own = torch.cat([both, torch.zeros_like(both[:, :1])], 1).logsumexp(0)
    whole = own if log_sums is None else log_sums
    weights = (both - (whole[:2] - whole[2])).exp().to(target_rewards.dtype)
    target_weights, generated_weights = weights.split(1, 1)
    weighted = (generated_weights * generated_rewards - target_weights * target_rewards).squeeze(1)
    losses = weighted - weighted.detach() + iris_value(whole, alpha).to(weighted.dtype)
    rewards = target_rewards.detach(), generated_rewards.detach()
    return IrisLoss(losses.mean(), losses, *rewards, target_weights, generated_weights, own)
