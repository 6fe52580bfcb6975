# SPDX-License-Identifier: Apache-2.0
"""Comparison with golden values: floats within the rounding of another processor, everything else exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gate.values import HERE


# Several times what other instruction sets and numbers of threads change in the norms of gradients, the most of all.
RELATIVE, ABSOLUTE = 3e-4, 3e-5


def golden(name: str) -> Any:
    """Read one of the files that `python -m tests.gate.write` wrote."""
    return json.loads((HERE / "golden" / f"{name}.json").read_text(encoding="utf-8"))


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
