# SPDX-License-Identifier: Apache-2.0
"""`completion`: the script that makes a shell complete commands, options and run files."""

import argparse
import sys

from ..errors import EnvironmentProblem
from .command import Command


SHELLS = ("bash", "zsh", "tcsh")
# shtab puts this before its own script. Folders too, so that one can walk to the file.
BASH_PREAMBLE = """
_llamafactory_tpaw_run_files() {
  compgen -f -X '!*.yaml' -- "$1"
  compgen -f -X '!*.yml' -- "$1"
  compgen -d -- "$1"
}
"""


def script(shell: str) -> str:
    """Return the completion script of a shell in `SHELLS`.

    Raises:
        EnvironmentProblem: If shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise EnvironmentProblem(
            f"Shell completion is written by shtab, which cannot be imported: {error}. Run `pip install shtab`."
        ) from None
    from . import COMMANDS, build_parsers

    parser, parsers = build_parsers()
    for name, command in COMMANDS.items():
        parsers[name].description = command.summary  # zsh shows it beside the name
    return shtab.complete(parser, shell=shell, preamble={"bash": BASH_PREAMBLE})


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or tcsh")


def _run(arguments: argparse.Namespace) -> None:
    sys.stdout.write(script(arguments.shell) + "\n")


COMPLETION = Command(
    summary="the script that makes bash, zsh or tcsh complete this command",
    description="Print the script with which a shell completes commands, options and run files. Put it where the "
    "shell looks for it, once, and again after an update; then open a new shell:\n"
    "  bash   llamafactory-tpaw completion bash > ~/.local/share/bash-completion/completions/llamafactory-tpaw\n"
    "  zsh    llamafactory-tpaw completion zsh > DIR/_llamafactory-tpaw, where DIR is in $fpath before compinit runs\n"
    "  tcsh   llamafactory-tpaw completion tcsh > ~/.llamafactory-tpaw.tcsh, and `source` that in ~/.tcshrc",
    example='eval "$(llamafactory-tpaw completion bash)"',
    add_arguments=_add_arguments,
    run=_run,
)
