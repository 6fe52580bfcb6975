# SPDX-License-Identifier: Apache-2.0
"""Stage `tpaw` as a user runs it, with its savings switched on one after the other. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafactory_tpaw.arguments.fields import FIELDS

from .workload import Job, Workload


if TYPE_CHECKING:
    from transformers import TrainerCallback


@dataclass(frozen=True)
class Saving:
    """A saving, and the keys or environment variables that switch it off and on."""

    name: str
    off: dict[str, Any] = field(default_factory=dict)
    on: dict[str, Any] = field(default_factory=dict)
    off_env: dict[str, str] = field(default_factory=dict)

    @property
    def is_there(self) -> bool:
        """Whether this version of the package has its keys."""
        return all(key in FIELDS for key in (*self.off, *self.on))


# In the order in which they are switched on.
SAVINGS = (
    Saving("cached reference", {"tpaw_reference": "online"}, {"tpaw_reference": "cached"}),
    Saving("grouping", {"tpaw_grouping": "none"}, {"tpaw_grouping": "prompt"}),
    Saving("no logits", {"tpaw_logits": "full"}, {"tpaw_logits": "blocks"}),
    Saving("prompt sharing", {"tpaw_layout": "padded"}, {"tpaw_layout": "auto"}),
)
NOTHING_CACHED = "ours, empty cache"
ALL = "ours, all savings"


@dataclass(frozen=True)
class Variant:
    """A set of switches.

    Attributes:
        keys: Keys of the run file.
        env: Environment variables during the iteration.
        scored_before: Whether the cache holds what the iterations before have scored, as it does in a run.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    scored_before: bool = True


def variants() -> dict[str, Variant]:
    """Return what is measured by name: no saving, each one more, all of them, and all with an empty cache."""
    present = [saving for saving in SAVINGS if saving.is_there]
    found = {}
    for count in range(len(present) + 1):
        chosen, rest = present[:count], present[count:]
        name = f"ours, + {chosen[-1].name}" if chosen else "ours, no saving"
        keys = {
            key: value for part in [*(s.on for s in chosen), *(s.off for s in rest)] for key, value in part.items()
        }
        env = {key: value for saving in rest for key, value in saving.off_env.items()}
        found[name if rest else ALL] = Variant(keys, env)
    found[NOTHING_CACHED] = Variant(found[ALL].keys, found[ALL].env, scored_before=False)
    return found


def absent_savings() -> list[str]:
    """Return the savings that this version of the package cannot switch."""
    return [saving.name for saving in SAVINGS if not saving.is_there]


def common_settings(workload: Workload, job: Job, output: Path) -> dict[str, Any]:
    """Keys of LlamaFactory that its `dpo` stage and stage `tpaw` share."""
    return {
        "model_name_or_path": str(workload.theta(job.thetas[-1])),
        "do_train": True,
        "finetuning_type": "full",
        "template": "qwen",
        "dataset_dir": str(workload.data_dir),
        "dataset": ",".join(job.data.entry(iteration) for iteration in job.thetas),
        "cutoff_len": job.data.cutoff_len,
        "output_dir": str(output),
        "disable_gradient_checkpointing": not workload.checkpointing,
        "per_device_train_batch_size": workload.micro_triplets,
        "gradient_accumulation_steps": workload.accumulation,
        "learning_rate": workload.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": workload.optimizer,
        "max_grad_norm": 1.0,
        "num_train_epochs": float(job.epochs),
        "bf16": workload.precision == "bf16",
        "pure_bf16": workload.precision == "pure_bf16",
        "use_cpu": workload.device == "cpu",
        "logging_steps": workload.logging_steps,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 0,
    }


def stage_settings(workload: Workload, job: Job, output: Path, variant: Variant | None = None) -> dict[str, Any]:
    """Keys of a run file of stage `tpaw`."""
    return {
        **common_settings(workload, job, output),
        "stage": "tpaw",
        "tpaw_iteration": job.thetas[-1],
        "tpaw_players": ",".join(str(workload.theta(number)) for number in job.thetas),
        "tpaw_team_size": job.players,
        "tpaw_reward_scale": workload.reward_scale,
        "tpaw_eta": workload.eta,
        "tpaw_gamma": workload.gamma,
        "tpaw_cache_dir": str(output.with_suffix(".cache")),
        **(variant.keys if variant else {}),
    }


def prepare_cache(workload: Workload, job: Job, output: Path, variant: Variant) -> None:
    r"""Lay out the cache that the iterations before would have left; not part of what is timed.

    Fingerprints are there in any case: each iteration records that of the checkpoint it makes. Log-probs of the older
    players are scored with the real stage, once a process and job, and copied for each repeat.
    """
    settings = stage_settings(workload, job, output, variant)
    cache = Path(settings["tpaw_cache_dir"])
    shutil.rmtree(cache, ignore_errors=True)
    shutil.copytree(Path(workload.folder) / "cache", cache)
    before = Job(job.data, players=job.players - 1)
    if not variant.scored_before or settings["tpaw_reference"] != "cached" or not before.players:
        return
    kept = output.parent / f"{job.data.entry(0)}-{job.players}-players.scored"
    if not kept.exists():
        from llamafactory_tpaw.arguments.parsed import parse_single_process
        from llamafactory_tpaw.train.workflow import score_tpaw

        keys = stage_settings(workload, before, output, variant) | {"tpaw_cache_dir": str(cache)}
        score_tpaw(parse_single_process(keys))
        shutil.copytree(cache, kept)
        return
    shutil.copytree(kept, cache, dirs_exist_ok=True)


def run_ours(workload: Workload, job: Job, output: Path, clock: TrainerCallback, variant: Variant) -> None:
    """Run one iteration as `llamafactory-cli train` does: score, train, save."""
    from llamafactory.train.tuner import run_exp

    with environment(variant.env):
        run_exp(stage_settings(workload, job, output, variant), callbacks=[clock])


@contextlib.contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
