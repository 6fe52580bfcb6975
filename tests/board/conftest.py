# SPDX-License-Identifier: Apache-2.0
"""One board and one browser for all tests of this folder, ended with its last test."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest

from tests.board.browsing import Board, open_chromium
from tests.board.playing import Play, choose_run, write_run_file
from tests.board.server import Server
from tests.processes import Started
from tests.runs import ADDITIONS, Project


if TYPE_CHECKING:
    from playwright.sync_api import Browser


ROOT = Path(__file__).resolve().parents[2]


# Not of the session: Playwright's event loop would be in the way of the tests that start one.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with open_chromium() as opened:
        yield opened


@pytest.fixture(scope="package")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """The folder in which the board works."""
    project = Project(tmp_path_factory.mktemp("board"), tiny_model)
    pairs = [
        {"instruction": row["question"], "input": "", "chosen": row["answer"], "rejected": "I do not know."}
        for row in ADDITIONS
    ]
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    project.add_dataset("pairs", pairs, ranking=True, columns=columns)
    for run in ("play", "halted", "refused", "killed"):
        write_run_file(project, run, 0, source=Project(tmp_path_factory.mktemp("elsewhere"), tiny_model))
    for path in (ROOT / "yaml").glob("tiny_tpaw_iter*.yaml"):
        shutil.copy(path, project.root / "yaml")
    entries = json.loads((ROOT / "data" / "dataset_info.json").read_text())
    for name in filter(re.compile("tiny_").match, entries):
        project.add_entry(name, entries[name])
    return project


@pytest.fixture(scope="package")
def commanded(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, browser: Browser
) -> Iterator[tuple[Project, Started]]:
    """The run `play` by the command line, in a folder of its own; it runs beside the board."""
    project = Project(tmp_path_factory.mktemp("commanded"), tiny_model)
    names = [write_run_file(project, "play", iteration) for iteration in range(3)]
    command = Started(project, "llamafactory-tpaw", "run", *names)
    yield project, command
    command.stop()


@pytest.fixture(scope="package")
def server(project: Project, browser: Browser) -> Iterator[Server]:
    """The board; it asks for the browser first, since without one there is nothing to start it for."""
    started = Server(project.root)
    try:
        started.wait_until_it_answers()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="package")
def played_in_page(browser: Browser, server: Server, project: Project, commanded: tuple[Project, Started]) -> Project:
    """The run `play`, started in the page; each phase is held until the page shows it, and once it is reloaded."""
    board = Board(browser, server.url).open()
    choose_run(board, project, "play")
    assert [board.value(name) for name in ("tpaw_iteration", "Output dir")] == ["0", "play_iter0"]
    assert board.value("tpaw_players") == [f"θ_0 · {project.model}"]
    board.picture("play-0-filled-in")
    board.fill("tpaw_iterations", 3)
    board.press("Start")
    play = Play(server, project, "play")
    for phase, label in {"generation": "Generation", "scoring": "Scoring θ_0", "training": "Training"}.items():
        with play.held(phase):
            board.wait_for(re.compile(f"Iteration 0 .*{label}"))
            board.picture(f"play-1-{phase}")
    with play.held("training", playing=1):
        board.wait_for(re.compile("Iteration 1 .*Training"))
        board.open()
        board.wait_for(re.compile("Iteration 1 .*Training"))
        board.picture("play-2-reloaded")
    assert board.wait_for_end().startswith("Finished.")
    assert server.leaves_nothing()
    link = board.page.locator("#tpaw_report a")
    link.wait_for()
    board.picture("play-3-finished")
    report = board.context.request.get(urljoin(server.url, link.get_attribute("href")))
    assert report.ok
    assert "play_iter2" in report.text()
    assert board.errors == []
    assert "Traceback" not in server.output
    board.close()
    return project


@pytest.fixture
def board(browser: Browser, server: Server) -> Iterator[Board]:
    """The page, freshly opened. No test may leave an error behind, of the page's script or of the server."""
    server.revive()
    opened, said_before = Board(browser, server.url), len(server.output)
    try:
        yield opened.open()
        assert opened.errors == []
        assert "Traceback" not in server.output[said_before:]
    finally:
        opened.close()
