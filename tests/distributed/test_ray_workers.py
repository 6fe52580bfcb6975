# SPDX-License-Identifier: Apache-2.0
"""A small Ray cluster on this machine: servers for generation, and two of LlamaFactory's Ray workers as one process.

LlamaFactory itself asks the cluster for ten CPUs a worker and as many workers as there are CPUs, which no machine
without accelerators has; the workers are its own, the cluster is ours.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

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

HEALTHY = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer((sys.argv[1], int(sys.argv[2])), Answer).serve_forever()
"""
ASK = """
import sys, urllib.request
print(*sys.argv[1:])
urls = sys.argv[2].partition("=")[2].split(",")
sys.exit(sum(urllib.request.urlopen(url.removesuffix("/v1") + "/health").status == 200 for url in urls))
"""
SERVERS = Path(__file__).resolve().parents[2] / "docs" / "examples" / "ray_servers.py"


@pytest.mark.usefixtures("every_parallelism")
def test_the_example_serves_a_command_on_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    (tmp_path / "healthy.py").write_text(HEALTHY)
    (tmp_path / "ask.py").write_text(ASK)
    serve = f"{sys.executable} {tmp_path / 'healthy.py'} {{host}} {{port}}"
    patient = os.environ | {"RAY_raylet_start_wait_time_s": "300", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = str(Path(sys.executable).with_name("ray"))
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = shlex.split(f"{ray} start --head --num-cpus 2 --include-dashboard=false --temp-dir {folder}")
        subprocess.run(head, env=patient, check=True)
        try:
            command = [sys.executable, str(SERVERS), "--servers", "2", "--serve", serve, "--startup", "300", "--"]
            command += [sys.executable, str(tmp_path / "ask.py")]
            found = subprocess.run(command, env=patient, capture_output=True, text=True, check=False, timeout=400)
        finally:
            subprocess.run([ray, "stop", "--force"], check=False)
    assert found.returncode == 2, found.stdout + found.stderr
    given = found.stdout.splitlines()[-1].split()
    assert given[0] == "tpaw_engine=openai"
    urls = given[1].partition("=")[2].split(",")
    assert len(set(urls)) == 2
    for url in urls:  # they have ended
        with pytest.raises(OSError):
            urllib.request.urlopen(url, timeout=5)


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
