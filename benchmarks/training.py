# SPDX-License-Identifier: Apache-2.0
r"""Time and memory of an iteration: a naive TPAW, LlamaFactory's `dpo` stage, TRL's `DPOTrainer`, ours, and the floor.

All train on the same triplets with the same model, batch, optimizer and number of threads, each in a process of its
own, in turn. A whole iteration is everything from the settings to the saved model, imports left out: reading,
encoding, loading, scoring, training. `--check` compares losses instead of times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from . import check, machine, tables
from .contenders import DPO_STAGE, FLOOR, NAIVE, OURS, contenders
from .options import FAILED, add_options, count, progress_of, workload_of
from .ours import ALL, SAVINGS, absent_savings
from .pool import WorkerFailed, run_in_turn, start_workers
from .workload import Data, Job, Workload, described


ROUNDS = 3
# A whole iteration of ours at most, as a share of a and b: {prompt tokens: {epochs: (a, b)}}.
ITERATION_TARGETS = {64: {1: (0.46, 0.75), 3: (0.36, 0.6)}, 512: {1: (0.35, 0.55), 3: (0.28, 0.45)}}
MEMORY_TARGETS = (0.4, 0.45)
FLOOR_TARGET = 1.4
# Prompt sharing is faster by this at least: where prompts are long, and anywhere.
SHARING_TARGETS = {512: 1.3}
SHARING_ANYWHERE = 0.97
WITHOUT_SHARING = OURS + f"ours, + {SAVINGS[-2].name}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print, or check; 1 where a contender failed or losses differ."""
    options = _parse(arguments)
    names = [name for name in contenders() if not options.only or any(text in name for text in options.only)]
    if not names:
        print(f"--only {' '.join(options.only)} names none of: {', '.join(contenders())}", file=sys.stderr)
        return FAILED
    if absent_savings():
        print(f"Not measured, for this version has no keys for it: {', '.join(absent_savings())}")
    try:
        return check.run(options, names) if options.check else _measure(options, names)
    except WorkerFailed as error:
        print(error, file=sys.stderr)
        return FAILED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    add_options(parser, "training")
    parser.add_argument("--prompts", type=count, default=2, help="with three triplets each (default: 2)")
    parser.add_argument("--prompt-tokens", type=count, nargs="+", default=[64], help="default: 64")
    parser.add_argument("--epochs", type=count, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="contenders whose names contain one of these")
    parser.add_argument("--check", action="store_true", help="compare losses and log-probs of one batch, no times")
    options = parser.parse_args(arguments)
    if options.micro % ROUNDS:
        parser.error(f"--micro is {options.micro}, but must be a multiple of {ROUNDS}, the triplets of a prompt")
    return options


def _measure(options: argparse.Namespace, names: list[str]) -> int:
    datasets = tuple(
        Data(options.prompts, tokens, options.response_tokens, options.spread, ROUNDS)
        for tokens in options.prompt_tokens
    )
    jobs = [Job(data, max(options.epochs), ROUNDS) for data in datasets]
    with workload_of(options, datasets) as workload, start_workers(names, workload) as workers:
        with progress_of(len(jobs) * len(names) * (options.repeats + 1)) as tell:
            results = run_in_turn(workers, jobs, options.repeats, tell)
    found = []
    for index, data in enumerate(datasets):
        measured = {name: summarize(results[name, index], options.epochs, max(options.epochs)) for name in names}
        found.append({"prompt_tokens": data.prompt_tokens, "contenders": measured, "targets": targets(data, measured)})
        _print(data, workload, options, measured)
        _print_targets(found[-1]["targets"])
    failed = {name: runs[-1]["error"] for (name, _), runs in results.items() if "error" in runs[-1]}
    for name, error in failed.items():
        print(f"\n{name} failed: {error}", file=sys.stderr)
    content = {"benchmark": "training", **machine.describe(options.device), "repeats": options.repeats}
    tables.save(options.json, content | {"workload": described(workload), "results": found})
    return FAILED if failed else 0


def summarize(runs: list[dict[str, Any]], epochs: Sequence[int], trained: int) -> dict[str, Any]:
    r"""Gather a contender's repeats.

    Args:
        runs: What the worker measured.
        epochs: For which numbers of epochs to tell the time of an iteration.
        trained: The number that was trained. An iteration of fewer is the same without the steps beyond.

    Returns:
        `iteration_seconds` by number of epochs, one for each repeat; `step_seconds`, the median of each repeat;
        `peak_mib`, the largest, on the GPU where there is one.
    """
    done = [run for run in runs if "error" not in run]
    return {
        "iteration_seconds": {count: [_seconds(run, count, trained) for run in done] for count in epochs},
        "before_training_seconds": [run["before_training_seconds"] for run in done],
        "step_seconds": [tables.middle(run["step_seconds"]) for run in done],
        "peak_mib": max((run["device_peak_mib"] or run["peak_mib"] for run in done), default=None),
        "host_peak_mib": max((run["peak_mib"] for run in done), default=None),
    }


def _seconds(run: dict[str, Any], epochs: int, trained: int) -> float:
    """Time of a whole iteration without the steps after the given number of epochs."""
    ends = run["step_ends"]
    return run["seconds"] - (ends[-1] - ends[len(ends) * epochs // trained - 1])


def targets(data: Data, measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare ours, with all savings, with what it must reach; leave out what was not measured."""
    rows: list[dict[str, Any]] = []

    def add(what: str, value: float | None, limit: float, *, least: bool = False) -> None:
        if value is not None:
            met = value >= limit if least else value <= limit
            rows.append({"what": what, "measured": value, "target": limit, "least": least, "met": met})

    ours, none = measured.get(OURS + ALL), {"iteration_seconds": {}, "step_seconds": [], "peak_mib": None}
    if ours is None:
        return rows
    peers = {"a": measured.get(NAIVE, none), "b": measured.get(DPO_STAGE, none)}
    for epochs, limits in ITERATION_TARGETS.get(data.prompt_tokens, {}).items():
        for (letter, peer), limit in zip(peers.items(), limits, strict=True):
            mine, theirs = ours["iteration_seconds"].get(epochs, []), peer["iteration_seconds"].get(epochs, [])
            add(f"iteration of {epochs} epochs / {letter}", tables.ratio(mine, theirs), limit)
    add("step / floor", tables.ratio(ours["step_seconds"], measured.get(FLOOR, none)["step_seconds"]), FLOOR_TARGET)
    for (letter, peer), limit in zip(peers.items(), MEMORY_TARGETS, strict=True):
        if peer["peak_mib"] and ours["peak_mib"]:
            add(f"peak memory / {letter}", ours["peak_mib"] / peer["peak_mib"], limit)
    apart = measured.get(WITHOUT_SHARING, none)["step_seconds"]
    limit = SHARING_TARGETS.get(data.prompt_tokens, SHARING_ANYWHERE)
    add("step without prompt sharing / with", tables.ratio(apart, ours["step_seconds"]), limit, least=True)
    return rows


def _print(data: Data, workload: Workload, options: argparse.Namespace, measured: dict[str, dict[str, Any]]) -> None:
    triplets = workload.micro_triplets * workload.accumulation
    header = [
        "contender",
        "s/step",
        "tokens/s",
        "peak MiB",
        *(f"iteration, {epochs} ep. (s)" for epochs in options.epochs),
    ]
    header += [f"/ {letter}, {epochs} ep." for epochs in options.epochs for letter in "ab"] + ["step / e"]
    floor = measured.get(FLOOR, {}).get("step_seconds", [])
    rows = []
    for name, row in measured.items():
        step, whole = row["step_seconds"], row["iteration_seconds"]
        cells = [name, tables.spread(step, 3)]
        cells += [tables.number(triplets * data.pair_tokens / tables.middle(step) if step else None, 0)]
        cells += [tables.number(row["peak_mib"], 0), *(tables.spread(whole[epochs]) for epochs in options.epochs)]
        for epochs in options.epochs:
            for peer in (NAIVE, DPO_STAGE):
                theirs = measured.get(peer, {}).get("iteration_seconds", {}).get(epochs, [])
                cells.append(tables.number(tables.ratio(whole[epochs], theirs)))
        rows.append([*cells, tables.number(tables.ratio(step, floor))])
    title = (
        f"Prompts of {data.prompt_tokens} tokens, responses of {data.response_tokens}: {data.prompts} prompts x "
        f"{ROUNDS} rounds, {triplets} triplets a step, {workload.size} model, {workload.device}, "
        f"{workload.precision}; medians (smallest to largest) of {options.repeats} repeats"
    )
    tables.show(title, header, rows)


def _print_targets(rows: list[dict[str, Any]]) -> None:
    cells = [
        [
            row["what"],
            f"{row['measured']:.3f}",
            f"{'at least' if row['least'] else 'at most'} {row['target']:.2f}",
            "met" if row["met"] else "NOT MET",
        ]
        for row in rows
    ]
    if cells:
        tables.show("Ours with all savings against its targets", ["", "measured", "target", ""], cells)


if __name__ == "__main__":
    sys.exit(main())
