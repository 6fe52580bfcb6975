# SPDX-License-Identifier: Apache-2.0
"""Draws by the prompt's own random numbers: their distribution, their limits, and the filters before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llamafactory_tpaw.errors import GenerationError
from llamafactory_tpaw.generation.base import Request, SamplingSettings
from llamafactory_tpaw.generation.sampling import choose, draw, refuse_unsound, uniforms_of


if TYPE_CHECKING:
    from collections.abc import Sequence

PROBABILITIES = torch.tensor([0.0, 0.3, 0.05, 0.0, 0.25, 0.1, 0.3, 0.0])


def settings(**changes: Any) -> SamplingSettings:
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 12, "seed": 0}
    return SamplingSettings(**(plain | changes))


def draw_steps(names: Sequence[str], steps: int) -> torch.Tensor:
    """Sample `steps` tokens for each prompt from one fixed distribution: (B, steps)."""
    uniforms = torch.stack(
        [torch.from_numpy(uniforms_of(Request(name, None, steps, 0), settings())) for name in names]
    )
    scores = PROBABILITIES.log().expand(len(names), -1)
    return torch.stack([draw(scores, column)[0] for column in uniforms.T], dim=1)


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_frequencies_follow_the_softmax() -> None:
    drawn = draw_steps([f"{number:016x}-0" for number in range(10_000)], steps=2)
    possible = PROBABILITIES > 0
    for tokens in drawn.T:
        counts = torch.bincount(tokens, minlength=8)
        assert counts[~possible].sum() == 0
        # Four degrees of freedom: 20 is exceeded once in 2,000 draws. The seeds are fixed, so this one is not.
        assert chi_square(counts[possible].double(), 10_000 * PROBABILITIES[possible].double()) < 20
    pairs = torch.bincount(drawn[:, 0] * 8 + drawn[:, 1], minlength=64).double()
    expected = 10_000 * torch.outer(PROBABILITIES, PROBABILITIES).flatten().double()
    assert chi_square(pairs[expected > 0], expected[expected > 0]) < 60  # 24 degrees: the steps are independent


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.29, 1), (0.31, 2), (0.36, 4), (1 - 2**-53, 6)])
def test_impossible_tokens_are_never_drawn(uniform: float, token: int) -> None:
    tokens, _ = draw(PROBABILITIES.log()[None], torch.tensor([uniform], dtype=torch.float64))
    assert tokens.tolist() == [token]


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 411, 5000])
def test_a_draw_is_where_the_cumulative_sum_exceeds_the_number(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    scores = 3 * torch.randn(500, vocabulary, generator=generator)
    scores[torch.rand(scores.shape, generator=generator) < 0.3] = -torch.inf
    scores[:, 0] = 0.0
    uniforms = torch.rand(500, dtype=torch.float64, generator=generator)
    cumulative = scores.double().softmax(-1).cumsum(-1)
    wanted = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]
    assert torch.equal(draw(scores, uniforms)[0], wanted)


@pytest.mark.parametrize("bad", [[0.0, float("nan")], [0.0, float("inf")], [-float("inf")] * 2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_without_probabilities_are_refused(bad: list[float], temperature: float) -> None:
    scores = torch.stack([torch.tensor([0.0, 1.0]), torch.tensor(bad)])
    _, sound = choose(scores, torch.rand(2, dtype=torch.float64), settings(temperature=temperature))
    with pytest.raises(GenerationError, match="probabilities are NaN"):
        refuse_unsound(bool(sound))
    refuse_unsound(bool(choose(scores[:1], torch.rand(1, dtype=torch.float64), settings())[1]))


@pytest.mark.parametrize(
    "changes",
    [{"top_k": 5}, {"top_p": 0.5}, {"top_p": 0.999}, {"temperature": 0.6, "top_k": 40, "top_p": 0.7}, {"top_k": 9999}],
    ids=str,
)
def test_filters_are_those_of_transformers(changes: dict[str, Any]) -> None:
    wanted = settings(**changes)
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(300, 200, generator=generator)
    uniforms = torch.rand(300, dtype=torch.float64, generator=generator)
    scores = TemperatureLogitsWarper(wanted.temperature)(None, logits) if wanted.temperature != 1 else logits
    scores = TopKLogitsWarper(wanted.top_k)(None, scores) if wanted.top_k else scores
    scores = TopPLogitsWarper(wanted.top_p)(None, scores) if wanted.top_p < 1 else scores
    assert torch.equal(choose(logits, uniforms, wanted)[0], draw(scores, uniforms)[0])


def test_a_penalty_meets_what_was_seen() -> None:
    seen = torch.tensor([[True, False, True, False]])
    logits = torch.tensor([[3.0, 2.0, -1.0, -1.5]])
    assert choose(logits, None, settings(temperature=0.0), None)[0].tolist() == [0]
    assert choose(logits, None, settings(temperature=0.0, repetition_penalty=2.0), seen)[0].tolist() == [1]
    lower = choose(logits - 3.1, None, settings(temperature=0.0, repetition_penalty=20.0), seen)
    assert lower[0].tolist() == [1]
    assert logits.tolist() == [[3.0, 2.0, -1.0, -1.5]]
