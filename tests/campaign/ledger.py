# SPDX-License-Identifier: Apache-2.0
"""docs/trust.json: what was tried how often, at which commit and by which seed; docs/trust.md is drawn from it."""

from __future__ import annotations

import ast
import datetime
import json
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]
LEDGER, PAGE = ROOT / "docs" / "trust.json", ROOT / "docs" / "trust.md"


@dataclass
class Outcome:
    """How often each thing was tried, and what did not go as promised: one sentence each, with what repeats it."""

    tried: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def commit() -> str:
    """The commit at hand, with a plus where files were changed since."""
    run = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def read() -> dict[str, Any]:
    """What was recorded so far."""
    return json.loads(LEDGER.read_text(encoding="utf-8"))


def write(ledger: dict[str, Any]) -> None:
    """Write the ledger, and the page that shows it."""
    LEDGER.write_text(json.dumps(ledger, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(draw(ledger), encoding="utf-8")


def record(campaign: str, outcome: Outcome, seed: int) -> None:
    """Add a campaign's run to the ledger."""
    ledger, today = read(), datetime.datetime.now(datetime.UTC).date().isoformat()
    run = {"campaign": campaign, "date": today, "commit": commit(), "seed": seed}
    ledger["runs"].append(run | {"tried": dict(outcome.tried), "failed": len(outcome.failures)})
    write(ledger)


def threats(ledger: dict[str, Any]) -> list[tuple[str, str]]:
    """The first paragraph of each docstring in test_security.py with its test, and the tests that stand elsewhere."""
    tree = ast.parse((Path(__file__).parent / "test_security.py").read_text(encoding="utf-8"))
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    own = [(" ".join(ast.get_docstring(node).partition("\n\n")[0].split()), node.name) for node in tests]
    return own + [(each["what"], each["test"]) for each in ledger.get("threats", [])]


def _table(head: str, rows: list[list[str]]) -> str:
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def tries(run: dict[str, Any]) -> int:
    """How many tries a run had."""
    return sum(run["tried"].values())


def draw(ledger: dict[str, Any]) -> str:
    """Return docs/trust.md."""
    counts: dict[tuple[str, str], list[int]] = {}
    for run in ledger["runs"]:
        for what, times in run["tried"].items():
            row = counts.setdefault((run["campaign"], what), [0, 0])
            row[0], row[1] = row[0] + times, row[1] + 1
    sums = [[name, what, f"{times:,}", str(runs)] for (name, what), (times, runs) in sorted(counts.items())]
    runs = [
        [run["date"], run["campaign"], f"`{run['commit']}`", *map(str, (run["seed"], tries(run), run["failed"]))]
        for run in ledger["runs"]
    ]
    found = [[each["campaign"], each["what"], each["mended"]] for each in ledger["found"]]
    parts = [
        "# Trust: how the promises were attacked",
        "A program in `tests/campaign` attacks what this package promises: runs are killed at random moments, files "
        "are damaged, inputs are made up. Counts add up over its runs; each is recorded in `docs/trust.json`, from "
        "which this page is drawn. A short form of each is part of `make test`. The long forms, one or all of them:",
        "    python -m tests.campaign                                # all of them, hours\n"
        "    python -m tests.campaign kill --count 200 --seed 7      # one of them\n"
        "    python -m tests.campaign --list                         # which there are, and what they try",
        "## What was tried",
        _table("campaign | what | times | in runs", sums),
        "## What was found and mended",
        _table("campaign | what was wrong | what holds now", found),
        "## Threats",
        "What an untrusted dataset, checkpoint, server or reader could do, and the test that holds it off "
        "(`tests/campaign/test_security.py`).",
        _table("what holds | test", [[what, f"`{name}`"] for what, name in threats(ledger)]),
        "## What is not promised",
        "\n".join(f"- {each}" for each in ledger["not_promised"]),
        "## Runs",
        "A run that did not go as promised was repeated after the mending.",
        _table("date | campaign | commit | seed | tries | not as promised", runs),
    ]
    return "\n\n".join(parts) + "\n"
