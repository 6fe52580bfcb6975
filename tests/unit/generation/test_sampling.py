# SPDX-License-Identifier: Apache-2.0
"""Draws by the prompt's own random numbers: their distribution, their limits, and the filters before them."""

from __future__ import annotations

import pytest
import torch

from llamafactory_tpaw.errors import GenerationError
from llamafactory_tpaw.generation.base import Request
from llamafactory_tpaw.generation.sampling import choose, draw, refuse_unsound, uniforms_of
from tests.unit.generation.conftest import sampling


PROBABILITIES = torch.tensor([0.0, 0.3, 0.05, 0.0, 0.25, 0.1, 0.3, 0.0])


def test_frequencies_follow_the_softmax() -> None:
    requests = [Request(f"{number:016x}-0", None, 2, 0) for number in range(10_000)]
    uniforms = torch.stack([torch.from_numpy(uniforms_of(request, sampling())) for request in requests])
    first, second = (draw(PROBABILITIES.log().expand(10_000, -1), column)[0] for column in uniforms.T)
    pairs = torch.bincount(first * 8 + second, minlength=64).double()
    expected = 10_000 * torch.outer(PROBABILITIES, PROBABILITIES).flatten().double()
    possible = expected > 0
    assert pairs[~possible].sum() == 0
    # 24 degrees of freedom: 60 is exceeded once in 10,000 draws. The seeds are fixed, so this one is not.
    assert (((pairs - expected) ** 2 / expected)[possible]).sum() < 60


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
    _, sound = choose(scores, torch.rand(2, dtype=torch.float64), sampling(temperature=temperature))
    with pytest.raises(GenerationError, match="probabilities are NaN"):
        refuse_unsound(bool(sound))
    refuse_unsound(bool(choose(scores[:1], torch.rand(1, dtype=torch.float64), sampling())[1]))
