# SPDX-License-Identifier: Apache-2.0
r"""How time and memory of a whole iteration grow: with the number of prompts, of players and of epochs.

Ours with all savings, after the iterations before have filled the cache, score and train; imports are left out. A
second, tiny model with many prompts shows what the host's memory needs for the data alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from . import machine, tables
from .contenders import OURS
from .options import FAILED, add_options, count, progress_of, workload_of
from .ours import ALL
from .pool import WorkerFailed, run_in_turn, start_workers
from .workload import Data, Job, described


GROWTH = (1, 4, 16)
PLAYERS = (1, 2, 3, 4, 5)
EPOCHS = (1, 3)
ROUNDS = 3
TOKEN_BYTES = 4
# For the memory of data: a model whose own memory is small, and batches that make many prompts quick.
MEMORY = {"size": "toy", "micro_triplets": 48, "accumulation": 1}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where an iteration failed."""
    options = _parse(arguments)
    try:
        return _measure(options)
    except WorkerFailed as error:
        print(error, file=sys.stderr)
        return FAILED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.iteration", description=__doc__.splitlines()[0])
    add_options(parser, "iteration")
    parser.set_defaults(repeats=3)
    parser.add_argument("--prompts", type=count, default=2, help="prompts of the smallest run (default: 2)")
    parser.add_argument("--prompt-tokens", type=count, default=64, help="default: 64")
    parser.add_argument(
        "--memory-prompts", type=count, default=250, help="prompts of the smallest run for memory (default: 250)"
    )
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> int:
    time_runs = _run(options, _time_jobs(options))
    memory_jobs = {f"{factor}x prompts": Job(_data(options, options.memory_prompts * factor)) for factor in GROWTH}
    memory_runs = _run(options, memory_jobs, **MEMORY)
    base = memory_runs[f"{GROWTH[0]}x prompts"]
    for label, row in memory_runs.items():
        added = memory_jobs[label].triplets - base["triplets"]
        growth = (row["peak_mib"] - base["peak_mib"]) * 2**20 if row["peak_mib"] and base["peak_mib"] else None
        row["bytes_per_added_triplet"] = growth / added if added and growth is not None else None
    _print(options, time_runs, memory_runs)
    content = {"benchmark": "iteration", **machine.describe(options.device), "repeats": options.repeats}
    tables.save(options.json, content | {"time": time_runs, "memory": memory_runs})
    errors = {label: row["error"] for label, row in (*time_runs.items(), *memory_runs.items()) if row["error"]}
    for label, error in errors.items():
        print(f"\n{label} failed: {error}", file=sys.stderr)
    return FAILED if errors else 0


def _data(options: argparse.Namespace, prompts: int, rounds: int = ROUNDS) -> Data:
    return Data(prompts, options.prompt_tokens, options.response_tokens, options.spread, rounds)


def _time_jobs(options: argparse.Namespace) -> dict[str, Job]:
    """The iterations of the table of time, by label: one thing is changed at a time."""
    jobs = {f"{factor}x prompts": Job(_data(options, options.prompts * factor)) for factor in GROWTH}
    middle = options.prompts * GROWTH[1]
    jobs |= {f"{players} players": Job(_data(options, middle, max(PLAYERS)), players=players) for players in PLAYERS}
    return jobs | {f"{epochs} epochs": Job(_data(options, middle), epochs) for epochs in EPOCHS}


def _run(options: argparse.Namespace, jobs: dict[str, Job], **changes: Any) -> dict[str, dict[str, Any]]:
    """Measure iterations by label, all in one process that takes them in turn."""
    datasets = tuple(dict.fromkeys(job.data for job in jobs.values()))
    changes |= {"thetas": max(job.players for job in jobs.values())}
    with workload_of(options, datasets, **changes) as workload, start_workers([OURS + ALL], workload) as workers:
        with progress_of(len(jobs) * (options.repeats + 1)) as tell:
            results = run_in_turn(workers, list(jobs.values()), options.repeats, tell)
    return {
        label: {"workload": described(workload), "triplets": job.triplets, **_summarize(results[OURS + ALL, index])}
        for index, (label, job) in enumerate(jobs.items())
    }


def _summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    done = [run for run in runs if "error" not in run]
    return {
        "iteration_seconds": [run["seconds"] for run in done],
        "before_training_seconds": [run["before_training_seconds"] for run in done],
        "training_seconds": [run["training_seconds"] for run in done],
        "peak_mib": max((run["peak_mib"] for run in done), default=None),
        "device_peak_mib": max((run["device_peak_mib"] or 0 for run in done), default=None),
        "error": next((run["error"] for run in runs if "error" in run), None),
    }


def _print(
    options: argparse.Namespace, time_runs: dict[str, dict[str, Any]], memory_runs: dict[str, dict[str, Any]]
) -> None:
    base = time_runs[f"{GROWTH[0]}x prompts"]["iteration_seconds"]
    header = ["iteration", "triplets", "whole (s)", "load and score (s)", "train (s)", "/ first", "peak MiB"]
    rows = [
        [
            label,
            str(row["triplets"]),
            tables.spread(row["iteration_seconds"]),
            tables.spread(row["before_training_seconds"]),
            tables.spread(row["training_seconds"]),
            tables.number(tables.ratio(row["iteration_seconds"], base)),
            tables.number(row["peak_mib"], 0),
        ]
        for label, row in time_runs.items()
    ]
    title = (
        f"Ours, prompts of {options.prompt_tokens} tokens, responses of {options.response_tokens}, {options.size} "
        f"model, {options.device}: 1x is {options.prompts} prompts, players and epochs at {GROWTH[1]}x; medians "
        f"(smallest to largest) of {options.repeats} repeats"
    )
    tables.show(title, header, rows)
    tokens = 2 * options.response_tokens + options.prompt_tokens
    header = ["iteration", "triplets", "whole (s)", "peak MiB", "bytes an added triplet"]
    rows = [
        [
            label,
            str(row["triplets"]),
            tables.spread(row["iteration_seconds"]),
            tables.number(row["peak_mib"], 1),
            tables.number(row["bytes_per_added_triplet"], 0),
        ]
        for label, row in memory_runs.items()
    ]
    title = f"The host's memory for data, with a tiny model; the ids of a triplet are {TOKEN_BYTES * tokens} bytes"
    tables.show(title, header, rows)


if __name__ == "__main__":
    sys.exit(main())
