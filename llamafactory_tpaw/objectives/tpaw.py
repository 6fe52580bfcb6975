# SPDX-License-Identifier: Apache-2.0
"""TPAW: the policy plays against a team of past checkpoints, with weights on the target and on the players."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .checks import check_logps, check_number


class TpawLoss(NamedTuple):
    """What `tpaw_loss` returns, in float32 (float64 where an input is). Only `loss` and `losses` carry grad."""

    loss: Tensor  # mean over the batch, shape ()
    losses: Tensor  # of each triplet, shape (B,)
    target_rewards: Tensor  # P_j(x, y), shape (B, J)
    generated_rewards: Tensor  # P_j(x, y_gen), shape (B, J)
    target_weights: Tensor  # alpha_j, shape (B, J): eta or 1
    player_weights: Tensor  # beta_j, shape (B, J): each row sums to 1


def reward(policy_logps: Tensor, player_logps: Tensor, reward_scale: float) -> Tensor:
    r"""Compare the policy with each player: P_j = lambda * (log pi_theta - log pi_theta_j).

    The policy's log-probs, (B,), carry grad; the players', (B, J), are constants. Rewards have shape (B, J).

    Source: TPAW, arXiv 2605.09922; SPIN, arXiv 2401.01335.
    """
    return reward_scale * (policy_logps.unsqueeze(1) - player_logps.detach())


def target_weight(target_rewards: Tensor, eta: float) -> Tensor:
    r"""Weigh the target reward: alpha_j = eta where P_j(x, y) <= 0, else 1. No gradient flows through it.

    A reward of exactly 0, the newest player's at the first step of an iteration, counts as <= 0.

    Source: TPAW, arXiv 2605.09922, target reward weighting.
    """
    target_rewards = target_rewards.detach()
    return torch.where(target_rewards <= 0, eta, torch.ones_like(target_rewards))


def player_weight(target_rewards: Tensor, generated_rewards: Tensor, gamma: float) -> Tensor:
    r"""Weigh the players: beta = softmax over players of -gamma * m_j, m_j = P_j(x, y) - P_j(x, y_gen).

    A player whose margin is small, which is hard to beat, counts more. No gradient flows through it.

    Source: TPAW, arXiv 2605.09922, main player weighting.
    """
    margins = (target_rewards - generated_rewards).detach()
    return torch.softmax(-gamma * margins, dim=1)


def tpaw_loss(
    policy_target_logps: Tensor,
    policy_generated_logps: Tensor,
    player_target_logps: Tensor,
    player_generated_logps: Tensor,
    reward_scale: float = 0.1,
    eta: float = 6.0,
    gamma: float = 0.5,
) -> TpawLoss:
    r"""Compute the TPAW loss: the mean over triplets of sum_j beta_j * l(alpha_j * P_j(x, y) - P_j(x, y_gen)).

    l(z) = log(1 + e^-z). One player and `eta=1` is SPIN; `eta=1` switches target weighting off, `gamma=0` player
    weighting. Inputs are left unchanged; the work is done in float32, or in float64 where an input is float64.

    Args:
        policy_target_logps: Log-probs of the targets under the policy in nats, shape (B,). Carries grad.
        policy_generated_logps: The same of the generated responses, shape (B,). Carries grad.
        player_target_logps: Log-probs of the targets under every player, shape (B, J), oldest first. Constants.
        player_generated_logps: The same of the generated responses, shape (B, J). Constants.
        reward_scale: lambda, > 0.
        eta: Weight of a target reward that is <= 0, >= 1.
        gamma: Sharpness of the player weights, >= 0.

    Raises:
        ValueError: If a shape or a setting is wrong, or a log-prob is NaN or inf.

    Source: TPAW, arXiv 2605.09922. That sums of log-probs are compared, as SPIN does, and that the weights carry
        no gradient is this package's reading of the paper; lambda is SPIN's 0.1.
    """
    check_number("reward_scale", reward_scale, 0.0, exclusive=True)
    check_number("eta", eta, 1.0)
    check_number("gamma", gamma, 0.0)
    policy_target, policy_generated, player_target, player_generated = check_logps(
        {"policy_target_logps": policy_target_logps, "policy_generated_logps": policy_generated_logps},
        {"player_target_logps": player_target_logps, "player_generated_logps": player_generated_logps},
    )

    target_rewards = reward(policy_target, player_target, reward_scale)
    generated_rewards = reward(policy_generated, player_generated, reward_scale)
    alpha = target_weight(target_rewards, eta)
    beta = player_weight(target_rewards, generated_rewards, gamma)
    # -logsigmoid and not softplus, which is the identity above 20.
    losses = -(beta * logsigmoid(alpha * target_rewards - generated_rewards)).sum(1)
    return TpawLoss(losses.mean(), losses, target_rewards.detach(), generated_rewards.detach(), alpha, beta)
