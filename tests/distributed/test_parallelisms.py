# SPDX-License-Identifier: Apache-2.0
"""DDP and ZeRO with two processes: the loss, rewards, weights and cached values of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launches import (
    CHECKPOINT,
    KINDS,
    PASSES,
    PROCESSES,
    WHOLE_BATCH,
    hold_to_reference,
    launch,
    settings_of,
)
from tests.runs import Project


pytestmark = pytest.mark.integration

BY_DEFAULT = ("ddp", "zero3")
RESUMED = ("ddp", "zero2", "zero3")


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(
    project: Project, kind: str, found: dict[str, list[str]], request: pytest.FixtureRequest
) -> None:
    """36 steps of an epoch with an uneven end, three players, evaluation, and a checkpoint on the way."""
    if kind not in BY_DEFAULT and not request.config.getoption("every_parallelism"):
        pytest.skip("with --every-parallelism")
    for number in range(request.config.getoption("repeat")):
        name = f"{kind}_{number}"
        output = launch(project, name, kind)
        assert "Scored 12 of 12 blocks" in output
        hold_to_reference(project, name, kind, found)
        parts = list((project.root / f"saves/cache_{name}").rglob("part-*"))
        assert len(parts) == 3 * PROCESSES, "each process writes its own part of each player's cache"
        if KINDS[kind]:
            shards = project.root / f"saves/{name}/checkpoint-{CHECKPOINT}/global_step{CHECKPOINT}"
            kept = "model" if KINDS[kind]["stage"] == 3 else "optim"
            assert len(list(shards.glob(f"*zero_pp_rank_*_{kept}_states.pt"))) == PROCESSES


@pytest.mark.parametrize("kind", RESUMED)
def test_training_is_resumed_midway_through_an_epoch(
    project: Project, kind: str, found: dict[str, list[str]], request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("every_parallelism"):
        pytest.skip("with --every-parallelism")
    checkpoint = f"saves/{kind}_0/checkpoint-{CHECKPOINT}"
    name = f"{kind}_resumed"
    launch(project, name, kind, resume_from_checkpoint=checkpoint)
    hold_to_reference(project, name, f"{kind}, resumed", found)


def test_weights_in_shards_of_fsdp_train_as_one_process(
    project: Project, found: dict[str, list[str]], request: pytest.FixtureRequest
) -> None:
    """Policy and players under torch's `fully_shard`, which is what FSDP2 is; see `fully_sharded.py`."""
    for number in range(request.config.getoption("repeat")):
        name = f"fully_sharded_{number}"
        settings = settings_of(project, name) | {"per_device_train_batch_size": WHOLE_BATCH // PROCESSES}
        settings |= {"save_strategy": "no", "tpaw_score_batch_tokens": 700}
        result = project.command(
            "torchrun",
            f"--nproc-per-node={PROCESSES}",
            "--standalone",
            str(Path(__file__).with_name("fully_sharded.py")),
            project.write(f"{name}.yaml", settings),
            PYTHONPATH=str(Path(__file__).parents[2]),
        )
        assert result.code == 0, result.output[-6000:]
        hold_to_reference(project, name, "fully_shard", found)
        passes = list((project.root / "saves" / PASSES).iterdir())
        assert len(passes) == PROCESSES
        assert len({path.stat().st_size for path in passes}) == 1
        for path in passes:
            path.unlink()
