# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and `kill -9`, then the same command: it continues, and ends where an undisturbed run ends.

One iteration is stopped by Ctrl-C while it generates, and its outermost process by `kill -9`; by SIGTERM while it
trains, and by `kill -9` after some checkpoints, of which the two newest are damaged; and again between two iterations.
Another one, in a folder of its own, is left alone.
"""

from __future__ import annotations

import gc
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import Started, members_of
from tests.runs import Project


pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc"),
]

# Sixteen batches of one prompt each, 16 steps an epoch, checkpoints amid epochs.
SETTINGS: dict[str, Any] = {
    "max_new_tokens": 48,
    "tpaw_generate_batch_tokens": 1,
    "per_device_train_batch_size": 1,
    "num_train_epochs": 6.0,
    "save_strategy": "steps",
    "save_steps": 14,
}
STEPS = 96
OUTPUT = Path("saves/play_iter0")
TRIPLETS = Path("data/tpaw/play_iter0.jsonl")
PARTIAL = Path("data/tpaw/play_iter0.jsonl.partial")


def train(project: Project, name: str = "iter0.yaml") -> Started:
    return Started(project, "llamafactory-cli", "train", name)


def play(project: Project, *names: str) -> Started:
    return Started(project, "llamafactory-tpaw", "run", *names)


def batches(project: Project) -> list[str]:
    """Rows of the half-done file: with one a batch each has a line after it that says that it is whole."""
    path = project.root / PARTIAL
    lines = path.read_text().split("\n")[1:-1] if path.exists() else []
    return [row for row, commit in zip(lines[::2], lines[1::2], strict=False) if commit.startswith('{"commit"')]


def checkpoints(project: Project) -> list[Path]:
    """Finished and half-written ones, the newest first."""
    found = (project.root / OUTPUT).glob("checkpoint-*")
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def logged_steps(project: Project) -> int:
    path = project.root / OUTPUT / "trainer_log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Project, Started]]:
    """The iteration without interruptions; it runs beside the other one."""
    project = Project(tmp_path_factory.mktemp("undisturbed"), tiny_model)
    project.write("iter0.yaml", project.settings(0, **SETTINGS))
    command = train(project)
    yield project, command
    command.stop()


@pytest.fixture(scope="module")
def story(
    undisturbed: tuple[Project, Started], tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> SimpleNamespace:
    """Both runs, and what was there and said after each interruption of the one."""
    project = Project(tmp_path_factory.mktemp("disturbed"), tiny_model)
    project.write("iter0.yaml", project.settings(0, **SETTINGS))
    # Ctrl-C while it generates.
    command = play(project, "iter0.yaml")
    command.wait_until(lambda: len(batches(project)) >= 2)
    stops = {"Ctrl-C": (command.interrupt(signal.SIGINT), command.output)}
    first = batches(project)
    # Only the outermost of three processes is killed.
    command = play(project, "iter0.yaml")
    command.wait_until(lambda: len(batches(project)) >= len(first) + 2)
    assert len(members_of(command.process.pid)) == 3
    command.process.kill()
    command.wait()
    outlived, second = not command.leaves_nothing() or (project.root / TRIPLETS).exists(), batches(project)
    # Generation is finished, some steps are done: SIGTERM to the one process that trains.
    command = train(project)
    command.wait_until(lambda: logged_steps(project) >= 2)
    command.process.terminate()
    stops["SIGTERM"] = command.wait(), command.output
    assert command.leaves_nothing()
    assert len(checkpoints(project)) == 1, "this machine is too fast for the test: raise `save_steps`"
    # Three checkpoints by `save_steps` are there; the two newest are damaged as by a kill while they were written.
    (asked,) = checkpoints(project)
    command = train(project)
    command.wait_until((project.root / OUTPUT / "checkpoint-42" / "trainer_state.json").exists)
    command.kill()
    resumed, asked = command.output, asked.rename(project.root / OUTPUT / "asked")
    for newer in checkpoints(project)[:-3]:
        (newer / "trainer_state.json").unlink(missing_ok=True)
    newest, second_newest, _ = checkpoints(project)[-3:]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (second_newest / "trainer_state.json").unlink()
    # The same command for the fifth time.
    command, (calm, other) = train(project), undisturbed
    assert (command.wait(), other.wait()) == (0, 0), command.output + other.output
    batches_kept = {"first": first, "second": second, "outlived": outlived}
    return SimpleNamespace(
        calm=calm, disturbed=project, stops=stops, asked=asked, resumed=resumed, output=command.output, **batches_kept
    )


def test_signals_end_with_one_message(story: SimpleNamespace) -> None:
    for name, ended, text in (("Ctrl-C", 130, "interrupted (Ctrl-C)"), ("SIGTERM", 143, "terminated (SIGTERM)")):
        code, output = story.stops[name]
        message = f"llamafactory-tpaw: {text}. What is done is kept: the same command continues."
        assert (code, output.count(message)) == (ended, 1), output
        assert "Traceback" not in output


def test_stopped_generation_keeps_what_it_finished_and_processes_die_with_the_outermost(
    story: SimpleNamespace,
) -> None:
    assert 2 <= len(story.first) < len(story.second) < 16
    assert story.second[: len(story.first)] == story.first
    assert not story.outlived


def test_triplets_are_those_of_an_undisturbed_run(story: SimpleNamespace) -> None:
    projects = story.disturbed, story.calm
    one, other = ((project.root / TRIPLETS).read_bytes() for project in projects)
    assert one == other
    assert len({row["id"] for row in story.calm.triplets("play_iter0")}) == len(one.splitlines()) == 16
    metas = [json.loads((project.root / TRIPLETS).with_suffix(".meta.json").read_text()) for project in projects]
    assert all(meta.pop("seconds") > 0 and meta.pop("created") for meta in metas)
    assert metas[0] == metas[1]
    assert not (story.disturbed.root / PARTIAL).exists()


def test_sigterm_saves_the_step_it_came_in(story: SimpleNamespace) -> None:
    described, state = (json.loads((story.asked / name).read_text()) for name in ("tpaw.json", "trainer_state.json"))
    assert (described["status"], described["step"]) == ("checkpoint", state["global_step"])
    assert 2 <= state["global_step"] < 14
    assert (story.asked / "optimizer.pt").is_file()
    resumed = f"Resuming training from checkpoint with epoch 0 and global step {state['global_step']}\n"
    assert resumed in story.resumed
    assert "Scored 0 of 2 blocks" in story.resumed


def test_result_is_that_of_an_undisturbed_run(story: SimpleNamespace) -> None:
    """Half-written checkpoints are passed over."""
    assert re.search(r"Resuming training from checkpoint with epoch 0 and global step 14\b", story.output)
    projects = story.disturbed, story.calm
    histories = [project.history("play_iter0") for project in projects]
    assert [entry["step"] for entry in histories[0]] == [*range(1, STEPS + 1)]
    for own, reference in zip(*histories, strict=True):
        assert own["loss"] == pytest.approx(reference["loss"], abs=1e-6)
        assert own["rewards/margin/theta_0"] == pytest.approx(reference["rewards/margin/theta_0"], abs=1e-4)
    assert histories[0][0]["loss"] - histories[0][-1]["loss"] > 0.1
    weights = [load_file(project.root / OUTPUT / "model.safetensors") for project in projects]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=1e-6)


def test_team_is_kept_and_nothing_is_scored_twice(story: SimpleNamespace) -> None:
    assert "Scored 0 of 2 blocks (0 sequences)" in story.output
    recorded = []
    for project in (story.disturbed, story.calm):
        found = json.loads((project.root / OUTPUT / "tpaw.json").read_text())
        player, *more = found["players"]
        # Of all attempts together as many blocks as of the one that nothing disturbed.
        recorded.append((found["status"], found["counts"]["scored_blocks"], player["fingerprint"], more))
    assert recorded[0] == recorded[1]
    assert recorded[0][:2] == ("finished", 2)


def test_killed_between_two_iterations_it_repeats_nothing(story: SimpleNamespace) -> None:
    project = story.disturbed
    quick = SETTINGS | {"max_new_tokens": 4, "tpaw_generate_batch_tokens": 4096, "num_train_epochs": 0.25}
    project.write("iter1.yaml", project.settings(1, **quick))
    before = state_of(project.root / OUTPUT)
    between = play(project, "iter0.yaml", "iter1.yaml")
    between.wait_until(lambda: "[2/2] iter1.yaml: makes theta_2." in between.output)
    between.process.kill()
    assert between.wait() == -signal.SIGKILL
    assert between.leaves_nothing()
    again = play(project, "iter0.yaml", "iter1.yaml")
    assert again.wait() == 0, again.output
    assert "[1/2] iter0.yaml: skipped: saves/play_iter0 holds theta_1" in again.output
    assert "saves/play_iter1 holds theta_2" in again.output.splitlines()[-1]
    assert state_of(project.root / OUTPUT) == before


def test_killed_scoring_keeps_what_was_flushed(
    story: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory_tpaw.arguments.parsed import parse_single_process
    from llamafactory_tpaw.team import scorer
    from llamafactory_tpaw.train.setup import load_setup

    monkeypatch.chdir(story.calm.root)
    settings = story.calm.settings(0, **SETTINGS, tpaw_cache_dir=str(tmp_path / "cache"), tpaw_score_batch_tokens=400)
    run = parse_single_process(settings)
    setup = load_setup(run)

    score_rows, batches = scorer.TeamScorer.score_rows, []

    def killed(self: Any, model: Any, rows: Any, shortcuts: Any) -> Any:
        """Score three batches and die in the fourth."""
        assert gc.get_freeze_count() > 100_000  # collections pass over what was there before the player
        if len(batches) == 3:
            raise KeyboardInterrupt
        batches.append(sum(len(row.responses) for row in rows))
        return score_rows(self, model, rows, shortcuts)

    monkeypatch.setattr(scorer, "FLUSH_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(scorer.TeamScorer, "score_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            scorer.TeamScorer(run, setup.team.tokenizer).fill(setup.team.members, setup.blocks())
    assert gc.get_freeze_count() == 0
    report = scorer.TeamScorer(run, setup.team.tokenizer).fill(setup.team.members, setup.blocks())
    assert report.scored_sequences == 32 - sum(batches) < 32 - 3
    again = scorer.TeamScorer(run, setup.team.tokenizer).fill(setup.team.members, setup.blocks())
    assert (again.scored_blocks, again.scored_sequences) == (0, 0)
