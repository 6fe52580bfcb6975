# SPDX-License-Identifier: Apache-2.0
"""Seam `stages`: LlamaBoard's list of stages and of those that train on ranking data."""

import sys
from types import ModuleType

from ..lf.given import STAGE
from ..lf.status import PACKAGE
from .shape import check


LABEL = "TPAW"
MODULE = f"{PACKAGE}.extras.constants"


def extend_stages(module: ModuleType) -> None:
    """Add the stage to the end of `TRAINING_STAGES` and to `STAGES_USE_PAIR_DATA`, in place.

    The end, because LlamaBoard takes the first stage as its default.

    Raises:
        SeamMissing: If either is not the container that is expected.
    """
    stages, pairs = getattr(module, "TRAINING_STAGES", None), getattr(module, "STAGES_USE_PAIR_DATA", None)
    check(isinstance(stages, dict) and "sft" in stages.values(), "`TRAINING_STAGES` is not a dict of stages")
    check(isinstance(pairs, set) and "dpo" in pairs, "`STAGES_USE_PAIR_DATA` is not a set of stages")
    check(LABEL not in stages and STAGE not in stages.values(), f"it lists `{LABEL}` already")
    stages[LABEL] = STAGE
    pairs.add(STAGE)


def withdraw_stage() -> None:
    """Take the stage out of LlamaBoard's list again, where it cannot be trained."""
    module = sys.modules.get(MODULE)
    getattr(module, "TRAINING_STAGES", {}).pop(LABEL, None)
    getattr(module, "STAGES_USE_PAIR_DATA", set()).discard(STAGE)
