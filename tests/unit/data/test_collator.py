# SPDX-License-Identifier: Apache-2.0
"""A batch holds each sequence once and says whose it is; epochs visit all triplets, groups together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from llamafactory_tpaw.data.collator import GroupSampler, TripletCollator, TripletDataset
from llamafactory_tpaw.data.layout import LayoutCosts
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


def collate(triplets: list[Triplet], **settings) -> dict[str, torch.Tensor]:
    return TripletCollator(PAD, **settings)([{"triplet": triplet} for triplet in triplets])


@pytest.mark.parametrize("sharing", ["never", "always"])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_triplet_finds_its_responses(grouped: bool, sharing: str) -> None:
    triplets = [ROUNDS[0], ROUNDS[3], ROUNDS[2], ROUNDS[4]]
    batch = collate(triplets, grouped=grouped, costs=LayoutCosts(sharing=sharing))
    found = sequences(batch)
    assert len(found) == (6 if grouped else 8)
    for index, triplet in enumerate(triplets):
        assert found[batch["target_index"][index]] == triplet.target_ids.tolist()
        assert found[batch["generated_index"][index]] == triplet.generated_ids.tolist()
    assert "proto_index" not in batch
    # One row a sequence, or one a prompt; ungrouped, each triplet is a prompt of its own.
    assert (
        len(batch["input_ids"])
        == {("never", True): 6, ("never", False): 8, ("always", True): 2, ("always", False): 4}[sharing, grouped]
    )


def test_a_packed_batch_holds_the_same() -> None:
    batch = collate(ROUNDS, costs=LayoutCosts(packed=True))
    assert batch["input_ids"].shape == (1, (4 + 3 * 3) + (4 + 2 * 4))
    assert sequences(batch) == sequences(collate(ROUNDS))


def test_what_two_triplets_have_in_common_is_there_once() -> None:
    """Also a generated response that is the target, and one that two iterations gave alike."""
    equal = replace(ROUNDS[0], generated_ids=ROUNDS[0].target_ids)
    batch = collate([equal, ROUNDS[1], replace(ROUNDS[1], iteration=2)])
    assert len(batch["response_counts"]) == 2
    assert batch["target_index"].tolist() == [0, 0, 0]
    assert batch["generated_index"].tolist() == [0, 1, 1]
    assert batch["equal"].tolist() == [True, False, False]


def test_cached_players_and_flags_go_with_their_triplets() -> None:
    triplets = [make_triplet("a-0", target=1), replace(make_triplet("b-0", generated=2), truncated=True)]
    target, generated = np.arange(6, dtype=np.float32).reshape(2, 3), -np.arange(6, dtype=np.float32).reshape(2, 3)
    dataset = TripletDataset(triplets, target, generated)
    assert len(dataset) == 2
    batch = TripletCollator(PAD)([dataset[1], dataset[0]])
    assert batch["player_target_logps"].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert batch["player_generated_logps"].tolist() == [[-3, -4, -5], [0, -1, -2]]
    assert batch["player_target_logps"].dtype == torch.float32
    assert batch["truncated"].tolist() == [True, False]


def test_y0_is_a_third_response() -> None:
    triplets = [replace(make_triplet(name), proto_ids=array(50, number)) for number, name in enumerate(("a-0", "b-0"))]
    batch = collate(triplets)
    found = sequences(batch)
    assert [found[index] for index in batch["proto_index"]] == [[50, 0], [50, 1]]
    assert "player_target_logps" not in batch


def test_rounds_are_not_mixed_in_a_batch() -> None:
    """Triplets with and without y_0 have no common layout."""
    with pytest.raises(ValueError):
        collate([make_triplet("a-0"), replace(make_triplet("b-0"), proto_ids=array(1))])


@pytest.fixture
def dataset() -> TripletDataset:
    """Three rounds of 20 prompts, one round after another as they are read, of different lengths."""
    return TripletDataset(
        [make_triplet(f"{row}-0", iteration, prompt=1 + row % 7) for iteration in range(3) for row in range(20)]
    )


@pytest.mark.parametrize("settings", [{}, {"shuffle": False}, {"by_length": True}, {"grouped": False}])
def test_an_epoch_sees_every_triplet_once(dataset: TripletDataset, settings: dict) -> None:
    sampler = GroupSampler(dataset, 4, **settings)
    assert len(sampler) == 60
    assert sorted(sampler) == list(range(60))


def test_groups_stay_together(dataset: TripletDataset) -> None:
    ids = [dataset.triplets[index].id for index in GroupSampler(dataset, seed=1)]
    assert all(len(set(ids[start : start + 3])) == 1 for start in range(0, 60, 3))
    assert len(dict.fromkeys(ids)) == 20


def test_the_order_follows_seed_and_epoch(dataset: TripletDataset) -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        sampler = GroupSampler(dataset, seed=seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert list(GroupSampler(dataset, shuffle=False))[:6] == [0, 20, 40, 1, 21, 41]


def test_by_length_brings_like_lengths_together(dataset: TripletDataset) -> None:
    order = list(GroupSampler(dataset, 4, by_length=True))
    lengths = [len(dataset.triplets[index].prompt_ids) for index in order]
    assert lengths == sorted(lengths, reverse=True)
