# SPDX-License-Identifier: Apache-2.0
"""A run in the page, in the order of the tests: set up, abort, continue, look at it, in another language, too.

Each test goes on where the one before left the page, so that the commands behind it are started as seldom as possible.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board.words import ELEMENTS, say
from tests.board import hostile
from tests.board.browsing import RUN_TIMEOUT_MS, Board, Server, open_chromium
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
    "Cutoff length": 1024,
    "Batch size": 2,
    "Gradient accumulation": 1,
    "Output dir": "play",
    "tpaw_prompts": "additions",
    "tpaw_eta": 4,
    # Sixteen batches of one prompt, so that generation can be ended amid it, also on a machine that does much else.
    "tpaw_max_new_tokens": 900,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """The folder in which the board works; its model's name is what a page could mistake for its own."""
    project = Project(tmp_path_factory.mktemp("board"), tiny_model)
    (project.root / hostile.FOLDER).symlink_to(tiny_model)
    return project


# Not of the session: Playwright's event loop would be in the way of the tests that start one.
@pytest.fixture(scope="module")
def board(project: Project) -> Iterator[Board]:
    """The page, which the tests handle one after the other, and its `server`."""
    with open_chromium() as browser:  # first, since without one there is nothing to start the server for
        server = Server(project)
        try:
            server.wait_until(server.answers)
            yield Board(browser, server).open()
        finally:
            server.stop()


def sampled(project: Project, ending: str = "") -> list[str]:
    """The rows in the file of triplets, or those so far."""
    path = project.root / "data" / "tpaw" / f"Custom_play_iter0.jsonl{ending}"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line for line in lines if '"conversations"' in line]


def test_abort_keeps_what_is_done_and_start_continues(board: Board, project: Project) -> None:
    for name, value in FIELDS.items():
        board.fill(name, value)
    board.unfold("Extra configurations")
    board.fill("Extra arguments", json.dumps(EXTRA))
    board.press("Start")
    board.wait_for("Iteration 0", RUN_TIMEOUT_MS)
    board.server.wait_until(lambda: len(sampled(project, ".partial")) >= 2)
    # A page that is loaded now finds the run and follows it.
    board.open()
    board.wait_for("Iteration 0")
    board.page.locator("code:visible").filter(has_text=f"{hostile.FOLDER}").first.wait_for()
    hostile.assert_unharmed(board)
    assert board.server.descendants()
    board.press("Abort")
    board.wait_for("Aborted. Start continues where it stopped.", RUN_TIMEOUT_MS)
    assert board.server.leaves_nothing()
    before = sampled(project, ".partial")
    assert 2 <= len(before) < PROMPTS
    # LlamaBoard fills in what the folder was trained with.
    board.fill("Output dir", "play_iter0")
    board.until_value("tpaw_eta", "4")
    board.press("Start")
    end = board.page.get_by_text(re.compile(r"^(Finished|Failed)")).locator("visible=true").first
    end.wait_for(timeout=RUN_TIMEOUT_MS)
    assert end.inner_text() == "Finished.", board.output()
    assert board.server.leaves_nothing()
    assert (project.root / SAVES / "play_iter0" / "model.safetensors").exists()
    assert len(sampled(project)) == PROMPTS
    assert set(before) <= set(sampled(project)), "what was sampled before was sampled again"


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
    # LlamaFactory may read its user_config.yaml while it writes it, where a model's name is chosen.
    assert all("in get_model_path\n" in text for text in board.server.output.split("Traceback (most recent")[1:])
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
