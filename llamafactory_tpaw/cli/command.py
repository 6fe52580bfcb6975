# SPDX-License-Identifier: Apache-2.0
"""What a sub-command of `llamafactory-tpaw` is made of."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One sub-command. Its module imports nothing heavy when it is loaded: `--help` and shell completion load all.

    Attributes:
        summary: A line for the list of commands.
        description: What it does, for its own help.
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


def add_run_file(parser: argparse.ArgumentParser) -> None:
    """Add a run file and its overrides, as `llamafactory-cli train` takes them."""
    parser.add_argument("run_file", metavar="RUN_FILE", help="a YAML file as `llamafactory-cli train` takes it")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="keys that replace those of the file")
