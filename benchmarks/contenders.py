# SPDX-License-Identifier: Apache-2.0
"""Who is measured, by name, and what each imports before its memory and time count. Imports nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .ours import Variant, prepare_cache, run_ours, variants
from .workload import Job, Workload


NAIVE = "a. naive TPAW"
DPO_STAGE = "b. LlamaFactory dpo"
TRL_ONLINE = "c. TRL DPO"
TRL_PRECOMPUTED = "c. TRL DPO, precomputed"
FLOOR = "e. floor"
OURS = "d. "

TRANSFORMERS = ("transformers.trainer", "transformers.models.qwen2.modeling_qwen2", "torch.optim")
LLAMAFACTORY = (*TRANSFORMERS, "llamafactory.train.tuner")
STAGE = (*LLAMAFACTORY, "llamafactory_tpaw.train.workflow", "llamafactory_tpaw.train.trainer")

Run = Callable[[Workload, Job, Path, Any], None]


@dataclass(frozen=True)
class Contender:
    """One way to train an iteration.

    Attributes:
        modules: Imported before anything is measured.
        run: Runs one iteration: (workload, job, output folder, clock).
        prepare: Runs before each iteration and is not measured.
    """

    modules: tuple[str, ...]
    run: Run
    prepare: Callable[[Workload, Job, Path], None] | None = None


def contenders() -> dict[str, Contender]:
    """Return all contenders by name, in the order of the table."""
    peers = (*LLAMAFACTORY, "benchmarks.peers")
    found = {
        NAIVE: Contender((*TRANSFORMERS, "benchmarks.naive"), _later("benchmarks.naive", "run_naive")),
        DPO_STAGE: Contender((*peers, "llamafactory.train.dpo.trainer"), _later("benchmarks.peers", "run_dpo_stage")),
        TRL_ONLINE: Contender((*peers, "trl.trainer.dpo_trainer"), _later("benchmarks.peers", "run_trl")),
        TRL_PRECOMPUTED: Contender(
            (*peers, "trl.trainer.dpo_trainer"), _later("benchmarks.peers", "run_trl", precompute=True)
        ),
    }
    found |= {OURS + name: _ours(variant) for name, variant in variants().items()}
    found[FLOOR] = Contender((*TRANSFORMERS, "benchmarks.floor"), _later("benchmarks.floor", "run_floor"))
    return found


def _ours(variant: Variant) -> Contender:
    return Contender(STAGE, partial(run_ours, variant=variant), partial(prepare_cache, variant=variant))


def _later(module: str, name: str, **keywords: Any) -> Run:
    """Name a function whose module is imported when it is called, for it is heavy."""

    def run(*positional: Any) -> None:
        getattr(importlib.import_module(module), name)(*positional, **keywords)

    return run
