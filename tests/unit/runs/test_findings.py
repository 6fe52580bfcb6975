# SPDX-License-Identifier: Apache-2.0
"""Findings: collected, ordered by code, raised as one error."""

from __future__ import annotations

import pytest

from llamafactory_tpaw.errors import ConfigError, DataError, EnvironmentProblem, GenerationError
from llamafactory_tpaw.runs.findings import Report


def test_an_error_becomes_one_finding_a_problem_and_the_next_check_runs() -> None:
    report = Report()
    with report.collect():
        raise ConfigError(["`a` is wrong.", "`b` is wrong."])
    with report.collect():
        raise DataError("x.jsonl is cut off.")
    assert [finding.as_dict()["kind"] for finding in report.findings] == ["usage", "usage", "data"]
    assert [finding.message for finding in report.errors] == ["`a` is wrong.", "`b` is wrong.", "x.jsonl is cut off."]


def test_what_is_found_twice_is_said_once() -> None:
    report = Report()
    report.warn("tight")
    report.warn("tight")
    assert len(report.findings) == 1


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ([], 0),
        ([DataError], 3),
        ([EnvironmentProblem], 5),
        ([GenerationError, EnvironmentProblem], 4),
        ([EnvironmentProblem, ConfigError, DataError], 2),
    ],
)
def test_exit_code_is_the_smallest_and_warnings_do_not_matter(kinds: list[type], code: int) -> None:
    report = Report()
    report.warn("tight")
    report.note("finished")
    for kind in kinds:
        report.error(kind, kind.__name__)
    assert report.exit_code == code
    if not kinds:
        report.raise_errors()
        return
    with pytest.raises(ConfigError if code == 2 else kinds[0]) as caught:
        report.raise_errors()
    assert all(kind.__name__ in str(caught.value) for kind in kinds)


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError), Report().collect():
        raise ZeroDivisionError
