# SPDX-License-Identifier: Apache-2.0
"""Which rows are taken: those of Python's `sample`, so that triplets of earlier versions stay valid."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llamafactory_tpaw.data.choice import choose_rows


def test_all_rows_take_no_memory() -> None:
    assert choose_rows(4, None, 0) == choose_rows(4, 4, 0) == choose_rows(4, 9, 0) == range(4)
    assert choose_rows(10**12, None, 0) == range(10**12)


@pytest.mark.parametrize(
    ("rows", "most"),
    [(2, 1), (21, 5), (22, 5), (85, 20), (85, 21), (86, 21), (1000, 6), (1000, 999), (1045, 300), (5000, 700)],
)
@pytest.mark.parametrize("seed", [0, 1, -3, 2**40])
def test_the_choice_is_that_of_sample(rows: int, most: int, seed: int) -> None:
    chosen = choose_rows(rows, most, seed)
    assert chosen.dtype == np.uint32
    assert chosen.tolist() == sorted(random.Random(seed).sample(range(rows), most))


def test_fixed_choices() -> None:
    assert choose_rows(16, 5, 0).tolist() == [0, 4, 6, 12, 15]
    assert choose_rows(1000, 5, 0).tolist() == [394, 430, 776, 864, 911]
    assert choose_rows(10**6, 4, 7).tolist() == [158176, 339563, 414002, 993908]
