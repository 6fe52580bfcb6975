# SPDX-License-Identifier: Apache-2.0
"""Two of LlamaFactory's Ray workers on a small cluster on this machine: the loss, rewards and weights of one process.

LlamaFactory itself asks the cluster for ten CPUs a worker and as many workers as there are CPUs, which no machine
without accelerators has; the workers are its own, the cluster is ours.
"""

from __future__ import annotations

import sys
import tempfile

import pytest

from llamafactory_tpaw.team.manifest import read_manifest
from tests.distributed.launches import PROCESSES, WHOLE_BATCH, hold_to_reference, settings_of
from tests.processes import Started
from tests.runs import Project


pytestmark = pytest.mark.integration
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
def test_two_workers_train_as_one_process(project: Project) -> None:
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
