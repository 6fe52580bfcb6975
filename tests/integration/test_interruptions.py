# SPDX-License-Identifier: Apache-2.0
"""`kill -9` at any point, then the same command: it continues, and ends where an undisturbed run ends.

One iteration is killed while it generates (all its processes, then only the one that waits), before its first
checkpoint and after some; its two newest checkpoints are damaged. Another one, in a folder of its own, is left alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import TIMEOUT_S, Project


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


class Started:
    """A command in a session of its own, with its output in a file so that a full pipe never holds it up."""

    def __init__(self, project: Project, *command: str) -> None:
        self.log = project.root / f"log{len(list(project.root.glob('log*')))}.txt"
        binaries = Path(sys.executable).parent
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=project.root,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for a moment at which the command is still at work."""
        end = time.monotonic() + TIMEOUT_S
        while not happened():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                pytest.fail(f"it ended, or waited, before that:\n{self.output[-4000:]}")
            time.sleep(0.002)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.kill()

    def kill(self) -> None:
        """Kill all of its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.wait(TIMEOUT_S) == -signal.SIGKILL, "it had ended already"


def train(project: Project, name: str = "iter0.yaml") -> Started:
    return Started(project, "llamafactory-cli", "train", name)


def loop(project: Project, iterations: str) -> Started:
    command = f"for i in {iterations}; do llamafactory-cli train iter$i.yaml || break; done; echo ended with $i"
    return Started(project, "bash", "-c", command)


def batches(project: Project) -> list[str]:
    """Complete lines of the half-done file, after the first, which says what it is."""
    path = project.root / PARTIAL
    return path.read_text().split("\n")[1:-1] if path.exists() else []


def checkpoints(project: Project) -> list[Path]:
    """Finished and half-written ones, the newest first."""
    found = (project.root / OUTPUT).glob("checkpoint-*")
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def manifest(project: Project) -> dict[str, Any]:
    return json.loads((project.root / OUTPUT / "tpaw.json").read_text())


def children_of(pid: int) -> list[int]:
    """Process ids, from the field after the name and the state in /proc/*/stat."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            children.append(int(path.parent.name))
    return children


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def state_of(*folders: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Project, Started]]:
    """The iteration without interruptions; it runs beside the other one."""
    project = Project(tmp_path_factory.mktemp("undisturbed"), tiny_model)
    project.write("iter0.yaml", project.settings(0, **SETTINGS))
    command = train(project)
    yield project, command
    command.stop()


@pytest.fixture(scope="module")
def calm(undisturbed: tuple[Project, Started]) -> Project:
    project, command = undisturbed
    assert command.wait() == 0, command.output
    return project


@pytest.fixture(scope="module")
def killed_in_generation(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, undisturbed: tuple[Project, Started]
) -> tuple[Project, list[str]]:
    """All processes are killed; what was generated by then."""
    project = Project(tmp_path_factory.mktemp("disturbed"), tiny_model)
    project.write("iter0.yaml", project.settings(0, **SETTINGS))
    command = train(project)
    command.wait_until(lambda: len(batches(project)) >= 2)
    command.kill()
    return project, batches(project)


@pytest.fixture(scope="module")
def parent_killed(killed_in_generation: tuple[Project, list[str]]) -> tuple[Project, list[str], bool]:
    """Only the process that waits for the generating one is killed; what was there by then, and whether it went on."""
    project, before = killed_in_generation
    command = train(project)
    command.wait_until(lambda: len(batches(project)) >= len(before) + 2)
    (child,) = children_of(command.process.pid)
    os.kill(command.process.pid, signal.SIGKILL)
    command.wait()
    end = time.monotonic() + 5
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.01)
    survived = is_running(child)
    if survived:
        os.kill(child, signal.SIGKILL)
    return project, batches(project), survived or (project.root / TRIPLETS).exists()


@pytest.fixture(scope="module")
def killed_before_checkpoint(parent_killed: tuple[Project, list[str], bool]) -> Project:
    """Generation is finished, training begun."""
    project = parent_killed[0]
    command = train(project)
    command.wait_until(lambda: (project.root / OUTPUT / "tpaw.json").exists())
    command.kill()
    assert checkpoints(project) == [], "this machine is too fast for the test: raise `save_steps`"
    return project


@pytest.fixture(scope="module")
def killed_after_checkpoints(killed_before_checkpoint: Project) -> tuple[Project, str]:
    """Three checkpoints are there; the two newest are damaged as by a kill while they were written."""
    project = killed_before_checkpoint
    command = train(project)
    third = project.root / OUTPUT / "checkpoint-42" / "trainer_state.json"
    command.wait_until(third.exists)
    command.kill()
    for newer in checkpoints(project)[:-3]:
        (newer / "trainer_state.json").unlink(missing_ok=True)
    newest, second, _ = checkpoints(project)[-3:]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (second / "trainer_state.json").unlink()
    return project, command.output


@pytest.fixture(scope="module")
def finished(killed_after_checkpoints: tuple[Project, str]) -> tuple[Project, str]:
    """The same command for the fifth time."""
    project, _ = killed_after_checkpoints
    command = train(project)
    assert command.wait() == 0, command.output
    return project, command.output


def test_killed_generation_keeps_what_it_finished(
    killed_in_generation: tuple[Project, list[str]], parent_killed: tuple[Project, list[str], bool]
) -> None:
    project, first = killed_in_generation
    _, second, _ = parent_killed
    assert 2 <= len(first) < len(second) < 16
    assert second[: len(first)] == first
    assert not (project.root / OUTPUT).exists() or not list((project.root / OUTPUT).glob("*.safetensors"))


def test_generating_process_dies_with_the_one_that_waits(parent_killed: tuple[Project, list[str], bool]) -> None:
    assert not parent_killed[2]


def test_triplets_are_those_of_an_undisturbed_run(killed_before_checkpoint: Project, calm: Project) -> None:
    disturbed = killed_before_checkpoint
    assert (disturbed.root / TRIPLETS).read_bytes() == (calm.root / TRIPLETS).read_bytes()
    ids = [row["id"] for row in disturbed.triplets("play_iter0")]
    assert len(set(ids)) == len(ids) == 16
    metas = [
        json.loads((project.root / TRIPLETS).with_suffix(".meta.json").read_text()) for project in (disturbed, calm)
    ]
    assert all(meta.pop("seconds") > 0 and meta.pop("created") for meta in metas)
    assert metas[0] == metas[1]
    assert not (disturbed.root / PARTIAL).exists()


def test_training_begins_again_without_a_checkpoint(killed_after_checkpoints: tuple[Project, str]) -> None:
    _, output = killed_after_checkpoints
    assert "saves/play_iter0 has no checkpoint with an optimizer's state: training begins again." in output
    assert "Scored 0 of 2 blocks" in output


def test_half_written_checkpoints_are_set_aside(finished: tuple[Project, str]) -> None:
    _, output = finished
    for step in (42, 28):
        assert f"saves/play_iter0/checkpoint-{step} was being written when the run was interrupted" in output
    assert "checkpoint-14 was being written" not in output
    assert re.search(r"Resuming training from checkpoint with epoch 0 and global step 14\b", output)


def test_result_is_that_of_an_undisturbed_run(finished: tuple[Project, str], calm: Project) -> None:
    disturbed, _ = finished
    histories = [project.history("play_iter0") for project in (disturbed, calm)]
    assert [entry["step"] for entry in histories[0]] == [*range(1, STEPS + 1)]
    for own, reference in zip(*histories, strict=True):
        assert own["loss"] == pytest.approx(reference["loss"], abs=1e-6)
        assert own["rewards/margin/theta_0"] == pytest.approx(reference["rewards/margin/theta_0"], abs=1e-4)
    assert histories[0][0]["loss"] - histories[0][-1]["loss"] > 0.1
    weights = [load_file(project.root / OUTPUT / "model.safetensors") for project in (disturbed, calm)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=1e-6)


def test_team_is_kept_and_nothing_is_scored_twice(finished: tuple[Project, str], calm: Project) -> None:
    disturbed, output = finished
    assert "Scored 0 of 2 blocks (0 sequences)" in output
    own, reference = manifest(disturbed), manifest(calm)
    assert own["status"] == reference["status"] == "finished"
    assert (own["counts"]["scored_blocks"], reference["counts"]["scored_blocks"]) == (0, 2)
    assert own["players"][0]["name"] == reference["players"][0]["name"] == "theta_0"
    assert own["players"][0]["fingerprint"] == reference["players"][0]["fingerprint"]
    assert len(own["players"]) == len(reference["players"]) == 1
    for source in (*own["triplets"], *reference["triplets"]):
        source.pop("meta")  # its file says when it was made
    assert own["triplets"] == reference["triplets"]


def test_the_time_of_interrupted_training_adds_up(finished: tuple[Project, str]) -> None:
    project, _ = finished
    resumed, last = (
        {path.name: path for path in checkpoints(project)}[name] for name in ("checkpoint-14", "checkpoint-42")
    )
    parts = [json.loads((folder / "tpaw.json").read_text()) for folder in (resumed, last)]
    assert [(part["status"], part["step"]) for part in parts] == [("checkpoint", 14), ("checkpoint", 42)]
    before, at_42 = (part["seconds"]["train"] for part in parts)
    assert 0 < before < at_42 <= manifest(project)["seconds"]["train"]


def test_loop_stops_at_the_first_failure_and_repeats_nothing(finished: tuple[Project, str]) -> None:
    project, _ = finished
    folders = project.root / OUTPUT, project.root / "data" / "tpaw"
    quick = SETTINGS | {"max_new_tokens": 4, "tpaw_generate_batch_tokens": 4096, "num_train_epochs": 0.25}
    for iteration in (1, 2):
        project.write(f"iter{iteration}.yaml", project.settings(iteration, **quick, tpaw_eta=0.5))
    before = state_of(*folders)
    stopped = loop(project, "0 1 2")
    stopped.wait()
    assert "saves/play_iter0 holds theta_1, finished with these settings: nothing to do." in stopped.output
    assert "`tpaw_eta` is 0.5" in stopped.output
    assert stopped.output.endswith("ended with 1\n")
    assert state_of(*folders) == before

    project.write("iter1.yaml", project.settings(1, **quick))
    before = state_of(project.root / OUTPUT)
    again = loop(project, "0 1")
    again.wait()
    assert again.output.endswith("ended with 1\n")
    assert state_of(project.root / OUTPUT) == before
    produced = json.loads((project.root / "saves" / "play_iter1" / "tpaw.json").read_text())
    assert (produced["status"], [player["name"] for player in produced["players"]]) == (
        "finished",
        ["theta_0", "theta_1"],
    )


def test_killed_scoring_keeps_what_was_flushed(calm: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_tpaw.arguments.parsed import parse_single_process
    from llamafactory_tpaw.team import scorer
    from llamafactory_tpaw.train.setup import load_setup

    monkeypatch.chdir(calm.root)
    settings = calm.settings(0, **SETTINGS, tpaw_cache_dir=str(tmp_path / "cache"), tpaw_score_batch_tokens=400)
    run = parse_single_process(settings)
    setup = load_setup(run)

    class Killed(scorer.TeamScorer):
        """Scores three batches and dies in the fourth."""

        left = 3
        rows = 0

        def score_rows(self, model: Any, rows: Any, shortcuts: Any) -> Any:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.rows += sum(len(row.responses) for row in rows)
            return super().score_rows(model, rows, shortcuts)

    monkeypatch.setattr(scorer, "FLUSH_SECONDS", 0.0)
    killed = Killed(run, setup.tokenizer)
    with pytest.raises(KeyboardInterrupt):
        killed.fill(setup.team, setup.blocks())
    report = scorer.TeamScorer(run, setup.tokenizer).fill(setup.team, setup.blocks())
    assert killed.rows > 3
    assert report.scored_sequences == 32 - killed.rows
    again = scorer.TeamScorer(run, setup.tokenizer).fill(setup.team, setup.blocks())
    assert (again.scored_blocks, again.scored_sequences) == (0, 0)
