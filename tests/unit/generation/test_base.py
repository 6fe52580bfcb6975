# SPDX-License-Identifier: Apache-2.0
"""Sampling settings, seeds, and batches bounded by tokens."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.generation.base import (
    UNIT_BATCHES,
    Request,
    SamplingSettings,
    plan_batches,
    units_left,
)


GIVEN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 16, "seed": 3}


def request(length: int, max_new_tokens: int = 16, name: str = "a-0", iteration: int = 0, sample: int = 0) -> Request:
    return Request(name, np.zeros(length, dtype=np.int32), max_new_tokens, iteration, sample)


class Lengths:
    """Requests of which only the lengths are known: pairs of prompt tokens and new tokens."""

    def __init__(self, pairs: list[tuple[int, int]]) -> None:
        self.prompt_tokens = np.asarray([prompt for prompt, _ in pairs], dtype=np.int32)
        self.new_tokens = np.asarray([new for _, new in pairs], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def __getitem__(self, index: int) -> Request:
        return request(int(self.prompt_tokens[index]), int(self.new_tokens[index]), f"{index}-0")


def plan(pairs: list[tuple[int, int]], batch_tokens: int) -> list[list[int]]:
    lengths = Lengths(pairs)
    return [batch.tolist() for batch in plan_batches(lengths.prompt_tokens, lengths.new_tokens, batch_tokens)]


def cost(pairs: list[tuple[int, int]], batch: list[int]) -> int:
    return len(batch) * (max(pairs[index][0] for index in batch) + max(pairs[index][1] for index in batch))


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 500, 10**6])
def test_every_request_once_within_the_bound(batch_tokens: int) -> None:
    draw = random.Random(0)
    pairs = [(draw.randint(1, 60), draw.randint(1, 30)) for _ in range(200)]
    batches = plan(pairs, batch_tokens)
    order = [index for batch in batches for index in batch]
    assert order == sorted(range(200), key=lambda index: (-pairs[index][0], index))
    assert all(len(batch) == 1 or cost(pairs, batch) <= batch_tokens for batch in batches)
    further = [[*batch, after[0]] for batch, after in itertools.pairwise(batches)]
    assert all(cost(pairs, batch) > batch_tokens for batch in further)


def test_batches_are_filled() -> None:
    pairs = [(10, 10)] * 7
    assert [len(batch) for batch in plan(pairs, 60)] == [3, 3, 1]
    assert [len(batch) for batch in plan(pairs, 59)] == [2, 2, 2, 1]
    assert plan(pairs, 10**6) == [list(range(7))]
    assert plan([], 60) == []


def test_units_are_worth_many_batches() -> None:
    requests = Lengths([(10, 10)] * (40 * UNIT_BATCHES))
    everything = np.arange(len(requests))
    assert [len(unit) for unit in units_left(requests, everything, 200)] == [10 * UNIT_BATCHES] * 4
    assert [len(unit) for unit in units_left(requests, everything, 1)] == [1] * len(requests)


def test_units_are_planned_over_all_requests_and_asked_for_what_is_left() -> None:
    requests = Lengths([(10 + number, 10) for number in range(9 * UNIT_BATCHES)])
    units = list(units_left(requests, np.arange(len(requests)), 100))
    left = np.asarray(sorted({*units[1][::2], *units[3]}))
    assert list(units_left(requests, left, 100)) == [units[1][::2], units[3]]


def test_seed_is_fixed_by_seed_iteration_and_id() -> None:
    names = ("a-0", "a-1", "b-0")
    seeds = {request(1, 16, name, theta).seed(seed) for name in names for theta in (0, 1, 10) for seed in (0, 1)}
    assert len(seeds) == 18
    assert len({request(1, sample=sample).seed(0) for sample in range(4)} | seeds) == 21
    assert request(1).seed(0) == request(9, 3).seed(0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_settings_of_keys() -> None:
    settings = SamplingSettings.of(GIVEN | {"repetition_penalty": 1.2, "do_sample": True})
    assert settings == SamplingSettings(1.0, 1.0, 0, 1.2, 16, 3)
    assert settings.as_dict()["seed"] == 3
    assert SamplingSettings.of({}) == SamplingSettings(0.95, 0.7, 50, 1.0, 1024, 42)
    assert SamplingSettings.of(GIVEN | {"do_sample": "false"}).temperature == 0.0


def test_settings_out_of_range_are_told_at_once() -> None:
    wrong = {"temperature": "nan", "top_p": 1.5, "top_k": -1, "repetition_penalty": 0, "max_new_tokens": 0}
    with pytest.raises(ConfigError) as error:
        SamplingSettings.of(GIVEN | wrong)
    assert [problem.partition("`")[2].partition("`")[0] for problem in error.value.problems] == list(wrong)
    assert error.value.problems[1] == "`top_p` is 1.5, but must be > 0 and <= 1. Correct the key."
