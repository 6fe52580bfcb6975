# SPDX-License-Identifier: Apache-2.0
"""Rows of prompts and responses: where each token stands, what predicts it, and which layout is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llamafactory_tpaw.data.layout import LayoutCosts, Row, lay_out, pack, separate


PAD = 99


def array(*ids: int) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


SHARED = [Row(array(1, 2), [array(4), array(5, 6)]), Row(array(3), [array(7, 8, 9)])]


def listed(batch: dict[str, torch.Tensor]) -> dict[str, list]:
    assert {values.dtype for values in batch.values()} == {torch.int64}
    return {name: values.tolist() for name, values in batch.items()}


def test_one_response_a_row() -> None:
    assert listed(lay_out(separate(SHARED), pad_token_id=PAD, pad_to_multiple_of=5)) == {
        "input_ids": [[1, 2, 4, PAD, PAD], [1, 2, 5, 6, PAD], [3, 7, 8, 9, PAD]],
        "response_tokens": [4, 5, 6, 7, 8, 9],
        "response_places": [1, 6, 7, 10, 11, 12],
        "response_counts": [1, 2, 3],
    }


def test_responses_share_their_prompt() -> None:
    assert listed(lay_out(SHARED, pad_token_id=PAD, pad_to_multiple_of=1)) == {
        "input_ids": [[1, 2, 4, 5, 6], [3, 7, 8, 9, PAD]],
        "position_ids": [[0, 1, 2, 2, 3], [0, 1, 2, 3, 0]],
        "segments": [[0, 0, 1, 2, 2], [0, 1, 1, 1, -1]],
        "response_tokens": [4, 5, 6, 7, 8, 9],
        # The end of the prompt, place 1, predicts the first tokens of both of its responses.
        "response_places": [1, 1, 3, 5, 6, 7],
        "response_counts": [1, 2, 3],
    }


def test_packed_rows_have_no_padding() -> None:
    assert listed(pack(separate(SHARED))) == {
        "input_ids": [[1, 2, 4, 1, 2, 5, 6, 3, 7, 8, 9]],
        "position_ids": [[0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3]],
        "response_tokens": [4, 5, 6, 7, 8, 9],
        "response_places": [1, 4, 5, 7, 8, 9],
        "response_counts": [1, 2, 3],
    }


def test_empty_responses_and_padding_ids_in_responses() -> None:
    batch = lay_out([Row(array(1), [array(), array(PAD, 3)])], pad_token_id=PAD)
    assert batch["input_ids"].shape == (1, 8)
    assert batch["response_tokens"].tolist() == [PAD, 3]
    assert batch["response_places"].tolist() == [0, 1]
    assert batch["response_counts"].tolist() == [0, 2]


def rows(prompt: int, responses: list[int]) -> list[Row]:
    return [Row(np.ones(prompt, dtype=np.int32), [np.ones(size, dtype=np.int32) for size in responses])]


@pytest.mark.parametrize("by_parts", [False, True])
def test_prompts_are_shared_where_it_is_clearly_cheaper(by_parts: bool) -> None:
    costs = LayoutCosts(token=100.0, pair=0.1, sharing="cheaper", by_parts=by_parts)
    long, short = rows(512, [192] * 4), rows(4, [192] * 4)
    assert costs.arrange(long) == long
    assert costs.arrange(short) == separate(short)
    assert LayoutCosts(sharing="never").arrange(long) == separate(long)
    always = LayoutCosts(token=100.0, pair=0.1, sharing="always")
    assert always.arrange(short) == short
    assert always.arrange(long, most_tokens=1000) == separate(long)


def test_what_layouts_cost() -> None:
    shared = rows(4, [2, 2])
    assert LayoutCosts(token=10.0, pair=1.0).of(separate(shared)) == 2 * (6 * 10 + 6 * 6 / 2)
    assert LayoutCosts(token=10.0, pair=1.0).of(shared) == 8 * 10 + 8 * 8
    assert LayoutCosts(token=10.0, pair=1.0, by_parts=True).of(shared) == 8 * 10 + 4 * 4 / 2 + 2 * 2 * (4 + 2 / 2)
