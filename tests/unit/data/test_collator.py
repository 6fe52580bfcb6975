# SPDX-License-Identifier: Apache-2.0
"""The layout of a batch: targets, generated responses, y_0; padding on either side; what is masked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from llamafactory_tpaw.data.collator import IGNORE_INDEX, TripletCollator, TripletDataset, pad_sequences
from tests.unit.data.writing import make_triplet


PAD = 99


def array(*ids: int) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


def test_right_padding() -> None:
    batch = pad_sequences([array(1, 2), array(3)], [array(4), array(5, 6, 7)], pad_token_id=PAD, pad_to_multiple_of=5)
    assert {name: rows.tolist() for name, rows in batch.items()} == {
        "input_ids": [[1, 2, 4, PAD, PAD], [3, 5, 6, 7, PAD]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]],
        "labels": [[-100, -100, 4, -100, -100], [-100, 5, 6, 7, -100]],
    }
    assert {rows.dtype for rows in batch.values()} == {torch.int64}


def test_left_padding_keeps_positions() -> None:
    batch = pad_sequences(
        [array(1, 2), array(3)],
        [array(4), array(5, 6, 7)],
        pad_token_id=PAD,
        padding_side="left",
        pad_to_multiple_of=5,
    )
    assert {name: rows.tolist() for name, rows in batch.items()} == {
        "input_ids": [[PAD, PAD, 1, 2, 4], [PAD, 3, 5, 6, 7]],
        "attention_mask": [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]],
        "labels": [[-100, -100, -100, -100, 4], [-100, -100, 5, 6, 7]],
        "position_ids": [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3]],
    }


@pytest.mark.parametrize(("multiple", "width"), [(1, 4), (4, 4), (8, 8), (3, 6)])
def test_width(multiple: int, width: int) -> None:
    batch = pad_sequences([array(1, 2)], [array(3, 4)], pad_token_id=PAD, pad_to_multiple_of=multiple)
    assert batch["input_ids"].shape == (1, width)


def test_an_empty_response_and_a_pad_token_inside_one() -> None:
    """The mask says what counts, not the id: a response may hold the padding id, as an end of turn does."""
    batch = pad_sequences([array(1), array(2)], [array(), array(PAD, 3)], pad_token_id=PAD, pad_to_multiple_of=1)
    assert batch["labels"].tolist() == [[-100, -100, -100], [-100, PAD, 3]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_layout_with_cached_players() -> None:
    triplets = [make_triplet("a-0", target=1), replace(make_triplet("b-0", generated=2), truncated=True)]
    triplets[1] = replace(triplets[1], generated_ids=triplets[1].target_ids)
    target, generated = np.arange(6, dtype=np.float32).reshape(2, 3), -np.arange(6, dtype=np.float32).reshape(2, 3)
    dataset = TripletDataset(triplets, target, generated)
    assert len(dataset) == 2
    batch = TripletCollator(pad_token_id=PAD)([dataset[1], dataset[0]])
    responses = [[token for token in row if token != IGNORE_INDEX] for row in batch["labels"].tolist()]
    assert responses == [
        triplets[1].target_ids.tolist(),
        triplets[0].target_ids.tolist(),
        triplets[1].generated_ids.tolist(),
        triplets[0].generated_ids.tolist(),
    ]
    for row in range(4):
        prompt = batch["input_ids"][row][batch["labels"][row] == IGNORE_INDEX][:3].tolist()
        assert prompt == triplets[1 - row % 2].prompt_ids.tolist()
    assert batch["player_target_logps"].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert batch["player_generated_logps"].tolist() == [[-3, -4, -5], [0, -1, -2]]
    assert batch["player_target_logps"].dtype == torch.float32
    assert batch["truncated"].tolist() == [True, False]
    assert batch["equal"].tolist() == [True, False]
    assert batch["input_ids"].shape[1] % 8 == 0


def test_layout_with_y0_and_without_cached_players() -> None:
    triplets = [replace(make_triplet(name), proto_ids=array(50, number)) for number, name in enumerate(("a-0", "b-0"))]
    dataset = TripletDataset(triplets)
    batch = TripletCollator(PAD, padding_side="left", pad_to_multiple_of=1)([dataset[0], dataset[1]])
    assert batch["input_ids"].shape == (6, 7)
    assert [row[-2:].tolist() for row in batch["labels"][4:]] == [[50, 0], [50, 1]]
    assert "player_target_logps" not in batch
    assert "position_ids" in batch


def test_rounds_are_not_mixed_in_a_batch() -> None:
    """Triplets with and without y_0 have no common layout."""
    triplets = [make_triplet("a-0"), replace(make_triplet("b-0"), proto_ids=array(1))]
    with pytest.raises(ValueError):
        TripletCollator(PAD)([{"triplet": triplet} for triplet in triplets])
