# SPDX-License-Identifier: Apache-2.0
"""Runs of self-play for the board: their run files, and a process that is held in the phase that a test looks at."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.board.browsing import RUN_TIMEOUT_MS, Board
from tests.board.server import Server
from tests.runs import Project


SAVES = Path("saves/Custom/full")
# Sixteen batches of one prompt each and as many steps an epoch: a phase lasts longer than the half second between two
# reports, and than the way of a signal to the process that works.
STEPS = 160
SETTINGS: dict[str, Any] = {
    "max_new_tokens": 96,
    "tpaw_generate_batch_tokens": 1,
    "per_device_train_batch_size": 1,
    "num_train_epochs": STEPS / 16,
    "plot_loss": True,
}


def settings_of(project: Project, run: str, iteration: int) -> dict[str, Any]:
    """Settings of an iteration whose folders are where LlamaBoard has those of the model `Custom`."""
    players = [str(project.model), *(str(SAVES / f"{run}_iter{index}") for index in range(iteration))]
    places = {
        "model_name_or_path": players[-1],
        "tpaw_players": ",".join(players),
        "output_dir": str(SAVES / f"{run}_iter{iteration}"),
    }
    return project.settings(iteration, run=run, **SETTINGS, **places)


def write_run_file(project: Project, run: str, iteration: int, source: Project | None = None) -> str:
    """Write the run file of an iteration; with the entries of its triplets into the folder of `source` only."""
    (project.root / "yaml").mkdir(exist_ok=True)
    settings = settings_of(source or project, run, iteration)
    # The cache knows triplets by what they say, and those of all these runs say the same.
    return project.write(f"yaml/{run}_iter{iteration}.yaml", settings | {"tpaw_cache_dir": f"saves/.cache_{run}"})


def rows(project: Project, run: str, iteration: int) -> list[dict[str, Any]]:
    return project.triplets(f"{run}_iter{iteration}")


def weights(project: Project, run: str, iteration: int, folder: Path = SAVES) -> bytes:
    return (project.root / folder / f"{run}_iter{iteration}" / "model.safetensors").read_bytes()


def choose_run(board: Board, project: Project, run: str) -> None:
    """Choose model, method, stage and run, and wait until the iteration that comes next is filled in."""
    for name, value in {
        "Model name": "Custom",
        "Model path": str(project.model),
        "Finetuning method": "full",
        "Stage": "TPAW",
        "tpaw_run": run,
    }.items():
        board.fill(name, value)
    board.wait_for(f"of {run.rpartition('/')[2]} filled in from what is on disk.")


def train_own_stage(board: Board, stage: str, fields: dict[str, Any]) -> None:
    """Train by a stage of LlamaFactory: fill in what is given, look at the command, start, wait for the end."""
    for name, value in {
        "Model name": "Custom",
        "Model path": fields["Model path"],
        "Finetuning method": "full",
        "Stage": {"sft": "Supervised Fine-Tuning", "dpo": "DPO"}[stage],
        "Compute type": "fp32",
        **fields,
    }.items():
        board.fill(name, value)
    board.press("Preview command")
    board.wait_for(f"--stage {stage}")
    assert "tpaw_" not in board.page.locator("code:visible").inner_text().replace(" ".join(fields["Dataset"]), "")
    board.press("Start")
    assert board.wait_for_end().startswith("Finished.")


class Play:
    """What the board plays, as its progress file says."""

    def __init__(self, server: Server, project: Project, run: str, first: int = 0, folder: Path = SAVES) -> None:
        self.server = server
        self.file = project.root / folder / ".tpaw_play" / f"{run}_iter{first}.progress.json"

    def progress(self) -> dict[str, Any]:
        try:
            return json.loads(self.file.read_text())
        except FileNotFoundError:
            return {}

    @contextmanager
    def held(self, phase: str, least: int = 0, playing: int | None = None) -> Iterator[dict[str, Any]]:
        """Let nothing of it run on in this phase while the block runs."""
        end = time.monotonic() + RUN_TIMEOUT_MS / 1000
        while not self._is_in(phase, least, playing):
            if time.monotonic() > end:
                pytest.fail(f"it never came to {phase}: {self.progress()}\n{self.server.output[-4000:]}")
            time.sleep(0.002)
        stopped = self.server.descendants()
        try:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            assert self._is_in(phase, least, playing), f"it went on to {self.progress()}"
            yield self.progress()
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    def _is_in(self, phase: str, least: int, playing: int | None) -> bool:
        now = self.progress()
        here = now.get("phase") == phase and now["done"] >= least and not now["ended"]
        return here and (playing is None or now["playing"] == playing)
