# SPDX-License-Identifier: Apache-2.0
"""Log-probs of sequences: hand-worked numbers, equality with LlamaFactory's, gradients, padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llamafactory_tpaw.objectives import sequence_logps


def make_batch(lengths: list[int], width: int, vocabulary: int = 17, *, prompt: int = 3) -> tuple[Tensor, Tensor]:
    """Random logits and labels, padded right; each row has `prompt` masked positions, then its response."""
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(len(lengths), width, vocabulary, generator=generator)
    labels = torch.full((len(lengths), width), -100)
    for row, length in enumerate(lengths):
        labels[row, prompt : prompt + length] = torch.randint(vocabulary, (length,), generator=generator)
    return logits, labels


def test_by_hand() -> None:
    """Vocabulary of 2. Position 0 predicts label 1: log(3 / 4); position 1 predicts label 0: log(1 / 2).

    The label at position 0 and what position 2 predicts do not count. Sum: log(0.375) = -0.9808293.
    """
    logits = torch.tensor([[[0.0, math.log(3.0)], [1.0, 1.0], [9.0, -9.0]]])
    out = sequence_logps(logits, torch.tensor([[0, 1, 0]]))
    torch.testing.assert_close(out.sums, torch.tensor([-0.9808293]))
    assert out.token_counts.tolist() == [2]


@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_equals_llamafactory(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    trainer_utils = pytest.importorskip("llamafactory.train.trainer_utils")
    monkeypatch.setattr("llamafactory_tpaw.objectives.logps.CHUNK_POSITIONS", chunk)
    logits, labels = make_batch([5, 9, 1, 0], width=14)
    weights = torch.tensor([1.0, -2.5, 3.0, 1.0])
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (sums, counts), expected = sequence_logps(ours, labels), trainer_utils.get_batch_logps(theirs, labels)
    torch.testing.assert_close(sums, expected[0], rtol=1e-6, atol=1e-5)
    assert torch.equal(counts, expected[1])
    (weights * sums).sum().backward()
    (weights * expected[0]).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert (ours.grad[labels.roll(-1, 1) == -100] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = make_batch([5, 9, 2], width=12)
    logits = logits.to(dtype).requires_grad_()
    expected = sequence_logps(logits.detach().float(), labels).sums
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = sequence_logps(logits, labels).sums
    assert sums.dtype == torch.float32
    assert torch.equal(sums, expected)
    sums.sum().backward()
    assert logits.grad.dtype == dtype
