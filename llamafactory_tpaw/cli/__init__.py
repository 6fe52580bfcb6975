# SPDX-License-Identifier: Apache-2.0
"""The command `llamafactory-tpaw`: finds the sub-command and hands it its arguments."""

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import EXIT_CODES, TpawError
from ..lf import signals
from ..lf.failures import explained, settings_in
from ..lf.reporting import report
from . import check, completion, doctor, init, lineage, run, stage
from .command import Command, HelpFormatter


# The order of the help: setting up, playing, looking.
COMMANDS: dict[str, Command] = {
    "init": init.INIT,
    "check": check.CHECK,
    "run": run.RUN,
    "train": stage.TRAIN,
    "generate": stage.GENERATE,
    "score": stage.SCORE,
    "lineage": lineage.LINEAGE,
    "doctor": doctor.DOCTOR,
    "completion": completion.COMPLETION,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `llamafactory-tpaw` with the given arguments, or the process's own, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in COMMANDS else (None, [])
    parser, parsers = build_parsers()
    if name is None:
        # Only --help and --version end well here; argparse explains what is wrong with anything else.
        parser.parse_args(arguments or ["--help"])
        return 2
    command = COMMANDS[name]
    # `train -h` is LlamaFactory's own: every key there is.
    if rest == ["--help"] or (name != "train" and {"-h", "--help"} & set(rest)):
        parsers[name].print_help()
        return 0
    if command.raw and not rest:
        parsers[name].error("a run file is needed, and none was given")
    try:
        with signals.raise_on_signals(), explained(lambda: settings_in(rest)):
            code = command.run(rest if command.raw else parsers[name].parse_intermixed_args(rest)) or 0
        sys.stdout.flush()
        return code
    except TpawError as error:
        return report(error)
    except KeyboardInterrupt as stop:
        return signals.report(stop)
    except BrokenPipeError:
        # What reads the output, `head` say, has seen enough. Python would fail again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command, and those of its sub-commands by name."""
    codes = "Exit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="llamafactory-tpaw",
        description="Self-play fine-tuning (stage `tpaw`) for LlamaFactory.",
        epilog="Example:\n  llamafactory-tpaw check yaml/qwen_tpaw_iter0.yaml\n"
        "  llamafactory-tpaw run yaml/qwen_tpaw_iter?.yaml\n\n"
        f"{codes}\n\n`llamafactory-tpaw COMMAND --help` shows a command's arguments.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"llamafactory-tpaw {__version__}")
    table = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parsers = {}
    for name, command in COMMANDS.items():
        examples = "\n".join(f"  {line}" for line in command.example.splitlines())
        parsers[name] = table.add_parser(
            name,
            help=command.summary,
            description=command.description,
            epilog=f"Example:\n{examples}\n\n{codes}",
            formatter_class=HelpFormatter,
        )
        command.add_arguments(parsers[name])
    return parser, parsers
