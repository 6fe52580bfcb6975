# SPDX-License-Identifier: Apache-2.0
"""Errors carry every problem, and several checks' findings are raised as one."""

from __future__ import annotations

import pytest

from llamafactory_tpaw.errors import EXIT_CODES, ConfigError, DataError, Findings, TpawError


def test_every_kind_has_a_documented_exit_code() -> None:
    kinds = [TpawError]
    for kind in kinds:
        assert kind.exit_code in EXIT_CODES
        kinds += kind.__subclasses__()
    assert len(kinds) > 5


def find(noted: list[TpawError], last: Exception | None) -> None:
    with Findings() as findings:
        for error in noted:
            with findings.note():
                raise error
        if last is not None:
            raise last


@pytest.mark.parametrize(
    ("noted", "last", "kind", "problems"),
    [
        ([DataError(["a", "b"]), DataError(["b", "c"])], None, DataError, ["a", "b", "c"]),
        ([DataError("a"), ConfigError("b")], None, ConfigError, ["a", "b"]),
        ([DataError("a")], DataError("b"), DataError, ["a", "b"]),  # which ends the checks
        ([DataError("a")], None, DataError, ["a"]),
        ([DataError("a")], KeyError("x"), KeyError, None),
    ],
)
def test_findings_are_raised_as_one(
    noted: list[TpawError], last: Exception | None, kind: type[Exception], problems: list[str] | None
) -> None:
    with pytest.raises(kind) as caught:
        find(noted, last)
    assert type(caught.value) is kind
    assert getattr(caught.value, "problems", None) == problems
    assert caught.value in (*noted, last) or len(problems) > 1  # an error alone is raised as it is


def test_what_was_raised_on_the_way_is_not_raised_twice() -> None:
    findings = Findings()
    findings.refuse(ConfigError, [])
    findings.raise_noted()
    findings.refuse(DataError, ["a"])
    with pytest.raises(DataError):
        findings.raise_noted()
    findings.raise_noted()
