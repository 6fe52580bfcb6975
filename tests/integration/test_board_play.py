# SPDX-License-Identifier: Apache-2.0
"""The board plays two iterations and is aborted in generation, in scoring and in training; each time it goes on."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board.charts import Charts
from llamafactory_tpaw.board.play import Play
from llamafactory_tpaw.board.summary import REPORT, summarize, write_run_report
from llamafactory_tpaw.board.training_log import TrainingLog
from llamafactory_tpaw.board.watch import Snapshot, snapshot
from tests.processes import is_running, members_of
from tests.runs import TIMEOUT_S, Project


pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc"),
    pytest.mark.skipif(
        os.environ.get("TPAW_BROWSER_TESTS") == "required", reason="tests/board aborts in each phase from the page"
    ),
]

# Sixteen batches of one prompt each; two of the prompts are held out, so an epoch has fourteen steps.
SETTINGS: dict[str, Any] = {
    "max_new_tokens": 48,
    "tpaw_generate_batch_tokens": 1,
    "tpaw_score_batch_tokens": 200,
    "per_device_train_batch_size": 1,
    "val_size": 2,
}
STEPS = 84
OUTPUT = Path("saves/play_iter0")
PARTIAL = Path("data/tpaw/play_iter0.jsonl.partial")
TRIPLETS = Path("data/tpaw/play_iter0.jsonl")
# Lets a process stand still where it says that some sequences are scored, so that it can be stopped right there.
HOLD = """
import os, time
from importlib.machinery import PathFinder
import sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "llamafactory_tpaw.data.progress":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            show = module.Report.show

            def hold(self, done, ended=False):
                self._due = 0
                show(self, done, ended)
                is_amid = self._fixed["phase"] == "scoring" and done > 0 and not ended
                while is_amid and os.path.exists(os.environ["HELD_WHILE"]):
                    time.sleep(0.01)

            module.Report.show = hold

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder)
"""


@dataclass
class Stage:
    """A play that was aborted, and what was seen and left by then."""

    play: Play
    seen: Snapshot
    rows: list[str] = field(default_factory=list)


def start(iterations: int = 2, **environment: str) -> Play:
    files = [f"iter{number}.yaml" for number in range(iterations)]
    return Play(files, [f"saves/play_iter{number}" for number in range(iterations)], environment).start()


def see(play: Play, what: Callable[[Snapshot], bool]) -> Snapshot:
    """Watch as the page does until something is seen."""
    end = time.monotonic() + TIMEOUT_S
    while not what(seen := snapshot(play)):
        assert play.running, seen.log
        assert time.monotonic() < end, seen.label("en")
        time.sleep(0.002)
    return seen


def abort(play: Play) -> None:
    """Abort as the page does, and see that every process ends."""
    play.abort()
    assert play.wait(TIMEOUT_S) == 143, play.tail
    assert not any(map(is_running, members_of(play._process.pid)))
    last = snapshot(play)
    assert (last.state, last.label("en")) == ("aborted", "Aborted. Start continues where it stopped.")
    assert "Traceback" not in play.tail


def sampled() -> list[str]:
    """Rows of the half-done file: with one a batch each has a line after it that says that it is whole."""
    lines = PARTIAL.read_text().split("\n")[1:-1] if PARTIAL.exists() else []
    return [row for row, commit in zip(lines[::2], lines[1::2], strict=False) if commit.startswith('{"commit"')]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("board"), tiny_model)
    project.write("iter0.yaml", project.settings(0, **SETTINGS, num_train_epochs=6.0))
    project.write("iter1.yaml", project.settings(1, **SETTINGS | {"tpaw_generate_batch_tokens": 4096}))
    (project.root / "hold").mkdir()
    (project.root / "hold" / "sitecustomize.py").write_text(HOLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield project


@pytest.fixture(scope="module")
def in_generation(project: Project) -> Stage:
    play = start()
    try:
        seen = see(play, lambda seen: seen.phase == "generation" and 2 <= seen.done < 14)
        abort(play)
    finally:
        play._kill()
    return Stage(play, seen, sampled())


@pytest.fixture(scope="module")
def in_scoring(in_generation: Stage) -> Stage:
    held = Path("hold/held").absolute()
    held.touch()
    path = os.pathsep.join([str(held.parent), os.environ.get("PYTHONPATH", "")])
    play = start(PYTHONPATH=path, HELD_WHILE=str(held))
    try:
        seen = see(play, lambda seen: seen.phase == "scoring" and seen.done > 0)
        abort(play)
    finally:
        play._kill()
    held.unlink()
    return Stage(play, seen, TRIPLETS.read_text().splitlines())


@pytest.fixture(scope="module")
def in_training(in_scoring: Stage) -> Stage:
    play = start()
    try:
        seen = see(play, lambda seen: seen.phase == "training" and seen.done >= 5)
        abort(play)
    finally:
        play._kill()
    return Stage(play, seen)


@pytest.fixture(scope="module")
def finished(in_training: Stage) -> Stage:
    play = start()
    try:
        seen = see(play, lambda seen: seen.iteration == 1)
        assert play.wait(TIMEOUT_S) == 0, play.tail
    finally:
        play._kill()
    return Stage(play, seen)


def test_generation_is_watched_and_aborted(in_generation: Stage) -> None:
    seen, rows = in_generation.seen, in_generation.rows
    assert seen.label("en").startswith(f"Iteration 0 (0–1): Generation · {seen.done} of 16 rows")
    assert seen.fraction == pytest.approx(100 * seen.done / 16)
    assert 2 <= len(rows) < 16
    assert not OUTPUT.exists() or not list(OUTPUT.glob("*.safetensors"))


def test_scoring_is_watched_and_aborted(in_generation: Stage, in_scoring: Stage) -> None:
    seen = in_scoring.seen
    assert seen.label("en").startswith(f"Iteration 0 (0–1): Scoring θ_0 · {seen.done} of 32 sequences")
    assert 0 < seen.done < 32
    # Nothing was sampled twice: what was there before the abort is there, each prompt has one row.
    ids = [json.loads(row)["id"] for row in in_scoring.rows]
    assert len(ids) == len(set(ids)) == 16
    assert {json.loads(row)["id"] for row in in_generation.rows} < set(ids)
    assert set(in_generation.rows) < set(in_scoring.rows)
    assert not (OUTPUT / "tpaw.json").exists()


def test_training_is_watched_and_aborted(in_scoring: Stage, in_training: Stage) -> None:
    seen = in_training.seen
    assert seen.label("en").startswith(f"Iteration 0 (0–1): Training · {seen.done} of {STEPS} steps")
    assert 0 < seen.fraction < 100
    assert "D_0 is there" in in_training.play.log.read_text(errors="replace")


def test_it_is_finished_without_doubled_work(in_training: Stage, finished: Stage) -> None:
    last = snapshot(finished.play)
    assert (last.state, last.fraction, last.iteration, last.returncode) == ("finished", 100.0, 1, 0)
    state = json.loads((OUTPUT / "trainer_state.json").read_text())
    steps = [row["step"] for row in state["log_history"] if "loss" in row]
    assert steps == [*range(1, STEPS + 1)]
    assert TrainingLog(OUTPUT).read().series["loss"].steps == steps
    assert "Scored 0 of 2 blocks (0 sequences)" in finished.play.log.read_text()
    rows = TRIPLETS.read_text().splitlines()
    assert len(rows) == len({json.loads(row)["id"] for row in rows}) == 16
    assert not PARTIAL.exists()
    assert not any(map(is_running, members_of(finished.play._process.pid)))


def test_the_page_of_a_finished_run(finished: Stage) -> None:
    folders = finished.play.folders
    figure = Charts.of(finished.play).figure("en")
    assert len(figure.axes) == 4
    summary = summarize(folders)
    assert [(result.number, result.status) for result in summary.results] == [
        (0, "finished"),
        (1, "finished"),
        (2, "finished"),
    ]
    assert all(result.reward_accuracy is not None and result.held_out is None for result in summary.results[1:])
    assert all(result.counts["generated_tokens"] > 0 for result in summary.results[1:])
    assert write_run_report(folders) == folders[1] / REPORT


def test_start_finds_nothing_to_do_then(finished: Stage) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("saves").rglob("*") if ".tpaw_play" not in str(path)}
    play = start()
    assert play.wait(TIMEOUT_S) == 0
    assert play.tail.count("skipped:") == 2
    after = {path: path.stat().st_mtime_ns for path in Path("saves").rglob("*") if ".tpaw_play" not in str(path)}
    assert {path for path in before if before[path] != after.get(path) and path.is_file()} == set()
