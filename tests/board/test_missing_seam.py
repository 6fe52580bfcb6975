# SPDX-License-Identifier: Apache-2.0
"""A LlamaBoard that is built otherwise: the page opens without the tab of self-play, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.board.browsing import Board
from tests.board.server import Server
from tests.runs import Project


if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.integration
# The interpreter runs it at its start: a method of LlamaBoard's runner takes one more argument than it does now.
SITECUSTOMIZE = """
import importlib.abc, importlib.machinery, sys

class Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader
    def create_module(self, spec):
        return self.loader.create_module(spec)
    def exec_module(self, module):
        self.loader.exec_module(module)
        original = module.Runner._preview
        def _preview(self, data, do_train, verbose=False):
            yield from original(self, data, do_train)
        module.Runner._preview = _preview

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "llamafactory.webui.runner":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = Loader(spec.loader)
        return spec

# Behind the import hook of this package, which then finds what this one loads.
sys.meta_path.insert(1, Finder())
"""


@pytest.fixture
def other_board(browser: Browser, tmp_path: Path, tiny_model: Path) -> Iterator[tuple[Board, Server]]:
    project = Project(tmp_path / "project", tiny_model)
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    server = Server(project.root, PYTHONPATH=str(tmp_path))
    try:
        server.wait_until_it_answers()
        board = Board(browser, server.url)
        yield board.open(), server
        board.close()
    finally:
        server.stop()


def test_page_opens_without_the_tab_and_says_so(other_board: tuple[Board, Server]) -> None:
    board, server = other_board
    said = board.page.locator("#tpaw_missing")
    said.wait_for()
    for text in (said.inner_text(), server.output):
        assert "`board_runner`" in text or "board_runner" in text
        assert "Runner._preview" in text
    assert board.page.locator("#tpaw_tab, #tpaw_eta").count() == 0
    assert board.errors == []
    board.picture("missing-seam")

    for name, value in {"Model name": "Custom", "Model path": "theta", "Dataset": ["additions"]}.items():
        board.fill(name, value)
    board.press("Preview command")
    board.wait_for("--stage sft")
