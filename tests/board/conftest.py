# SPDX-License-Identifier: Apache-2.0
"""One board and one page in a browser for all tests of this folder, ended with its last test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.board import hostile
from tests.board.browsing import Board, open_chromium
from tests.board.server import Server
from tests.runs import Project


@pytest.fixture(scope="package")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """The folder in which the board works; its model's name is what a page could mistake for its own."""
    project = Project(tmp_path_factory.mktemp("board"), tiny_model)
    (project.root / hostile.FOLDER).symlink_to(tiny_model)
    return project


# Not of the session: Playwright's event loop would be in the way of the tests that start one.
@pytest.fixture(scope="package")
def board(project: Project) -> Iterator[Board]:
    """The page, which the tests handle one after the other, and its `server`."""
    with open_chromium() as browser:  # first, since without one there is nothing to start the server for
        server = Server(project)
        try:
            server.wait_until(server.answers)
            yield Board(browser, server).open()
        finally:
            server.stop()
