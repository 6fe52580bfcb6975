# SPDX-License-Identifier: Apache-2.0
"""`check`: what is wrong with a run file's iteration, and what it will need, before it runs."""

import argparse
import contextlib
import importlib
import json
import os
import sys
import time
from typing import Any

from ..hook import bootstrap
from .command import Command, add_run_file
from .libraries import be_quiet


STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_file(parser)
    parser.add_argument(
        "--model",
        action="store_true",
        help="load theta_t, too: recompute the players' fingerprints, show that the newest player's reward is 0 at "
        "step 0, and measure a warm-up sample for the estimate of time",
    )
    parser.add_argument("--json", action="store_true", help="print findings and estimates as JSON")


def _run(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    started = _process_start()
    bootstrap.activate()
    from rich.console import Console

    progress = Console(stderr=True)
    shows = progress.status("starting") if progress.is_terminal else contextlib.nullcontext()
    # What libraries print on the way is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr), shows as status:
        be_quiet()
        check = importlib.import_module("llamafactory_tpaw.runs.check").check
        result = check(
            [arguments.run_file, *arguments.overrides],
            with_model=arguments.model,
            started=started,
            say=lambda text: status.update(f"checking {text}") if status else None,
        )
    if arguments.json:
        print(json.dumps(result.as_dict(), indent=2))
    else:
        _print(result, Console(soft_wrap=not sys.stdout.isatty(), highlight=False))
    return result.report.exit_code


def _process_start() -> float:
    psutil = importlib.import_module("psutil")
    return min(psutil.Process().create_time(), time.time())


def _print(result: Any, console: Any) -> None:
    from rich.text import Text

    for finding in result.report.findings:
        line = Text(f"{finding.level}: ", style=STYLES[finding.level])
        console.print(line.append(finding.message, style="default"))
    if result.step_zero is not None:
        zero = result.step_zero
        console.print(
            f"Step 0: policy and newest player differ by at most {zero.largest:.3g} nats over {zero.responses} "
            f"responses, a reward of {zero.reward:.3g}; rounding allows {zero.allowed:.3g} nats."
        )
    device = result.device
    for part, figures in result.memory.items():
        title = f"Memory for {part}"
        if device is not None:
            title += f" ({device.name}: {device.total / 2**30:.1f} GiB)"
        _table(console, title, figures)
    _table(console, "Disk", result.disk)
    _table(console, "Time", result.time)
    errors, warnings = len(result.report.errors), len(result.report.warnings)
    console.print(f"{errors} error{'s' if errors != 1 else ''}, {warnings} warning{'s' if warnings != 1 else ''}.")


def _table(console: Any, title: str, figures: list[Any]) -> None:
    if not figures:
        return
    if not console.is_terminal:
        console.print(title)
        for figure in figures:
            console.print(f"  {figure.name}: {figure.readable()} ({figure.how})", markup=False)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "how it was estimated", title=title, title_justify="left", box=None)
    for figure in figures:
        table.add_row(figure.name, Text(figure.readable(), justify="right"), Text(figure.how, style="dim"))
    console.print(table)


CHECK = Command(
    summary="what is wrong with an iteration and what it will need, before it runs",
    description="Check a run file's iteration without training, every problem at once: settings, checkpoints, "
    "datasets, tokenizers, the token round trip, the engine, disk and memory; and estimate memory, disk and time, "
    "each figure with how. Takes seconds and reads no weights, except with --model.\n"
    "Ends with the exit code of the errors found: 2 settings, 3 data, 4 generation, 5 environment, the smallest of "
    "several; warnings do not change it.",
    example="llamafactory-tpaw check yaml/qwen_tpaw_iter0.yaml\n"
    "llamafactory-tpaw check yaml/qwen_tpaw_iter0.yaml per_device_train_batch_size=2 --model --json",
    add_arguments=_add_arguments,
    run=_run,
)
