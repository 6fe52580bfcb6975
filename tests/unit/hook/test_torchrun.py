# SPDX-License-Identifier: Apache-2.0
"""torchrun as the command starts it: whose failure counts, and what a signal waits for. Linux only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.hook import ranks, torchrun
from llamafactory_tpaw.lf import signals


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torchrun's processes are waited for by pid")


def test_the_killed_rank_counts_before_those_that_fail_by_it() -> None:
    def failed(code: int, timestamp: int = 7) -> Any:
        return SimpleNamespace(exitcode=code, timestamp=timestamp)

    assert torchrun._first({0: failed(1), 1: failed(-9), 2: failed(-15)})[0] == 1
    assert torchrun._first({0: failed(1, 8), 1: failed(1, 7)})[0] == 1
    assert torchrun._first({0: failed(-15), 1: failed(3)})[0] == 0


class TestSignals:
    @pytest.fixture
    def ended(self) -> list[int]:
        return []

    @pytest.fixture
    def handler(self, ended: list[int]) -> torchrun.SignalHandler:
        return torchrun.SignalHandler(lambda number, frame: ended.append(number))

    @pytest.fixture
    def finish(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        finished: list[int] = []
        monkeypatch.setattr(torchrun, "_let_ranks_finish", finished.append)
        return finished

    def test_sigterm_waits_for_the_ranks(
        self, handler: torchrun.SignalHandler, ended: list[int], finish: list[int]
    ) -> None:
        handler(signal.SIGTERM, None)
        assert (finish, ended) == ([signal.SIGTERM], [signal.SIGTERM])

    def test_ctrl_c_does_not(self, handler: torchrun.SignalHandler, ended: list[int], finish: list[int]) -> None:
        handler(signal.SIGINT, None)
        assert (finish, ended) == ([], [signal.SIGINT])

    def test_a_second_one_ends_the_patience(
        self, handler: torchrun.SignalHandler, ended: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def again(number: int) -> None:
            handler(signal.SIGTERM, None)
            assert ended == [], "that was the same signal on another way"
            monkeypatch.setattr(signals, "PATIENCE_S", 0.0)
            handler(signal.SIGTERM, None)
            assert ended == [signal.SIGTERM]

        monkeypatch.setattr(torchrun, "_let_ranks_finish", again)
        handler(signal.SIGTERM, None)

    @LINUX
    @pytest.mark.parametrize("fails", [False, True])
    def test_waits_until_all_have_ended_or_one_failed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
    ) -> None:
        """One writes its checkpoint after the other; where one fails, the other would wait for it for ever."""
        code = textwrap.dedent("""
            import os, signal, sys, time
            name, wait, code = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
            def save(*_):
                time.sleep(wait)
                open(name + ".saved", "w").close()
                os._exit(code)
            signal.signal(signal.SIGTERM, save)
            open(name, "w").close()
            time.sleep(60)
        """)
        plans = (("first", "0", "3" if fails else "143"), ("second", "30" if fails else "0.3", "143"))
        children = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name), *rest]) for name, *rest in plans
        ]
        monkeypatch.setattr(
            torchrun.psutil, "Process", lambda: SimpleNamespace(children=lambda: [Child(each) for each in children])
        )
        try:
            while not all((tmp_path / name).exists() for name, *_ in plans):
                time.sleep(0.01)
            torchrun._let_ranks_finish(signal.SIGTERM)
            assert (tmp_path / "first.saved").exists()
            assert (tmp_path / "second.saved").exists() != fails
        finally:
            for child in children:
                child.kill()
                child.wait()


class Child:
    """As psutil has it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def test_leaves_the_failure_where_the_command_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ranks.ERROR_FILE, str(tmp_path / "error.json"))
    ranks.leave_failure(ranks.Failure(1, -9, 42, "node7"))
    assert json.loads((tmp_path / "error.json.failure").read_text())["rank"] == 1
    error = ranks._collected(tmp_path / "error.json")
    assert str(error).startswith("Rank 1 (process 42 on node7) was ended by signal 9.")
    assert error.exit_code == 137


@pytest.mark.parametrize("restarts", [0, 1])
def test_ranks_that_are_started_again_meet_in_a_store_of_their_own(
    monkeypatch: pytest.MonkeyPatch, restarts: int
) -> None:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import api

    name, seen = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", []
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    monkeypatch.setenv(signals.PARENT, "0")
    monkeypatch.setattr(signals, "end_with_parent", lambda: None)
    monkeypatch.setattr(api, "_terminate_process_handler", api._terminate_process_handler)
    monkeypatch.setattr(run, "main", lambda arguments: seen.append(os.environ.get(name)))
    assert torchrun.main([f"--max-restarts={restarts}", "script.py"]) == 0
    assert seen == ["1" if restarts else None]
