# SPDX-License-Identifier: Apache-2.0
"""Greedy exact-answer accuracy of checkpoints on a file of problems, by `llamafactory-tpaw eval`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


TASK = Path(__file__).with_name("tasks") / "word_problems.yaml"
BATCH_SIZE = "250"


def read_problems(path: Path) -> list[dict[str, str]]:
    """Read a file of problems with the columns `question` and `answer`, one JSON object a line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_task(problems: Path) -> str:
    """Write the task of lm-eval that asks a file of problems, beside it, and return its name."""
    name = f"word_problems_{problems.stem}"
    places = {"include": str(TASK), "task": name, "dataset_kwargs": {"data_files": {"test": str(problems.resolve())}}}
    problems.with_suffix(".yaml").write_text(json.dumps(places, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    return name


def evaluate_checkpoints(checkpoints: Sequence[Path], problems: Path) -> list[dict[str, Any]]:
    r"""Measure checkpoints; those whose `eval.json` has the result of their weights are not measured again.

    Returns:
        A row each: `checkpoint`, `n`, `correct`, `accuracy`, `interval` (95 %, Wilson), and `hits`, 0 or 1 a problem.
    """
    from llamafactory_tpaw.report.evaluate import evaluate, read_evaluations
    from llamafactory_tpaw.report.statistics import wilson_interval

    name = write_task(problems)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):  # progress bars
        evaluate(checkpoints, [str(problems.with_suffix(".yaml"))], lambda line: None, batch_size=BATCH_SIZE)
    rows = []
    for folder in checkpoints:
        found = read_evaluations(folder)[name]
        row = {"checkpoint": str(folder), "n": found.n, "correct": found.items.count("1"), "accuracy": found.value}
        interval = wilson_interval(row["correct"], found.n)
        rows.append(row | {"interval": list(interval), "hits": found.items})
    return rows
