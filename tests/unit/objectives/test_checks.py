# SPDX-License-Identifier: Apache-2.0
"""What the objectives refuse names the argument, the rows and what was given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llamafactory_tpaw.objectives import iris_loss, sequence_logps, tpaw_loss, tspin_loss
from tests.unit.objectives.test_tpaw import make_logps


OF_TPAW = ["policy_target_logps", "policy_generated_logps", "player_target_logps", "player_generated_logps"]
OF_TSPIN = ["policy_target_logps", "policy_generated_logps", "policy_proto_logps"]
ARGUMENTS = [
    *((tpaw_loss, *each) for each in enumerate(OF_TPAW)),
    *((tspin_loss, *each) for each in enumerate(OF_TSPIN)),
    (iris_loss, 3, OF_TPAW[3]),
]


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize(("loss", "position", "name"), ARGUMENTS)
def test_nan_and_inf_name_the_argument_and_the_rows(loss: Any, position: int, name: str, bad: float) -> None:
    logps = [torch.zeros(9) for _ in OF_TSPIN]
    if loss is not tspin_loss:
        players = 2 if loss is tpaw_loss else 1
        logps = [torch.zeros(9), torch.zeros(9), torch.zeros(9, players), torch.zeros(9, players)]
    logps[position][3] = bad
    logps[position][5:] = bad
    with pytest.raises(ValueError, match=rf"`{name}` holds NaN or inf in rows \[3, 5, 6, 7, 8\] of 9"):
        loss(*logps)


@pytest.mark.parametrize("loss", [tpaw_loss, tspin_loss, iris_loss])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32(loss: Any, dtype: torch.dtype) -> None:
    logps = make_logps(players=1, dtype=dtype)
    given = [*logps[:2], logps[2][:, 0]] if loss is tspin_loss else logps
    expected = loss(*(value.detach().float() for value in given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = loss(*given)
    for value, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0, check_stride=False)
    out.loss.backward()
    assert (out.loss.dtype, logps[0].grad.dtype) == (torch.float32, dtype)


@pytest.mark.parametrize(
    ("loss", "shapes", "message"),
    [
        (tpaw_loss, [(4, 1), (4,), (4, 2), (4, 2)], r"`policy_target_logps` must have shape \(B,\).* got \(4, 1\)"),
        (tpaw_loss, [(0,), (0,), (0, 2), (0, 2)], r"`policy_target_logps` .* at least 1, got \(0,\)"),
        (tpaw_loss, [(4,), (3,), (4, 2), (4, 2)], r"`policy_generated_logps` must have shape \(4,\), got \(3,\)"),
        (tpaw_loss, [(4,), (4,), (3, 2), (3, 2)], r"`player_target_logps` must have shape \(4, J\).* got \(3, 2\)"),
        (tpaw_loss, [(4,), (4,), (4, 0), (4, 0)], r"`player_target_logps` .* J at least 1, got \(4, 0\)"),
        (tpaw_loss, [(4,), (4,), (4, 2), (4, 3)], r"`player_generated_logps` must have shape \(4, 2\), got \(4, 3\)"),
        (iris_loss, [(4,), (4,), (4, 2), (4, 2)], r"`player_target_logps` must have shape \(4, 1\), got \(4, 2\)"),
        (tspin_loss, [(4,), (4,), (4, 1)], r"`policy_proto_logps` must have shape \(4,\), got \(4, 1\)"),
    ],
)
def test_wrong_shapes(loss: Any, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, labels: (logits.long(), labels), r"`logits` must be a tensor of floats, got torch\.int64"),
        (lambda logits, labels: (logits[0], labels), r"`logits` must have shape \(B, T, V\).* got \(12, 17\)"),
        (lambda logits, labels: (logits, labels[:, 1:]), r"`labels` must be integers of shape \(2, 12\).*\(2, 11\)"),
        (lambda logits, labels: (logits, labels - 2), r"`labels` holds ids from -1 to -1,.* 0 to 16"),
    ],
)
def test_wrong_logits_and_labels(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequence_logps(*change(torch.zeros(2, 12, 17), torch.ones(2, 12, dtype=torch.long)))


@pytest.mark.parametrize(
    ("loss", "name", "value", "allowed"),
    [
        (tpaw_loss, "reward_scale", 0.0, "> 0"),
        (tpaw_loss, "reward_scale", math.nan, "> 0"),
        (tpaw_loss, "eta", 0.99, ">= 1"),
        (tpaw_loss, "eta", math.inf, ">= 1"),
        (tpaw_loss, "gamma", -0.01, ">= 0"),
        (iris_loss, "alpha", 0.0, "> 0"),
        (tspin_loss, "scale", 0.0, "> 0"),
        (tspin_loss, "history_weight", -1.0, ">= 0"),
    ],
)
def test_settings_out_of_range(loss: Any, name: str, value: float, allowed: str) -> None:
    logps = [torch.zeros(1), torch.zeros(1), *([torch.zeros(1)] if loss is tspin_loss else [torch.zeros(1, 1)] * 2)]
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number {allowed}, got {value}"):
        loss(*logps, **{name: value})
