# SPDX-License-Identifier: Apache-2.0
"""The command `llamafactory-tpaw`: finds the sub-command and hands it its arguments."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import __version__
from .errors import TpawError
from .plugin import bootstrap
from .plugin.reporting import report


class Command(NamedTuple):
    """One sub-command. `run` takes what stands after its name and returns an exit code or None."""

    summary: str
    description: str
    example: str
    run: Callable[[list[str]], int | None]


def _generate(arguments: list[str]) -> int | None:
    bootstrap.activate()
    return importlib.import_module("llamafactory_tpaw.iteration.launcher").generate(arguments)


def _score(arguments: list[str]) -> int | None:
    bootstrap.activate()
    return importlib.import_module("llamafactory_tpaw.iteration.launcher").score(arguments)


COMMANDS: dict[str, Command] = {
    "train": Command(
        "the same as `llamafactory-cli train`, where a .pth file is not processed",
        "Train as `llamafactory-cli train` does, any stage. Needed only where the .pth file of the package is not "
        "processed (`pip install --target`, a zip on PYTHONPATH). `llamafactory-tpaw train -h` lists every key.",
        "llamafactory-tpaw train yaml/qwen_tpaw_iter0.yaml learning_rate=2.0e-7",
        bootstrap.train,
    ),
    "generate": Command(
        "only the triplets of a run file's iteration",
        "Sample the responses that the run file's iteration still lacks, without training. Continues where a "
        "stopped run left off; does nothing when all are there.",
        "llamafactory-tpaw generate yaml/qwen_tpaw_iter0.yaml max_new_tokens=512",
        _generate,
    ),
    "score": Command(
        "only the players' log-probs of a run file's iteration",
        "Put the players' log-probs that the run file's iteration still lacks into `tpaw_cache_dir`, without "
        "training. The triplets must be there.",
        "llamafactory-tpaw score yaml/qwen_tpaw_iter0.yaml tpaw_score_batch_tokens=8192",
        _score,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `llamafactory-tpaw` with the given arguments, or the process's own, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in COMMANDS else (None, [])
    parser, commands = _parsers()
    if name is None:
        # Only --help and --version end well here; argparse explains what is wrong with anything else.
        parser.parse_args(arguments or ["--help"])
        return 2
    if rest == ["--help"] or (rest == ["-h"] and name != "train"):
        commands[name].print_help()
        return 0
    if not rest:
        commands[name].error("a run file is needed, and none was given")
    try:
        return COMMANDS[name].run(rest) or 0
    except TpawError as error:
        return report(error)


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Build the parsers, which write the help; what stands after a command's name is read by the command."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="llamafactory-tpaw",
        description="Self-play fine-tuning (stage `tpaw`) for LlamaFactory.",
        epilog="Example:\n  llamafactory-tpaw generate yaml/qwen_tpaw_iter0.yaml\n\n"
        "`llamafactory-tpaw COMMAND --help` shows a command's arguments.",
        formatter_class=style,
    )
    parser.add_argument("--version", action="version", version=f"llamafactory-tpaw {__version__}")
    table = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands = {}
    for name, command in COMMANDS.items():
        sub = table.add_parser(
            name,
            help=command.summary,
            description=command.description,
            epilog=f"Example:\n  {command.example}",
            formatter_class=style,
        )
        sub.add_argument("run_file", metavar="RUN_FILE", help="a YAML file as `llamafactory-cli train` takes it")
        sub.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="keys that replace those of the file")
        commands[name] = sub
    return parser, commands
