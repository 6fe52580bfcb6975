# SPDX-License-Identifier: Apache-2.0
"""Self-play from the page: three iterations as on the command line, and one that is aborted in each of its phases."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from tests.board.browsing import Board
from tests.board.playing import SAVES, Play, choose_run, rows, weights
from tests.board.server import Server
from tests.processes import Started
from tests.runs import Project


pytestmark = pytest.mark.integration


def test_iterations_are_those_of_the_command_line(played_in_page: Project, commanded: tuple[Project, Started]) -> None:
    reference, command = commanded
    assert command.wait() == 0, command.output
    for iteration in range(3):
        assert rows(played_in_page, "play", iteration) == rows(reference, "play", iteration)
        assert weights(played_in_page, "play", iteration) == weights(reference, "play", iteration)


def test_written_run_files_trust_no_remote_code(played_in_page: Project) -> None:
    for iteration in range(3):
        path = played_in_page.root / SAVES / f"play_iter{iteration}" / "training_args.yaml"
        assert not yaml.safe_load(path.read_text()).get("trust_remote_code")


def test_abort_in_each_phase_and_start_continues(
    board: Board, server: Server, project: Project, commanded: tuple[Project, Started]
) -> None:
    choose_run(board, project, "halted")
    play = Play(server, project, "halted")
    kept: dict[str, bytes] = {}
    for phase, label in (("generation", "Generation"), ("scoring", "Scoring θ_0"), ("training", "Training")):
        board.press("Start")
        with play.held(phase, least=0 if phase == "scoring" else 2):
            board.wait_for(re.compile(f"Iteration 0.*{label}"))
            board.press("Abort")
            board.wait_for("Aborting")
            board.picture(f"abort-{phase}")
        board.wait_for("Aborted. Start continues where it stopped.")
        assert server.leaves_nothing()
        board.picture(f"aborted-{phase}")
        now = done_so_far(project)
        assert {name: now.get(name, b"")[: len(content)] for name, content in kept.items()} == kept, phase
        kept = now
    assert "data/tpaw/halted_iter0.jsonl" in kept
    checkpoint = int(max(path for path in kept if "checkpoint-" in path).split("checkpoint-")[1].split("/")[0])
    board.press("Start")
    assert board.wait_for_end().startswith("Finished.")
    assert server.leaves_nothing()

    reference, command = commanded
    assert command.wait() == 0, command.output
    assert rows(project, "halted", 0) == rows(reference, "play", 0)
    assert weights(project, "halted", 0) == weights(reference, "play", 0)
    log = (project.root / SAVES / "halted_iter0" / "trainer_log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["current_steps"] for line in log if "loss" in line]
    assert 0 < checkpoint < 32
    assert sorted(set(steps)) == sorted(steps), "steps were done twice"


def done_so_far(project: Project) -> dict[str, bytes]:
    """What an aborted iteration leaves for the next start: rows, cached log-probabilities, checkpoints."""
    folders = [project.root / "data" / "tpaw", project.root / SAVES / "halted_iter0"]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [path for path in paths if "halted_iter0.jsonl" in path.name or "checkpoint-" in str(path)]
    return {str(path.relative_to(project.root)): path.read_bytes() for path in kept}
