# SPDX-License-Identifier: Apache-2.0
"""One board and one browser for all tests of this folder, ended with its last test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.board.browsing import Board, open_chromium
from tests.board.server import Server
from tests.runs import ADDITIONS, Project


if TYPE_CHECKING:
    from playwright.sync_api import Browser


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
    return project


@pytest.fixture(scope="package")
def server(project: Project, browser: Browser) -> Iterator[Server]:
    """The board; it asks for the browser first, since without one there is nothing to start it for."""
    started = Server(project.root)
    try:
        started.wait_until_it_answers()
        yield started
    finally:
        started.stop()


@pytest.fixture
def board(browser: Browser, server: Server) -> Iterator[Board]:
    """The page, freshly opened. No test may leave a script's error behind."""
    opened = Board(browser, server.url)
    try:
        yield opened.open()
        assert opened.errors == []
    finally:
        opened.close()
