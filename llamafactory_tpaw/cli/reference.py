# SPDX-License-Identifier: Apache-2.0
r"""The reference of the commands, written from their parsers.

`python -m llamafactory_tpaw.cli.reference --write` writes `docs/commands.md` and the table of commands in `README.md`
below the working folder; with `--check` it only says which of them are stale.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from pathlib import Path

from ..errors import EXIT_CODES
from . import COMMANDS, build_parsers
from .command import Command, HelpFormatter


PAGE = Path("docs/commands.md")
README = Path("README.md")
TABLE_BEGIN = "<!-- commands: written by `make docs` -->"
TABLE_END = "<!-- end of commands -->"
NO_WRAP = 10_000

HEAD = """\
# Commands

<!-- Written by `make docs` from the commands' own help. Change it in llamafactory_tpaw/cli/. -->

`llamafactory-cli train` with a run file of stage `tpaw` needs none of these: they are for the hours around it.
`llamafactory-tpaw COMMAND --help` shows what stands here, `python -m llamafactory_tpaw` is the same as
`llamafactory-tpaw`, and `llamafactory-tpaw completion` makes the shell complete it.
"""


def commands_page() -> str:
    """Return the text of `docs/commands.md`."""
    _, parsers = build_parsers()
    codes = [f"| {code} | {_cell(meaning)} |" for code, meaning in EXIT_CODES.items()]
    parts = [
        HEAD,
        _table(""),
        *(_section(name, command, parsers[name]) for name, command in COMMANDS.items()),
        "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *codes]) + "\n",
    ]
    return "\n".join(parts)


def with_table(readme: str) -> str:
    r"""Return the README's text with the table between its markers renewed.

    Raises:
        ValueError: If a marker is missing.
    """
    pattern = re.compile(f"({re.escape(TABLE_BEGIN)}\n).*?({re.escape(TABLE_END)})", re.DOTALL)
    renewed, count = pattern.subn(lambda match: match[1] + _table(PAGE.as_posix()) + match[2], readme)
    if count != 1:
        raise ValueError(f"README.md must hold the line {TABLE_BEGIN} and after it {TABLE_END}, once. Put them back.")
    return renewed


def _table(page: str) -> str:
    rows = [f"| [`{name}`]({page}#{name}) | {_cell(command.summary)} |" for name, command in COMMANDS.items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows]) + "\n"


def _section(name: str, command: Command, parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = functools.partial(HelpFormatter, width=NO_WRAP)
    usage = parser.format_usage().removeprefix("usage: ").strip().replace(" [-h]", "")
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    formatter = parser._get_formatter()
    rows = [f"| `{_cell(_name(action))}` | {_cell(formatter._expand_help(action))} |" for action in actions]
    table = "\n".join(["| argument | meaning |", "|---|---|", *rows]) + "\n" if rows else ""
    return "\n".join(
        [f"## {name}\n", f"    {usage}\n", _paragraphs(command.description), table, _code(command.example)]
    )


def _name(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    return " ".join(filter(None, [", ".join(action.option_strings), value]))


def _paragraphs(description: str) -> str:
    """A paragraph for each line; lines that are indented form blocks of code."""
    parts: list[str] = []
    for line in description.splitlines():
        indented = line.startswith(" ")
        text = f"    {line.strip()}" if indented else line
        joined = indented and parts and parts[-1].startswith("    ")
        parts[-1:] = [f"{parts[-1]}\n{text}"] if joined else [*parts[-1:], text]
    return "\n\n".join(filter(None, parts)) + "\n"


def _code(lines: str) -> str:
    return "\n".join(f"    {line}" for line in lines.splitlines()) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write both files, or with `--check` print which of them are stale."""
    pages = {PAGE: commands_page(), README: with_table(README.read_text(encoding="utf-8"))}
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(("stale: " if "--check" in arguments else "wrote ") + str(path))
        if "--check" not in arguments:
            path.write_text(pages[path], encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
