# SPDX-License-Identifier: Apache-2.0
"""Limits and bad rows that follow of lengths."""

from __future__ import annotations

import pytest

from llamafactory_tpaw.data.prompts import BadRow
from llamafactory_tpaw.runs.scaffold.lengths import Lengths


def lengths(prompts: list[int], targets: list[int], bad: int = 0, total: int | None = None) -> Lengths:
    return Lengths(prompts, targets, [BadRow(1, "empty")] * bad, total)


@pytest.mark.parametrize(
    ("found", "positions", "limits"),
    [
        (lengths([100, 300], [50, 200]), 2048, (512, 256)),
        (lengths([54], [4]), 2048, (128, 64)),
        (lengths([300], [2000]), 1024, (1024, 960)),
        (lengths([9000], [9000]), None, (4096, 4032)),
        (lengths([20], [30]), 32, (32, 16)),
        (lengths([10] * 1000, [10] * 999 + [900]), 2048, (128, 64)),
    ],
    ids=["usual", "short", "positions", "very long", "few positions", "one long row of many"],
)
def test_limits(found: Lengths, positions: int | None, limits: tuple[int, int]) -> None:
    chosen = found.limits(positions, {})
    assert tuple(chosen.values()) == limits
    assert 0 < chosen["max_new_tokens"] < chosen["cutoff_len"]


def test_bad_rows_to_be_expected() -> None:
    whole = lengths([10] * 97 + [500], [10] * 98, bad=2, total=100)
    assert whole.bad_allowance(512, 1, None) == 2
    assert whole.bad_allowance(256, 1, None) == 3
    assert whole.bad_allowance(500, 1, 50) == 3
    sample = lengths([10] * 2000, [10] * 2000, total=50_000)
    assert sample.bad_allowance(128, 1, None) == 500
    assert sample.bad_allowance(128, 1, 10_000) == 100
    assert lengths([10] * 1900, [10] * 1900, bad=100, total=50_000).bad_allowance(128, 1, None) == 3750
