# SPDX-License-Identifier: Apache-2.0
"""What must not change: fingerprints, cache keys, prompts, triplets, run files, and what training comes to.

The values were written by `python -m tests.gate.write`. Where a change of them is meant, write them again and say why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gate import values
from tests.gate.matching import differences, golden, match


PARTS = [f"{part}_{iteration}" for iteration in range(3) for part in ("triplets", "cache", "training")]


@pytest.mark.parametrize("name", values.SINGLE)
def test_values(name: str, tmp_path: Path) -> None:
    match(values.SINGLE[name](tmp_path), golden(name))


@pytest.mark.parametrize("part", [*PARTS, "manifest"])
def test_tiny_run(tiny_run: dict[str, Any], part: str) -> None:
    match(tiny_run[part], golden("tiny_run")[part])


def test_a_difference_is_seen() -> None:
    expected = {"a": [1, 2.0, "x"], "b": True}
    assert list(differences({"a": [1, 2.0001, "x"], "b": True}, expected)) == []
    for change in ({"a": [1, 2.001, "x"]}, {"a": [1, 2.0, "y"]}, {"a": [1, 2.0]}, {"b": 1}, {"c": None}):
        assert len(list(differences(expected | change, expected))) == 1
