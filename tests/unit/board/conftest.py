# SPDX-License-Identifier: Apache-2.0
"""LlamaBoard's own page, built once in this process, and driven without a browser; and runs on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.hook import start
from tests.unit.board.page import DrivenPage, build_page


start.install()


@pytest.fixture(scope="session")
def built_page(tmp_path_factory: pytest.TempPathFactory) -> DrivenPage:
    """The page; use `page`."""
    pytest.importorskip("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("board"))
        return build_page()


@pytest.fixture
def page(built_page: DrivenPage, elsewhere: Path) -> Iterator[DrivenPage]:
    """The page in a folder with an SFT set and a ranking set, its fields as a user fills them in for a new run."""
    Path("data").mkdir()
    entries = {"sums": {"file_name": "sums.jsonl"}, "pairs": {"file_name": "pairs.json", "ranking": True}}
    Path("data/dataset_info.json").write_text(json.dumps(entries))
    built_page.reset()
    built_page.show(
        top__lang="en",
        top__model_name="Custom",
        top__model_path="models/sft",
        top__finetuning_type="full",
        top__template="qwen",
        training_stage="TPAW",
        dataset=[],
        output_dir="play",
        compute_type="fp32",
        tpaw_prompts="sums",
    )
    yield built_page
    built_page.reset()


def save_iteration(number: int, status: str = "finished", run: str = "play", log: list[dict[str, Any]] = ()) -> Path:
    """Write what a training leaves in an output folder, as far as the page reads it."""
    folder = Path(f"saves/Custom/full/{run}_iter{number}")
    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {"schema": 1, "iteration": number, "status": status, "objective": "tpaw"}
    theta = {"name": f"theta_{number}", "path": "sft", "fingerprint": "f"}
    manifest |= {
        "policy": theta,
        "result": theta,
        "players": [],
        "triplets": [],
        "tokenizer": "",
        "template": {},
        "settings": {},
    }
    (folder / "tpaw.json").write_text(json.dumps(manifest))
    (folder / "trainer_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return folder
