# SPDX-License-Identifier: Apache-2.0
"""DDP, ZeRO, FSDP and Ray with two processes: the loss, rewards, weights and cached values of one process."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from llamafactory_tpaw.team.manifest import read_manifest
from tests.distributed.launches import (
    CHECKPOINT,
    KINDS,
    PROCESSES,
    WHOLE_BATCH,
    hold_to_reference,
    launch,
    settings_of,
)
from tests.processes import Started
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


# LlamaFactory itself asks the cluster for ten CPUs a worker: the workers are its own, the cluster is ours.
DRIVER = """
import os, socket, sys
os.environ["USE_RAY"] = "1"
import ray
from llamafactory.train.tuner import Worker
from llamafactory_tpaw.runs.launcher import prepared
from llamafactory_tpaw.lf.given import read_given

with prepared(read_given(sys.argv[1:2]), sys.argv[1]) as plan_file:
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[2])
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    meeting |= {"TORCHELASTIC_USE_AGENT_STORE": "False"}
    workers = [
        ray.remote(Worker).options(
            num_cpus=1, runtime_env={"env_vars": {**os.environ, **meeting, "RANK": str(rank)}}
        ).remote()
        for rank in range(2)
    ]
    config = {"args": read_given([plan_file]), "callbacks": []}
    ray.get([worker._training_function.remote(config=config) for worker in workers])
    ray.shutdown()
"""


@pytest.mark.usefixtures("every_parallelism")
def test_two_ray_workers_train_as_one_process(project: Project) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    (project.root / "driver.py").write_text(DRIVER)
    settings = settings_of(project, "ray") | {"per_device_train_batch_size": WHOLE_BATCH // PROCESSES}
    file = project.write("ray.yaml", settings)
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        patient = {"RAY_raylet_start_wait_time_s": "300", "RAY_USAGE_STATS_ENABLED": "0"}
        command = Started(project, sys.executable, "driver.py", file, folder, **patient)
        try:
            assert command.wait() == 0, command.output
        finally:
            command.stop()
            command.leaves_nothing()
    manifest = read_manifest(project.root / "saves/ray")
    assert (manifest.status, manifest.hardware["processes"]) == ("finished", PROCESSES)
    hold_to_reference(project, "ray")
