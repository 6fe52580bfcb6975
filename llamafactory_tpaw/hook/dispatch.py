# SPDX-License-Identifier: Apache-2.0
"""Seams `dispatch` and `launch`: how `llamafactory-cli train` comes to run stage `tpaw`.

LlamaFactory's `_training_function` looks `get_train_args` and `run_ppo` up when it runs. After all of LlamaFactory's
checks saw stage `tpaw`, the arguments travel to `run_ppo` as stage `ppo`, and become `tpaw` again there.
`ppo` is the carrier because its branch alone hands over everything, and because a real PPO run could not start by
accident: it needs a reward model.
"""

import argparse
import functools
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..arguments.checks import refuse_backends
from ..errors import ConfigError, TpawError
from ..lf import given
from ..lf.failures import explained
from ..lf.given import STAGE
from ..lf.signals import raise_on_signals, report
from ..lf.status import require_seams
from . import ranks
from .shape import check_function


CARRIER = "ppo"
STAGE_IN_TEXT = re.compile(r"""^\s*["']?stage["']?\s*[:=]\s*["']?tpaw\b""", re.MULTILINE)
RUN_PARAMETERS = ("model_args", "data_args", "training_args", "finetuning_args", "generating_args")
FINETUNING_ARGS = RUN_PARAMETERS.index("finetuning_args")


def extend_tuner(module: ModuleType) -> None:
    """Make the module's dispatch run stage `tpaw`."""
    check_function(module, "_training_function", ("config",), uses=("get_train_args", "run_ppo"))
    own_run_exp = check_function(module, "run_exp", ("args", "callbacks"), uses=("_training_function",))
    own_get_train_args = check_function(module, "get_train_args", ("args",))
    own_run_ppo = check_function(module, "run_ppo", RUN_PARAMETERS)

    @functools.wraps(own_run_exp)
    def run_exp(args: Any = None, callbacks: Any = None) -> Any:
        settings = read_if_ours(sys.argv[1:] if args is None else args) if ranks.is_rank() else None
        if settings is None:
            return own_run_exp(args, callbacks)
        with ranks.as_rank(settings.get(given.HANDED)):
            return own_run_exp(settings, callbacks)

    @functools.wraps(own_get_train_args)
    def get_train_args(args: dict[str, Any] | list[str] | None = None) -> Any:
        found = read_if_ours(sys.argv[1:] if args is None else args)
        if found is None:
            return own_get_train_args(args)
        from ..runs.launcher import before_training

        settings, handed = given.take_handed(found)
        with ranks.recorded(handed), explained(settings):
            require_seams()
            parsed = own_get_train_args(before_training(settings, handed))
        finetuning_args = parsed[FINETUNING_ARGS]
        finetuning_args.tpaw_given = settings  # what `tpaw.json` records: no defaults
        finetuning_args.tpaw_handed = handed
        finetuning_args.stage = CARRIER
        return parsed

    @functools.wraps(own_run_ppo)
    def run_ppo(*args: Any, **named: Any) -> Any:
        finetuning_args = args[FINETUNING_ARGS] if len(args) > FINETUNING_ARGS else named["finetuning_args"]
        if not hasattr(finetuning_args, "tpaw_given"):
            return own_run_ppo(*args, **named)
        from ..runs.launcher import hold_output
        from ..train.workflow import run_tpaw

        finetuning_args.stage = STAGE
        settings, handed = finetuning_args.tpaw_given, finetuning_args.tpaw_handed
        with ranks.recorded(handed), explained(settings), hold_output(settings, handed):
            return run_tpaw(*args, **named)

    module.run_exp, module.get_train_args, module.run_ppo = run_exp, get_train_args, run_ppo


def extend_launcher(module: ModuleType) -> None:
    """Prepare the iteration before the module's `launch` trains or starts the processes that train."""
    original = check_function(module, "launch", uses=("argv", "run_exp", "subprocess"))

    @functools.wraps(original)
    def launch() -> Any:
        command, arguments = sys.argv[1:2], sys.argv[2:]
        try:
            settings = read_if_ours(arguments) if command == ["train"] else None
            if settings is None:
                return original()
            refuse_backends()
            require_seams()
            from ..runs.launcher import prepared

            file = arguments[0] if arguments[0].endswith(given.YAML_ENDINGS) else ""
            with raise_on_signals(), explained(settings), prepared(settings, file) as plan_file:
                sys.argv[2:] = [plan_file]  # what LlamaFactory reads, here or in the processes that it starts
                with ranks.awaited(module, plan_file):
                    return original()
        except (TpawError, KeyboardInterrupt) as error:
            sys.exit(report(error))

    module.launch = launch


def read_if_ours(args: list[str] | dict[str, Any]) -> dict[str, Any] | None:
    """Return what was given where it asks for this stage, and not for help; None also where it cannot be read."""
    if isinstance(args, list) and {"-h", "--help"} & set(args):
        return None
    if isinstance(args, list) and args and not args[0].endswith(given.YAML_ENDINGS):
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--stage", nargs="?")
        return given.read_given(args) if parser.parse_known_args(args)[0].stage == STAGE else None
    try:
        settings = given.read_given(args)
    except ConfigError:
        file = Path(args[0])
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        if STAGE_IN_TEXT.search("\n".join([text, *args[1:]])):
            raise
        return None  # LlamaFactory says what is wrong with that of another stage
    return settings if settings.get("stage") == STAGE else None
