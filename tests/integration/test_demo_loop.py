# SPDX-License-Identifier: Apache-2.0
"""The demo's iterations 0 to 2 by the shell loop: in two processes, and with LoRA. Opt-in: it takes ten launches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llamafactory_tpaw.team.manifest import read_manifest
from tests import demo
from tests.processes import Started
from tests.runs import Project, every_launch


pytestmark = [pytest.mark.integration, every_launch]
LOOP = "for t in 0 1 2; do llamafactory-cli train {} || exit; done"


@pytest.fixture(scope="module")
def theta_0(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Project:
    """The demo with its first training, that of theta_0, done."""
    root = tmp_path_factory.mktemp("theta_0")
    project = Project(root, demo.SAVES / "sft")
    demo.prepare(root, request.config.getoption("--whole-demo"))
    result = project.command("llamafactory-cli", "train", "yaml/tiny_sft.yaml", DISABLE_VERSION_CHECK="1")
    assert result.code == 0, result.output
    return project


@pytest.fixture
def shell(theta_0: Project, tmp_path: Path) -> Callable[..., Project]:
    """Return a function that runs a line of the shell in a copy of the demo."""
    started: list[Started] = []

    def run(name: str, line: str, **environment: str) -> Project:
        project = Project(tmp_path / name, theta_0.model)
        demo.copy(theta_0.root, project.root)
        started.append(Started(project, "bash", "-c", line, DISABLE_VERSION_CHECK="1", **environment))
        assert started[-1].wait() == 0, started[-1].output
        return project

    yield run
    for each in started:
        each.stop()


def test_two_processes(shell: Callable[..., Project]) -> None:
    alone = shell("alone", LOOP.format("yaml/tiny_tpaw_iter$t.yaml"))
    halved = "yaml/tiny_tpaw_iter$t.yaml per_device_train_batch_size=16"
    ddp = shell("ddp", LOOP.format(halved), FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    for iteration in range(3):
        manifest = read_manifest(ddp.root / demo.SAVES / f"tpaw_iter{iteration}")
        assert (manifest.status, manifest.hardware["processes"]) == ("finished", 2)
        assert len(manifest.players) == iteration + 1
        assert len(ddp.triplets(f"tiny_tpaw_iter{iteration}")) == len(alone.triplets(f"tiny_tpaw_iter{iteration}"))
    # What differs in the last digits may be sampled otherwise later.
    assert ddp.triplets("tiny_tpaw_iter0") == alone.triplets("tiny_tpaw_iter0")
    one, other = (load_file(each.root / demo.SAVES / "tpaw_iter0/model.safetensors") for each in (ddp, alone))
    assert max(float((one[name] - other[name]).abs().max()) for name in other) < 1e-4


@pytest.mark.parametrize("processes", [1, 2])
def test_lora(shell: Callable[..., Project], processes: int) -> None:
    keys = "finetuning_type=lora lora_rank=8 learning_rate=1.0e-3 max_new_tokens=64 use_cpu=true"
    keys += f" per_device_train_batch_size={32 // processes} gradient_accumulation_steps=1"
    init = f"llamafactory-tpaw init --model {demo.SAVES}/sft --data tiny_train --name mine --iterations 3 {keys}"
    several = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"} if processes > 1 else {}
    project = shell("lora", f"{init} && {LOOP.format('yaml/mine_tpaw_iter$t.yaml')}", **several)
    folders = sorted((project.root / "saves").rglob("mine_tpaw_iter*/tpaw.json"))
    manifests = [read_manifest(path.parent) for path in folders]
    assert [len(manifest.players) for manifest in manifests] == [1, 2, 3]
    assert {manifest.hardware["processes"] for manifest in manifests} == {processes}
    assert len({player["fingerprint"] for player in manifests[-1].players}) == 3
    for path in folders:
        assert (path.parent / "adapter_model.safetensors").is_file()
    lineage = project.command("llamafactory-tpaw", "lineage", "--verify", str(folders[-1].parent))
    assert lineage.code == 0, lineage.output
