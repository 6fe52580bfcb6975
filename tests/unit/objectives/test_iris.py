# SPDX-License-Identifier: Apache-2.0
"""The IRIS loss: hand-worked numbers, its gradient, parts of a batch, the limit at alpha 1, extremes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llamafactory_tpaw.objectives import iris_loss
from llamafactory_tpaw.objectives.iris import IrisLoss, iris_value
from tests.unit.objectives.test_tpaw import make_logps


FP32 = {"rtol": 1e-5, "atol": 1e-6}
BATCH = 8


def plain(logps: list[Tensor], scale: float, alpha: float) -> Tensor:
    """The objective as it is written down, with gradients through everything."""
    target, generated = (scale * (logps[k] - logps[k + 2][:, 0]) for k in (0, 1))
    return torch.exp(alpha * generated).mean().log() / alpha - torch.exp((alpha - 1) * target).mean().log() / (
        alpha - 1
    )


def parts_of(logps: list[Tensor], sizes: list[int], **settings: float) -> list[IrisLoss]:
    """The losses of the parts of a batch, each with the sums of all."""
    parts = list(zip(*(value.split(sizes) for value in logps), strict=True))
    sums = torch.stack([iris_loss(*part, **settings).log_sums for part in parts]).logsumexp(0)
    return [iris_loss(*part, **settings, log_sums=sums) for part in parts]


def test_two_triplets_by_hand() -> None:
    """lambda 0.5, alpha 0.5. Targets: r = 0.5 * (4, 0) = (2, 0), generated: r = 0.5 * (0, -4) = (0, -2).

    Targets e^(-0.5 * r) = (e^-1, 1): mean (0.3678794 + 1) / 2 = 0.6839397, its log -0.3798855, weights
    (0.5378828, 1.4621172).
    Generated e^(0.5 * r) = (1, e^-1): the same mean, weights (1.4621172, 0.5378828).
    loss = -0.3798855 / 0.5 - (-0.3798855) / -0.5 = -1.5195420.
    """
    out = iris_loss(
        torch.tensor([-6.0, -5.0]),
        torch.tensor([-7.0, -9.0]),
        torch.tensor([[-10.0], [-5.0]]),
        torch.tensor([[-7.0], [-5.0]]),
        reward_scale=0.5,
        alpha=0.5,
    )
    torch.testing.assert_close(out.target_rewards, torch.tensor([[2.0], [0.0]]), **FP32)
    torch.testing.assert_close(out.generated_rewards, torch.tensor([[0.0], [-2.0]]), **FP32)
    torch.testing.assert_close(out.target_weights, torch.tensor([[0.5378828], [1.4621172]]), **FP32)
    torch.testing.assert_close(out.generated_weights, torch.tensor([[1.4621172], [0.5378828]]), **FP32)
    torch.testing.assert_close(out.loss, torch.tensor(-1.5195420), **FP32)
    torch.testing.assert_close(out.losses, torch.full((2,), -1.5195420), **FP32)
    assert iris_value(out.log_sums, 0.5).item() == pytest.approx(-1.5195420, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 2.0])
@pytest.mark.parametrize("sizes", [[BATCH], [1] * BATCH, [4, 4], [5, 2, 1]])
def test_loss_and_gradient_of_any_parts_are_those_of_the_whole_batch(alpha: float, sizes: list[int]) -> None:
    """1 x 8, 8 x 1, and unequal parts, as of processes: a sum over the parts' losses over the whole number."""
    logps = make_logps(BATCH, 1, dtype=torch.float64)
    outs = parts_of(logps, sizes, reward_scale=0.3, alpha=alpha)
    loss = sum(out.losses.sum() for out in outs) / BATCH
    expected = plain(logps, 0.3, alpha)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(value, logps[:2]) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    alone = sum(iris_loss(*(value[k : k + 1] for value in logps), 0.3, alpha).losses.sum() for k in range(BATCH))
    assert not torch.allclose(torch.autograd.grad(alone / BATCH, logps[0])[0], theirs[0], rtol=0.1)


def test_at_alpha_1_targets_count_alike() -> None:
    """The limit is log mean e^r of the generated responses less the mean of the targets' r; near 1 it is near."""
    logps = make_logps(BATCH, 1)
    out = iris_loss(*logps, alpha=1.0)
    torch.testing.assert_close(out.target_weights, torch.ones(BATCH, 1), rtol=0, atol=1e-5)
    expected = out.generated_rewards.exp().mean().log() - out.target_rewards.mean()
    torch.testing.assert_close(out.loss.detach(), expected, **FP32)
    for near in (0.999, 1.001):
        assert iris_loss(*logps, alpha=near).loss.item() == pytest.approx(expected.item(), abs=1e-3)
