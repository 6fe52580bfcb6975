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


def findings_of(*errors: TpawError, last: Exception | None = None) -> Exception:
    """What comes out of checks that find these errors, the last of which ends them."""
    try:
        with Findings() as findings:
            for error in errors:
                with findings.note():
                    raise error
            if last is not None:
                raise last
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_findings_of_one_kind_keep_it() -> None:
    error = findings_of(DataError(["a", "b"]), DataError(["b", "c"]))
    assert isinstance(error, DataError)
    assert error.problems == ["a", "b", "c"]


def test_findings_of_several_kinds_are_of_the_settings() -> None:
    error = findings_of(DataError("a"), ConfigError("b"))
    assert isinstance(error, ConfigError)
    assert error.problems == ["a", "b"]


def test_an_error_that_ends_the_checks_comes_with_the_findings() -> None:
    error = findings_of(DataError("a"), last=DataError("b"))
    assert isinstance(error, DataError)
    assert error.problems == ["a", "b"]


def test_one_error_is_raised_as_it_is() -> None:
    only = DataError("a")
    assert findings_of(only) is only


def test_what_was_raised_on_the_way_is_not_raised_twice() -> None:
    findings = Findings()
    findings.refuse(ConfigError, [])
    findings.raise_noted()
    findings.refuse(DataError, ["a"])
    with pytest.raises(DataError):
        findings.raise_noted()
    findings.raise_noted()


def test_other_errors_pass() -> None:
    other = KeyError("x")
    assert findings_of(DataError("a"), last=other) is other
