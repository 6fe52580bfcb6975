# SPDX-License-Identifier: Apache-2.0
"""The transformers engine against loops written here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from llamafactory_tpaw.errors import GenerationError
from llamafactory_tpaw.generation.base import Request, Response, SamplingSettings
from llamafactory_tpaw.generation.hf import HfEngine


if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

PAD = 0
BATCH_TOKENS = 1000
PROMPTS = [[20, 30, 40], [50, 60, 70, 80, 90, 100, 110], [25], [33, 44, 55, 66, 77]]


def settings(**changes: Any) -> SamplingSettings:
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 12, "seed": 5}
    return SamplingSettings(**(plain | changes))


def requests_of(*limits: int) -> list[Request]:
    limits = limits or (12,) * len(PROMPTS)
    return [
        Request(f"{number}-0", np.asarray(prompt, dtype=np.int32), limit, 0)
        for number, (prompt, limit) in enumerate(zip(PROMPTS, limits, strict=True))
    ]


def generate(
    model: PreTrainedModel, requests: list[Request], stop: Sequence[int] = (), **changes: Any
) -> list[Response]:
    return HfEngine(model, settings(**changes), stop, PAD, BATCH_TOKENS).generate(requests)


def keep(scores: torch.Tensor, kept: list[int]) -> torch.Tensor:
    return torch.stack([score if token in kept else torch.tensor(-torch.inf) for token, score in enumerate(scores)])


def penalize(scores: torch.Tensor, ids: list[int], penalty: float) -> torch.Tensor:
    factors = torch.ones_like(scores)
    for token in set(ids):
        factors[token] = penalty if scores[token] < 0 else 1 / penalty
    return scores * factors


def by_hand(model: PreTrainedModel, request: Request, stop: Sequence[int] = (), **changes: Any) -> list[int]:
    """One prompt, one forward pass a token, no cache, no padding, and the filters in a loop."""
    wanted = settings(**changes)
    generator = torch.Generator().manual_seed(request.seed(wanted.seed))
    ids = request.prompt_ids.tolist()
    for _ in range(request.max_new_tokens):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
        scores = penalize(scores, ids, wanted.repetition_penalty)
        if wanted.temperature == 0:
            ids.append(int(scores.argmax()))
        else:
            scores = scores / wanted.temperature
            order = scores.sort(descending=True).indices.tolist()
            scores = keep(scores, order[: wanted.top_k or len(order)])
            probabilities, mass, kept = scores.softmax(-1), 0.0, []
            for token in order:
                kept.append(token)
                mass += float(probabilities[token])
                if mass >= wanted.top_p and wanted.top_p < 1:
                    break
            probabilities = keep(scores, kept).softmax(-1).double()
            drawn = torch.rand(1, dtype=torch.float64, generator=generator) * probabilities.sum()
            ids.append(int((probabilities.cumsum(0) <= drawn).sum()))
        if ids[-1] in stop:
            break
    return ids[len(request.prompt_ids) :]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.3},
        {"temperature": 2.0, "top_k": 20, "top_p": 0.8},
        {"repetition_penalty": 1.5},
        {"temperature": 0.0, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_a_padded_batch_is_each_prompt_by_hand(model: PreTrainedModel, changes: dict[str, Any]) -> None:
    engine = HfEngine(model, settings(**changes), (), PAD, BATCH_TOKENS)
    responses = engine.generate(requests_of())
    engine.decoder = None  # by transformers' `generate`, as for models whose rows cannot be exchanged
    assert engine.generate(requests_of()) == responses
    assert [response.ids for response in responses] == [by_hand(model, each, **changes) for each in requests_of()]
    assert {response.finish_reason for response in responses} == {"length"}


def test_stop_tokens_and_limits(model: PreTrainedModel) -> None:
    free = [response.ids for response in generate(model, requests_of())]
    stop = [free[0][4], free[1][7], 3]
    limits = (12, 12, 2, 5)
    for request, ids, response in zip(
        requests_of(*limits), free, generate(model, requests_of(*limits), stop), strict=True
    ):
        ends = [index for index, token in enumerate(ids[: request.max_new_tokens]) if token in stop]
        assert response.ids == ids[: ends[0] + 1 if ends else request.max_new_tokens]
        assert response.finish_reason == ("stop" if ends else "length")
    found = [response.finish_reason for response in generate(model, requests_of(*limits), stop)]
    assert found[:2] == ["stop", "stop"]
    assert "length" in found


def test_a_stop_token_at_once_and_at_the_limit(model: PreTrainedModel) -> None:
    first = generate(model, requests_of())[0].ids
    assert generate(model, requests_of(), first[:1])[0] == Response(first[:1], "stop")
    last = next(index for index, token in enumerate(first) if index and token not in first[:index])
    limits = (last + 1, 12, 12, 12)
    assert generate(model, requests_of(*limits), [first[last]])[0] == Response(first[: last + 1], "stop")
    limits = (last, 12, 12, 12)
    assert generate(model, requests_of(*limits), [first[last]])[0] == Response(first[:last], "length")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_models_own_generation_config_is_not_used(model: PreTrainedModel, temperature: float) -> None:
    plain = generate(model, requests_of(), temperature=temperature)
    own = GenerationConfig(
        do_sample=True,
        repetition_penalty=5.0,
        temperature=0.3,
        top_k=2,
        top_p=0.1,
        no_repeat_ngram_size=1,
        suppress_tokens=[response.ids[0] for response in plain],
        eos_token_id=plain[0].ids[2],
        max_new_tokens=3,
    )
    model.generation_config = own
    assert generate(model, requests_of(), temperature=temperature) == plain


@pytest.mark.parametrize("fixed", [False, True])
def test_a_broken_model_is_told(model: PreTrainedModel, fixed: bool) -> None:
    model.lm_head.weight.data[5] = float("nan")
    engine = HfEngine(model, settings(), (), PAD, BATCH_TOKENS)
    engine.decoder = None if fixed else engine.decoder
    with pytest.raises(GenerationError, match="probabilities are NaN"):
        engine.generate(requests_of())
