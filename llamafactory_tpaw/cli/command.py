# SPDX-License-Identifier: Apache-2.0
"""What a sub-command of `llamafactory-tpaw` is made of."""

import argparse
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass


# What an argument names, for shell completion: `parser.add_argument(...).complete = FOLDER`.
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
FOLDER = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
RUN_FILE = {
    "bash": "_llamafactory_tpaw_run_files",
    "zsh": "_files -g '*.(yaml|yml)(-.)'",
    "tcsh": "f:*.{yaml,yml}",
}


# Commands and paths have hyphens, and must stay fit to be copied.
WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}


@dataclass(frozen=True)
class Command:
    """One sub-command. Its module imports nothing heavy when it is loaded: `--help` and shell completion load all.

    Attributes:
        summary: A line for the list of commands.
        description: What it does, for its own help. A line is a paragraph; an indented one is not wrapped.
        example: Command lines for its own help, one a line.
        add_arguments: Adds its arguments to its parser.
        run: Takes the parsed arguments and returns an exit code or None; where `raw`, what stands after the
            command's name.
        raw: Whether the command reads its arguments itself, as LlamaFactory's own do.
    """

    summary: str
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[..., int | None]
    raw: bool = False


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fits text to the terminal's width: wraps paragraphs, keeps commands whole, hangs `word   meaning` lines."""

    def add_argument(self, action: argparse.Action) -> None:
        """Make room for the commands, which stand two columns further right than argparse counts."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, **WHOLE_WORDS)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(_fill_line(indent + line, width) for line in text.splitlines())


def _fill_line(line: str, width: int) -> str:
    entry = re.match(r" +\S+ {2,}", line)
    if entry is None and line[:1] in ("", " "):
        return line
    hang = " " * (entry.end() if entry else 0)
    return textwrap.fill(line, max(width, 20), subsequent_indent=hang, **WHOLE_WORDS)


def add_run_file(parser: argparse.ArgumentParser) -> None:
    """Add a run file and its overrides, as `llamafactory-cli train` takes them."""
    file = parser.add_argument("run_file", metavar="RUN_FILE", help="a YAML file as `llamafactory-cli train` takes it")
    file.complete = RUN_FILE
    # Without a default argparse would name it among what is missing.
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", default=[], help="keys that replace those of the file"
    )
