# SPDX-License-Identifier: Apache-2.0
"""What is checked before the page starts iterations; nothing is written and nothing is loaded for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.source import planned_entries, triplet_entry
from ..errors import ConfigError, Findings
from ..runs.engine_check import check_engine
from ..runs.findings import Report
from ..runs.playlist import Item, check_runs, find_progress
from ..runs.preflight import make_plan
from .places import Places
from .writing import check_writable, generated


def check(runs: Sequence[Mapping[str, Any]], places: Places) -> None:
    r"""Check iterations that are to be played, without writing anything.

    Args:
        runs: The keys of a run file, for each iteration.
        places: Where runs are.

    Raises:
        TpawError: With every problem of every iteration.
    """
    items = [Item(f"Iteration {settings.get('tpaw_iteration', 0)}", (), dict(settings)) for settings in runs]
    entries = {name: triplet_entry(name) for name in filter(None, map(generated, runs))}
    with Findings() as findings, planned_entries(entries):
        with findings.note():
            check_writable(places, runs)
        with findings.note():
            check_runs(items)
        findings.raise_noted()
        _check_engine(items)


def _check_engine(items: Sequence[Item]) -> None:
    """Ask the engine of the iteration that is played first; later ones start from a model that is not there yet."""
    first = next((item for item in items if find_progress(item).state != "finished"), None)
    if first is None:
        return
    report = Report()
    check_engine(make_plan(first.given), report)
    problems = [finding.message for finding in report.errors]
    if problems:
        raise ConfigError(problems)
