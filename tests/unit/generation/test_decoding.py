# SPDX-License-Identifier: Apache-2.0
"""Rows that enter and leave while others go on: the same responses as alone, within the bound, and no row too many."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GenerationConfig,
    GPT2Config,
    MistralConfig,
    Qwen2Config,
    Qwen3NextConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from llamafactory_tpaw.generation import decoding
from llamafactory_tpaw.generation.base import Request, Response, SamplingSettings
from llamafactory_tpaw.generation.decoding import RowDecoder, obstacle
from llamafactory_tpaw.generation.hf import HfEngine


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

PAD = 0
VOCABULARY = 120
STOP = [7, 11, 19, 23, 42]
BOUNDS = [100, 300, 100_000]  # a few rows, some, all


def small(config_class: type, **changes: Any) -> PreTrainedModel:
    """A random model of another architecture."""
    torch.manual_seed(1)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.3,
    }
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


def settings(**changes: Any) -> SamplingSettings:
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 24, "seed": 5}
    return SamplingSettings(**(plain | changes))


def decode(
    model: PreTrainedModel, requests: Sequence[Request], bound: int, stop: Sequence[int] = STOP, **changes: Any
) -> list[Response]:
    return RowDecoder(model, settings(**changes), stop, PAD, bound).decode(requests, lambda _: None)


@torch.no_grad()
def greedy_alone(model: PreTrainedModel, request: Request, stop: Sequence[int] = STOP) -> Response:
    config = GenerationConfig(
        do_sample=False, max_new_tokens=request.max_new_tokens, eos_token_id=list(stop), pad_token_id=PAD
    )
    output = model.generate(torch.from_numpy(request.prompt_ids).long()[None], generation_config=config)
    ids = output[0, len(request.prompt_ids) :].tolist()
    return Response(ids, "stop" if ids[-1] in stop else "length")


class Watch:
    """Counts rows of each step, and looks at the cache's room."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.rows: list[int] = []
        self.room: list[int] = []
        model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, _: object, __: object, inputs: dict[str, Any]) -> None:
        self.rows.append(inputs["input_ids"].shape[0])
        self.room.append(inputs["past_key_values"].layers[0].keys[:, 0, :, 0].numel())


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tokens the rows had already that entered."""
    found: list[int] = []
    prefill = RowDecoder._prefill

    def see(self: RowDecoder, rows: list[Any]) -> Any:
        found.extend(len(row.ids) for row in rows)
        return prefill(self, rows)

    monkeypatch.setattr(RowDecoder, "_prefill", see)
    return found


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_greedy_is_generate(model: PreTrainedModel, bound: int, kernel: str) -> None:
    model.set_attn_implementation(kernel)
    requests = make_requests()
    alone = [greedy_alone(model, request) for request in requests]
    assert decode(model, requests, bound, temperature=0.0) == alone
    assert {response.finish_reason for response in alone} == {"stop", "length"}
    assert len({len(response.ids) for response in alone}) > 4


@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 0.7, "top_k": 30, "top_p": 0.9}, {"repetition_penalty": 1.4}],
    ids=str,
)
def test_batches_do_not_matter(model: PreTrainedModel, changes: dict[str, Any]) -> None:
    requests = make_requests()
    alone = [decode(model, [request], 1, **changes)[0] for request in requests]
    assert decode(model, requests, 100, **changes) == alone == decode(model, requests, 100_000, **changes)
    assert decode(model, requests[::-1], 300, **changes) == alone[::-1]
    assert len({tuple(response.ids) for response in alone}) > 10


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("stop", [STOP, []], ids=["stop", "limit"])
def test_the_cache_keeps_to_the_bound_and_finished_rows_leave(
    model: PreTrainedModel, bound: int, stop: list[int]
) -> None:
    watch = Watch(model)
    responses = decode(model, make_requests(count=40), bound, stop=stop)
    assert all(room <= bound or rows == 1 for rows, room in zip(watch.rows, watch.room, strict=True))
    assert sum(watch.rows) == sum(len(response.ids) for response in responses)
    steady = watch.rows[: -14 - 1]  # when nothing waits any more, rows only leave
    assert bound == 100_000 or sum(steady) / len(steady) > 0.6 * max(watch.rows)


def test_rows_that_find_no_room_go_on_later(model: PreTrainedModel, preempted: list[int]) -> None:
    requests = make_requests(count=10, longest=6, most=40)
    alone = [decode(model, [request], 1, stop=[])[0] for request in requests]
    greedy = [greedy_alone(model, request, stop=[]) for request in requests]
    assert decode(model, requests, 150, stop=[], temperature=0.0) == greedy
    watch = Watch(model)
    assert decode(model, requests, 150, stop=[]) == alone
    assert max(preempted) > 0
    assert sum(watch.rows) == sum(len(response.ids) for response in alone)  # what they had is not sampled again


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0, "repetition_penalty": 1.3}], ids=str)
def test_several_steps_between_two_looks(
    model: PreTrainedModel, bound: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = make_requests()
    single = decode(model, requests, bound, **changes)
    monkeypatch.setattr(decoding, "STEPS", {"cpu": 5})
    watch = Watch(model)
    assert decode(model, requests, bound, **changes) == single
    assert all(room <= bound or rows == 1 for rows, room in zip(watch.rows, watch.room, strict=True))


def test_finished_rows_run_into_no_position_that_the_model_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=20, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).eval()
    requests = [Request(f"{size}-0", np.arange(1, size + 1, dtype=np.int32), 20 - size, 0) for size in (3, 12, 19)]
    single = decode(model, requests, 300)
    monkeypatch.setattr(decoding, "STEPS", {"cpu": 8})
    assert decode(model, requests, 300) == single


SLIDING = {
    "qwen2": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "mistral": (MistralConfig, {"sliding_window": 5}),
}


@pytest.mark.parametrize("name", SLIDING)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_sliding_windows(name: str, kernel: str) -> None:
    config, changes = SLIDING[name]
    model = small(config, **changes)
    model.set_attn_implementation(kernel)
    assert obstacle(model) is None
    requests = make_requests()
    alone = [greedy_alone(model, request) for request in requests]
    assert decode(model, requests, 150, temperature=0.0) == alone == decode(model, requests, 9999, temperature=0.0)
    wide = small(config, **changes | {"sliding_window": 4096})
    assert decode(wide, requests, 400, temperature=0.0) != alone  # the window matters


def test_a_model_whose_rows_cannot_be_exchanged_is_left_to_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(BloomConfig, n_layer=2, n_head=2)
    assert "prepares its inputs in its own way" in obstacle(model)
    said: list[str] = []
    monkeypatch.setattr("llamafactory_tpaw.generation.hf.logger.info_rank0", said.append)
    engine = HfEngine(model, settings(temperature=0.0), STOP, PAD, 300)
    requests, told = make_requests(), []
    assert engine.generate(requests, told.append) == [greedy_alone(model, request) for request in requests]
    assert sum(told) == 16
    (line,) = said
    assert line.startswith("Rows of BloomForCausalLM cannot be exchanged while others are generated, because it prep")


def test_obstacles(model: PreTrainedModel) -> None:
    assert obstacle(model) is None
    hybrid = small(
        Qwen3NextConfig,
        head_dim=8,
        num_experts=0,
        layer_types=["linear_attention", "full_attention"] * 2,
        num_hidden_layers=4,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
    )
    assert "its cache holds more" in obstacle(hybrid)
    assert "its cache holds more" in obstacle(
        small(Qwen2Config, layer_types=["full_attention", "chunked_attention"] * 2, num_hidden_layers=4)
    )
    encoder = T5ForConditionalGeneration(T5Config(d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, vocab_size=9))
    assert "more than a text decoder" in obstacle(encoder)
    model.config._attn_implementation = "flex_attention"
    assert "its attention is flex_attention, not one of eager" in obstacle(model)
