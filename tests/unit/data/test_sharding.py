# SPDX-License-Identifier: Apache-2.0
"""Every triplet of a step is trained on once by some process, and all processes do as many batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from llamafactory_tpaw.data.collator import (
    STAND_IN,
    GroupSampler,
    TripletCollator,
    TripletDataset,
    count_triplets,
)
from llamafactory_tpaw.data.sharding import PADDING, ShardedSampler, share_out
from tests.unit.data.writing import make_triplet


def batches_of(sampler: ShardedSampler, rank: int) -> list[list[int]]:
    """What accelerate gives a process."""
    whole = BatchSampler(sampler, sampler.batch_size, drop_last=False)
    return list(BatchSamplerShard(whole, sampler.processes, rank, even_batches=True))


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("triplets", [1, 7, 33, 96])
def test_steps_hold_the_triplets_of_one_process(
    processes: int, batch_size: int, accumulation: int, triplets: int
) -> None:
    order = np.random.default_rng(0).permutation(triplets).tolist()
    groups = [index // 3 for index in range(triplets)]
    sampler = ShardedSampler(order, groups, batch_size, processes, accumulation=accumulation)
    shards = [batches_of(sampler, rank) for rank in range(processes)]
    assert len({len(shard) for shard in shards}) == 1
    assert len(sampler) == sum(len(batch) for shard in shards for batch in shard)
    # As many batches as one process with the whole batch would have.
    assert len(shards[0]) == -(-triplets // (batch_size * processes))
    step = batch_size * processes * accumulation
    for number in range(-(-triplets // step)):
        part = slice(number * accumulation, (number + 1) * accumulation)
        trained = [index for shard in shards for batch in shard[part] for index in batch if index != PADDING]
        assert sorted(trained) == sorted(order[number * step : (number + 1) * step])


def test_groups_stay_on_one_process_where_shares_allow() -> None:
    groups = [index // 3 for index in range(18)]
    sampler = ShardedSampler(range(18), groups, 6, 2)
    shards = [[index for batch in batches_of(sampler, rank) for index in batch] for rank in range(2)]
    assert shards[0] == [*range(6), 12, 13, 14, PADDING, PADDING, PADDING]
    assert shards[1] == [*range(6, 12), 15, 16, 17, PADDING, PADDING, PADDING]


@pytest.mark.parametrize(
    ("runs", "processes", "most", "shares"),
    [
        ([3, 3, 3], 2, 8, [3, 6]),
        ([3], 2, 4, [3, 0]),
        ([3], 2, 2, [2, 1]),
        ([2, 3, 3], 2, 4, [4, 4]),
        ([1, 1, 1], 2, 2, [1, 2]),
        ([], 2, 1, [0, 0]),
        ([1], 3, 1, [1, 0, 0]),
    ],
)
def test_shares_are_even_as_far_as_groups_allow(runs: list[int], processes: int, most: int, shares: list[int]) -> None:
    assert share_out(runs, processes, most) == shares


def test_what_fills_no_batch_of_every_process_is_left_out_on_request() -> None:
    sampler = ShardedSampler(range(19), None, 4, 2, drop_last=True)
    trained = [index for rank in range(2) for batch in batches_of(sampler, rank) for index in batch]
    assert sorted(trained) == list(range(16))


def test_epochs_are_passed_on() -> None:
    dataset = TripletDataset([make_triplet(f"{index}") for index in range(12)])
    sampler = ShardedSampler(GroupSampler(dataset), None, 2, 2)
    first = list(sampler)
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(first)
    assert list(sampler) != first


def test_a_batch_without_triplets_stands_in_with_the_shortest() -> None:
    triplets = [make_triplet("a-0"), make_triplet("b-0", generated=1), make_triplet("c-0", generated=2)]
    dataset = TripletDataset(triplets, np.zeros((3, 1), np.float32), np.ones((3, 1), np.float32))
    collate = TripletCollator(0)
    batch = collate([dataset[PADDING], dataset[PADDING]])
    assert STAND_IN in batch
    assert count_triplets(batch) == 0
    assert batch["response_counts"].tolist() == [2, 1]
    assert batch["player_target_logps"].shape == (1, 1)
    mixed = collate([dataset[0], dataset[PADDING], dataset[2]])
    assert STAND_IN not in mixed
    assert count_triplets(mixed) == 2
    expected = collate([dataset[0], dataset[2]])
    assert all(torch.equal(mixed[name], expected[name]) for name in expected)
