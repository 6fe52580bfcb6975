# SPDX-License-Identifier: Apache-2.0
"""LlamaFactory's own stages, started from the page: they work as without this package."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests import demo
from tests.board.browsing import Board
from tests.board.playing import train_own_stage
from tests.board.server import Server
from tests.runs import Project


pytestmark = pytest.mark.integration


def test_sft_of_the_demo(theta_0: Path) -> None:
    assert_trained(theta_0, "sft")


def test_dpo_of_the_demo(board: Board, server: Server, played_in_page: Project) -> None:
    """On the triplets of iteration 0, which are an ordinary set of pairs."""
    folder = demo.SAVES / "dpo"
    train_own_stage(
        board,
        "dpo",
        {
            **demo.SFT,
            "Model path": str(demo.SAVES / "sft"),
            "Epochs": 1.0,
            "Dataset": ["tiny_tpaw_iter0"],
            "Output dir": str(folder),
        },
    )
    assert_trained(played_in_page.root / folder, "dpo")
    assert server.leaves_nothing()


def assert_trained(folder: Path, stage: str) -> None:
    assert (folder / "model.safetensors").is_file()
    settings = yaml.safe_load((folder / "training_args.yaml").read_text())
    assert settings["stage"] == stage
    assert settings["trust_remote_code"] is True, "what LlamaBoard writes for its own stages was changed"
    assert [key for key in settings if key.startswith("tpaw")] == []
