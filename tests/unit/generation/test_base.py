# SPDX-License-Identifier: Apache-2.0
"""Sampling settings, seeds, and batches bounded by tokens."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.generation.base import UNIT_BATCHES, Request, SamplingSettings, plan_batches, plan_units


GIVEN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 16, "seed": 3}


def request(length: int, max_new_tokens: int = 16, name: str = "a-0", iteration: int = 0) -> Request:
    return Request(name, np.zeros(length, dtype=np.int32), max_new_tokens, iteration)


def cost(requests: list[Request], batch: list[int]) -> int:
    longest = max(len(requests[index].prompt_ids) for index in batch)
    return len(batch) * (longest + max(requests[index].max_new_tokens for index in batch))


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 500, 10**6])
def test_every_request_once_within_the_bound(batch_tokens: int) -> None:
    draw = random.Random(0)
    requests = [request(draw.randint(1, 60), draw.randint(1, 30)) for _ in range(200)]
    batches = plan_batches(requests, batch_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    assert all(len(batch) == 1 or cost(requests, batch) <= batch_tokens for batch in batches)
    lengths = [len(requests[index].prompt_ids) for batch in batches for index in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert plan_batches(requests, batch_tokens) == batches


def test_batches_are_filled() -> None:
    requests = [request(10, 10) for _ in range(7)]
    assert [len(batch) for batch in plan_batches(requests, 60)] == [3, 3, 1]
    assert [len(batch) for batch in plan_batches(requests, 59)] == [2, 2, 2, 1]
    assert plan_batches(requests, 10**6) == [list(range(7))]
    assert plan_batches([], 60) == []


def test_longer_answers_count_for_the_whole_batch() -> None:
    requests = [request(10, 10), request(10, 30), request(10, 10)]
    assert plan_batches(requests, 80) == [[0], [1, 2]] or plan_batches(requests, 80) == [[0, 1], [2]]
    assert plan_batches(requests, 119) == [[0, 1], [2]]
    assert plan_batches(requests, 120) == [[0, 1, 2]]


def test_units_are_worth_many_batches() -> None:
    requests = [request(10, 10) for _ in range(40 * UNIT_BATCHES)]
    assert [len(unit) for unit in plan_units(requests, 200)] == [10 * UNIT_BATCHES] * 4
    assert [len(unit) for unit in plan_units(requests, 1)] == [1] * len(requests)


def test_seed_is_fixed_by_seed_iteration_and_id() -> None:
    names = ("a-0", "a-1", "b-0")
    seeds = {request(1, 16, name, theta).seed(seed) for name in names for theta in (0, 1, 10) for seed in (0, 1)}
    assert len(seeds) == 18
    assert request(1).seed(0) == request(9, 3).seed(0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_settings_of_keys() -> None:
    settings = SamplingSettings.of(GIVEN | {"repetition_penalty": 1.2, "do_sample": True})
    assert settings == SamplingSettings(1.0, 1.0, 0, 1.2, 16, 3)
    assert settings.as_dict()["seed"] == 3
    assert SamplingSettings.of({}) == SamplingSettings(0.95, 0.7, 50, 1.0, 1024, 42)
    assert SamplingSettings.of(GIVEN | {"do_sample": "false"}).temperature == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1}, "`temperature` is -1.0, but must be >= 0. Correct the key."),
        ({"temperature": "inf"}, "`temperature` is inf, but must be >= 0. Correct the key."),
        ({"top_p": 0}, "`top_p` is 0.0, but must be > 0 and <= 1. Correct the key."),
        ({"top_p": 1.5}, "`top_p` is 1.5, but must be > 0 and <= 1. Correct the key."),
        ({"top_k": -1}, "`top_k` is -1, but must be >= 0 (0 keeps all tokens). Correct the key."),
        ({"repetition_penalty": 0}, "`repetition_penalty` is 0.0, but must be > 0 (1 is none). Correct the key."),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0, but must be >= 1. Correct the key."),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SamplingSettings.of(GIVEN | change)
    assert error.value.problems == [message]


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        SamplingSettings.of(GIVEN | {"temperature": float("nan"), "top_p": float("nan"), "top_k": -5})
    assert len(error.value.problems) == 3
