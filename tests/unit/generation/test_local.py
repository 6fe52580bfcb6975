# SPDX-License-Identifier: Apache-2.0
"""A round of a real run: on one device and on several."""

from __future__ import annotations

import contextlib
import os
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import pytest

from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.source import find_entry
from llamafactory_tpaw.generation import devices, local
from llamafactory_tpaw.generation.devices import DeviceEngine
from llamafactory_tpaw.generation.hf import HfEngine
from llamafactory_tpaw.lf import facade
from tests import encoders
from tests.runs import Project


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from llamafactory_tpaw.arguments.parsed import RunArguments


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> RunArguments:
    settings = {"tpaw_generate_batch_tokens": 32, "tpaw_samples_per_prompt": 2, "max_new_tokens": 8}
    return encoders.parse(Project(tmp_path, tiny_model), **settings)


def round_of(run: RunArguments) -> Round:
    return Round(0, find_entry(run.data.dataset[0], run.data.dataset_dir))


def generate(run: RunArguments, *names: str) -> bytes:
    round_ = round_of(run)
    meta = local.generate_round(run, round_, names)
    assert meta.hardware["processes"] == max(len(names), 1)
    content = round_.path.read_bytes()
    for path in round_.path.parent.glob(f"{round_.path.stem}*"):
        path.unlink()
    return content


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Threads stand in for the processes, whose start takes long; returns the devices that were asked for."""
    found: list[str] = []
    load_model, loading = facade.load_model, threading.Lock()

    def load_alone(*arguments: Any) -> Any:
        with loading:  # transformers changes its classes while it loads, which only processes keep apart
            return load_model(*arguments)

    @contextlib.contextmanager
    def start(command: Sequence[str], env: dict[str, str], **_: Any) -> Iterator[Any]:
        found.append(env["CUDA_VISIBLE_DEVICES"])
        threading.Thread(target=answer, args=(Connection(os.dup(int(command[-1]))),)).start()
        yield

    def answer(channel: Connection) -> None:
        with contextlib.suppress(ConnectionError):  # a process would be ended
            devices.answer_parent(channel)

    monkeypatch.setattr(devices, "started_child", start)
    monkeypatch.setattr(facade, "load_model", load_alone)
    return found


def test_several_devices_give_the_bytes_of_one(
    run: RunArguments, in_threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted with two devices after the first unit, then with one, then finished with two."""
    alone = generate(run)
    assert alone.count(b"\n") == 32
    assert in_threads == []
    for engine, names in ((DeviceEngine, "01"), (HfEngine, "0")):
        answer = engine.answer

        def stopping(*given: Any, answer: Any = answer) -> Iterator[Any]:
            with contextlib.closing(answer(*given)) as lists:
                yield next(lists)
                raise KeyboardInterrupt

        monkeypatch.setattr(engine, "answer", stopping)
        with pytest.raises(KeyboardInterrupt):
            generate(run, *names)
        monkeypatch.setattr(engine, "answer", answer)
    partial = round_of(run).path.with_name(round_of(run).path.name + ".partial")
    assert partial.read_bytes().count(b'\n{"commit"') == 2
    assert generate(run, "2", "1") == alone
    assert in_threads == ["0", "1", "2", "1"]
