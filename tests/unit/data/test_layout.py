# SPDX-License-Identifier: Apache-2.0
"""Rows of prompts and responses: where each token stands, what predicts it, and which layout is chosen."""

from __future__ import annotations

import numpy as np
import torch

from llamafactory_tpaw.data.layout import Layout, Row, lay_out, pack, separate


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


def test_packed_rows_have_no_padding() -> None:
    assert listed(pack(separate(SHARED))) == {
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
