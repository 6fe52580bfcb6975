# SPDX-License-Identifier: Apache-2.0
"""Units handed out to a process for each device: every request once, and one that fails ends the others."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from llamafactory_tpaw.errors import EnvironmentProblem
from llamafactory_tpaw.generation.base import Request, Response
from llamafactory_tpaw.generation.devices import DeviceEngine, devices_in_sight


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


def load(how: str) -> SimpleNamespace:
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
        return [Response([int(request.id)] * 1000, device) for request in unit]

    return SimpleNamespace(generate=generate, facts={"dtype": device})


@pytest.fixture(autouse=True)
def _leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process is left behind; they find this module."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


def answer(how: str, *names: str) -> Iterator[Any]:
    return DeviceEngine("1", functools.partial(load, how), names, 4).answer(Numbered(), EVERYTHING)


@pytest.mark.parametrize("left", [EVERYTHING, np.asarray([3, COUNT - 1]), EVERYTHING[:0]], ids=len)
def test_every_request_is_answered_once_whatever_the_devices(left: np.ndarray) -> None:
    units = []
    for names in ("0", "0123"):
        engine = DeviceEngine("1", functools.partial(load, "well"), names, 4)
        batches = list(engine.answer(Numbered(), left))
        answers = [answer for batch in batches for answer in batch]
        assert sorted(index for index, _ in answers) == left.tolist()
        assert all(response.ids == [index] * 1000 for index, response in answers)
        assert {response.finish_reason for _, response in answers} <= set(names)
        assert engine.facts["dtype"] in names if len(left) else engine.facts == {}
        units.append(sorted([index for index, _ in batch] for batch in batches))
    assert units[0] == units[1]  # so the same rounding


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [("memory", EnvironmentProblem, "No memory."), ("fail", SystemExit, "1"), ("killed", SystemExit, "137")],
)
def test_one_that_fails_ends_the_others(how: str, kind: type[BaseException], said: str) -> None:
    with pytest.raises(kind) as caught:
        list(answer(how, "0", "1"))
    assert str(caught.value) == said


def test_no_process_is_left_where_the_answers_are_not_wanted() -> None:
    answers = answer("well", "0", "1")
    assert next(answers)
    answers.close()


@pytest.mark.parametrize(
    ("visible", "found"),
    [("0", ["0"]), ("3, 1", ["3", "1"]), ("GPU-8,MIG-2", ["GPU-8", "MIG-2"]), ("", []), ("-1", []), ("1,-1,0", ["1"])],
)
def test_devices_in_sight(visible: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_in_sight({"CUDA_VISIBLE_DEVICES": visible}) == found
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices_in_sight({}) == ["0", "1"], "counted where none are named"
