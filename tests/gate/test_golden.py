# SPDX-License-Identifier: Apache-2.0
"""What must not change: fingerprints, cache keys, prompts, triplets, run files, and what training comes to.

The values were written by `python -m tests.gate.write`. Where a change of them is meant, write them again and say why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llamafactory.data.template import Template

from tests.gate import values
from tests.gate.matching import differences, golden, match


pytestmark = pytest.mark.usefixtures("logs_as_before")
PARTS = [f"{part}_{iteration}" for iteration in range(3) for part in ("triplets", "cache", "training")]


# After 2026-08 LlamaFactory's main branch writes no empty line before tools that follow no system text: other tokens.
STRIPS = "lstrip" in Template._encode.__code__.co_names
WITHOUT_LINE = {
    "217d7418e95c11699f58c0ca16abff931204ceccd3deb39c4d60fa51ae222c5e": (
        "07acd3fb79798fb539301c3dfa3237bddb245c6e6583d7c349748059a70097b2"
    ),
    "3cc3476dcf7b6c63-0": "50d7bc27ee93eb47-0",
    "7a67d2fc8e183d5d-0": "4810051478623c7a-0",
}


@pytest.mark.parametrize("name", values.SINGLE)
def test_values(name: str, tmp_path: Path) -> None:
    expected = json.dumps(golden(name))
    for stored, stripped in WITHOUT_LINE.items() if STRIPS else ():
        expected = expected.replace(stored, stripped)
    match(values.SINGLE[name](tmp_path), json.loads(expected))


@pytest.mark.parametrize("part", [*PARTS, "manifest"])
def test_tiny_run(tiny_run: dict[str, Any], part: str) -> None:
    match(tiny_run[part], golden("tiny_run")[part])


def test_a_difference_is_seen() -> None:
    expected = {"a": [1, 2.0, "x"], "b": True}
    assert list(differences({"a": [1, 2.0001, "x"], "b": True}, expected)) == []
    for change in ({"a": [1, 2.001, "x"]}, {"a": [1, 2.0, "y"]}, {"a": [1, 2.0]}, {"b": 1}, {"c": None}):
        assert len(list(differences(expected | change, expected))) == 1
