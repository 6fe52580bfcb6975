# SPDX-License-Identifier: Apache-2.0
"""A run in the page, in the order of the tests: set up, abort, continue, look at it, in another language, too.

Each test goes on where the one before left the page, so that the commands behind it are started as seldom as possible.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_tpaw.board.words import ELEMENTS, say
from tests.board import hostile
from tests.board.browsing import RUN_TIMEOUT_MS, Board
from tests.runs import Project


pytestmark = pytest.mark.integration
SAVES = Path("saves/Custom/full")
PROMPTS = 16
EXTRA = {"use_cpu": True, "logging_steps": 1, "tpaw_generate_batch_tokens": 1}
FIELDS: dict[str, Any] = {
    "Model name": "Custom",
    "Model path": hostile.FOLDER,
    "Finetuning method": "full",
    "Chat template": "qwen",
    "Stage": "TPAW",
    "Learning rate": "1e-3",
    "Epochs": "1.0",
    "Compute type": "fp32",
    "Cutoff length": 512,
    "Batch size": 2,
    "Gradient accumulation": 1,
    "Output dir": "play",
    # Sixteen batches of one prompt, so that generation can be ended amid it.
    "tpaw_max_new_tokens": 400,
}


def test_wrong_fields_start_nothing_and_preview_shows_what_is_played(board: Board, project: Project) -> None:
    for name, value in FIELDS.items():
        board.fill(name, value)
    board.unfold("Extra configurations")
    board.fill("Extra arguments", json.dumps(EXTRA))
    board.fill("tpaw_prompts", hostile.TEXTS["image"])
    board.fill("tpaw_eta", 0.5)
    board.press("Start")
    board.wait_for(re.compile("is 0.5, but must be >= 1"))
    assert board.server.descendants() == []
    assert not (project.root / "saves").exists()
    board.fill("tpaw_eta", 4)
    board.fill("tpaw_prompts", "additions")
    board.press("Preview command")
    board.wait_for("--stage tpaw")
    for word in ("--tpaw_eta 4", "--dataset Custom_play_iter0", f"--output_dir {SAVES}/play_iter0"):
        assert word in board.output()


def sampled(project: Project, ending: str = ".partial") -> list[str]:
    """The rows in the file of triplets, or those so far."""
    path = project.root / "data" / "tpaw" / f"Custom_play_iter0.jsonl{ending}"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line for line in lines if '"conversations"' in line]


def test_abort_keeps_what_is_done(board: Board, project: Project) -> None:
    board.press("Start")
    board.wait_for("Iteration 0", RUN_TIMEOUT_MS)
    board.server.wait_until(lambda: len(sampled(project)) >= 2)
    # A page that is loaded now finds the run and follows it.
    board.open()
    board.wait_for("Iteration 0")
    board.page.locator("code:visible").filter(has_text=f"{hostile.FOLDER}").first.wait_for()
    hostile.assert_unharmed(board)
    assert board.server.descendants()
    board.press("Abort")
    board.wait_for("Aborted. Start continues where it stopped.", RUN_TIMEOUT_MS)
    assert board.server.leaves_nothing()
    assert 2 <= len(sampled(project)) < PROMPTS


def test_start_continues(board: Board, project: Project) -> None:
    before = sampled(project)
    # LlamaBoard fills in what the folder was trained with.
    board.fill("Output dir", "play_iter0")
    board.until_value("tpaw_eta", "4")
    board.until_value("Chat template", "qwen")
    assert board.value("tpaw_iteration") == "0"
    board.press("Start")
    end = board.page.get_by_text(re.compile(r"^(Finished|Failed)")).locator("visible=true").first
    end.wait_for(timeout=RUN_TIMEOUT_MS)
    assert end.inner_text() == "Finished.", board.output()
    assert board.server.leaves_nothing()
    folder = project.root / SAVES / "play_iter0"
    assert json.loads((folder / "tpaw.json").read_text())["status"] == "finished"
    rows = sampled(project, "")
    assert len(rows) == PROMPTS
    assert set(before) <= set(rows), "what was sampled before was sampled again"
    settings = yaml.safe_load((folder / "training_args.yaml").read_text())
    assert (settings["tpaw_eta"], settings.get("trust_remote_code")) == (4, None)


def test_results_in_another_language_show_texts_as_they_are(board: Board, project: Project) -> None:
    rows = project.triplets("Custom_play_iter0")[: len(hostile.TEXTS)]
    for row, text in zip(rows, hostile.TEXTS.values(), strict=True):
        row["conversations"][0]["value"] = row["chosen"]["value"] = row["rejected"]["value"] = text
    (project.root / "data/tpaw/hostile_iter0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    board.choose_language("zh")
    board.page.locator("#tpaw_prompts").filter(has_text=ELEMENTS["tpaw_prompts"]["zh"]["info"]).wait_for()
    board.unfold(ELEMENTS["tpaw_results_tab"]["zh"]["label"])
    board.until_value("tpaw_run", "play")
    board.page.locator("#tpaw_accuracy table").filter(has_text=say("status_finished", "zh")).wait_for()
    board.page.locator("#tpaw_plot_loss canvas, #tpaw_plot_loss svg.marks").first.wait_for()
    assert board.page.locator("[id^='tpaw_plot_'] :is(canvas, svg.marks)").count() == 5
    board.wait_for(say("browser_generated", "zh", theta="θ_0"))
    board.fill("tpaw_round", "hostile_iter0.jsonl")
    for kind in ("prompt", "target", "generated"):
        cells = board.page.locator(f".tpaw-{kind} .tpaw-text")
        cells.filter(has_text=hostile.TEXTS["style"]).first.wait_for()
        assert cells.all_text_contents() == list(hostile.TEXTS.values())
    hostile.assert_unharmed(board)
    # Gradio's own page asks for a font and a script; nothing else is asked for.
    assert {url.split("/")[2] for url in board.asked_outside} <= {"fonts.googleapis.com", "cdnjs.cloudflare.com"}
    assert "Traceback" not in board.server.output
    assert board.errors == []


def test_killed_board_leaves_no_process(board: Board, project: Project) -> None:
    board.choose_language("en")
    board.wait_for("TPAW results")
    board.fill("Output dir", "play")
    board.fill("Output dir", "play_iter0")
    board.until_value("tpaw_iteration", "1")
    board.press("Start")
    board.server.wait_until(lambda: len(board.server.descendants()) >= 2)
    board.server.process.kill()
    assert board.server.leaves_nothing()
    assert not (project.root / SAVES / "play_iter1" / "model.safetensors").exists()
