# SPDX-License-Identifier: Apache-2.0
"""The TPAW loss: hand-worked numbers, the special cases of the algorithm, gradients, extremes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llamafactory_tpaw.objectives import TpawLoss, tpaw_loss


FP32 = {"rtol": 1e-5, "atol": 1e-6}


def make_logps(batch: int = 5, players: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Policy log-probs that carry grad, then players' log-probs within a few nats of them."""
    generator = torch.Generator().manual_seed(seed)
    target = -60.0 + 20.0 * torch.randn(batch, generator=generator, dtype=torch.float64)
    generated = -50.0 + 20.0 * torch.randn(batch, generator=generator, dtype=torch.float64)
    player_target = target[:, None] + 4.0 * torch.randn(batch, players, generator=generator, dtype=torch.float64)
    player_generated = generated[:, None] + 4.0 * torch.randn(batch, players, generator=generator, dtype=torch.float64)
    logps = [value.to(dtype) for value in (target, generated, player_target, player_generated)]
    return [logps[0].requires_grad_(), logps[1].requires_grad_(), logps[2], logps[3]]


def sigmoid_dpo(logps: list[Tensor], beta: float) -> Tensor:
    """SPIN and sigmoid DPO for one reference, written on its own: log(1 + exp(-beta * (log-ratio difference)))."""
    target, generated, reference_target, reference_generated = logps
    policy_ratio = target - generated
    reference_ratio = reference_target[:, 0] - reference_generated[:, 0]
    return torch.log1p(torch.exp(-beta * (policy_ratio - reference_ratio)))


def test_two_players_by_hand() -> None:
    """One triplet, two players, lambda 0.5, eta 2, gamma 1.

    Player 1: P(y) = 0.5 * (-10 - -12) = 1, P(y_gen) = 0.5 * (-8 - -7) = -0.5, m = 1.5, alpha = 1.
    Player 2: P(y) = 0.5 * (-10 - -9) = -0.5, P(y_gen) = 0.5 * (-8 - -10) = 1, m = -1.5, alpha = 2.
    beta = softmax(-1.5, 1.5) = (1 / (1 + e^3), 1 / (1 + e^-3)) = (0.0474259, 0.9525741).
    z = (1 * 1 + 0.5, 2 * -0.5 - 1) = (1.5, -2).
    l = (log(1 + e^-1.5), log(1 + e^2)) = (0.2014133, 2.1269280).
    loss = 0.0474259 * 0.2014133 + 0.9525741 * 2.1269280 = 0.0095522 + 2.0260566 = 2.0356088.
    """
    out = tpaw_loss(
        torch.tensor([-10.0]),
        torch.tensor([-8.0]),
        torch.tensor([[-12.0, -9.0]]),
        torch.tensor([[-7.0, -10.0]]),
        reward_scale=0.5,
        eta=2.0,
        gamma=1.0,
    )
    assert isinstance(out, TpawLoss)
    torch.testing.assert_close(out.target_rewards, torch.tensor([[1.0, -0.5]]), **FP32)
    torch.testing.assert_close(out.generated_rewards, torch.tensor([[-0.5, 1.0]]), **FP32)
    torch.testing.assert_close(out.target_weights, torch.tensor([[1.0, 2.0]]), **FP32)
    torch.testing.assert_close(out.player_weights, torch.tensor([[0.0474259, 0.9525741]]), **FP32)
    torch.testing.assert_close(out.losses, torch.tensor([2.0356088]), **FP32)
    torch.testing.assert_close(out.loss, torch.tensor(2.0356088), **FP32)


def test_defaults_by_hand() -> None:
    """Defaults lambda 0.1, eta 6, gamma 0.5; two triplets, one player.

    Triplet 1: P(y) = 0.1 * (-20 - -15) = -0.5, P(y_gen) = 0.1 * (-30 - -32) = 0.2, z = 6 * -0.5 - 0.2 = -3.2,
    l = log(1 + e^3.2) = 3.2399531. Triplet 2: P(y) = 0.1 * (-10 - -13) = 0.3, P(y_gen) = 0, z = 0.3,
    l = log(1 + e^-0.3) = 0.5543552. Mean: 1.8971542.
    """
    out = tpaw_loss(
        torch.tensor([-20.0, -10.0]),
        torch.tensor([-30.0, -40.0]),
        torch.tensor([[-15.0], [-13.0]]),
        torch.tensor([[-32.0], [-40.0]]),
    )
    torch.testing.assert_close(out.losses, torch.tensor([3.2399531, 0.5543552]), **FP32)
    torch.testing.assert_close(out.loss, torch.tensor(1.8971542), **FP32)


def test_reward_of_exactly_zero_counts_as_not_positive() -> None:
    target = torch.tensor([-5.0, -5.0, -5.0])
    player = torch.tensor([[-5.0], [-5.000001], [-4.999999]])
    out = tpaw_loss(target, target, player, player, eta=6.0)
    assert out.target_weights.flatten().tolist() == [6.0, 1.0, 6.0]


@pytest.mark.parametrize("reward_scale", [0.1, 0.5])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_one_player_and_eta_1_is_spin(reward_scale: float, gamma: float) -> None:
    logps = make_logps(players=1)
    out = tpaw_loss(*logps, reward_scale=reward_scale, eta=1.0, gamma=gamma)
    torch.testing.assert_close(out.losses, sigmoid_dpo(logps, reward_scale), **FP32)
    ours = torch.autograd.grad(out.loss, logps[:2])
    theirs = torch.autograd.grad(sigmoid_dpo(logps, reward_scale).mean(), logps[:2])
    torch.testing.assert_close(ours, theirs, **FP32)


def test_eta_1_leaves_the_target_unweighted() -> None:
    logps = make_logps()
    out = tpaw_loss(*logps, eta=1.0)
    assert (out.target_weights == 1).all()
    margins = out.target_rewards - out.generated_rewards
    expected = (torch.softmax(-0.5 * margins, 1) * torch.log1p(torch.exp(-margins))).sum(1)
    torch.testing.assert_close(out.losses, expected, **FP32)


def test_gamma_0_is_the_plain_average_over_players() -> None:
    logps = make_logps()
    out = tpaw_loss(*logps, gamma=0.0)
    torch.testing.assert_close(out.player_weights, torch.full((5, 3), 1 / 3), **FP32)
    each = [tpaw_loss(*logps[:2], logps[2][:, j : j + 1], logps[3][:, j : j + 1]).losses for j in range(3)]
    torch.testing.assert_close(out.losses, torch.stack(each).mean(0), **FP32)


def test_one_player_has_weight_1() -> None:
    logps = make_logps(players=1)
    out = tpaw_loss(*logps, gamma=7.0)
    assert (out.player_weights == 1).all()
    torch.testing.assert_close(out.losses, tpaw_loss(*logps, gamma=0.0).losses, rtol=0, atol=0)


def test_policy_equal_to_every_player_and_eta_1_is_log_2() -> None:
    target, generated = make_logps()[:2]
    out = tpaw_loss(target, generated, target[:, None].expand(5, 3), generated[:, None].expand(5, 3), eta=1.0)
    torch.testing.assert_close(out.losses, torch.full((5,), math.log(2.0)), **FP32)
    assert (out.target_rewards == 0).all()
    assert (out.generated_rewards == 0).all()


def test_smaller_margin_gives_a_player_more_weight() -> None:
    logps = make_logps()
    out = tpaw_loss(*logps, gamma=2.0)
    margins = out.target_rewards - out.generated_rewards
    assert torch.equal(margins.argsort(1), out.player_weights.argsort(1, descending=True))
    torch.testing.assert_close(out.player_weights.sum(1), torch.ones(5), **FP32)


def test_no_gradient_flows_through_the_weights() -> None:
    logps = [value.requires_grad_() for value in make_logps(dtype=torch.float64)]
    out = tpaw_loss(*logps)
    ours = torch.autograd.grad(out.loss, logps, allow_unused=True)
    assert ours[2:] == (None, None), "players are constants, even if they carry grad"
    alpha, beta = out.target_weights, out.player_weights
    target_rewards = 0.1 * (logps[0][:, None] - logps[2])
    generated_rewards = 0.1 * (logps[1][:, None] - logps[3])
    frozen = (beta * torch.log1p(torch.exp(generated_rewards - alpha * target_rewards))).sum(1).mean()
    torch.testing.assert_close(ours[:2], torch.autograd.grad(frozen, logps[:2]))
    assert not any(value.requires_grad for value in (out.target_rewards, out.generated_rewards, alpha, beta))


@pytest.mark.parametrize(("reward_scale", "eta", "gamma"), [(10.0, 100.0, 0.5), (10.0, 1.0, 100.0), (0.1, 6.0, 0.0)])
def test_extremes_stay_finite(reward_scale: float, eta: float, gamma: float) -> None:
    sizes = torch.tensor([-1e6, -1e6, 0.0, 0.0, -5e5, 1e6])
    target, generated = sizes.clone().requires_grad_(), sizes.flip(0).clone().requires_grad_()
    player = torch.stack([sizes.flip(0), sizes, torch.zeros(6)], 1)
    out = tpaw_loss(target, generated, player, player.flip(1), reward_scale=reward_scale, eta=eta, gamma=gamma)
    out.loss.backward()
    assert (out.target_rewards - out.generated_rewards).abs().max() >= 1e6 * reward_scale
    for value in (*out, target.grad, generated.grad):
        assert torch.isfinite(value).all()


def test_a_won_triplet_keeps_its_small_loss() -> None:
    """At z = 30 the loss is log(1 + e^-30) = 9.36e-14, not 0, and its gradient -9.36e-14."""
    target = torch.tensor([0.0], requires_grad=True)
    out = tpaw_loss(target, torch.tensor([-30.0]), torch.tensor([[0.0]]), torch.tensor([[0.0]]), reward_scale=1.0)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(math.exp(-30), rel=1e-5)
    assert target.grad.item() == pytest.approx(-6.0 * math.exp(-30), rel=1e-5)
