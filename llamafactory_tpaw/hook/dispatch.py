# SPDX-License-Identifier: Apache-2.0
"""Seams `dispatch` and `launch`: how `llamafactory-cli train` comes to run stage `tpaw`.

LlamaFactory's `_training_function` looks `get_train_args` and `run_ppo` up when it runs. After all of LlamaFactory's
checks saw stage `tpaw`, the arguments travel to `run_ppo` as stage `ppo` with a mark, and become `tpaw` again there.
`ppo` is the carrier because its branch alone hands over everything, and because a real PPO run could not start by
accident: it needs a reward model.
"""

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..errors import ConfigError, TpawError
from ..lf import given
from ..lf.failures import explained
from ..lf.given import STAGE
from ..lf.signals import raise_on_signals, report
from ..lf.status import check_function, missing_message, require_seams
from . import ranks
from .arguments import backend_problems


CARRIER = "ppo"
MARK = "_carries_tpaw"
RUN_PARAMETERS = ("model_args", "data_args", "training_args", "finetuning_args", "generating_args")
FINETUNING_ARGS = RUN_PARAMETERS.index("finetuning_args")


def extend_tuner(module: ModuleType) -> None:
    """Make the module's dispatch run stage `tpaw`.

    Raises:
        SeamMissing: If the dispatch is not built as expected; nothing is changed then.
    """
    check_function(module, "_training_function", parameters=("config",), uses=("get_train_args", "run_ppo"))
    run_exp = check_function(module, "run_exp", parameters=("args", "callbacks"), uses=("_training_function",))
    get_train_args = check_function(module, "get_train_args", parameters=("args",))
    run_ppo = check_function(module, "run_ppo", parameters=RUN_PARAMETERS)
    module.get_train_args = _wrap_get_train_args(get_train_args)
    module.run_ppo = _wrap_run_ppo(run_ppo)
    module.run_exp = _wrap_run_exp(run_exp)


def guard_tuner(module: ModuleType) -> None:
    """Where the dispatch cannot be extended, let `run_exp` say so for stage `tpaw` instead of failing later."""
    original = getattr(module, "run_exp", None)
    if not callable(original):
        return

    @functools.wraps(original)
    def run_exp(args: Any = None, *rest: Any, **named: Any) -> Any:
        if _ours(sys.argv[1:] if args is None else args) is not None:
            raise ConfigError(missing_message() or "Stage `tpaw` is not available.")
        return original(args, *rest, **named)

    module.run_exp = run_exp


def extend_launcher(module: ModuleType) -> None:
    """Prepare the iteration before the module's `launch` trains or starts the processes that train.

    Raises:
        SeamMissing: If `launch` is not built as expected.
    """
    original = check_function(module, "launch", uses=("argv", "run_exp", "subprocess"))

    @functools.wraps(original)
    def launch() -> Any:
        command, arguments = sys.argv[1:2], sys.argv[2:]
        try:
            settings = _ours(arguments) if command == ["train"] else None
            if settings is None:
                return original()
            _require_backend()
            from ..runs.launcher import prepared

            file = arguments[0] if arguments[0].endswith(given.FILE_ENDINGS) else ""
            with raise_on_signals(), explained(settings), prepared(settings, file) as plan_file:
                sys.argv[2:] = [plan_file]  # what LlamaFactory reads, here or in the processes that it starts
                with ranks.awaited(module, plan_file):
                    return original()
        except (TpawError, KeyboardInterrupt) as error:
            sys.exit(report(error))

    module.launch = launch


def extend_v1_launcher(module: ModuleType) -> None:
    """Refuse the stage in the `launch` that USE_V1 chooses, whose trainers do not know it.

    Raises:
        SeamMissing: If `launch` is not built as expected.
    """
    original = check_function(module, "launch", uses=("argv",))

    @functools.wraps(original)
    def launch() -> Any:
        if sys.argv[1:2] == ["train"] and _ours(sys.argv[2:]) is not None:
            sys.exit(report(ConfigError("USE_V1 is set, but its trainers do not know stage `tpaw`. Unset USE_V1.")))
        return original()

    module.launch = launch


def _ours(args: Any) -> dict[str, Any] | None:
    """What was given where it asks for this stage, and not for help."""
    asks_help = isinstance(args, list) and ("-h" in args or "--help" in args)
    return None if asks_help else given.read_if_ours(args)


def _require_backend() -> None:
    require_seams()
    for variable in ("USE_MCA", "USE_MEGATRON_BRIDGE"):
        if given.is_on(variable):
            raise ConfigError(
                f"{variable} is set, but stage `tpaw` trains with transformers' Trainer only. Unset {variable}."
            )


def _wrap_run_exp(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run_exp(args: Any = None, callbacks: Any = None) -> Any:
        settings = _ours(sys.argv[1:] if args is None else args) if ranks.is_rank() else None
        if settings is None:
            return original(args, callbacks)
        with ranks.as_rank(settings.get(given.HANDED)):
            return original(settings, callbacks)

    return run_exp


def _wrap_get_train_args(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_train_args(args: dict[str, Any] | list[str] | None = None) -> Any:
        found = _ours(sys.argv[1:] if args is None else args)
        if found is None:
            return _refuse_unseen_stage(original(args))
        settings, handed = given.take_handed(found)
        with ranks.recorded(handed), explained(settings):
            return _parse(original, settings, handed)

    return get_train_args


def _parse(original: Callable[..., Any], settings: dict[str, Any], handed: dict[str, Any] | None) -> Any:
    """Check, let LlamaFactory parse stage `tpaw`, and load the parsed arguments onto the carrier."""
    from ..runs.launcher import before_training

    _require_backend()
    parsed = original(before_training(settings, handed))
    finetuning_args = parsed[FINETUNING_ARGS]
    if problems := backend_problems(finetuning_args):
        raise ConfigError(problems)
    finetuning_args.tpaw_given = settings  # what `tpaw.json` records: no defaults
    finetuning_args.stage = CARRIER
    setattr(finetuning_args, MARK, {"handed": handed})
    return parsed


def _refuse_unseen_stage(parsed: Any) -> Any:
    """Stop where argparse understood an abbreviation such as `--sta tpaw` that the test of the stage did not."""
    if parsed[FINETUNING_ARGS].stage == STAGE:
        raise ConfigError("The stage is `tpaw` under an abbreviated flag. Write `--stage tpaw` in full.")
    return parsed


def _wrap_run_ppo(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run_ppo(*args: Any, **named: Any) -> Any:
        finetuning_args = args[FINETUNING_ARGS] if len(args) > FINETUNING_ARGS else named.get("finetuning_args")
        mark = getattr(finetuning_args, MARK, None)
        if mark is None:
            return original(*args, **named)
        from ..runs.launcher import hold_output
        from ..train.workflow import run_tpaw

        finetuning_args.stage = STAGE
        delattr(finetuning_args, MARK)
        settings, handed = finetuning_args.tpaw_given, mark["handed"]
        with ranks.recorded(handed), explained(settings), hold_output(settings, handed):
            return run_tpaw(*args, **named)

    return run_ppo
