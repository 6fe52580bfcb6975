# SPDX-License-Identifier: Apache-2.0
"""Commands that are killed and stopped: while they generate, and with two training processes over gloo.

With LLAMAFACTORY_TPAW_ALL_LAUNCHES=1 also a killed launcher, and two iterations on two nodes. That a run ends as one
that nothing disturbed is held by tests/campaign/test_kill.py.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.processes import Started, free_port, members_of
from tests.runs import Project, Result, every_launch


pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ranks end with torchrun by a call of Linux"),
]
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "num_train_epochs": 40.0,
    "save_strategy": "steps",
    "save_steps": 4,
    "save_total_limit": 2,
}
OUTPUT = Path("saves/play_iter0")
TWO = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}


class Launch(Started):
    """A command whose ranks have sessions of their own, as torchrun starts them."""

    known: frozenset[psutil.Process] = frozenset()

    def ranks(self) -> list[psutil.Process]:
        """Those that train, by rank."""
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error, KeyError):
                    found[int(each.environ()["RANK"])] = each
        self.known |= {*found.values()}
        return [found[rank] for rank in sorted(found)]

    def trains(self, steps: int) -> bool:
        """Whether it has logged so many steps itself, and both ranks are at work."""
        return self.output.count("'rewards/margin/theta_0'") >= steps and len(self.ranks()) == 2

    def end(self) -> int:
        """Wait for its end, and for that of its ranks."""
        code = self.wait()
        _, alive = psutil.wait_procs(self.known, timeout=20)
        assert alive == []
        return code


@pytest.fixture
def launch() -> Iterator[Callable[..., Launch]]:
    """Return a function that starts a command, which ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(project: Project, *command: str, **environment: str) -> Launch:
            started = Launch(project, *command, **environment)
            stack.callback(started.stop)
            return started

        yield start


def generated(project: Project) -> list[str]:
    """Rows of the half-done file: with one a batch each has a line after it that says that it is whole."""
    path = project.root / "data/tpaw/play_iter0.jsonl.partial"
    lines = path.read_text().split("\n")[1:-1] if path.exists() else []
    return [row for row, commit in zip(lines[::2], lines[1::2], strict=False) if commit.startswith('{"commit"')]


def test_generation_keeps_what_it_finished_and_leaves_no_process(tmp_path: Path, tiny_model: Path) -> None:
    """Ctrl-C, then the same command, of whose three processes the outermost is killed."""
    project = Project(tmp_path, tiny_model)
    batches_of_one = {"max_new_tokens": 48, "tpaw_generate_batch_tokens": 1}
    words = ("llamafactory-tpaw", "run", project.write("iter0.yaml", project.settings(0, **batches_of_one)))
    command = Started(project, *words)
    command.wait_until(lambda: len(generated(project)) >= 2)
    assert command.interrupt(signal.SIGINT) == 130, command.output
    message = "llamafactory-tpaw: interrupted (Ctrl-C). What is done is kept: the same command continues."
    assert (command.output.count(message), "Traceback" in command.output) == (1, False)
    first = generated(project)
    command = Started(project, *words)
    command.wait_until(lambda: len(generated(project)) >= len(first) + 2)
    assert len(members_of(command.process.pid)) == 3
    command.process.kill()
    command.wait()
    assert command.leaves_nothing()
    second = generated(project)
    assert second[: len(first)] == first
    assert len(second) < 16


@pytest.fixture
def project(tmp_path: Path, played: tuple[Project, list[Result]], tiny_model: Path) -> Project:
    """A project with the triplets of iteration 0, so that all that is left is to train."""
    project = Project(tmp_path, tiny_model)
    for path in (played[0].root / "data" / "tpaw").glob("play_iter0*"):
        target = tmp_path / "data" / "tpaw" / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    project.write("iter0.yaml", project.settings(0, **SETTINGS))
    return project


def newest_checkpoint(project: Project) -> int:
    whole = (project.root / OUTPUT).glob("checkpoint-*/tpaw.json")
    return max((int(path.parent.name.partition("-")[2]) for path in whole), default=0)


def test_a_killed_rank_ends_the_command_and_sigterm_saves(project: Project, launch: Callable[..., Launch]) -> None:
    """The first command loses rank 1 while it trains; the second goes on from its checkpoint and is asked to stop."""
    first = launch(project, "llamafactory-cli", "train", "iter0.yaml", **TWO)
    first.wait_until(lambda: first.trains(6) and newest_checkpoint(project) >= 4)
    first.ranks()[1].kill()
    assert first.end() == 1, first.output
    assert first.output.count("llamafactory-tpaw: error: torchrun ended with exit code 1;") == 1, first.output

    kept = newest_checkpoint(project)
    second = launch(project, "llamafactory-tpaw", "run", "iter0.yaml", **TWO)
    second.wait_until(lambda: second.trains(2))
    second.process.terminate()
    assert second.end() == 143, second.output
    assert f"Resuming training from checkpoint with epoch {kept // 8} and global step {kept}\n" in second.output
    assert second.output.count("llamafactory-tpaw: terminated (SIGTERM).") == 1
    checkpoint = project.root / OUTPUT / f"checkpoint-{newest_checkpoint(project)}"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    steps = [entry["step"] for entry in state["log_history"] if "loss" in entry]
    assert steps == [*range(1, state["global_step"] + 1)]
    assert state["global_step"] >= kept + 2


@every_launch
def test_nodes_wait_for_the_triplets_and_stay_in_step(
    tmp_path: Path, tiny_model: Path, launch: Callable[..., Launch]
) -> None:
    """Two nodes of one process each, the second one first, play two iterations."""
    project = Project(tmp_path, tiny_model)
    files = [project.write(f"iter{each}.yaml", project.settings(each)) for each in range(2)]
    nodes = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "1", "NNODES": "2", "MASTER_PORT": str(free_port())}
    other = launch(project, "llamafactory-tpaw", "run", *files, **nodes, NODE_RANK="1")
    other.wait_until(lambda: "node 0 generates it; this node waits" in other.output)
    first = launch(project, "llamafactory-tpaw", "run", *files, **nodes, NODE_RANK="0")
    assert (first.end(), other.end()) == (0, 0), first.output + other.output
    for each in range(2):
        manifest = json.loads((project.root / f"saves/play_iter{each}/tpaw.json").read_text())
        assert (manifest["status"], manifest["hardware"]["processes"]) == ("finished", 2)
        assert f"[{each + 1}/2] iter{each}.yaml: finished" in other.output


@every_launch
def test_ranks_end_with_a_killed_launcher(project: Project, launch: Callable[..., Launch]) -> None:
    command = launch(project, "llamafactory-cli", "train", "iter0.yaml", **TWO)
    command.wait_until(lambda: command.trains(2))
    command.process.kill()
    assert command.end() != 0
