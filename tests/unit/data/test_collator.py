# SPDX-License-Identifier: Apache-2.0
"""Batches hold each sequence once, epochs every triplet, groups together, shared out over processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from llamafactory_tpaw.data.collator import (
    IS_PADDING,
    PADDING,
    GroupSampler,
    ShardedSampler,
    TripletCollator,
    TripletDataset,
    count_triplets,
)
from llamafactory_tpaw.data.layout import Layout, Row, pack, separate
from llamafactory_tpaw.data.opponents import Triplet
from tests.unit.data.writing import make_triplet


PAD = 99


def array(*ids: int) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


def play(name: str, iteration: int, generated: tuple[int, ...]) -> Triplet:
    """A triplet of the prompt `name`, whose target depends on nothing else."""
    number = ord(name[0])
    return Triplet(name, iteration, array(number, 1), array(number, 2), array(*generated), truncated=False)


ROUNDS = [
    *(play("a-0", iteration, (10 + iteration,)) for iteration in range(3)),
    *(play("b-0", iteration, (20, iteration)) for iteration in range(2)),
]


def sequences(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    return [part.tolist() for part in batch["response_tokens"].split(batch["response_counts"].tolist())]


def collate(triplets: list[Triplet], **settings: Any) -> dict[str, torch.Tensor]:
    return TripletCollator(PAD, **settings)([{"triplet": triplet} for triplet in triplets])


@pytest.mark.parametrize("sharing", ["never", "always"])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_triplet_finds_its_responses(grouped: bool, sharing: str) -> None:
    triplets = [ROUNDS[0], ROUNDS[3], ROUNDS[2], ROUNDS[4]]
    batch = collate(triplets, grouped=grouped, layout=Layout(sharing=sharing))
    found = sequences(batch)
    assert len(found) == (6 if grouped else 8)
    for index, triplet in enumerate(triplets):
        assert found[batch["target_index"][index]] == triplet.target_ids.tolist()
        assert found[batch["generated_index"][index]] == triplet.generated_ids.tolist()
    assert "proto_index" not in batch
    # One row a sequence, or one a prompt; ungrouped, each triplet is a prompt of its own.
    rows = {("never", True): 6, ("never", False): 8, ("always", True): 2, ("always", False): 4}
    assert len(batch["input_ids"]) == rows[sharing, grouped]


def test_what_two_triplets_have_in_common_is_there_once() -> None:
    """Also a generated response that is the target, and one that two iterations gave alike."""
    equal = replace(ROUNDS[0], generated_ids=ROUNDS[0].target_ids)
    batch = collate([equal, ROUNDS[1], replace(ROUNDS[1], iteration=2)])
    assert len(batch["response_counts"]) == 2
    assert batch["target_index"].tolist() == [0, 0, 0]
    assert batch["generated_index"].tolist() == [0, 1, 1]
    assert batch["equal"].tolist() == [True, False, False]


def test_cached_players_and_flags_go_with_their_triplets() -> None:
    triplets = [make_triplet("a-0", target=1), replace(make_triplet("b-0", generated=2), truncated=True, weight=0.5)]
    target, generated = np.arange(6, dtype=np.float32).reshape(2, 3), -np.arange(6, dtype=np.float32).reshape(2, 3)
    dataset = TripletDataset(triplets, target, generated)
    batch = TripletCollator(PAD)([dataset[1], dataset[0]])
    assert batch["player_target_logps"].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert batch["player_generated_logps"].tolist() == [[-3, -4, -5], [0, -1, -2]]
    assert batch["player_target_logps"].dtype == torch.float32
    assert batch["truncated"].tolist() == [True, False]
    assert batch["weights"].tolist() == [0.5, 1.0]


def test_y0_is_a_third_response() -> None:
    triplets = [replace(make_triplet(name), proto_ids=array(50, number)) for number, name in enumerate(("a-0", "b-0"))]
    batch = collate(triplets)
    assert [sequences(batch)[index] for index in batch["proto_index"]] == [[50, 0], [50, 1]]
    with pytest.raises(ValueError):  # triplets with and without y_0 have no common layout
        collate([triplets[0], make_triplet("a-0")])


@pytest.fixture
def dataset() -> TripletDataset:
    """Three rounds of 20 prompts, one round after another as they are read, of different lengths."""
    return TripletDataset(
        [make_triplet(f"{row}-0", iteration, prompt=1 + row % 7) for iteration in range(3) for row in range(20)]
    )


@pytest.mark.parametrize("settings", [{}, {"shuffle": False}, {"by_length": True}, {"grouped": False}])
def test_an_epoch_sees_every_triplet_once(dataset: TripletDataset, settings: dict[str, bool]) -> None:
    sampler = GroupSampler(dataset, 4, **settings)
    assert len(sampler) == 60
    assert sorted(sampler) == list(range(60))
    by_length = [len(dataset.triplets[index].prompt_ids) for index in sampler]
    assert (by_length == sorted(by_length, reverse=True)) == ("by_length" in settings)
    names = [dataset.triplets[index].id for index in sampler]
    together = all(len(set(names[start : start + 3])) == 1 for start in range(0, 60, 3))
    assert together == settings.get("grouped", True)


def test_the_order_follows_seed_and_epoch(dataset: TripletDataset) -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        sampler = ShardedSampler(GroupSampler(dataset, seed=seed), 2, 2)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("triplets", [1, 7, 33, 96])
def test_steps_hold_the_triplets_of_one_process(processes: int, batch_size: int, triplets: int) -> None:
    """Every triplet of a step is trained on once by some process, and all processes do as many batches."""
    order = np.random.default_rng(0).permutation(triplets).tolist()
    sampler = ShardedSampler(order, batch_size, processes)
    whole = BatchSampler(sampler, batch_size, drop_last=False)
    shards = [list(BatchSamplerShard(whole, processes, rank, even_batches=True)) for rank in range(processes)]
    # As many batches as one process with the whole batch would have.
    assert {len(shard) for shard in shards} == {-(-triplets // (batch_size * processes))}
    assert len(sampler) == sum(len(batch) for shard in shards for batch in shard)
    every = batch_size * processes
    assert list(ShardedSampler(order, batch_size, processes, drop_last=True)) == order[: triplets // every * every]
    for accumulation in (1, 3):
        step = batch_size * processes * accumulation
        for number in range(-(-triplets // step)):
            part = slice(number * accumulation, (number + 1) * accumulation)
            trained = [index for shard in shards for batch in shard[part] for index in batch if index != PADDING]
            assert sorted(trained) == sorted(order[number * step : (number + 1) * step])


def test_padding_counts_for_nothing() -> None:
    triplets = [make_triplet("a-0"), make_triplet("b-0", generated=1), make_triplet("c-0", generated=2)]
    dataset = TripletDataset(triplets, np.zeros((3, 1), np.float32), np.ones((3, 1), np.float32))
    collate = TripletCollator(0)
    batch = collate([dataset[PADDING], dataset[PADDING]])
    assert IS_PADDING in batch
    assert count_triplets(batch) == 0
    assert batch["response_counts"].tolist() == [2, 4]
    mixed = collate([dataset[0], dataset[PADDING], dataset[2]])
    assert IS_PADDING not in mixed
    assert count_triplets(mixed) == 2
    expected = collate([dataset[0], dataset[2]])
    assert all(torch.equal(mixed[name], expected[name]) for name in expected)


def test_packed_rows_have_no_padding() -> None:
    shared = [Row(array(1, 2), [array(4), array(5, 6)]), Row(array(3), [array(7, 8, 9)])]
    packed = pack(separate(shared))
    assert {values.dtype for values in packed.values()} == {torch.int64}
    assert {name: values.tolist() for name, values in packed.items()} == {
        "input_ids": [[1, 2, 4, 1, 2, 5, 6, 3, 7, 8, 9]],
        "position_ids": [[0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3]],
        "response_tokens": [4, 5, 6, 7, 8, 9],
        "response_places": [1, 4, 5, 7, 8, 9],
        "response_counts": [1, 2, 3],
    }


def rows(prompt: int, responses: list[int]) -> list[Row]:
    return [Row(np.ones(prompt, dtype=np.int32), [np.ones(size, dtype=np.int32) for size in responses])]


def test_prompts_are_shared_where_that_saves_enough() -> None:
    """Shares of the tokens of 0.89 and 0.81."""
    little, enough, long = rows(32, [192] * 4), rows(64, [192] * 4), rows(1024, [1024] * 4)
    assert Layout(sharing="cheaper").arrange(enough) == enough
    for shared in (little, long):
        assert Layout(sharing="cheaper").arrange(shared) == separate(shared)
        assert Layout(sharing="always").arrange(shared) == shared
    assert Layout(sharing="never").arrange(enough) == separate(enough)
    assert Layout(sharing="always").arrange(enough, most_tokens=800) == separate(enough)
    assert Layout(sharing="always").arrange(separate(enough)) == separate(enough)
