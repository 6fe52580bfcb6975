# SPDX-License-Identifier: Apache-2.0
"""What must not change: fingerprints, cache keys, prompts, triplets, run files, and what training comes to.

Floats are compared within the rounding of another processor, everything else exactly. The values were written by
`python -m tests.gate.write`. Where a change of them is meant, write them again and say why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llamafactory.data.template import Template
from packaging.version import parse
from transformers import __version__

from tests.gate import values


pytestmark = pytest.mark.usefixtures("logs_as_before")
# Several times what other instruction sets and numbers of threads change in the norms of gradients, the most of all.
RELATIVE, ABSOLUTE = 3e-4, 3e-5
OWN_TOKENIZER = pytest.mark.skipif(
    parse(__version__) >= parse("5.7"), reason="this transformers loads the tokenizer of the values as Qwen2's own"
)
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


def golden(name: str) -> Any:
    """Read one of the files that `python -m tests.gate.write` wrote."""
    return json.loads((values.HERE / "golden" / f"{name}.json").read_text(encoding="utf-8"))


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Yield the places at which two JSON values differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        yield from (f"{where}/{key} is in one of the two only" for key in found.keys() ^ expected.keys())
        for key in found.keys() & expected.keys():
            yield from differences(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{where}/{index}")
    elif isinstance(expected, float) and isinstance(found, float):
        if found != pytest.approx(expected, rel=RELATIVE, abs=ABSOLUTE):
            yield f"{where} is {found}, not {expected}"
    elif type(found) is not type(expected) or found != expected:
        yield f"{where} is {found}, not {expected}"


def match(found: Any, expected: Any) -> None:
    """Assert that a value is as expected."""
    assert sorted(differences(found, expected)) == []


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What iterations 0 to 2 of the tiny run came to."""
    return values.tiny_run(tmp_path_factory.mktemp("tiny_run"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=OWN_TOKENIZER) if name == "prompts" else name for name in values.SINGLE]
)
def test_values(name: str, tmp_path: Path) -> None:
    expected = json.dumps(golden(name))
    for stored, stripped in WITHOUT_LINE.items() if STRIPS else ():
        expected = expected.replace(stored, stripped)
    match(values.SINGLE[name](tmp_path), json.loads(expected))


@OWN_TOKENIZER
@pytest.mark.parametrize("part", [*PARTS, "manifest"])
def test_tiny_run(tiny_run: dict[str, Any], part: str) -> None:
    match(tiny_run[part], golden("tiny_run")[part])


def test_a_difference_is_seen() -> None:
    expected = {"a": [1, 2.0, "x"], "b": True}
    assert list(differences({"a": [1, 2.0001, "x"], "b": True}, expected)) == []
    for change in ({"a": [1, 2.001, "x"]}, {"a": [1, 2.0, "y"]}, {"a": [1, 2.0]}, {"b": 1}, {"c": None}):
        assert len(list(differences(expected | change, expected))) == 1
