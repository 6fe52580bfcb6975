# SPDX-License-Identifier: Apache-2.0
"""What the commands print."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..report.lineage import Graph
from ..report.lineage_text import as_trees, printable
from ..report.verify import Check


# Wide enough for every line where the output is not a terminal.
UNBOUNDED = 1000
WORDS = ("run file", "status", "result")
NUMBERS = ("triplets", "sampled tokens", "generate", "score", "train", "loss", "target reward", "margin")


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
    from ..runs.estimates import readable_bytes

    for each in found["findings"]:
        print(f"{each['level']}: {each['message']}")
    if found["step_zero"] and found["step_zero"]["reward"] is not None:
        print(f"Step 0: the newest player's target reward is {found['step_zero']['reward']:.3g}.")
    device = found["device"]
    on = f" ({device['name']}: {readable_bytes(device['bytes'])})" if device else ""
    tables = {f"Memory for {part}{on}": figures for part, figures in found["memory"].items()}
    for title, figures in (tables | {"Disk": found["disk"], "Time": found["time"]}).items():
        if figures:
            print(title)
        for name, amount in figures.items():
            print(f"  {name}: {duration(amount) if title == 'Time' else readable_bytes(amount)}")
    levels = [each["level"] for each in found["findings"]]
    errors, warnings = levels.count("error"), levels.count("warning")
    print(f"{errors} error{'s' if errors != 1 else ''}, {warnings} warning{'s' if warnings != 1 else ''}.")


def tell_summary(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print what `run` made of each run file, as a table or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=2), flush=True)
        return
    table = Table(box=None, pad_edge=False)
    for name in WORDS:
        table.add_column(name, overflow="fold")
    for name in NUMBERS:
        table.add_column(name, justify="right")
    for row in rows:
        counts, seconds = row.get("counts", {}), row.get("seconds", {})
        cells = [row["file"], row["status"], row.get("result", "-")]
        cells += [f"{counts[name]:,}" if name in counts else "-" for name in ("train_triplets", "generated_tokens")]
        cells += [duration(seconds[part]) if seconds.get(part) else "-" for part in ("generate", "score", "train")]
        numbers = [row.get(name) for name in ("loss", "target_reward", "margin")]
        table.add_row(*map(Text, cells + ["-" if number is None else f"{number:.4f}" for number in numbers]))
    _print_trimmed(table)


def tell_stop(items: Sequence[Any], words: Sequence[str]) -> None:
    """Say on stderr which run file stopped the others, and which command goes on; nothing where all are done."""
    index = next((index for index, item in enumerate(items) if not item.is_done), None)
    if index is None:
        return
    stopped = items[index]
    what = f"{stopped.status} after {duration(stopped.seconds)}"
    kept = f"{sum(item.is_done for item in items)} of {len(items)} run files are done."
    if stopped.exit_code:
        what += f" with exit code {stopped.exit_code}"
        command = shlex.join(["llamafactory-tpaw", "run", *words])
        kept += f" What is done is kept; once this is mended, the same command continues: {command}"
    for line in (f"[{index + 1}/{len(items)}] {stopped.file}: {what}. {stopped.reason}".rstrip(), kept):
        sys.stderr.write(f"llamafactory-tpaw: {line}\n")


def tell_tree(graph: Graph) -> None:
    """Print where the checkpoints of a graph come from, a tree a root."""
    for index, tree in enumerate(as_trees(graph)):
        if index:
            print()
        _print_trimmed(tree)


def tell_verification(checks: Iterable[Check]) -> list[Check]:
    """Print each check as soon as it is made, then how many there are of each kind; return them."""
    done: list[Check] = []
    print()
    for check in checks:
        print(f"{check.state:<8} {check.name}  {printable(check.path)}: {check.what}", flush=True)
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
    print("\n".join(lines))


def duration(seconds: float) -> str:
    """Write seconds as `2.4 s`, `3m20s` or `1h05m`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def _print_trimmed(shown: Any) -> None:
    """Print without the spaces with which rich fills lines up to the width of the terminal."""
    output = Console(highlight=False, width=None if sys.stdout.isatty() else UNBOUNDED)
    with output.capture() as captured:
        output.print(shown)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)
