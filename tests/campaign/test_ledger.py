# SPDX-License-Identifier: Apache-2.0
"""The page of trust is the one that its ledger gives."""

from __future__ import annotations

from tests.campaign import ledger


def test_the_page_is_drawn_from_the_ledger() -> None:
    assert ledger.draw(ledger.read()) == ledger.PAGE.read_text(encoding="utf-8")


def test_counts_add_up_over_runs() -> None:
    run = {"campaign": "kill", "date": "2026-01-01", "commit": "abc", "seed": 1, "tried": {"SIGKILL": 1200}}
    page = ledger.draw({"runs": [run | {"failed": 1}, run | {"failed": 0}], "found": [], "not_promised": []})
    assert "| kill | SIGKILL | 2,400 | 2 |" in page
    assert "| 2026-01-01 | kill | `abc` | 1 | 1200 | 1 |" in page
