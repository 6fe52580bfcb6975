# SPDX-License-Identifier: Apache-2.0
"""Log-probs in blocks of the vocabulary against log-softmax over all of it: values, gradients, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llamafactory_tpaw.objectives import head
from llamafactory_tpaw.objectives.head import head_logps


TOKENS, VOCABULARY, WIDTH = 23, 1009, 16


def naive(
    hidden: Tensor, weight: Tensor, tokens: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    scores = torch.nn.functional.linear(hidden, weight, bias).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)


def parts(dtype: torch.dtype = torch.float32, bias: bool = False) -> tuple[list[Tensor | None], Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(TOKENS, WIDTH, generator=generator), torch.randn(VOCABULARY, WIDTH, generator=generator)]
    tensors.append(torch.randn(VOCABULARY, generator=generator) if bias else None)
    tokens = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    leaves = [None if tensor is None else (tensor * 0.5).to(dtype).requires_grad_() for tensor in tensors]
    return leaves, tokens


def evaluate(function, dtype: torch.dtype = torch.float32, bias: bool = False, **settings) -> list[Tensor]:
    """Log-probs and the gradients of a weighted sum of them."""
    (hidden, weight, offset), tokens = parts(dtype, bias)
    logps = function(hidden, weight, tokens, offset, **settings)
    logps.backward(torch.linspace(-2, 1, TOKENS))
    return [logps.detach().double(), *(leaf.grad.double() for leaf in (hidden, weight, offset) if leaf is not None)]


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture(params=[1, 300, 5000], ids=["256 a block", "300 a block", "one block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.BLOCK_SCORES, "cpu", request.param * TOKENS)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 3.0)])
def test_as_log_softmax(bias: bool, scale: float, softcap: float | None) -> None:
    ours = evaluate(head_logps, bias=bias, scale=scale, softcap=softcap)
    expected = evaluate(naive, bias=bias, scale=scale, softcap=softcap)
    for own, other in zip(ours, expected, strict=True):
        assert distance(own, other) < 2e-6


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_bf16_is_no_further_from_the_truth_than_the_naive_form(softcap: float | None) -> None:
    truth = evaluate(naive, scale=1.0, softcap=softcap)
    ours = evaluate(head_logps, torch.bfloat16, softcap=softcap)
    plain = evaluate(naive, torch.bfloat16, scale=1.0, softcap=softcap)
    for own, other, exact in zip(ours, plain, truth, strict=True):
        assert distance(own, exact) < 1.25 * distance(other, exact)


def test_autocast_decides_the_product() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = evaluate(head_logps)
    expected = evaluate(naive, torch.bfloat16, scale=1.0, softcap=None)
    assert distance(ours[0], expected[0]) < 1e-6
    assert distance(ours[2], expected[2]) < 1e-2


def test_huge_scores_stay_finite() -> None:
    hidden, weight = torch.tensor([[1e4]], requires_grad=True), torch.tensor([[1.0], [-1.0], [0.5]])
    logps = head_logps(hidden, weight, torch.tensor([1]))
    logps.sum().backward()
    assert logps.item() == pytest.approx(-2e4)
    assert bool(torch.isfinite(hidden.grad).all())


def test_a_foreign_id_is_named() -> None:
    (hidden, weight, _), tokens = parts()
    tokens[3] = VOCABULARY
    with pytest.raises(ValueError, match="the vocabulary has the ids 0 to 1008"):
        head_logps(hidden, weight, tokens)


def test_nothing_of_tokens_times_vocabulary_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.BLOCK_SCORES, "cpu", 256 * TOKENS)
    (hidden, weight, _), tokens = parts()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        head_logps(hidden, weight, tokens)
    assert max(kept) == VOCABULARY * WIDTH < TOKENS * VOCABULARY
