# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory's own stages, started from the page: they work as without this package."""

from __future__ import annotations

import pytest
import yaml

from tests.board.browsing import Board
from tests.board.server import Server
from tests.runs import Project


pytestmark = pytest.mark.integration
STAGES = {"sft": ("Supervised Fine-Tuning", "additions"), "dpo": ("DPO", "pairs")}


@pytest.mark.parametrize("stage", STAGES)
def test_own_stage_trains(board: Board, server: Server, project: Project, stage: str) -> None:
    label, dataset = STAGES[stage]
    for name, value in {
        "Model name": "Custom",
        "Model path": str(project.model),
        "Finetuning method": "full",
        "Chat template": "qwen",
        "Stage": label,
        "Epochs": "1.0",
        "Compute type": "fp32",
        "Dataset": [dataset],
        "Output dir": f"from_page_{stage}",
    }.items():
        board.fill(name, value)
    board.press("Preview command")
    board.wait_for(f"--stage {stage}")
    assert "tpaw" not in board.page.locator("code:visible").inner_text()

    board.press("Start")
    assert board.wait_for_end().startswith("Finished.")
    folder = project.root / "saves" / "Custom" / "full" / f"from_page_{stage}"
    assert (folder / "model.safetensors").is_file()
    settings = yaml.safe_load((folder / "training_args.yaml").read_text())
    assert settings["stage"] == stage
    assert settings["trust_remote_code"] is True, "what LlamaBoard writes for its own stages was changed"
    assert [key for key in settings if key.startswith("tpaw")] == []
    assert server.leaves_nothing()
