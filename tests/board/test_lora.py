# SPDX-License-Identifier: Apache-2.0
"""A new run with LoRA, set up in the page alone. Opt-in: two more iterations."""

from __future__ import annotations

import pytest

from llamafactory_tpaw.team.manifest import read_manifest
from tests.board.browsing import Board
from tests.board.server import Server
from tests.runs import Project, every_launch


pytestmark = [pytest.mark.integration, every_launch]


def test_new_run_with_adapters(board: Board, server: Server, project: Project) -> None:
    for name, value in {
        "Model name": "Custom",
        "Model path": str(project.model),
        "Finetuning method": "lora",
        "Chat template": "qwen",
        "Stage": "TPAW",
        "Compute type": "fp32",
        "Cutoff length": 256,
        "Learning rate": "1e-2",
        "Epochs": "1.0",
        "Batch size": 4,
        "Gradient accumulation": 1,
        "tpaw_prompts": "additions",
        "tpaw_max_new_tokens": 8,
        "tpaw_run": "adapters",
    }.items():
        board.fill(name, value)
    board.wait_for("Iteration 0 of adapters filled in")
    assert board.value("tpaw_players") == [f"θ_0 · {project.model}"]
    board.fill("tpaw_iterations", 2)
    board.press("Start")
    assert board.wait_for_end().startswith("Finished.")
    assert server.leaves_nothing()
    board.picture("lora-finished")
    folders = [project.root / "saves/Custom/lora" / f"adapters_iter{iteration}" for iteration in range(2)]
    assert all((folder / "adapter_model.safetensors").is_file() for folder in folders)
    manifest = read_manifest(folders[1])
    assert manifest.players[1]["fingerprint"] == read_manifest(folders[0]).result["fingerprint"]
    assert [len(player.get("below", [])) for player in manifest.players] == [0, 1]

    board.fill("tpaw_run", "adapters")
    board.fill("tpaw_iteration", 2)
    board.wait_for("Iteration 2 of adapters filled in")
    assert [player.split(" · ")[0] for player in board.value("tpaw_players")] == ["θ_0", "θ_1", "θ_2"]
