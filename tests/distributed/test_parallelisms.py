# SPDX-License-Identifier: Apache-2.0
"""DDP, ZeRO, FSDP and Ray with two processes over gloo: loss, rewards, weights and cached values of one process."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from llamafactory_tpaw.team.manifest import read_manifest
from tests.processes import Started
from tests.runs import Project, Result


pytestmark = pytest.mark.integration
QUICK = Path(__file__).parent / "quick"
ZERO: dict[str, Any] = {
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}
OFFLOADED = {"device": "cpu", "pin_memory": False}
# Kind of training -> ZeRO's settings; None for DDP.
KINDS: dict[str, dict[str, Any] | None] = {
    "ddp": None,
    "zero1": {"stage": 1},
    "zero2": {"stage": 2, "overlap_comm": False},
    "zero3": {"stage": 3, "overlap_comm": False, "stage3_gather_16bit_weights_on_model_save": True},
    "zero2_offload": {"stage": 2, "overlap_comm": False, "offload_optimizer": OFFLOADED},
    "zero3_offload": {
        "stage": 3,
        "overlap_comm": False,
        "stage3_gather_16bit_weights_on_model_save": True,
        "offload_optimizer": OFFLOADED,
        "offload_param": OFFLOADED,
    },
}
# Steps of 8 triplets: 11 prompts with 3 each are trained on, so that the last step of an epoch has one triplet, and a
# process none. The checkpoint is in the second epoch.
WHOLE_BATCH, PROCESSES, CHECKPOINT = 8, 2, 7
TOLERANCE, CACHED_TOLERANCE = 1e-4, 1e-5
# Of a run that is resumed, `train_loss` is the mean over the steps since.
UNLIKE = re.compile("runtime|per_second|flos|memory|preparation|train_loss")


def settings_of(project: Project, name: str, **changes: Any) -> dict[str, Any]:
    """Settings of iteration 2 with three players and a cache of its own, in one process."""
    return project.settings(
        2,
        output_dir=f"saves/{name}",
        tpaw_cache_dir=f"saves/cache_{name}",
        per_device_train_batch_size=WHOLE_BATCH,
        num_train_epochs=2.0,
        val_size=5,
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=CHECKPOINT,
        **changes,
    )


def launch(project: Project, name: str, kind: str, **changes: Any) -> str:
    """Train the iteration in two processes and return what was printed."""
    zero = KINDS[kind]
    given = {"per_device_train_batch_size": WHOLE_BATCH // PROCESSES, **changes}
    environment = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(PROCESSES), "CUDA_VISIBLE_DEVICES": ""}
    if zero is not None:
        pytest.importorskip("deepspeed")
        # With `use_cpu` accelerate would leave DeepSpeed's start out.
        given |= {"deepspeed": f"{name}.json", "use_cpu": None}
        (project.root / f"{name}.json").write_text(json.dumps(ZERO | {"zero_optimization": zero}))
        environment |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(QUICK)}
    settings = {key: value for key, value in (settings_of(project, name) | given).items() if value is not None}
    result = project.train(settings, name=f"{name}.yaml", **environment)
    assert result.code == 0, result.output[-6000:]
    assert f"world size: {PROCESSES}" in result.output
    return result.output


def hold_to_reference(project: Project, name: str) -> None:
    """Assert that a run is the single process's within rounding: steps, keys, tensors and cached sequences."""
    for step, expected in zip(_history(project, name), _history(project, "alone"), strict=True):
        assert step == pytest.approx(expected, abs=TOLERANCE)
    one, other = (load_file(project.root / "saves" / run / "model.safetensors") for run in (name, "alone"))
    assert one.keys() == other.keys()
    assert max(float((one[key] - other[key]).abs().max()) for key in other) < TOLERANCE
    assert cached(project, name) == pytest.approx(cached(project, "alone"), rel=CACHED_TOLERANCE, abs=CACHED_TOLERANCE)


def cached(project: Project, name: str) -> dict[tuple[str, bytes], float]:
    """Every cached value of a run by its player and sequence."""
    found = {}
    for part in (project.root / f"saves/cache_{name}").rglob("part-*"):
        arrays = load_arrays(part)
        for key, logp in zip(arrays["keys"], arrays["logps"], strict=True):
            found[part.parent.name, key.tobytes()] = float(logp)
    return found


def _history(project: Project, name: str) -> list[dict[str, float]]:
    state = json.loads((project.root / "saves" / name / "trainer_state.json").read_text())
    return [{key: value for key, value in entry.items() if not UNLIKE.search(key)} for entry in state["log_history"]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, played: tuple[Project, list[Result]]) -> Project:
    """A copy of a run of three iterations; iteration 2 is trained again in it, with reference `alone`."""
    root = tmp_path_factory.mktemp("distributed")
    shutil.copytree(played[0].root, root, dirs_exist_ok=True)
    project = Project(root, played[0].model)
    result = project.train(settings_of(project, "alone"), name="alone.yaml")
    assert result.code == 0, result.output
    return project


@pytest.fixture
def every_parallelism(request: pytest.FixtureRequest) -> None:
    """Skip what is launched only where it is asked for."""
    if not request.config.getoption("every_parallelism"):
        pytest.skip("with --every-parallelism")


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
