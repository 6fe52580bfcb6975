# SPDX-License-Identifier: Apache-2.0
"""One board, one browser and one page for all tests of this folder, ended with its last test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.board import hostile
from tests.board.browsing import Board, open_chromium
from tests.board.server import Server
from tests.runs import Project


if TYPE_CHECKING:
    from playwright.sync_api import Browser


# Not of the session: Playwright's event loop would be in the way of the tests that start one.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with open_chromium() as opened:
        yield opened


@pytest.fixture(scope="package")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """The folder in which the board works; its model's name is what a page could mistake for its own."""
    project = Project(tmp_path_factory.mktemp("board"), tiny_model)
    (project.root / hostile.FOLDER).symlink_to(tiny_model)
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


@pytest.fixture(scope="package")
def board(browser: Browser, server: Server) -> Iterator[Board]:
    """The page, which the tests handle one after the other."""
    opened = Board(browser, server.url).open()
    yield opened
    opened.close()
