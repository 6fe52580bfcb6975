# SPDX-License-Identifier: Apache-2.0
"""Self-play from the page: three iterations as on the command line, and one that is aborted in each of its phases."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests import demo
from tests.board import hostile
from tests.board.browsing import Board
from tests.board.playing import SAVES, STEPS, Play, choose_run, rows, weights
from tests.board.server import Server
from tests.processes import Started
from tests.runs import Project


pytestmark = pytest.mark.integration


def test_iterations_are_those_of_the_command_line(
    played_in_page: Project, demo_commanded: tuple[Project, Started]
) -> None:
    reference, command = demo_commanded
    assert command.wait() == 0, command.output
    for iteration in range(3):
        assert rows(played_in_page, "tiny_tpaw", iteration) == rows(reference, "tiny_tpaw", iteration)
        page, line = (weights(project, "tpaw", iteration, demo.SAVES) for project in (played_in_page, reference))
        assert page == line


def test_written_run_files_trust_no_remote_code(played_in_page: Project) -> None:
    for iteration in range(3):
        path = played_in_page.root / demo.SAVES / f"tpaw_iter{iteration}" / "training_args.yaml"
        assert not yaml.safe_load(path.read_text()).get("trust_remote_code")


def test_abort_in_each_phase_and_start_continues(
    board: Board, server: Server, project: Project, commanded: tuple[Project, Started]
) -> None:
    choose_run(board, project, "halted")
    play, sampled = Play(server, project, "halted"), 0
    for phase, label in (("generation", "Generation"), ("scoring", "Scoring θ_0"), ("training", "Training")):
        play.file.unlink(missing_ok=True)
        board.press("Start")
        if phase == "scoring":
            with play.held("generation") as progress:
                assert progress["done"] == sampled, "rows were sampled twice"
        with play.held(phase, least=0 if phase == "scoring" else 2):
            board.wait_for(re.compile(f"Iteration 0.*{label}"))
            if phase != "training":  # which prints what is shown of the log by then
                board.page.locator("code:visible").filter(has_text=f"{hostile.FOLDER}/").first.wait_for()
            hostile.assert_unharmed(board)
            board.press("Abort")
            board.wait_for("Aborting")
            board.picture(f"abort-{phase}")
        board.wait_for("Aborted. Start continues where it stopped.")
        assert server.leaves_nothing()
        board.picture(f"aborted-{phase}")
        if phase == "generation":
            partial = (project.root / "data/tpaw/halted_iter0.jsonl.partial").read_text()
            sampled = partial.count('"conversations"')
            assert 2 <= sampled < 16
    scores, checkpoint = cached(project), newest_checkpoint(project)
    assert 0 < checkpoint < STEPS
    board.press("Start")
    assert board.wait_for_end().startswith("Finished.")
    assert server.leaves_nothing()
    assert cached(project) == scores, "players were scored twice"

    reference, command = commanded
    assert command.wait() == 0, command.output
    assert rows(project, "halted", 0) == rows(reference, "play", 0)
    assert weights(project, "halted", 0) == weights(reference, "play", 0)
    assert [entry["step"] for entry in project.history("Custom/full/halted_iter0")] == list(range(1, STEPS + 1))


def cached(project: Project) -> dict[Path, int]:
    """The cached log-probabilities, and when each file was written."""
    paths = (project.root / "saves" / ".cache_halted").rglob("*.safetensors")
    return {path: path.stat().st_mtime_ns for path in paths}


def newest_checkpoint(project: Project) -> int:
    folders = (project.root / SAVES / "halted_iter0").glob("checkpoint-*")
    return max(int(folder.name.partition("-")[2]) for folder in folders)
