# SPDX-License-Identifier: Apache-2.0
"""Seam `arguments`: LlamaFactory's `FinetuningArguments` with the `tpaw_*` keys and the stage."""

# No `from __future__ import annotations`: the class below is filed under LlamaFactory's module, where the names of
# string annotations would not resolve.

import dataclasses
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from ..arguments.fields import TpawArguments
from ..lf.given import STAGE
from .shape import check


def extend_arguments(module: ModuleType) -> None:
    """Replace the module's `FinetuningArguments`, before anything copies it, by a subclass that knows our stage."""
    base = getattr(module, "FinetuningArguments", None)
    check(isinstance(base, type) and dataclasses.is_dataclass(base), "there is no dataclass `FinetuningArguments`")
    known = {spec.name: spec for spec in dataclasses.fields(base)}
    stage = known.get("stage")
    check(stage is not None and get_origin(stage.type) is Literal, "its field `stage` is not a choice of names")
    check(callable(getattr(base, "__post_init__", None)), "it has no `__post_init__`")
    clashes = sorted(known.keys() & {spec.name for spec in dataclasses.fields(TpawArguments)})
    check(not clashes and STAGE not in get_args(stage.type), f"it has {clashes or STAGE} already")
    module.FinetuningArguments = _extended(base, stage)


def _extended(base: type, old_stage: "dataclasses.Field[Any]") -> type:
    stages = Literal[(*get_args(old_stage.type), STAGE)]

    @dataclasses.dataclass
    class FinetuningArguments(TpawArguments, base):
        stage: stages = dataclasses.field(default=old_stage.default, metadata=old_stage.metadata)

        def __post_init__(self) -> None:
            TpawArguments.__post_init__(self)
            base.__post_init__(self)

    # pickle, inspect and typing look the class up where LlamaFactory has it.
    for name in ("__module__", "__qualname__", "__doc__"):
        setattr(FinetuningArguments, name, getattr(base, name))
    return FinetuningArguments
