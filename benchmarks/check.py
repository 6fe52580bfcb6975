# SPDX-License-Identifier: Apache-2.0
"""Whether the contenders do the same work: losses and log-probs of one batch, before and after a step."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from . import tables
from .contenders import FLOOR, NAIVE, OURS
from .options import FAILED, progress_of, workload_of
from .pool import run_in_turn, start_workers
from .workload import Data, Job


# A float32 sum over more tokens is spaced too widely for this tolerance.
LONGEST_RESPONSE = 6
LOSS_TOLERANCE = 1e-5
LOGPS_TOLERANCE = 1e-6  # relative
# As each contender logs the mean of the targets' summed log-probs.
TARGET_LOGPS = ("logps/target", "logps/chosen")


def run(options: argparse.Namespace, names: list[str]) -> int:
    """Train two epochs of one batch each with plain gradient descent, and compare what was logged."""
    rounds = 3
    prompts = options.micro * options.accumulation // rounds
    data = Data(prompts, options.prompt_tokens[0], LONGEST_RESPONSE, spread=0.6, rounds=rounds)
    changes = {"precision": "fp32", "optimizer": "sgd", "learning_rate": 1e-2}
    names = [name for name in names if name != FLOOR]
    with workload_of(options, (data,), **changes) as workload, start_workers(names, workload) as workers:
        with progress_of(2 * len(names)) as tell:
            results = run_in_turn(workers, [Job(data, 2, rounds)], 1, tell)
    logged = {name: runs[0] for (name, _), runs in results.items()}
    problems = [f"{name} failed: {run['error']}" for name, run in logged.items() if "error" in run]
    values = {name: _values(run) for name, run in logged.items() if "error" not in run}
    rows = [[name, *(f"{value:.7f}" for value in (*losses, *logps))] for name, (losses, logps) in values.items()]
    header = ["contender", "loss", "loss, step 2", "target log-prob", "target log-prob, step 2"]
    tables.show(f"One batch of {data.prompts * rounds} triplets in float32", header, rows)
    problems += compare(values)
    for problem in problems:
        print(problem, file=sys.stderr)
    print("\nThe contenders do not do the same work." if problems else "\nAll contenders do the same work.")
    return FAILED if problems else 0


def compare(values: dict[str, tuple[list[float], list[float]]]) -> list[str]:
    r"""Compare what contenders logged.

    Args:
        values: For each the losses of both steps and the mean summed log-probs of the targets.

    Returns:
        One line a difference: the losses of a and ours; those of b and c; the first log-probs of all, for the
        targets' tokens are the same.
    """
    problems = []
    players = [name for name in values if name == NAIVE or name.startswith(OURS)]
    for team in (players, [name for name in values if name not in players]):
        for name in team[1:]:
            apart = max(abs(own - other) for own, other in zip(values[name][0], values[team[0]][0], strict=True))
            if not apart <= LOSS_TOLERANCE:
                problems.append(f"The losses of {name} and {team[0]} differ by {apart:.3g}.")
    first = next(iter(values), None)
    for name in values:
        own, other = values[name][1][0], values[first][1][0]
        if not math.isclose(own, other, rel_tol=LOGPS_TOLERANCE):
            problems.append(f"The targets' log-probs of {name} and {first} are {own:.7g} and {other:.7g}.")
    return problems


def _values(run: dict[str, Any]) -> tuple[list[float], list[float]]:
    steps = [entry for entry in run["logged"] if "loss" in entry]
    key = next(key for key in TARGET_LOGPS if key in steps[0])
    return [entry["loss"] for entry in steps], [entry[key] for entry in steps]
