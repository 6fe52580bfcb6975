# SPDX-License-Identifier: Apache-2.0
"""The seams: which LlamaFactory modules are extended, by what, and what became of it."""

import functools
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from types import ModuleType, TracebackType
from typing import NamedTuple

from ..errors import TpawError
from ..lf.status import PACKAGE, RECORD, SeamMissing, SeamStatus, missing_message
from . import board, dispatch, stages
from .arguments import extend_arguments


Extend = Callable[[ModuleType], None]


class Seam(NamedTuple):
    """What `callbacks` turns into a `SeamStatus` and a callback; `target` is below `llamafactory`."""

    name: str
    target: str
    purpose: str
    apply: Extend
    required: bool = False
    board: bool = False
    fallback: Extend | None = None

    def status(self) -> SeamStatus:
        """Its state while LlamaFactory has not imported the module."""
        return SeamStatus(self.name, f"{PACKAGE}.{self.target}", self.purpose, self.required, self.board)


SEAMS = (
    Seam(
        "arguments",
        "hparams.finetuning_args.FinetuningArguments",
        "the `tpaw_*` keys",
        extend_arguments,
        required=True,
    ),
    Seam(
        "dispatch",
        "train.tuner._training_function",
        "starts the stage's training",
        dispatch.extend_tuner,
        required=True,
        fallback=dispatch.guard_tuner,
    ),
    Seam(
        "launch",
        "launcher.launch",
        "generates before the training processes start",
        dispatch.extend_launcher,
        required=True,
    ),
    Seam(
        "launch_v1",
        "v1.launcher.launch",
        "says that stage `tpaw` does not run with USE_V1",
        dispatch.extend_v1_launcher,
    ),
    Seam("stages", "extras.constants.TRAINING_STAGES", "LlamaBoard's list of stages", stages.extend_stages),
    Seam(
        "board_words",
        "webui.locales.LOCALES",
        "the texts of LlamaBoard's tab",
        board.extend_words,
        board=True,
    ),
    Seam(
        "board_runner",
        "webui.runner.Runner",
        "what LlamaBoard's Start, Abort and Preview do",
        board.extend_runner,
        board=True,
    ),
    Seam(
        "board_train",
        "webui.components.train.create_train_tab",
        "LlamaBoard's fields for the `tpaw_*` keys, and its results",
        board.extend_train_tab,
        board=True,
    ),
)


def seam_status() -> list[SeamStatus]:
    """Return what became of each seam; all are `waiting` while LlamaFactory is not imported."""
    return list(RECORD.values()) or [seam.status() for seam in SEAMS]


def callbacks(package: ModuleType) -> dict[str, Extend]:
    """Start the record again and return what is to run after each module's body.

    Args:
        package: The module `llamafactory`, before its body runs.
    """
    RECORD.clear()
    found: dict[str, Extend] = {}
    for seam in SEAMS:
        status = RECORD[seam.name] = seam.status()
        if _exists(status.module, package):
            found[status.module] = functools.partial(_apply, seam, status)
        else:
            _miss(status, f"there is no module `{status.module}`")
    return found


def _apply(seam: Seam, status: SeamStatus, module: ModuleType) -> None:
    """Extend one module. Whatever goes wrong, LlamaFactory's import of it must succeed."""
    try:
        seam.apply(module)
    except SeamMissing as problem:
        _miss(status, str(problem))
    except Exception as error:
        _miss(status, f"{type(error).__name__}: {error}")
    else:
        status.state, status.reason = "applied", None
        if missing_message():
            stages.withdraw_stage()
        return
    if seam.fallback is not None:
        seam.fallback(module)


def _miss(status: SeamStatus, reason: str) -> None:
    status.miss(reason)
    if status.required:
        stages.withdraw_stage()
        _explain_uncaught()


def _exists(name: str, package: ModuleType) -> bool:
    """Look a module's file up without importing anything."""
    path = package.__path__
    *parents, last = name.split(".")[1:]
    for parent in parents:
        spec = PathFinder.find_spec(f"{package.__name__}.{parent}", path)
        if spec is None or spec.submodule_search_locations is None:
            return False
        path = spec.submodule_search_locations
    return PathFinder.find_spec(f"{name.rpartition('.')[0]}.{last}", path) is not None


def _explain_uncaught() -> None:
    """Where no seam can stop stage `tpaw`, add the reason to the error that LlamaFactory itself dies of."""
    if getattr(sys.excepthook, "llamafactory_tpaw", False):
        return
    previous = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        previous(kind, error, trace)
        message = missing_message()
        if message and "tpaw" in str(error) and not isinstance(error, TpawError):
            sys.stderr.write(f"llamafactory-tpaw: error: {message}\n")

    excepthook.llamafactory_tpaw = True
    sys.excepthook = excepthook
