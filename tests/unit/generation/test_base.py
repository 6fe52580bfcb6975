# SPDX-License-Identifier: Apache-2.0
"""Sampling settings, seeds, and batches bounded by tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

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


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 500, 10**6])
def test_every_request_once_in_batches_that_are_full(batch_tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, (200, 2))
    batches = [batch.tolist() for batch in plan_batches(*lengths.T, batch_tokens)]
    order = [index for batch in batches for index in batch]
    assert order == sorted(range(200), key=lambda index: (-lengths[index, 0], index))

    def cost(batch: list[int]) -> int:
        return len(batch) * lengths[batch].max(0).sum()

    assert all(len(batch) == 1 or cost(batch) <= batch_tokens for batch in batches)
    assert all(cost([*batch, after[0]]) > batch_tokens for batch, after in itertools.pairwise(batches))


def test_units_are_planned_over_all_requests_and_asked_for_what_is_left() -> None:
    size = 9 * UNIT_BATCHES
    lengths = {"prompt_tokens": np.arange(10, 10 + size), "new_tokens": np.full(size, 10), "__len__": lambda _: size}
    requests = type("Requests", (), lengths)()
    units = list(units_left(requests, np.arange(size), 100))
    assert min(map(len, units[:-1])) >= UNIT_BATCHES
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
    assert SamplingSettings.of({}) == SamplingSettings(0.95, 0.7, 50, 1.0, 1024, 42)
    assert SamplingSettings.of(GIVEN | {"do_sample": "false"}).temperature == 0.0
