# SPDX-License-Identifier: Apache-2.0
"""The board is killed while a run plays: the run ends with it, and nothing of it is left."""

from __future__ import annotations

import pytest

from tests.board.browsing import Board
from tests.board.playing import Play, choose_run
from tests.board.server import Server
from tests.runs import Project


pytestmark = pytest.mark.integration


def test_killed_board_leaves_no_process(board: Board, server: Server, project: Project) -> None:
    choose_run(board, project, "killed")
    board.press("Start")
    play = Play(server, project, "killed")
    with play.held("generation"):
        assert len(server.descendants()) >= 2
        server.kill()
    assert server.leaves_nothing()
    assert not (project.root / "data" / "tpaw" / "killed_iter0.jsonl").exists(), "it went on to the end"
