# SPDX-License-Identifier: Apache-2.0
"""DDP and ZeRO with two processes: the loss, rewards, weights and cached values of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launches import (
    CHECKPOINT,
    KINDS,
    PROCESSES,
    WHOLE_BATCH,
    hold_to_reference,
    launch,
    settings_of,
)
from tests.runs import Project


pytestmark = pytest.mark.integration


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(project: Project, kind: str, request: pytest.FixtureRequest) -> None:
    """36 steps of an epoch with an uneven end, three players, evaluation, and a checkpoint on the way."""
    if kind not in ("ddp", "zero3"):
        request.getfixturevalue("every_parallelism")
    assert "Scored 12 of 12 blocks" in launch(project, kind, kind)
    hold_to_reference(project, kind)
    parts = list((project.root / f"saves/cache_{kind}").rglob("part-*"))
    assert len(parts) == 3 * PROCESSES, "each process writes its own part of each player's cache"
    if KINDS[kind]:
        shards = project.root / f"saves/{kind}/checkpoint-{CHECKPOINT}/global_step{CHECKPOINT}"
        kept = "model" if KINDS[kind]["stage"] == 3 else "optim"
        assert len(list(shards.glob(f"*zero_pp_rank_*_{kept}_states.pt"))) == PROCESSES


@pytest.mark.usefixtures("every_parallelism")
@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_training_is_resumed_midway_through_an_epoch(project: Project, kind: str) -> None:
    name = f"{kind}_resumed"
    launch(project, name, kind, resume_from_checkpoint=f"saves/{kind}/checkpoint-{CHECKPOINT}")
    hold_to_reference(project, name)


def test_weights_in_shards_of_fsdp_train_as_one_process(project: Project) -> None:
    """Policy and players under torch's `fully_shard`, which is what FSDP2 is; see `fully_sharded.py`."""
    settings = settings_of(project, "sharded") | {"per_device_train_batch_size": WHOLE_BATCH // PROCESSES}
    settings |= {"save_strategy": "no", "tpaw_score_batch_tokens": 700}
    script, file = str(Path(__file__).with_name("fully_sharded.py")), project.write("sharded.yaml", settings)
    workers = ("torchrun", f"--nproc-per-node={PROCESSES}", "--standalone")
    result = project.command(*workers, script, file, PYTHONPATH=str(Path(__file__).parents[2]))
    assert result.code == 0, result.output[-6000:]
    hold_to_reference(project, "sharded")
