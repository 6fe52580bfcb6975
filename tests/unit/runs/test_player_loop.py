# SPDX-License-Identifier: Apache-2.0
"""The loop over the run files with fake processes: order, skipping, failing, continuing, and what is said of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.data.progress import PLAYING, PROGRESS_FILE
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.runs import player_loop
from llamafactory_tpaw.runs.player_loop import Play, summarize
from llamafactory_tpaw.runs.playlist import Item, Progress
from llamafactory_tpaw.team.checkpoint import ResumePoint
from llamafactory_tpaw.team.manifest import write_manifest
from tests.unit.team.test_manifest import make_manifest


FINISHED = Progress("finished", "it is there")


class World:
    """Fake processes and what they leave behind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: dict[str, Any] = {}  # by file; an exception is raised
        self.codes: dict[str, Any] = {}  # by file; what its process ends with
        self.commands: list[list[str]] = []
        self.environments: list[Any] = []
        self.streams: dict[str, Any] = {}
        self.told: list[tuple[int, str]] = []
        monkeypatch.setattr(player_loop, "find_progress", self.find_progress)
        monkeypatch.setattr(player_loop, "run_child", self.run_child)

    def find_progress(self, item: Item) -> Progress:
        state = self.states.get(item.file, Progress("new", "begins"))
        if isinstance(state, Exception):
            raise state
        return state

    def run_child(self, command: list[str], environment: Any, patience_s: float, **streams: Any) -> int:
        assert patience_s >= 600, "a checkpoint of a large model is saved when it is asked to end"
        self.commands.append(command)
        self.environments.append(environment)
        self.streams = streams
        file = next(word for word in command if word.endswith(".yaml"))
        code = self.codes.get(file, 0)
        if isinstance(code, BaseException):
            raise code
        if code == 0:
            self.states[file] = FINISHED
        return max(code, 0)

    def play(self, *items: Item, **changes: Any) -> Play:
        play = Play(items, lambda index, text: self.told.append((index, text)), **changes)
        play.play()
        return play


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def item(name: str, *overrides: str, **given: Any) -> Item:
    settings = {"stage": "tpaw", "tpaw_iteration": 0, "output_dir": f"saves/{name}"}
    return Item(f"{name}.yaml", overrides, settings | given)


def test_each_is_played_in_order_in_a_process_of_its_own(world: World) -> None:
    play = world.play(item("a", "seed=1", "tpaw_eta=2"), item("b"))
    begin = [sys.executable, "-m", "llamafactory_tpaw", "train"]
    assert world.commands == [[*begin, "a.yaml", "seed=1", "tpaw_eta=2"], [*begin, "b.yaml"]]
    assert [outcome.status for outcome in play.outcomes] == ["finished", "finished"]
    assert world.told == [
        (0, "begins."),
        (0, "finished: saves/a holds theta_1."),
        (1, "begins."),
        (1, "finished: saves/b holds theta_1."),
    ]
    assert (play.exit_code, world.streams) == (0, {})


def test_who_watches_can_tell_which_one_is_played(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "progress.json"))
    world.states = {"a.yaml": FINISHED}
    world.play(item("a"), item("b"), item("c"))
    assert [environment[PLAYING] for environment in world.environments] == ["1", "2"]
    last = json.loads((tmp_path / "progress.json").read_text())
    assert (last["phase"], last["what"], last["playing"]) == ("preparing", "theta_1", 2)


def test_finished_ones_start_no_process(world: World) -> None:
    world.states = {"a.yaml": FINISHED, "b.yaml": Progress("begun", "goes on")}
    play = world.play(item("a"), item("b"))
    assert len(world.commands) == 1
    assert [outcome.status for outcome in play.outcomes] == ["skipped", "continued"]
    assert world.told[:2] == [(0, "skipped: it is there."), (1, "goes on.")]


@pytest.mark.parametrize("code", [1, 3, 137])
def test_failure_stops_the_rest_with_its_code(world: World, code: int) -> None:
    world.codes = {"b.yaml": code}
    play = world.play(item("a"), item("b"), item("c"))
    assert [outcome.status for outcome in play.outcomes] == ["finished", "failed", "waiting"]
    assert play.exit_code == code
    assert len(world.commands) == 2


def test_a_process_that_ends_well_without_result_failed(world: World) -> None:
    world.codes = {"a.yaml": -1}  # the fake's sign for that
    play = world.play(item("a"), item("b"))
    assert [outcome.status for outcome in play.outcomes] == ["failed", "waiting"]
    assert play.exit_code == 3
    assert "saves/a holds no finished result" in play.outcomes[0].reason


def test_what_went_wrong_since_the_check_is_told(world: World) -> None:
    world.states = {"b.yaml": ConfigError("other settings.")}
    play = world.play(item("a"), item("b"))
    assert [outcome.status for outcome in play.outcomes] == ["finished", "failed"]
    assert (play.exit_code, play.outcomes[1].reason) == (2, "other settings.")


def test_interruption_is_noted_and_passed_on(world: World) -> None:
    world.codes = {"b.yaml": KeyboardInterrupt()}
    play = Play([item("a"), item("b"), item("c")], lambda index, text: None)
    with pytest.raises(KeyboardInterrupt):
        play.play()
    assert [outcome.status for outcome in play.outcomes] == ["finished", "interrupted", "waiting"]


def test_result_is_asked_for_even_where_it_was_overwritten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `overwrite_output_dir` a result never counts as finished beforehand, but must be there afterwards."""
    seen: list[Any] = []

    def find_progress(asked: Item) -> Progress:
        seen.append(asked.given["overwrite_output_dir"])
        return Progress("new", "again") if asked.given["overwrite_output_dir"] else FINISHED

    monkeypatch.setattr(player_loop, "find_progress", find_progress)
    play = world.play(item("a", overwrite_output_dir=True))
    assert (play.outcomes[0].status, seen) == ("finished", [True, False])


@pytest.mark.parametrize(
    ("given", "checkpoint", "word"),
    [
        ({"stage": "sft"}, Path("saves/a/checkpoint-4"), "resume_from_checkpoint=saves/a/checkpoint-4"),
        ({"stage": "sft"}, None, "overwrite_output_dir=true"),
        ({"stage": "sft", "resume_from_checkpoint": "mine"}, None, None),
        ({}, Path("saves/a/checkpoint-4"), None),  # an iteration finds it itself
    ],
)
def test_where_stage_sft_continues(
    world: World, given: dict[str, Any], checkpoint: Path | None, word: str | None
) -> None:
    world.states = {"a.yaml": Progress("begun", "goes on", ResumePoint(checkpoint))}
    world.play(item("a", **given))
    assert world.commands[0][5:] == ([word] if word else [])


def test_stdout_stays_free(world: World) -> None:
    world.play(item("a"), to_stderr=True)
    assert world.streams == {"stdout": 2}


class TestSummary:
    def outcome(self, folder: Path, **changes: Any) -> player_loop.Outcome:
        return player_loop.Outcome(item("a", output_dir=str(folder)), **changes)

    def test_of_an_iteration(self, tmp_path: Path) -> None:
        write_manifest(tmp_path, make_manifest(seconds={"train": 3.0}, counts={"train_triplets": 16}))
        logged = [
            {"step": 1, "loss": 0.9, "rewards/target": -1.0, "rewards/margin": 0.1},
            {"step": 2, "loss": 0.5, "rewards/target": 0.25, "rewards/margin": 0.75},
            {"step": 2, "train_runtime": 2.0, "train_loss": 0.7},
        ]
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": logged}))
        row = summarize(self.outcome(tmp_path, status="continued", seconds=7.04))
        assert row == {
            "file": "a.yaml",
            "stage": "tpaw",
            "output_dir": str(tmp_path),
            "status": "continued",
            "wall_seconds": 7.0,
            "result": f"theta_{make_manifest().produces}",
            "seconds": {"train": 3.0},
            "counts": {"train_triplets": 16},
            "loss": 0.5,
            "target_reward": 0.25,
            "margin": 0.75,
        }

    def test_of_stage_sft(self, tmp_path: Path) -> None:
        logged = [{"step": 1, "loss": 0.9}, {"step": 2, "train_runtime": 2.0}]
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": logged}))
        row = summarize(self.outcome(tmp_path, status="skipped"))
        assert {key: row[key] for key in row.keys() - {"file", "stage", "output_dir", "wall_seconds"}} == {
            "status": "skipped",
            "seconds": {"train": 2.0},
            "loss": 0.9,
        }

    def test_of_what_is_not_done(self, tmp_path: Path) -> None:
        assert "loss" not in summarize(self.outcome(tmp_path))
        row = summarize(self.outcome(tmp_path, status="failed", exit_code=3, reason="no."))
        assert (row["exit_code"], row["reason"]) == (3, "no.")

    def test_of_a_model_without_a_log(self, tmp_path: Path) -> None:
        assert summarize(self.outcome(tmp_path, status="skipped"))["seconds"] == {"train": 0.0}
