# SPDX-License-Identifier: Apache-2.0
"""What the commands print."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console

from ..data.files import readable_bytes
from ..errors import visible
from ..report.lineage import Graph
from ..report.lineage_text import as_trees, printable
from ..report.verify import Check


# Wide enough for every line where the output is not a terminal.
UNBOUNDED = 1000


@contextlib.contextmanager
def quiet_libraries() -> Iterator[Callable[[str], None]]:
    """Keep libraries' output from the answer; yield what shows on a terminal what a command does now."""
    asked = os.environ.get("LLAMAFACTORY_VERBOSITY")
    os.environ["LLAMAFACTORY_VERBOSITY"] = asked or "ERROR"  # read where LlamaFactory is imported
    with contextlib.redirect_stdout(sys.stderr), Console(stderr=True).status("starting") as status:
        import datasets
        import transformers

        logging.getLogger("llamafactory").setLevel(logging.ERROR)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        try:
            yield lambda text: status.update(f"looking at {text}")
        finally:
            if asked is None:
                del os.environ["LLAMAFACTORY_VERBOSITY"]


def tell_check(found: dict[str, Any]) -> None:
    """Print the findings of `check` and its estimates."""
    for each in found["findings"]:
        print(f"{each['level']}: {visible(each['message'])}")
    if found["step_zero"] and found["step_zero"]["reward"] is not None:
        print(f"Step 0: the newest player's target reward is {found['step_zero']['reward']:.3g}.")
    device = found["device"]
    on = f" ({device['name']}: {readable_bytes(device['bytes'])})" if device else ""
    tables = {f"Memory for {part}{on}": figures for part, figures in found["memory"].items()}
    for title, figures in (tables | {"Disk": found["disk"], "Time": found["time"]}).items():
        if figures:
            print(title)
        for name, amount in figures.items():
            print(f"  {name}: {timedelta(seconds=round(amount)) if title == 'Time' else readable_bytes(amount)}")
    levels = [each["level"] for each in found["findings"]]
    errors, warnings = levels.count("error"), levels.count("warning")
    print(f"{errors} error{'s' if errors != 1 else ''}, {warnings} warning{'s' if warnings != 1 else ''}.")


def tell_tree(graph: Graph) -> None:
    """Print where the checkpoints of a graph come from, a tree a root."""
    output = Console(highlight=False, width=None if sys.stdout.isatty() else UNBOUNDED)
    with output.capture() as captured:
        for index, tree in enumerate(as_trees(graph)):
            if index:
                output.print()
            output.print(tree)
    # rich fills lines up to the width of the terminal.
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def tell_verification(checks: Iterable[Check]) -> list[Check]:
    """Print each check as soon as it is made, then how many there are of each kind; return them."""
    done: list[Check] = []
    print()
    for check in checks:
        print(printable(f"{check.state:<8} {check.name}  {check.path}: {check.what}"), flush=True)
        done.append(check)
    states = [check.state for check in done]
    print(", ".join(f"{states.count(state)} {state}" for state in ("ok", "changed", "missing")))
    return done


def tell_init(settings: Any, project: Any, written: dict[str, str]) -> None:
    """Print what `init` found out and wrote, and the commands that come next, in the order of the files."""
    from ..runs.run_files import launcher_of, path_of

    lines = ["Found out:", *(f"  {words}" for words in project.findings), ""]
    lines += [f"Wrote in {settings.folder.resolve()}:", *(f"  {name} ({state})" for name, state in written.items())]
    lines += ["", "Look through the files, then:"]
    main = next(iter(project.runs.values()))
    if settings.folder.resolve() != settings.folder.cwd():
        lines.append(f"  cd {shlex.quote(str(settings.folder))}")
    if settings.sft:
        lines.append(f"  {launcher_of(main[0])}llamafactory-cli train {next(iter(project.files))}")
    lines.append(f"  llamafactory-tpaw check {path_of(main[0])}")
    for run in project.runs.values():
        command = f"  {launcher_of(run[0])}llamafactory-tpaw run "
        if run[0]["tpaw_engine"] == "openai" and not run[0].get("tpaw_opponent_model"):
            for each in run:
                theta = each["tpaw_players"].split(",")[-1]
                lines.append(f"{command}{path_of(each)}  # while the servers have {theta}")
        else:
            lines.append(command + " ".join(map(path_of, run)))
    lines.append(f"  llamafactory-tpaw lineage {main[-1]['output_dir']}")
    print(visible("\n".join(lines)))
