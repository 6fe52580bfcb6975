# SPDX-License-Identifier: Apache-2.0
"""The T-SPIN loss: hand-worked numbers at iteration 0 and later, gradients, extremes."""

from __future__ import annotations

import torch

from llamafactory_tpaw.objectives import tspin_loss


FP32 = {"rtol": 1e-5, "atol": 1e-6}
TARGET, GENERATED, PROTO = torch.tensor([-3.0, -6.0]), torch.tensor([-4.0, -5.0]), torch.tensor([-6.0, -4.5])


def test_iteration_0_by_hand() -> None:
    """a = 1, no second term: z = (1, -1), l = (log(1 + e^-1), log(1 + e)) = (0.3132617, 1.3132617), mean 0.8132617."""
    out = tspin_loss(TARGET, GENERATED, None)
    torch.testing.assert_close(out.losses, torch.tensor([0.3132617, 1.3132617]), **FP32)
    torch.testing.assert_close(out.loss, torch.tensor(0.8132617), **FP32)
    torch.testing.assert_close(out.target_rewards, TARGET)
    torch.testing.assert_close(out.generated_rewards, GENERATED)
    assert out.proto_rewards is None


def test_later_iteration_by_hand() -> None:
    """a = 1, b = 0.1. Second margins: -4 + 6 = 2, -5 + 4.5 = -0.5.

    l = (log(1 + e^-2), log(1 + e^0.5)) = (0.1269280, 0.9740770).
    losses = (0.3132617 + 0.0126928, 1.3132617 + 0.0974077) = (0.3259545, 1.4106694), mean 0.8683119.
    """
    out = tspin_loss(TARGET, GENERATED, PROTO)
    torch.testing.assert_close(out.losses, torch.tensor([0.3259545, 1.4106694]), **FP32)
    torch.testing.assert_close(out.loss, torch.tensor(0.8683119), **FP32)
    torch.testing.assert_close(out.proto_rewards, PROTO)


def test_scale_and_history_weight_by_hand() -> None:
    """a = 0.5, b = 2, first row: l(0.5) + 2 * l(1) = 0.4740770 + 2 * 0.3132617 = 1.1006004."""
    out = tspin_loss(TARGET[:1], GENERATED[:1], PROTO[:1], scale=0.5, history_weight=2.0)
    torch.testing.assert_close(out.loss, torch.tensor(1.1006004), **FP32)
    torch.testing.assert_close(out.target_rewards - out.generated_rewards, torch.tensor([0.5]))


def test_gradients_flow_through_all_three() -> None:
    logps = [value.double().requires_grad_() for value in (TARGET, GENERATED, PROTO)]
    assert torch.autograd.gradcheck(lambda t, g, p: tspin_loss(t, g, p).losses, logps)
    target, generated, proto = torch.autograd.grad(tspin_loss(*logps).losses.sum(), logps)
    assert (target < 0).all()
    assert (generated > 0).all()
    assert (proto > 0).all()
