# SPDX-License-Identifier: Apache-2.0
"""The seams: which LlamaFactory modules are extended, by what, and what became of it.

Each `extend_*` looks at its target first, and raises `SeamMissing` with nothing changed where it is not as expected.
"""

import functools
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from types import ModuleType, TracebackType

from ..errors import TpawError
from ..lf.status import PACKAGE, RECORD, SeamStatus, missing_message
from . import board, dispatch
from .arguments import extend_arguments
from .shape import SeamMissing


Extend = Callable[[ModuleType], None]

# What extends what, by the seam's name; targets are below `llamafactory`.
SEAMS: dict[str, tuple[Extend, str, str]] = {
    "arguments": (extend_arguments, "hparams.finetuning_args.FinetuningArguments", "the `tpaw_*` keys"),
    "dispatch": (dispatch.extend_tuner, "train.tuner._training_function", "starts the stage's training"),
    "launch": (dispatch.extend_launcher, "launcher.launch", "generates before the training processes start"),
    "stages": (board.extend_stages, "extras.constants.TRAINING_STAGES", "LlamaBoard's list of stages"),
    "board_words": (board.extend_words, "webui.locales.LOCALES", "the texts of LlamaBoard's tab"),
    "board_runner": (board.extend_runner, "webui.runner.Runner", "what LlamaBoard's Start, Abort and Preview do"),
    "board_train": (
        board.extend_train_tab,
        "webui.components.train.create_train_tab",
        "LlamaBoard's fields for the `tpaw_*` keys, and its results",
    ),
}
REQUIRED = ("arguments", "dispatch", "launch")


def seam_status() -> list[SeamStatus]:
    """Return what became of each seam; all are `waiting` while LlamaFactory is not imported."""
    return list(RECORD.values()) or _waiting()


def _waiting() -> list[SeamStatus]:
    return [
        SeamStatus(name, f"{PACKAGE}.{target}", purpose, name in REQUIRED)
        for name, (_, target, purpose) in SEAMS.items()
    ]


def callbacks(package: ModuleType) -> dict[str, Extend]:
    """Start the record again, before the package's body runs, and return what is to run after each module's body."""
    RECORD.clear()
    RECORD.update({seam.name: seam for seam in _waiting()})
    found: dict[str, Extend] = {}
    for seam in RECORD.values():
        if _exists(seam.module, package):
            found[seam.module] = functools.partial(_apply, seam)
        else:
            _miss(seam, f"there is no module `{seam.module}`")
    return found


def _apply(seam: SeamStatus, module: ModuleType) -> None:
    """Extend one module. Whatever goes wrong, LlamaFactory's import of it must succeed."""
    try:
        SEAMS[seam.name][0](module)
    except SeamMissing as problem:
        _miss(seam, str(problem))
    except Exception as error:
        _miss(seam, f"{type(error).__name__}: {error}")
    else:
        seam.state = "applied"
        if missing_message():
            board.withdraw_stage()


def _miss(seam: SeamStatus, reason: str) -> None:
    seam.miss(reason)
    if seam.required:
        board.withdraw_stage()
        _explain_uncaught()


def _exists(name: str, package: ModuleType) -> bool:
    """Look a module's file up without importing anything."""
    path = package.__path__
    parents = name.split(".")
    for length in range(2, len(parents) + 1):
        spec = PathFinder.find_spec(".".join(parents[:length]), path)
        if spec is None:
            return False
        path = spec.submodule_search_locations or []
    return True


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
