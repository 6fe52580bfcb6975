# SPDX-License-Identifier: Apache-2.0
"""Writes `docs/commands.md` from the commands' own help: `python -m tools.commands`, see `make docs`."""

from __future__ import annotations

import argparse
from pathlib import Path

from llamafactory_tpaw.cli.parsers import COMMANDS, build_parsers
from llamafactory_tpaw.errors import EXIT_CODES


PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = """\
# Commands

<!-- Written by `make docs` from the commands' own help. Change it in llamafactory_tpaw/cli/parsers.py. -->

`llamafactory-cli train` with a run file of stage `tpaw` needs none of these: they are for the hours around it.
`llamafactory-tpaw COMMAND --help` shows what stands here, `python -m llamafactory_tpaw` is the same as
`llamafactory-tpaw`, and `llamafactory-tpaw completion` makes the shell complete it.

| command | what it does |
|---|---|
"""


def commands_page() -> str:
    """Return the text of `docs/commands.md`."""
    _, parsers = build_parsers()
    table = "".join(f"| [`{name}`](#{name}) | {command.summary} |\n" for name, command in COMMANDS.items())
    codes = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    sections = [_section(name, parsers[name]) for name in COMMANDS]
    return "\n".join([HEAD + table, *sections, f"## Exit codes\n\n| code | meaning |\n|---|---|\n{codes}"])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split()).replace(" [-h]", "")
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    rows = "".join(
        f"| `{_name(action)}` | {(action.help or '').replace('|', chr(92) + '|')} |\n" for action in actions
    )
    example = "".join(f"    {line}\n" for line in COMMANDS[name].example.splitlines())
    text = COMMANDS[name].description
    return f"## {name}\n\n    {usage}\n\n{text}\n\n| argument | meaning |\n|---|---|\n{rows}\n{example}"


def _name(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    return " ".join(filter(None, [", ".join(action.option_strings), value])).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(commands_page(), encoding="utf-8")
