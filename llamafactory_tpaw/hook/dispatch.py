# SPDX-License-Identifier: Apache-2.0
"""Seams `dispatch` and `launch`: how `llamafactory-cli train` comes to run stage `tpaw`.

LlamaFactory's `_training_function` looks `get_train_args` and `run_ppo` up when it runs. After all of LlamaFactory's
checks saw stage `tpaw`, the arguments travel to `run_ppo` as stage `ppo` with a mark, and become `tpaw` again there.
`ppo` is the carrier because its branch alone hands over everything, and because a real PPO run could not start by
accident: it needs a reward model.
"""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from ..errors import ConfigError, TpawError
from ..lf import facade, failures, given, signals
from ..lf.reporting import report
from ..lf.status import check_function, missing_message, require_seams
from . import ranks
from .arguments import STAGE, backend_problems


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
    def run_exp(*positional: Any, **named: Any) -> Any:
        args = positional[0] if positional else named.get("args")
        if given.stage_of(sys.argv[1:] if args is None else args) == STAGE:
            raise ConfigError(missing_message() or "Stage `tpaw` is not available.")
        return original(*positional, **named)

    module.run_exp = run_exp


def extend_launcher(module: ModuleType) -> None:
    """Prepare the iteration before the module's `launch` trains or starts the processes that train.

    Raises:
        SeamMissing: If `launch` is not built as expected.
    """
    original = check_function(module, "launch", uses=("argv", "run_exp", "subprocess"))

    @functools.wraps(original)
    def launch() -> Any:
        arguments = sys.argv[2:]
        try:
            if sys.argv[1:2] != ["train"] or _asks_help(arguments) or given.stage_of(arguments) != STAGE:
                return original()
            with (
                signals.reported(),
                failures.explained(lambda: failures.settings_in(arguments)),
                _prepared(arguments),
                ranks.collect_error(),
                ranks.watched_torchrun(module),
            ):
                return original()
        except TpawError as error:
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
        arguments = sys.argv[2:]
        if sys.argv[1:2] == ["train"] and not _asks_help(arguments) and given.stage_of(arguments) == STAGE:
            sys.exit(report(ConfigError("USE_V1 is set, but its trainers do not know stage `tpaw`. Unset USE_V1.")))
        return original()

    module.launch = launch


@contextlib.contextmanager
def _prepared(arguments: list[str]) -> Iterator[None]:
    require_seams()
    if arguments[0].endswith(".json"):
        raise ConfigError(
            f"{arguments[0]} is a JSON file, which LlamaFactory cannot read as a run file. "
            "JSON is YAML too: give the file a name that ends with `.yaml`."
        )
    _refuse_backend_switch()
    with _iteration_launcher().prepare(arguments):
        yield


def _iteration_launcher() -> ModuleType:
    return importlib.import_module("llamafactory_tpaw.runs.launcher")


def _asks_help(args: Any) -> bool:
    return isinstance(args, list) and ("-h" in args or "--help" in args)


def _refuse_backend_switch() -> None:
    if given.is_on("USE_MCA"):
        raise ConfigError("USE_MCA is set, but stage `tpaw` trains with transformers' Trainer only. Unset USE_MCA.")


def _wrap_run_exp(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run_exp(*positional: Any, **named: Any) -> Any:
        args = positional[0] if positional else named.get("args")
        if not ranks.is_rank() or given.stage_of(sys.argv[1:] if args is None else args) != STAGE:
            return original(*positional, **named)
        with ranks.as_rank():
            return original(*positional, **named)

    return run_exp


def _wrap_get_train_args(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_train_args(args: dict[str, Any] | list[str] | None = None) -> Any:
        resolved = sys.argv[1:] if args is None else args
        if _asks_help(resolved) or given.stage_of(resolved) != STAGE:
            return _refuse_unseen_stage(original(args))
        with ranks.record_error(), failures.explained(lambda: given.read_given(resolved)):
            return _parse(original, facade.read_args() if args is None else args)

    return get_train_args


def _parse(original: Callable[..., Any], settings: dict[str, Any] | list[str]) -> Any:
    """Check, let LlamaFactory parse stage `tpaw`, and load the parsed arguments onto the carrier."""
    require_seams()
    _refuse_backend_switch()
    settings_given = given.read_given(settings)
    parsed = original(_iteration_launcher().before_parse(settings))
    finetuning_args = parsed[FINETUNING_ARGS]
    if problems := backend_problems(finetuning_args):
        raise ConfigError(problems)
    if finetuning_args.stage == STAGE:
        finetuning_args.tpaw_given = settings_given  # what `tpaw.json` records: no defaults
        finetuning_args.stage = CARRIER
        setattr(finetuning_args, MARK, True)
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
        if not getattr(finetuning_args, MARK, False):
            return original(*args, **named)
        finetuning_args.stage = STAGE
        delattr(finetuning_args, MARK)
        with (
            ranks.record_error(),
            failures.explained(lambda: _flat([*args, *named.values()])),
            _iteration_launcher().hold_output(finetuning_args.tpaw_given),
        ):
            return importlib.import_module("llamafactory_tpaw.train.workflow").run_tpaw(*args, **named)

    return run_ppo


def _flat(groups: list[Any]) -> dict[str, Any]:
    """The keys of LlamaFactory's groups of arguments in one dict."""
    return {key: value for group in groups if hasattr(group, "__dict__") for key, value in vars(group).items()}
