# SPDX-License-Identifier: Apache-2.0
"""Nodes that wait for the triplets of node 0: while it works, when it fails, and when there is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.source import Entry
from llamafactory_tpaw.data.triplets import meta_path
from llamafactory_tpaw.errors import EnvironmentProblem, GenerationError, TpawError
from llamafactory_tpaw.lf.signals import Terminated
from llamafactory_tpaw.runs import nodes


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "BEAT_S", 0.02)
    monkeypatch.setattr(nodes, "POLL_S", 0.005)
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("NODE_RANK", "1")


@pytest.fixture
def wanted(tmp_path: Path) -> Round:
    return Round(0, Entry("d0", {}, tmp_path / "d0.jsonl"))


def make(round_: Round) -> None:
    round_.path.touch()
    meta_path(round_.path).touch()


class Waiting:
    """Another node, in a thread."""

    def __init__(self, round_: Round) -> None:
        self.told: list[str] = []
        self.begun = threading.Event()
        self.error: TpawError | None = None
        self.thread = threading.Thread(target=self._wait, args=(round_,), daemon=True)
        self.thread.start()
        assert self.begun.wait(10)

    def _tell(self, text: str) -> None:
        self.told.append(text)
        self.begun.set()

    def _wait(self, round_: Round) -> None:
        try:
            nodes.wait_for_triplets([round_], self._tell)
        except TpawError as error:
            self.error = error

    def end(self) -> TpawError | None:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.error


@pytest.fixture
def waiting(wanted: Round, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Waiting]]:
    started: list[Waiting] = []

    def start() -> Waiting:
        started.append(Waiting(wanted))
        return started[-1]

    yield start
    make(wanted)
    for each in started:
        each.thread.join(20)


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, None),
        ({"NNODES": "1", "NODE_RANK": "0"}, None),
        ({"NNODES": "2"}, 0),
        ({"NNODES": "4", "NODE_RANK": "3"}, 3),
        ({"NNODES": "1", "MIN_NNODES": "1", "MAX_NNODES": "4", "NODE_RANK": "2"}, 2),
    ],
)
def test_rank_is_llamafactorys(variables: dict[str, str], rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NNODES", "NODE_RANK"):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert nodes.node_rank() == rank


def test_waits_as_long_as_node_0_works(
    wanted: Round, waiting: Callable[[], Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "PATIENCE_S", 0.5)
    monkeypatch.setattr(nodes, "REMINDER_S", 0.1)
    other = waiting()
    with nodes.others_told([wanted]):
        other.thread.join(1.5)
        assert other.thread.is_alive()
        make(wanted)
    assert other.end() is None
    assert other.told[0].startswith(f"{wanted.path}: node 0 (NODE_RANK=0) generates it; this node (NODE_RANK=1) waits")
    assert "node 0 is at work on" in other.told[-1]
    assert [path.name for path in wanted.path.parent.iterdir() if path.name.startswith(".")] == []


def test_hears_why_node_0_failed(wanted: Round, waiting: Callable[[], Waiting]) -> None:
    other = waiting()
    with pytest.raises(GenerationError), nodes.others_told([wanted]):
        raise GenerationError("The engine is gone.")
    error = other.end()
    assert error is not None
    assert error.exit_code == GenerationError.exit_code
    assert "is not made: node 0 (" in str(error)
    assert str(error).endswith("failed. The engine is gone.")


@pytest.mark.parametrize(("stop", "code"), [(Terminated(), 143), (KeyboardInterrupt(), 130), (SystemExit(4), 4)])
def test_ends_with_node_0(wanted: Round, waiting: Callable[[], Waiting], stop: BaseException, code: int) -> None:
    other = waiting()
    with pytest.raises(type(stop)), nodes.others_told([wanted]):
        raise stop
    error = other.end()
    assert error is not None
    assert error.exit_code == code


def test_is_not_fooled_by_an_earlier_attempt(
    wanted: Round, waiting: Callable[[], Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GenerationError), nodes.others_told([wanted]):
        raise GenerationError("It failed yesterday.")
    other = waiting()
    other.thread.join(0.2)
    assert other.thread.is_alive(), "yesterday's failure was taken for today's"
    with nodes.others_told([wanted]):
        make(wanted)
    assert other.end() is None


@pytest.mark.parametrize("left", [False, True])
def test_without_a_shared_file_system(wanted: Round, monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    """Also where node 0 of an earlier attempt was killed, so that its file still says that it works."""
    if left:
        sign = wanted.path.with_name(".d0.jsonl.node0.json")
        sign.write_text(json.dumps({"host": "old", "pid": 1, "time": 1.0, "state": "working", "beat": 7}))
    monkeypatch.setattr(nodes, "PATIENCE_S", 0.1)
    with pytest.raises(EnvironmentProblem, match="no sign of life there for 0 s") as caught:
        nodes.wait_for_triplets([wanted], lambda text: None)
    assert "must be on a file system that all nodes share" in str(caught.value)
    assert ("an earlier attempt on old left there does not change" in str(caught.value)) == left
