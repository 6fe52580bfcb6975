# SPDX-License-Identifier: Apache-2.0
"""One board and one browser for all tests of this folder, ended with its last test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest

from tests import demo
from tests.board import hostile
from tests.board.browsing import Board, open_chromium
from tests.board.playing import Play, choose_run, train_own_stage, write_run_file
from tests.board.server import Server
from tests.processes import Started
from tests.runs import Project


if TYPE_CHECKING:
    from playwright.sync_api import Browser


# Not of the session: Playwright's event loop would be in the way of the tests that start one.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with open_chromium() as opened:
        yield opened


@pytest.fixture(scope="package")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, request: pytest.FixtureRequest) -> Project:
    """The folder in which the board works: small runs of its own, and the demo before its first training."""
    project = Project(tmp_path_factory.mktemp("board"), tiny_model)
    hostile_model = project.root / hostile.FOLDER
    hostile_model.symlink_to(tiny_model)
    for run, model in (dict.fromkeys(("play", "refused", "killed"), tiny_model) | {"halted": hostile_model}).items():
        write_run_file(project, run, 0, source=Project(tmp_path_factory.mktemp("elsewhere"), model))
    demo.prepare(project.root, request.config.getoption("--whole-demo"))
    return project


@pytest.fixture(scope="package")
def commanded(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, browser: Browser
) -> Iterator[tuple[Project, Started]]:
    """Iteration 0 of the run `play` by the command line, in a folder of its own; it runs beside the board."""
    project = Project(tmp_path_factory.mktemp("commanded"), tiny_model)
    command = Started(project, "llamafactory-cli", "train", write_run_file(project, "play", 0))
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
def theta_0(browser: Browser, server: Server, project: Project) -> Path:
    """The demo's theta_0, trained by LlamaFactory's stage sft from the page."""
    board = Board(browser, server.url).open()
    train_own_stage(board, "sft", demo.SFT)
    board.close()
    return project.root / demo.SAVES / "sft"


@pytest.fixture(scope="package")
def demo_commanded(
    tmp_path_factory: pytest.TempPathFactory, project: Project, theta_0: Path
) -> Iterator[tuple[Project, Started]]:
    """The demo's iterations 0 to 2 by the command line, in a folder of their own; it runs beside the board."""
    elsewhere = Project(tmp_path_factory.mktemp("demo"), project.model)
    demo.copy(project.root, elsewhere.root)
    command = Started(elsewhere, "llamafactory-tpaw", "run", *demo.RUN_FILES)
    yield elsewhere, command
    command.stop()


@pytest.fixture(scope="package")
def played_in_page(
    browser: Browser, server: Server, project: Project, demo_commanded: tuple[Project, Started]
) -> Project:
    """The demo's iterations 0 to 2, started in the page; each phase is held until the page shows it."""
    board = Board(browser, server.url).open()
    choose_run(board, project, "Tiny/tpaw")
    assert [board.value(name) for name in ("tpaw_iteration", "Output dir")] == ["0", str(demo.SAVES / "tpaw_iter0")]
    assert board.value("tpaw_players") == ["θ_0 · sft"]
    board.picture("play-0-filled-in")
    board.fill("tpaw_iterations", 3)
    board.press("Start")
    play = Play(server, project, "tpaw", folder=demo.SAVES)
    for phase, label in {"generation": "Generation", "scoring": "Scoring θ_0", "training": "Training"}.items():
        with play.held(phase):
            board.wait_for(re.compile(f"Iteration 0 .*{label}"))
            board.picture(f"play-1-{phase}")
    with play.held("training", playing=1):
        board.wait_for(re.compile("Iteration 1 .*Training"))
        board.open()
        board.wait_for(re.compile("Iteration 1 .*Training"))
        board.field("tpaw_players").get_by_text("θ_0 · sft").wait_for()
        board.picture("play-2-reloaded")
    assert board.wait_for_end().startswith("Finished.")
    assert server.leaves_nothing()
    link = board.page.locator("#tpaw_report a")
    link.wait_for()
    board.picture("play-3-finished")
    report = board.context.request.get(urljoin(server.url, link.get_attribute("href")))
    assert report.ok
    assert "tpaw_iter2" in report.text()
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
