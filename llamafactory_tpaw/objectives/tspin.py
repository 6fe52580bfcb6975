# SPDX-License-Identifier: Apache-2.0
"""T-SPIN: self-play without a reference model, with the first iteration's responses as a second opponent."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from .checks import check_logps, check_number


class TspinLoss(NamedTuple):
    """What `tspin_loss` returns, in float32 (float64 where an input is). Only `loss` and `losses` carry grad.

    T-SPIN has no players, so rewards are those of the policy alone, a * log pi, of shape (B,), and there are no
    weights. `target_rewards - generated_rewards` is the margin that the first term of the loss sees.
    """

    loss: Tensor  # mean over the batch, shape ()
    losses: Tensor  # of each triplet, shape (B,)
    target_rewards: Tensor  # a * log pi(y), shape (B,)
    generated_rewards: Tensor  # a * log pi(y'), shape (B,)
    # a * log pi(y_0), shape (B,); None at iteration 0. `generated_rewards` minus it is the second term's margin.
    proto_rewards: Tensor | None


def tspin_loss(
    policy_target_logps: Tensor,
    policy_generated_logps: Tensor,
    policy_proto_logps: Tensor | None,
    scale: float = 1.0,
    history_weight: float = 0.1,
) -> TspinLoss:
    r"""Compute the T-SPIN loss: the mean of l(a*(log pi(y) - log pi(y'))) + b * l(a*(log pi(y') - log pi(y_0))).

    l(z) = log(1 + e^-z). Gradients flow through all three log-probs. Inputs are left unchanged; the work is done in
    float32, or in float64 where an input is float64. Errors are those of `tpaw_loss`.

    Args:
        policy_target_logps: Log-probs of the targets y under the policy in nats, shape (B,). Carries grad.
        policy_generated_logps: The same of y', which theta_t generated, shape (B,). Carries grad.
        policy_proto_logps: The same of y_0, which theta_0 generated, shape (B,). Carries grad. None at iteration 0,
            where y' and y_0 are the same: the second term is left out.
        scale: a, > 0.
        history_weight: b, >= 0.

    Source: T-SPIN, arXiv 2601.08198, equation 7.
    """
    check_number("scale", scale, 0.0, exclusive=True)
    check_number("history_weight", history_weight, 0.0)
    logps = {"policy_target_logps": policy_target_logps, "policy_generated_logps": policy_generated_logps}
    if policy_proto_logps is not None:
        logps["policy_proto_logps"] = policy_proto_logps
    target_rewards, generated_rewards, *history = (scale * value for value in check_logps(logps, {}))
    losses = -logsigmoid(target_rewards - generated_rewards)
    for proto_rewards in history:
        losses = losses - history_weight * logsigmoid(generated_rewards - proto_rewards)
    proto_rewards = history[0].detach() if history else None
    return TspinLoss(losses.mean(), losses, target_rewards.detach(), generated_rewards.detach(), proto_rewards)
