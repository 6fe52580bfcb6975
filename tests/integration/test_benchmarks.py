# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of training at toy size, in this process: the same work, tables and files."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check, gsm8k, material, training, worker
from benchmarks.contenders import NAIVE, TRL_ONLINE, contenders
from benchmarks.ours import ALL
from benchmarks.workload import Job, Workload


TOY = ["--size", "toy", "--threads", "1", "--response-tokens", "8"]

pytestmark = pytest.mark.integration


class Here:
    """A contender in this process."""

    def __init__(self, name: str, workload: Workload) -> None:
        self.name, self.workload = name, workload

    def run(self, job: Job) -> dict[str, Any]:
        return worker._measure(contenders()[self.name], self.workload, job, base=0)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let workers run here, without the imports of processes of their own."""
    from llamafactory.train import tuner  # noqa: F401  (installs the stage)

    @contextlib.contextmanager
    def start_workers(names: Sequence[str], workload: Workload) -> Iterator[list[Here]]:
        Path(workload.folder).mkdir(parents=True, exist_ok=True)
        material.make_material(workload)
        yield [Here(name, workload) for name in names]

    for module in (check, training):
        monkeypatch.setattr(module, "start_workers", start_workers)
    monkeypatch.chdir(tmp_path)
    gc.freeze()  # each iteration collects garbage several times: not among all that is imported
    yield
    gc.unfreeze()
    logging.getLogger("llamafactory").setLevel(logging.INFO)


def test_all_do_the_same_work(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--check", *TOY, "--accumulation", "2", "--only", NAIVE, TRL_ONLINE, "no saving", ALL]
    assert training.main(arguments) == 0, capsys.readouterr()
    assert "All contenders do the same work." in capsys.readouterr().out


def test_gsm8k_without_its_text_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gsm8k.main(["--data", str(tmp_path)]) == 0
    assert f"GSM8K is left out: {tmp_path} has no train.jsonl" in capsys.readouterr().out
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n' * 3)
    gsm8k.write_problems(tmp_path, tmp_path / "kept", 2)
    assert (tmp_path / "kept" / "train.jsonl").read_text().count("\n") == 3
    assert (tmp_path / "kept" / "play.jsonl").read_text().count("\n") == 2
