# SPDX-License-Identifier: Apache-2.0
"""Units handed out to a process for each device: every request once, and one that fails ends the others."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llamafactory_tpaw.errors import GenerationError
from llamafactory_tpaw.generation import devices
from llamafactory_tpaw.generation.devices import DeviceEngine, devices_in_sight
from tests.unit.generation.sharing import COUNT, JOB, Numbered, respond


if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import Popen

EVERYTHING = np.arange(COUNT)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Popen[bytes]]:
    """The processes that were started, of this package's tests instead of its command."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    found: list[Popen[bytes]] = []
    start = devices.started_child

    @contextlib.contextmanager
    def note(command: list[str], environment: dict[str, str], **options: Any) -> Iterator[Popen[bytes]]:
        assert command[1:4] == ["-m", "llamafactory_tpaw", "generate"]
        module = [sys.executable, "-m", "tests.unit.generation.sharing", *json.loads(command[4])]
        with start(module, environment, **options) as process:
            found.append(process)
            yield process

    monkeypatch.setattr(devices, "started_child", note)
    return found


def engine(how: str, *names: str) -> DeviceEngine:
    @contextlib.contextmanager
    def hand(share: dict[str, Any]) -> Iterator[str]:
        yield json.dumps([how, json.dumps(share)])

    return DeviceEngine("1", hand, "d1.jsonl", JOB, names, 4)


def test_every_request_is_answered_once_by_two_devices(started: list[Popen[bytes]]) -> None:
    told: list[int] = []
    batches = list(engine("well", "0", "1").answer(Numbered(), EVERYTHING, told.append))
    answers = [answer for batch in batches for answer in batch]
    assert sorted(index for index, _ in answers) == EVERYTHING.tolist()
    assert all(answer == respond(Numbered()[index]) for index, answer in answers)
    assert sum(told) == COUNT
    assert [process.poll() for process in started] == [0, 0]
    alone = list(engine("well", "0").answer(Numbered(), EVERYTHING))
    assert sorted(map(str, alone)) == sorted(map(str, batches))  # the same units, so the same rounding
    assert len(started) == 3


def test_what_is_left_is_asked_of_no_more_processes_than_there_are_units(started: list[Popen[bytes]]) -> None:
    left = np.asarray([3, COUNT - 1])
    answers = [answer for batch in engine("well", *"0123").answer(Numbered(), left) for answer in batch]
    assert sorted(index for index, _ in answers) == [3, COUNT - 1]
    assert len(started) == 2
    assert list(engine("well", "0", "1").answer(Numbered(), EVERYTHING[:0])) == []
    assert len(started) == 2


@pytest.mark.parametrize(("how", "code"), [("fail", 5), ("killed", 137)])
def test_one_that_fails_ends_the_others(started: list[Popen[bytes]], how: str, code: int) -> None:
    with pytest.raises(SystemExit) as caught:
        list(engine(how, "0", "1").answer(Numbered(), EVERYTHING))
    assert caught.value.code == code
    assert all(process.poll() is not None for process in started)


def test_one_that_leaves_early_is_noticed(started: list[Popen[bytes]]) -> None:
    with pytest.raises(GenerationError, match="A process ended before it had answered"):
        list(engine("leave", "0", "1").answer(Numbered(), EVERYTHING))
    assert all(process.poll() is not None for process in started)


def test_one_that_sees_another_job_is_refused(started: list[Popen[bytes]]) -> None:
    with pytest.raises(GenerationError, match="A process found other prompts, settings or weights"):
        list(engine("other", "0").answer(Numbered(), EVERYTHING))
    assert started[0].poll() is not None


def test_no_process_is_left_where_the_answers_are_not_wanted(started: list[Popen[bytes]]) -> None:
    answers = engine("well", "0", "1").answer(Numbered(), EVERYTHING)
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
