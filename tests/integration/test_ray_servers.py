# SPDX-License-Identifier: Apache-2.0
"""Servers that Ray places on the nodes of a cluster, as `docs/examples/ray_servers.py` does; both nodes are here.

Opt-in: skipped where Ray is not installed (`pip install -e '.[ray,openai]'`).
"""

from __future__ import annotations

import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.source import find_entry
from tests import encoders, processes, tiny
from tests.runs import Project


pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "ray_servers.py"
TURNS = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
SUMS = [
    {"question": f"Add {first} and {second}.", "answer": f"{first + second}."}
    for first in range(10)
    for second in range(10)
]
GREEDY = {"temperature": 0.0, "cutoff_len": 160, "max_new_tokens": 32, "tpaw_prompts": "sums"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A run of a hundred prompts, with a model that answers and stops."""
    model = tiny.save_model(tmp_path / "theta_0")
    texts = [f"{TURNS}<|im_start|>assistant\n{{}}<|im_end|>\n".format(*row.values()) for row in SUMS]
    tiny.teach(model, texts, steps=110)
    project = Project(tmp_path, model)
    project.add_dataset("sums", SUMS, columns={"prompt": "question", "response": "answer"})
    return project


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A Ray cluster of two nodes of one CPU each, to which this process is connected."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray,openai]'")
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package)
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            cluster.add_node(**node)
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            ray.init(address=cluster.address, namespace="tpaw", log_to_driver=False)
            yield ray
        finally:
            ray.shutdown()
            cluster.shutdown()


def test_rows_are_those_of_the_hf_engine_though_a_server_is_killed(cluster: Any, project: Project) -> None:
    name = project.write("run.yaml", project.settings(0, run="ray", tpaw_engine_concurrency=1, **GREEDY))
    programs = Path(sys.executable).parent
    serve = f"env LLAMAFACTORY_TPAW=0 HF_HOME={project.root} {programs / 'transformers'} serve {project.model}"
    started = processes.Started(
        project,
        *(
            sys.executable,
            str(EXAMPLE),
            "--servers",
            "2",
            "--serve",
            serve + " --device cpu --host {host} --port {port}",
        ),
        *("--", str(programs / "llamafactory-tpaw"), "generate", name),
    )
    partial = project.root / "data" / "tpaw" / "ray_iter0.jsonl.partial"
    started.wait_until(lambda: partial.is_file() and partial.read_bytes().count(b"\n") > 1)
    cluster.kill(cluster.get_actor("server-0"))
    assert started.wait() == 0, started.output[-4000:]
    assert "the server is down and is waited for" in started.output
    urls, nodes = zip(*re.findall(r"^(http\S+) on node (\w+)", started.output, re.MULTILINE), strict=True)
    assert len(set(nodes)) == 2
    for url in urls:  # Both are gone.
        with socket.socket() as asked:
            assert asked.connect_ex((urlsplit(url).hostname, urlsplit(url).port)) != 0
    assert rows(project, "ray_iter0") == rows_of_hf(project)


def rows_of_hf(project: Project) -> list[Any]:
    """The same round by the `hf` engine, in this process."""
    from llamafactory_tpaw.generation.local import generate_round

    run = encoders.parse(project, run="hf", **GREEDY)
    generate_round(run, Round(0, find_entry("hf_iter0", run.data.dataset_dir)))
    return rows(project, "hf_iter0")


def rows(project: Project, name: str) -> list[Any]:
    """What two engines must agree on."""
    return [(row["id"], row["rejected"], row["finish_reason"]) for row in project.triplets(name)]
