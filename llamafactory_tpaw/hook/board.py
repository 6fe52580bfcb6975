# SPDX-License-Identifier: Apache-2.0
"""The seams of LlamaBoard, which opens without the tab for self-play where one is missing, and says so."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from ..lf.given import STAGE
from ..lf.status import PACKAGE, RECORD, installed_version
from .shape import check, check_function


LABEL, CONSTANTS = "TPAW", f"{PACKAGE}.extras.constants"
# What the page shows; imported when it is built, because they need gradio.
TAB, RUNNER, WORDS = (f"llamafactory_tpaw.board.{name}" for name in ("tab", "runner", "words"))
# The methods of LlamaBoard's `Runner` that our functions of the same name extend, and their parameters.
METHODS: dict[str, tuple[str, ...]] = {
    "_initialize": ("self", "data", "do_train", "from_preview"),
    "_parse_train_args": ("self", "data"),
    "_launch": ("self", "data", "do_train"),
    "monitor": ("self",),
    "set_abort": ("self",),
    "check_output_dir": ("self", "lang", "model_name", "finetuning_type", "output_dir"),
}


def extend_stages(module: ModuleType) -> None:
    """Add the stage to two lists in place, at the end of the first, whose beginning is LlamaBoard's default."""
    stages, pairs = getattr(module, "TRAINING_STAGES", None), getattr(module, "STAGES_USE_PAIR_DATA", None)
    check(isinstance(stages, dict) and "sft" in stages.values(), "`TRAINING_STAGES` is not a dict of stages")
    check(isinstance(pairs, set) and "dpo" in pairs, "`STAGES_USE_PAIR_DATA` is not a set of stages")
    check(LABEL not in stages and STAGE not in stages.values(), f"it lists `{LABEL}` already")
    stages[LABEL] = STAGE
    pairs.add(STAGE)


def withdraw_stage() -> None:
    """Take the stage out of LlamaBoard's list again, where it cannot be trained."""
    module = sys.modules.get(CONSTANTS)
    getattr(module, "TRAINING_STAGES", {}).pop(LABEL, None)
    getattr(module, "STAGES_USE_PAIR_DATA", set()).discard(STAGE)


def extend_words(module: ModuleType) -> None:
    """Add the texts of our elements to LlamaBoard's table, in all its languages."""
    table = getattr(module, "LOCALES", None)
    known = isinstance(table, dict) and isinstance(table.get("learning_rate"), dict)
    check(known and "en" in table["learning_rate"], "`LOCALES` is not a dict of texts by language")
    ours = importlib.import_module(WORDS).ELEMENTS
    taken = sorted(set(ours) & set(table))
    check(not taken, f"it has texts for {', '.join(taken)} already")
    table.update(ours)


def extend_runner(module: ModuleType) -> None:
    """Let the runner play this stage by our own means; what it does for the others stays."""
    kind = getattr(module, "Runner", None)
    check(inspect.isclass(kind), "there is no class `Runner`")
    check_function(kind, "__init__", uses=("manager", "trainer", "running", "running_data", "aborted"))
    for name, parameters in METHODS.items():
        found = check_function(kind, name, parameters)
        check(found.__code__.co_argcount == len(parameters), f"`{name}` takes more than ({', '.join(parameters)})")
    for name in METHODS:
        setattr(kind, name, _extended(name.lstrip("_"), getattr(kind, name)))


def _extended(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method by our function of a name, which gets the original first; Gradio looks for generator functions."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if missing_board():
            return original(self, *args, **kwargs)
        return getattr(importlib.import_module(RUNNER), name)(original, self, *args, **kwargs)

    @functools.wraps(original)
    def generator(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from method(self, *args, **kwargs)

    return generator if inspect.isgeneratorfunction(original) else method


def extend_train_tab(module: ModuleType) -> None:
    """Put the accordions of this stage into the Train tab."""
    uses = ("get_base_elems", "runner", "rlhf_tab", "input_elems", "output_box")
    original = check_function(module, "create_train_tab", ("engine",), uses)

    @functools.wraps(original)
    def create_train_tab(engine: Any) -> Any:
        if missing := missing_board():
            import gradio

            text = importlib.import_module(WORDS).say(
                "seam_missing", "en", version=installed_version(), missing=missing
            )
            gradio.Markdown(text, elem_id="tpaw_missing")
            return original(engine)
        return importlib.import_module(TAB).create_train_tab(engine, original)

    module.create_train_tab = create_train_tab


def missing_board() -> str | None:
    """Return what is not as the tab needs it, or None."""
    return "; ".join(str(seam) for seam in RECORD.values() if seam.state == "missing") or None
