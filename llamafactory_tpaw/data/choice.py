# SPDX-License-Identifier: Apache-2.0
"""Which rows of a set are taken: a choice that depends on their number and a seed alone, in little memory."""

from __future__ import annotations

import math
import random
from array import array
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def choose_rows(rows: int, most: int | None, seed: int) -> Sequence[int]:
    r"""Choose the rows of a set that are prompts; the same for every iteration whatever `seed` of the run is.

    Args:
        rows: How many there are.
        most: How many are chosen; all of them for None.
        seed: `tpaw_prompts_seed`.

    Returns:
        Their indices from 0, ascending: a range for all, a uint32 array for some. They are those that Python's
        `random.Random(seed).sample` picks.
    """
    if most is None or most >= rows:
        return range(rows)
    taken = bytearray(-(-rows // 8))
    for row in _picks(random.Random(seed), rows, most, taken):
        taken[row >> 3] |= 1 << (row & 7)
    bits = np.unpackbits(np.frombuffer(taken, dtype=np.uint8), count=rows, bitorder="little")
    return np.flatnonzero(bits).astype(np.uint32)


def _picks(rng: random.Random, rows: int, count: int, taken: bytearray) -> Iterator[int]:
    r"""Draw as `random.sample` of Python 3.11 does, without its lists and sets of Python numbers.

    Args:
        rng: Where the numbers come from.
        rows: How many there are.
        count: How many are drawn.
        taken: Bits of the rows that were drawn, set by the caller after each.
    """
    few = 21 + (4 ** math.ceil(math.log(count * 3, 4)) if count > 5 else 0)
    if rows > few:
        for _ in range(count):
            row = rng.randrange(rows)
            while taken[row >> 3] >> (row & 7) & 1:
                row = rng.randrange(rows)
            yield row
        return
    pool = array("I", range(rows))
    for left in range(rows, rows - count, -1):
        place = rng.randrange(left)
        yield pool[place]
        pool[place] = pool[left - 1]
