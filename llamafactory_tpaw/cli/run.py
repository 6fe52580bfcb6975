# SPDX-License-Identifier: Apache-2.0
"""`run`: the iterations given, in order, from wherever they were left."""

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigError
from ..hook import bootstrap
from ..lf.signals import end_with_parent
from .command import RUN_FILE, Command


COLUMNS = (
    "run file",
    "status",
    "result",
    "triplets",
    "sampled tokens",
    "generate",
    "score",
    "train",
    "loss",
    "target reward",
    "margin",
)
LEFT_ALIGNED = 3  # columns of words; the others are numbers


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    words = parser.add_argument(
        "words",
        metavar="RUN_FILE|KEY=VALUE",
        nargs="+",
        help="YAML files as `llamafactory-cli train` takes them, in the order in which they are played, and keys that "
        "replace those of every file",
    )
    words.complete = RUN_FILE
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON; all other output goes to stderr"
    )


def _run(arguments: argparse.Namespace) -> int:
    end_with_parent()
    bootstrap.activate()
    playlist = importlib.import_module("llamafactory_tpaw.runs.playlist")
    loop = importlib.import_module("llamafactory_tpaw.runs.player_loop")
    files, overrides = playlist.split_words(arguments.words)
    if not files:
        raise ConfigError(f"No run file is given, only {' '.join(overrides)}. Name the YAML files to play, in order.")
    items = playlist.read_playlist(files, overrides)
    show = _teller(len(files), arguments.json)
    play = loop.Play(items, lambda index, text: show(play.outcomes[index], index, text), to_stderr=arguments.json)
    try:
        play.play()
    except KeyboardInterrupt:
        _say_where_it_stopped(play.outcomes, arguments)
        _show_summary([loop.summarize(outcome) for outcome in play.outcomes], arguments.json)
        raise
    _show_summary([loop.summarize(outcome) for outcome in play.outcomes], arguments.json)
    if play.exit_code:
        _say_where_it_stopped(play.outcomes, arguments)
    return play.exit_code


def _teller(total: int, to_stderr: bool) -> Callable[[Any, int, str], None]:
    """Return what writes a status line, before the child's own output."""

    def tell(outcome: Any, index: int, text: str) -> None:
        stream = sys.stderr if to_stderr else sys.stdout
        took = f" ({duration(outcome.seconds)})" if outcome.seconds else ""
        print(f"[{index + 1}/{total}] {outcome.item.file}: {text}{took}", file=stream, flush=True)

    return tell


def _say_where_it_stopped(outcomes: Sequence[Any], arguments: argparse.Namespace) -> None:
    index, stopped = next((i, each) for i, each in enumerate(outcomes) if not each.is_done)
    done = sum(outcome.is_done for outcome in outcomes)
    what = f"{stopped.status} after {duration(stopped.seconds)}"
    kept = f"{done} of {len(outcomes)} run files are done."
    if stopped.exit_code:
        what += f" with exit code {stopped.exit_code}"
        words = ["llamafactory-tpaw", "run", *arguments.words, *(["--json"] if arguments.json else [])]
        kept += f" What is done is kept; once this is mended, the same command continues: {shlex.join(words)}"
    lines = [f"[{index + 1}/{len(outcomes)}] {stopped.item.file}: {what}. {stopped.reason}".rstrip(), kept]
    sys.stderr.write("".join(f"llamafactory-tpaw: {line}\n" for line in lines))


def _show_summary(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2), flush=True)
    elif sys.stdout.isatty():
        _print_rich(rows)
    else:
        print(_plain_table([COLUMNS, *map(_cells, rows)]), flush=True)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A summary's row as text; what does not exist is a dash."""
    counts, seconds = row.get("counts", {}), row.get("seconds", {})
    numbers = [row.get(name) for name in ("loss", "target_reward", "margin")]
    return (
        row["file"],
        row["status"],
        row.get("result", "-"),
        *(f"{counts[name]:,}" if name in counts else "-" for name in ("train_triplets", "generated_tokens")),
        *(duration(seconds[name]) if seconds.get(name) else "-" for name in ("generate", "score", "train")),
        *("-" if number is None else f"{number:.4f}" for number in numbers),
    )


def _plain_table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < LEFT_ALIGNED else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _print_rich(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(COLUMNS):
        left = index < LEFT_ALIGNED
        # Headings of numbers take two lines, so that the names of files have room.
        heading = name if left else name.replace(" ", "\n")
        table.add_column(heading, justify="left" if left else "right", vertical="bottom", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, _cells(row)))
    Console().print(table)


def duration(seconds: float) -> str:
    """`2.4 s`, `3m20s`, `1h05m`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


RUN = Command(
    summary="the iterations given, in order, from wherever they were left",
    description="Play run files one after the other, each in a process of its own: what is finished is skipped, what "
    "was interrupted continues, and a failure stops the rest. All files are read and checked before the first one "
    "starts; players and triplets that an earlier file of the list makes need not be there yet. Files of stage `sft` "
    "may stand in the list; one whose output folder holds a finished model is skipped.",
    example="llamafactory-tpaw run yaml/qwen_sft.yaml yaml/qwen_tpaw_iter0.yaml yaml/qwen_tpaw_iter1.yaml\n"
    "llamafactory-tpaw run yaml/qwen_tpaw_iter?.yaml per_device_train_batch_size=2",
    add_arguments=_add_arguments,
    run=_run,
)
