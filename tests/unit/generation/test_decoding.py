# SPDX-License-Identifier: Apache-2.0
"""Rows that enter and leave while others go on: responses as alone, within the bound; and how tokens are drawn."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GenerationConfig,
    GPT2Config,
    LogitsProcessorList,
    PreTrainedModel,
    Qwen2Config,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llamafactory_tpaw.errors import GenerationError
from llamafactory_tpaw.generation import decoding
from llamafactory_tpaw.generation.base import Request, Response
from llamafactory_tpaw.generation.decoding import RowDecoder, obstacle
from llamafactory_tpaw.generation.hf import HfEngine
from llamafactory_tpaw.generation.sampling import choose, draw, refuse_unsound, uniforms_of
from tests import tiny
from tests.unit.generation.conftest import PAD, sampling


VOCABULARY = 120
STOP = [7, 11, 19, 23, 42]
BOUNDS = [100, 300, 100_000]  # a few rows, some, all


def small(config_class: type, **changes: Any) -> PreTrainedModel:
    """A random model of another architecture."""
    torch.manual_seed(1)
    sizes = tiny.SIZES | {"vocab_size": VOCABULARY, "num_hidden_layers": 3, "initializer_range": 0.3}
    return AutoModelForCausalLM.from_config(config_class(**(sizes | changes))).eval()


def make_requests(count: int = 16, longest: int = 30, most: int = 14, seed: int = 0) -> list[Request]:
    draw = random.Random(seed)
    return [
        Request(
            f"{number}-0",
            np.asarray(draw.choices(range(1, VOCABULARY), k=draw.randint(1, longest)), dtype=np.int32),
            draw.randint(1, most),
            0,
        )
        for number in range(count)
    ]


def decode(
    model: PreTrainedModel, requests: Sequence[Request], bound: int, stop: Sequence[int] = STOP, **changes: Any
) -> list[Response]:
    return RowDecoder(model, sampling(**changes), stop, PAD, bound).decode(requests, lambda _: None)


def fixed(model: PreTrainedModel, **changes: Any) -> HfEngine:
    """By transformers' `generate`, as for models whose rows cannot be exchanged."""
    engine = HfEngine(model, sampling(**changes), STOP, PAD, 300)
    engine.decoder = None
    return engine


@torch.no_grad()
def by_hand(model: PreTrainedModel, request: Request, **changes: Any) -> Response:
    """One prompt, one forward pass a token, no cache, no padding, and transformers' own filters."""
    wanted = sampling(**changes)
    generator = torch.Generator().manual_seed(request.seed(wanted.seed))
    filters = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(wanted.repetition_penalty)])
    filters += [TemperatureLogitsWarper(wanted.temperature)] if wanted.temperature else []
    filters += [TopKLogitsWarper(wanted.top_k)] if wanted.top_k else []
    filters += [TopPLogitsWarper(wanted.top_p)]
    ids = torch.from_numpy(request.prompt_ids).long()[None]
    for _ in range(request.max_new_tokens):
        scores = filters(ids, model(input_ids=ids).logits[:, -1].float())[0]
        token = scores.argmax()
        if wanted.temperature:
            cumulative = scores.softmax(-1).double().cumsum(0)
            token = (cumulative <= torch.rand(1, dtype=torch.float64, generator=generator) * cumulative[-1]).sum()
        ids = torch.cat([ids, token.view(1, 1)], 1)
        if int(token) in STOP:
            break
    return Response(ids[0, len(request.prompt_ids) :].tolist(), "stop" if int(token) in STOP else "length")


class Watch:
    """Counts rows of each step, and looks at the cache's room."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.rows: list[int] = []
        self.room: list[int] = []
        model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, _: object, __: object, inputs: dict[str, Any]) -> None:
        self.rows.append(inputs["input_ids"].shape[0])
        self.room.append(inputs["past_key_values"].layers[0].keys[:, 0, :, 0].numel())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0, "repetition_penalty": 1.5},
        {"top_k": 3},
        {"top_p": 0.3},
        {"temperature": 2.0, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.4},
    ],
    ids=str,
)
def test_a_response_is_the_prompts_alone(model: PreTrainedModel, changes: dict[str, Any]) -> None:
    requests = make_requests()
    alone = [by_hand(model, request, **changes) for request in requests]
    assert decode(model, requests, 100, **changes) == alone == decode(model, requests, 100_000, **changes)
    assert decode(model, requests[::-1], 300, **changes) == alone[::-1]
    assert fixed(model, **changes).generate(requests) == alone
    assert len({tuple(response.ids) for response in alone}) > 10


@pytest.mark.parametrize("bound", BOUNDS)
def test_the_cache_keeps_to_the_bound_and_finished_rows_leave(
    model: PreTrainedModel, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, requests = Watch(model), make_requests(count=40)
    responses = decode(model, requests, bound, repetition_penalty=1.3)
    assert sum(watch.rows) == sum(len(response.ids) for response in responses)
    steady = watch.rows[: -14 - 1]  # when nothing waits any more, rows only leave
    assert bound == 100_000 or sum(steady) / len(steady) > 0.6 * max(watch.rows)
    monkeypatch.setattr(decoding, "STEPS", {"cpu": 5})  # between two looks
    assert decode(model, requests, bound, repetition_penalty=1.3) == responses
    assert all(room <= bound or rows == 1 for rows, room in zip(watch.rows, watch.room, strict=True))


def test_rows_that_find_no_room_go_on_later(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []  # how many tokens the rows had already that entered
    prefill = RowDecoder._prefill
    monkeypatch.setattr(
        RowDecoder, "_prefill", lambda self, rows: begun.extend(len(row.ids) for row in rows) or prefill(self, rows)
    )
    requests = make_requests(count=10, longest=6, most=40)
    alone = [decode(model, [request], 1, stop=[])[0] for request in requests]
    watch = Watch(model)
    assert decode(model, requests, 150, stop=[]) == alone
    assert max(begun) > 0
    assert sum(watch.rows) == sum(len(response.ids) for response in alone)  # what they had is not sampled again


def test_finished_rows_run_into_no_position_that_the_model_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=20, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).eval()
    requests = [Request(f"{size}-0", np.arange(1, size + 1, dtype=np.int32), 20 - size, 0) for size in (3, 12, 19)]
    single = decode(model, requests, 300)
    monkeypatch.setattr(decoding, "STEPS", {"cpu": 8})
    assert decode(model, requests, 300) == single


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_sliding_windows(kernel: str) -> None:
    model, wide = (
        small(Qwen2Config, use_sliding_window=True, sliding_window=size, max_window_layers=1) for size in (6, 4096)
    )
    model.set_attn_implementation(kernel)
    requests = make_requests()
    alone = [by_hand(model, request, temperature=0.0) for request in requests]
    assert decode(model, requests, 150, temperature=0.0) == alone == decode(model, requests, 9999, temperature=0.0)
    assert decode(wide, requests, 400, temperature=0.0) != alone  # the window matters


def test_a_model_whose_rows_cannot_be_exchanged_is_left_to_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("llamafactory_tpaw.generation.hf.logger.info_rank0", said.append)
    model, requests, told = small(BloomConfig, n_layer=2, n_head=2), make_requests(), []
    engine = HfEngine(model, sampling(temperature=0.0), STOP, PAD, 300)
    assert engine.generate(requests, told.append) == [by_hand(model, request, temperature=0.0) for request in requests]
    assert sum(told) == 16
    assert said[0].startswith(
        "Rows of BloomForCausalLM cannot be exchanged while others are generated, because it pre"
    )


def test_obstacles(model: PreTrainedModel) -> None:
    assert obstacle(model) is None
    chunked = small(Qwen2Config, layer_types=["full_attention", "chunked_attention"] * 2, num_hidden_layers=4)
    assert "its cache holds more" in obstacle(chunked)
    model.config._attn_implementation = "flex_attention"
    assert "its attention is flex_attention, not one of eager" in obstacle(model)


def test_the_models_own_generation_config_is_not_used(model: PreTrainedModel) -> None:
    requests = make_requests()
    plain = decode(model, requests, 300)
    suppressed = [response.ids[0] for response in plain]
    model.generation_config = GenerationConfig(repetition_penalty=5.0, suppress_tokens=suppressed, max_new_tokens=3)
    assert fixed(model).generate(requests) == plain


def test_a_broken_model_is_told(model: PreTrainedModel) -> None:
    model.lm_head.weight.data[5] = float("nan")
    for generate in (fixed(model).generate, functools.partial(decode, model, bound=300)):
        with pytest.raises(GenerationError, match="probabilities are NaN"):
            generate(make_requests())


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


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 411, 5000])
def test_a_draw_is_where_the_cumulative_sum_exceeds_the_number(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    scores = 3 * torch.randn(500, vocabulary, generator=generator)
    scores[torch.rand(scores.shape, generator=generator) < 0.3] = -torch.inf
    scores[:, -1] = 0.0
    uniforms = torch.rand(500, dtype=torch.float64, generator=generator)
    uniforms[:50], uniforms[50:100] = 0.0, 1 - 2**-53
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
