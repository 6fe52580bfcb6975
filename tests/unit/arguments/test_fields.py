# SPDX-License-Identifier: Apache-2.0
"""The `tpaw_*` keys: types, ranges and messages."""

from __future__ import annotations

from typing import Any

import pytest

from llamafactory_tpaw.arguments.fields import FIELDS, RANGES, TpawArguments, parse_value
from llamafactory_tpaw.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("tpaw_iteration", "2", 2),
        ("tpaw_eta", 1, 1.0),
        ("tpaw_eta", "6e0", 6.0),
        ("tpaw_reward_scale", "1.0e-2", 0.01),
        ("tpaw_max_prompts", None, None),
        ("tpaw_prompts", 7, "7"),
        ("tpaw_players", "a, b,", ["a", "b"]),
        ("tpaw_players", ["a ", "b"], ["a", "b"]),
        ("tpaw_engine_url", "http://a:8000/v1, https://b/v1", ["http://a:8000/v1", "https://b/v1"]),
    ],
)
def test_values_are_read_as_their_type(name: str, value: Any, parsed: Any) -> None:
    result = parse_value(name, value)
    assert result == (parsed, None)
    assert type(result[0]) is type(parsed)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tpaw_gamma", "inf", "`tpaw_gamma` is inf, but must be >= 0."),
        ("tpaw_iteration", True, "`tpaw_iteration` is True, but must be a whole number."),
    ],
)
def test_wrong_values_are_told(name: str, value: Any, message: str) -> None:
    kept, problem = parse_value(name, value)
    assert kept is value
    assert problem.startswith(message)


def test_every_number_has_a_range_that_holds_its_default() -> None:
    numbers = {name for name, spec in FIELDS.items() if spec.type in (int, float, int | None)}
    assert numbers == set(RANGES)
    for name in numbers:
        default = FIELDS[name].default
        assert default is None or RANGES[name].holds(default)


def test_class_coerces_and_tells_everything_at_once() -> None:
    arguments = TpawArguments(tpaw_players="a,b", tpaw_eta="2")
    assert (arguments.tpaw_players, arguments.tpaw_eta) == (["a", "b"], 2.0)
    with pytest.raises(ConfigError) as caught:
        TpawArguments(tpaw_eta=0, tpaw_gamma=-1)
    assert len(caught.value.problems) == 2
