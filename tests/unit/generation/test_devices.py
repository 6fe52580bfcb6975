# SPDX-License-Identifier: Apache-2.0
"""Units handed out to a process for each device: every request once, and one that fails ends the others."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llamafactory_tpaw.errors import EnvironmentProblem
from llamafactory_tpaw.generation import devices
from llamafactory_tpaw.generation.base import Request, Response
from llamafactory_tpaw.generation.devices import DeviceEngine, devices_in_sight


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from subprocess import Popen

COUNT = 40
EVERYTHING = np.arange(COUNT)


class Numbered:
    """Request `i` has a prompt of `COUNT - i` tokens, and `i` is its answer."""

    prompt_tokens = np.arange(COUNT, 0, -1, dtype=np.int32)
    new_tokens = np.ones(COUNT, dtype=np.int32)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Request:
        return Request(str(index), np.zeros(self.prompt_tokens[index], dtype=np.int32), 1, 0)


def respond(request: Request) -> Response:
    return Response([int(request.id)] * 1000, "stop")


def load(how: str) -> Callable[[Sequence[Request]], list[Response]]:
    """What a process calls: the first one works until it is ended where the second one is to fail."""
    device = os.environ["CUDA_VISIBLE_DEVICES"]

    def generate(unit: Sequence[Request]) -> list[Response]:
        if device == "0" and how != "well":
            signal.pause()
        if how == "memory":
            raise EnvironmentProblem("No memory.")
        if how == "fail":
            raise ValueError(how)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return [respond(request) for request in unit]

    return generate


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Popen[bytes]]:
    """The processes that were started."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    found: list[Popen[bytes]] = []
    start = devices.started_child

    @contextlib.contextmanager
    def note(*given: Any, **options: Any) -> Iterator[Popen[bytes]]:
        with start(*given, **options) as process:
            found.append(process)
            yield process

    monkeypatch.setattr(devices, "started_child", note)
    return found


def answer(how: str, *names: str, left: np.ndarray = EVERYTHING) -> Iterator[Any]:
    return DeviceEngine("1", functools.partial(load, how), names, 4).answer(Numbered(), left)


def test_every_request_is_answered_once_by_two_devices(started: list[Popen[bytes]]) -> None:
    batches = list(answer("well", "0", "1"))
    answers = [answer for batch in batches for answer in batch]
    assert sorted(index for index, _ in answers) == EVERYTHING.tolist()
    assert all(answer == respond(Numbered()[index]) for index, answer in answers)
    alone = list(answer("well", "0"))
    assert sorted(map(str, alone)) == sorted(map(str, batches))  # the same units, so the same rounding
    assert len(started) == 3


def test_what_is_left_is_asked_of_no_more_processes_than_there_are_units(started: list[Popen[bytes]]) -> None:
    batches = list(answer("well", *"0123", left=np.asarray([3, COUNT - 1])))
    assert sorted(index for batch in batches for index, _ in batch) == [3, COUNT - 1]
    assert len(started) == 2
    assert list(answer("well", "0", "1", left=EVERYTHING[:0])) == []


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("memory", EnvironmentProblem, "No memory."),
        ("fail", SystemExit, "1"),
        ("killed", SystemExit, "137"),
    ],
)
def test_one_that_fails_ends_the_others(
    started: list[Popen[bytes]], how: str, kind: type[BaseException], said: str
) -> None:
    with pytest.raises(kind) as caught:
        list(answer(how, "0", "1"))
    assert str(caught.value) == said
    assert [process.poll() is None for process in started] == [False, False]


def test_no_process_is_left_where_the_answers_are_not_wanted(started: list[Popen[bytes]]) -> None:
    answers = answer("well", "0", "1")
    assert next(answers)
    assert [process.poll() for process in started] == [None, None]
    answers.close()
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize(
    ("visible", "found"),
    [("0", ["0"]), ("3, 1", ["3", "1"]), ("GPU-8,MIG-2", ["GPU-8", "MIG-2"]), ("", []), ("-1", []), ("1,-1,0", ["1"])],
)
def test_devices_in_sight(visible: str, found: list[str]) -> None:
    assert devices_in_sight({"CUDA_VISIBLE_DEVICES": visible}) == found


def test_devices_in_sight_are_counted_where_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices_in_sight({}) == ["0", "1"]
