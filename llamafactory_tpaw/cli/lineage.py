# SPDX-License-Identifier: Apache-2.0
"""`lineage`: what a checkpoint came from, as a tree, as data or as a picture, and whether it is still the same."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, DataError
from .command import FILE, Command


if TYPE_CHECKING:
    from rich.console import Console

    from ..report.lineage import Graph
    from ..report.verify import Check

PICTURES = (".png", ".svg", ".pdf")
# Wide enough for every line where nobody reads it on a screen.
UNBOUNDED = 1000
COLORS = {"ok": "green", "changed": "bold red", "missing": "yellow"}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    places = parser.add_argument(
        "places",
        metavar="DIR",
        nargs="+",
        type=Path,
        help="an output folder, a folder that holds some (`saves`), or a triplet file",
    )
    places.complete = FILE
    parser.add_argument("--verify", action="store_true", help="recompute all digests; exit code 3 if one changed")
    parser.add_argument("--json", action="store_true", help="print the graph as JSON")
    picture = parser.add_argument(
        "--picture", metavar="FILE", type=Path, help=f"draw the graph into a file that ends with {', '.join(PICTURES)}"
    )
    picture.complete = FILE


def _run(arguments: argparse.Namespace) -> int:
    if arguments.picture is not None and arguments.picture.suffix.lower() not in PICTURES:
        raise ConfigError(
            f"`--picture {arguments.picture}` must end with {', '.join(PICTURES[:-1])} or {PICTURES[-1]}, which says "
            "what kind of picture it is. Correct the name."
        )
    from ..report.trace import trace

    graph = trace(arguments.places)
    if arguments.picture is not None:
        from ..report.lineage_picture import draw

        draw(graph, arguments.picture)
    if not arguments.json:
        _print_trees(graph)
        if arguments.picture is not None:
            print(f"\nThe picture is in {arguments.picture}.")
    checks = _verify(graph, not arguments.json) if arguments.verify else []
    if arguments.json:
        from ..report.lineage import as_json

        content = as_json(graph)
        if arguments.verify:
            content["verification"] = [vars(check) for check in checks]
        print(json.dumps(content, indent=2, ensure_ascii=False))
    changed = [check.message for check in checks if check.state == "changed"]
    if changed:
        sys.stdout.flush()
        raise DataError(changed)
    return 0


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else UNBOUNDED)


def _print_trees(graph: "Graph") -> None:
    from ..report.lineage_text import as_trees

    console = _console()
    for index, tree in enumerate(as_trees(graph)):
        if index:
            print()
        with console.capture() as captured:
            console.print(tree)
        # rich fills lines with spaces up to the width of the terminal.
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    for note in graph.notes:
        sys.stderr.write(f"llamafactory-tpaw: warning: {note}\n")


def _verify(graph: "Graph", show: bool) -> "list[Check]":
    """Recompute the digests; what is found is printed as soon as a checkpoint or a file is done."""
    from ..report.verify import verify

    checks: list[Check] = []
    of_one: list[Check] = []
    if show:
        print()
    for check in verify(graph):
        if show and of_one and (check.name, check.path) != (of_one[0].name, of_one[0].path):
            _print_checks(of_one)
            of_one = []
        of_one.append(check)
        checks.append(check)
    if show:
        if of_one:
            _print_checks(of_one)
        counts = {state: sum(check.state == state for check in checks) for state in COLORS}
        print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return checks


def _print_checks(checks: "list[Check]") -> None:
    from rich.text import Text

    console = _console()
    for state, color in COLORS.items():
        names = [check.what for check in checks if check.state == state]
        if names:
            line = Text.assemble((f"{state:<8}", color), f" {checks[0].name}  {checks[0].path}: {', '.join(names)}")
            console.print(line, soft_wrap=True)


LINEAGE = Command(
    summary="what a checkpoint came from, and whether its files are still the same",
    description="Print the checkpoints, triplets and settings that a checkpoint came from, up to the model that "
    "everything started from. Several runs from one model are one graph. What is not there any more is shown as "
    "missing.\nWith --verify every digest is computed anew, whatever size and time of the files say: of weights, "
    "tokenizers, triplets and meta files. Exit code 3 if one changed.",
    example="llamafactory-tpaw lineage saves/Qwen2.5-1.5B/full/tpaw_iter2\n"
    "llamafactory-tpaw lineage saves --verify\n"
    "llamafactory-tpaw lineage saves --picture lineage.png",
    add_arguments=_add_arguments,
    run=_run,
)
