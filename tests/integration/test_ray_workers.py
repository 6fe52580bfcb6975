# SPDX-License-Identifier: Apache-2.0
"""Two of LlamaFactory's Ray workers train an iteration on a small cluster on this machine.

LlamaFactory itself asks the cluster for ten CPUs a worker and as many workers as there are CPUs, which no machine
without accelerators has; the workers are its own, the cluster is ours. Opt-in: it takes a launch of Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.processes import Started
from tests.runs import Project, Result


pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not os.environ.get("LLAMAFACTORY_TPAW_ALL_LAUNCHES"), reason="set LLAMAFACTORY_TPAW_ALL_LAUNCHES=1"
    ),
]
DRIVER = """
import os, socket, sys
os.environ["USE_RAY"] = "1"
import ray
from llamafactory.train.tuner import Worker
from llamafactory_tpaw.iteration.launcher import prepare
from llamafactory_tpaw.plugin.given import read_given

with prepare(sys.argv[1:2]):
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
    config = {"args": read_given(sys.argv[1:2]), "callbacks": []}
    ray.get([worker._training_function.remote(config=config) for worker in workers])
    ray.shutdown()
"""


def test_two_workers_train(tmp_path: Path, played: tuple[Project, list[Result]], tiny_model: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    project = Project(tmp_path, tiny_model)
    shutil.copytree(played[0].root / "data" / "tpaw", tmp_path / "data" / "tpaw")
    project.write("iter0.yaml", project.settings(0, per_device_train_batch_size=2))
    (tmp_path / "driver.py").write_text(DRIVER)
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        patient = {"RAY_raylet_start_wait_time_s": "300", "RAY_USAGE_STATS_ENABLED": "0"}
        command = Started(project, sys.executable, "driver.py", "iter0.yaml", folder, **patient)
        try:
            assert command.wait() == 0, command.output
        finally:
            command.stop()
            command.leaves_nothing()
    manifest = json.loads((tmp_path / "saves" / "play_iter0" / "tpaw.json").read_text())
    assert (manifest["status"], manifest["hardware"]["processes"]) == ("finished", 2)
    assert [entry["step"] for entry in project.history("play_iter0")] == [1, 2, 3, 4]
