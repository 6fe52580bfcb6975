# SPDX-License-Identifier: Apache-2.0
"""What the page is told of a run at work: from the progress file, the log of training and what was printed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board.locales import LANGUAGES
from llamafactory_tpaw.board.training_log import TRAINER_LOG
from llamafactory_tpaw.board.watch import Snapshot, code_block, condensed, duration, snapshot


@dataclass
class Run:
    """As much of a `Play` as is looked at."""

    root: Path
    iterations: list[int | None] = field(default_factory=lambda: [0, 1, 2])
    running: bool = True
    aborted: bool = False
    returncode: int | None = None
    tail: str = "log"

    @property
    def folders(self) -> list[Path]:
        return [self.root / f"iter{number}" for number in range(3)]

    @property
    def progress_file(self) -> Path:
        return self.root / "progress.json"

    def says(self, **record: Any) -> None:
        self.progress_file.write_text(json.dumps(record))
        os.utime(self.progress_file, (1000, 1000))

    def trains(self, index: int, *entries: Any, at: float = 2000, rest: str = "") -> None:
        log = self.folders[index] / TRAINER_LOG
        log.parent.mkdir(exist_ok=True)
        log.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + rest)
        os.utime(log, (at, at))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


GENERATION = {
    "phase": "generation",
    "what": "D_1",
    "done": 1200,
    "total": 5000,
    "unit": "prompt",
    "per_second": 35.04,
    "seconds_left": 108.4,
    "ended": False,
    "playing": 1,
}


def test_nothing_is_known_at_first(run: Run) -> None:
    seen = snapshot(run)
    assert (seen.state, seen.phase, seen.iteration, seen.fraction) == ("running", "preparing", 0, 0.0)
    assert seen.label("en") == "Iteration 0 (0–2): Starting…"


def test_generation(run: Run) -> None:
    run.says(**GENERATION)
    seen = snapshot(run)
    assert (seen.phase, seen.index, seen.iteration, seen.fraction) == ("generation", 1, 1, 24.0)
    rows = "1,200 of 5,000 rows · 35 per second · 1:48 left"
    assert seen.label("en") == f"Iteration 1 (0–2): Generation · {rows}"


def test_scoring_names_the_player(run: Run) -> None:
    run.iterations = [3]
    run.says(phase="scoring", what="theta_1", done=5, total=8, unit="sequence", per_second=None, playing=0)
    assert snapshot(run).label("en") == "Iteration 3: Scoring θ_1 · 5 of 8 sequences"
    run.says(phase="scoring", what="theta_1", done=8, total=8, unit="sequence", ended=True)
    assert snapshot(run).label("en") == "Iteration 3: Loading the model"


def test_reading_is_counted_in_gibibytes(run: Run) -> None:
    run.says(
        phase="reading", what="x", done=3 * 2**29, total=2**32, unit="B", per_second=1e9, seconds_left=2, playing=0
    )
    assert snapshot(run).label("en") == "Iteration 0 (0–2): Checks · 1.5 of 4.0 GiB · 0:02 left"


def test_training_is_reported_step_by_step(run: Run) -> None:
    run.trains(2, {"current_steps": 30, "total_steps": 100, "remaining_time": "0:01:00"}, at=3000)
    step = {"phase": "training", "total": 100, "unit": "step", "per_second": 0.125, "seconds_left": 400, "playing": 2}
    run.says(**step, done=42)
    seen = snapshot(run)
    assert seen.label("en") == "Iteration 2 (0–2): Training · 42 of 100 steps · 0.125 per second · 6:40 left"
    assert seen.fraction == 42.0


def test_training_of_another_stage_is_read_from_its_log(run: Run) -> None:
    run.iterations = [None, 0, 1]
    run.says(phase="preparing", what="the model of stage sft", playing=0)
    run.trains(0, {"current_steps": 90, "total_steps": 100}, at=500)
    assert snapshot(run).label("en") == "Starting…", "the log is an older run's"
    entry = {"current_steps": 30, "total_steps": 100, "remaining_time": "1 day, 2:03:04"}
    run.trains(0, entry, at=2000, rest='{"current_steps": 31, "tot')
    assert snapshot(run).label("en") == "Training · 30 of 100 steps · 26:03:04 left"


def test_training_of_before_is_not_shown_while_nothing_is_said_yet(run: Run) -> None:
    run.trains(0, {"current_steps": 90, "total_steps": 100})
    assert snapshot(run).phase == "preparing"


def test_generation_is_not_mistaken_for_training(run: Run) -> None:
    run.says(**GENERATION)
    run.trains(1, {"current_steps": 90, "total_steps": 100}, at=3000)
    assert snapshot(run).phase == "generation"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"', '{"playing": 77}', "\x00"])
def test_an_odd_progress_file_is_no_error(run: Run, content: str) -> None:
    run.progress_file.write_text(content)
    assert snapshot(run).label("en").endswith("Starting…")


def test_an_odd_log_of_training_is_no_error(run: Run) -> None:
    run.says(phase="training", playing=0, done=0, total=0)
    run.trains(0, [], 3, "x", {"loss": 1}, {"current_steps": "x"}, rest="\x00{{")
    assert snapshot(run).phase == "training"


@pytest.mark.parametrize(
    ("aborted", "code", "state", "label", "fraction"),
    [
        (False, 0, "finished", "Finished.", 100.0),
        (False, 3, "failed", "Failed with exit code 3.", 24.0),
        (True, 143, "aborted", "Aborted. Start continues where it stopped.", 24.0),
        (True, 0, "finished", "Finished.", 100.0),  # it was done before the signal came
        (True, None, "aborting", "Aborting: waiting until everything has stopped…", 24.0),
    ],
)
def test_how_it_ends(run: Run, aborted: bool, code: int | None, state: str, label: str, fraction: float) -> None:
    run.says(**GENERATION)
    run.aborted, run.returncode, run.running = aborted, code, code is None
    seen = snapshot(run)
    assert (seen.state, seen.label("en"), seen.fraction, seen.returncode) == (state, label, fraction, code)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_language_says_it_in_its_own_words(run: Run, lang: str) -> None:
    run.says(**GENERATION)
    label = snapshot(run).label(lang)
    assert "1,200" in label
    assert "1:48" in label
    assert (lang == "en") == ("Generation" in label)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3599.7, "1:00:00"), (36000, "10:00:00")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "text", ["plain", "```\n# title\n```", "`````` x", "~~~", "$$<img src=x>$$", "$$$$$", "</code></pre><script>"]
)
def test_nothing_ends_the_block(text: str) -> None:
    block = code_block(text)
    opening, *inside, closing, last = block.split("\n")
    assert (opening, last) == (closing, "")
    assert set(opening) == {"`"}
    assert len(opening) >= 3
    assert not any(line.strip().startswith(opening) for line in inside)
    assert "$$" not in block
    assert "\n".join(inside).replace("\u200b", "") == text


def test_the_block_is_short_and_has_the_reason_of_a_failure() -> None:
    log = "".join(f"line {number}\n" for number in range(1000))
    running, failed = (Snapshot(state, log=log).markdown.split("\n")[1:-2] for state in ("running", "failed"))
    assert running == [f"line {number}" for number in range(970, 1000)]
    assert failed == [f"line {number}" for number in range(850, 1000)]


def test_printed_configurations_are_cut_out() -> None:
    values = {f"key_{number}": [number, "text"] for number in range(8)}
    log = f"before\n\n\nModel config {json.dumps(values, indent=2)}\n\nafter: {json.dumps({'a': 1}, indent=2)}\n"
    assert condensed(log, 50) == 'before\nModel config {\n  …\n}\nafter: {\n  "a": 1\n}'
    assert condensed("  File x, line 1\n    raise\n", 50) == "  File x, line 1\n    raise"


def test_an_empty_log_is_no_block() -> None:
    assert code_block(" \n") == ""
    assert Snapshot("running").markdown == ""
    assert Snapshot("running", log="x").markdown == "```\nx\n```\n"
