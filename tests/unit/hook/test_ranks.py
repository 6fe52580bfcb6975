# SPDX-License-Identifier: Apache-2.0
"""An error in a training process that torchrun started becomes the command's error."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError, GenerationError, TpawError
from llamafactory_tpaw.hook import ranks
from llamafactory_tpaw.hook.ranks import ERROR_FILE, Failure, collect_error, leave_failure, record_error
from llamafactory_tpaw.lf.signals import SAVING_S, Terminated


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ERROR_FILE, raising=False)


def fail_in_rank(error: Exception) -> None:
    """Do what a rank does, and then what LlamaFactory's launcher does when torchrun failed."""
    with pytest.raises(type(error)), record_error():
        raise error
    raise CalledProcessError(1, ["torchrun"])


def test_error_of_a_rank_replaces_torchruns() -> None:
    with pytest.raises(TpawError) as caught, collect_error():
        fail_in_rank(ConfigError(["one.", "two."]))
    assert (caught.value.problems, caught.value.exit_code) == (["one.", "two."], ConfigError.exit_code)
    with pytest.raises(TpawError, match="the engine is gone") as caught, collect_error():
        fail_in_rank(GenerationError("the engine is gone."))
    assert caught.value.exit_code == GenerationError.exit_code
    assert ERROR_FILE not in os.environ


def test_other_failures_stay_torchruns() -> None:
    with pytest.raises(CalledProcessError), collect_error():
        fail_in_rank(RuntimeError("out of memory"))


def test_without_the_command_the_error_just_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ERROR_FILE, "/no/such/folder/error.json")
    with pytest.raises(GenerationError), record_error():
        raise GenerationError("the engine is gone.")


def command(*happened: Callable[[], None]) -> None:
    """Do what a command does whose torchrun ends with 1 after some things happened in the ranks."""
    with collect_error():
        for each in happened:
            each()
        raise CalledProcessError(1, ["torchrun"])


def in_rank(error: BaseException) -> Callable[[], None]:
    def happen() -> None:
        with contextlib.suppress(type(error)), record_error():
            raise error

    return happen


def test_the_first_error_counts() -> None:
    with pytest.raises(TpawError, match="the engine is gone"):
        command(in_rank(GenerationError("the engine is gone.")), in_rank(ConfigError("it was waited for in vain.")))


@pytest.mark.parametrize("stop", [Terminated(), KeyboardInterrupt()])
def test_a_stop_of_the_ranks_is_one_of_the_command(stop: KeyboardInterrupt) -> None:
    with pytest.raises(type(stop)) as caught:
        command(in_rank(stop))
    assert type(caught.value) is type(stop)


def test_a_killed_rank_counts_before_what_came_of_it() -> None:
    with pytest.raises(TpawError, match=r"^Rank 1 \(process 5 on here\) was ended by signal 9") as caught:
        command(lambda: leave_failure(Failure(1, -9, 5, "here")), in_rank(Terminated()))
    assert caught.value.exit_code == 137


def test_a_rank_that_failed_of_itself_is_named() -> None:
    with pytest.raises(TpawError, match=r"^Rank 3 .* failed with exit code 1; its output above says why") as caught:
        command(lambda: leave_failure(Failure(3, 1, 5, "here")))
    assert caught.value.exit_code == 1


def test_what_ended_the_ranks_before_a_restart_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(number: int, text: str) -> Callable[[], None]:
        def happen() -> None:
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
            with contextlib.suppress(SystemExit), ranks.as_rank():
                raise ConfigError(text)

        return happen

    with pytest.raises(TpawError, match="this time"):
        command(attempt(0, "before"), attempt(1, "this time"))


def test_only_torchrun_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = SimpleNamespace(subprocess=subprocess)
    started: list[Any] = []

    def run_child(command: list[str], environment: Any, patience_s: float, **streams: Any) -> int:
        started.append((command, patience_s))
        return 7

    monkeypatch.setattr(ranks.signals, "run_child", run_child)
    with ranks.watched_torchrun(launcher):
        assert launcher.subprocess.PIPE == subprocess.PIPE
        assert launcher.subprocess.run([sys.executable, "-c", ""], check=True).returncode == 0
        assert launcher.subprocess.run(["torchrun", "--nnodes", "1"]).returncode == 7
        with pytest.raises(CalledProcessError):
            launcher.subprocess.run(["torchrun"], env={}, check=True)
    assert launcher.subprocess is subprocess
    assert started[0] == ([sys.executable, "-m", "llamafactory_tpaw.hook.torchrun", "--nnodes", "1"], SAVING_S)


class TestDecision:
    @pytest.fixture
    def world(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Let functions be called as ranks 0 and 1, which meet at one store."""
        from torch.distributed import HashStore

        store = HashStore()
        monkeypatch.setattr(ranks, "_store", lambda: store)

        def as_rank(rank: int, decide: Any) -> Any:
            for name, value in (
                ("WORLD_SIZE", "2"),
                ("RANK", str(rank)),
                ("MASTER_ADDR", "here"),
                ("MASTER_PORT", "1"),
            ):
                monkeypatch.setenv(name, value)
            return ranks.decided_once(decide)

        return as_rank

    def test_alone_it_decides_for_itself(self) -> None:
        assert ranks.decided_once(lambda: {"resume_from_checkpoint": "c"}) == {"resume_from_checkpoint": "c"}

    def test_others_do_what_the_first_decided(self, world: Any) -> None:
        assert world(0, lambda: {"resume_from_checkpoint": "c"}) == {"resume_from_checkpoint": "c"}
        assert world(1, lambda: pytest.fail("decided by itself")) == {"resume_from_checkpoint": "c"}

    def test_all_end_with_the_same_error(self, world: Any) -> None:
        def refuse() -> dict[str, Any]:
            raise GenerationError(["one.", "two."])

        for rank in (0, 1):
            with pytest.raises(TpawError) as caught:
                world(rank, refuse)
            assert (caught.value.problems, caught.value.exit_code) == (["one.", "two."], GenerationError.exit_code)

    def test_all_end_where_the_iteration_is_finished(self, world: Any) -> None:
        for rank in (0, 1):
            with pytest.raises(SystemExit) as caught:
                world(rank, lambda: sys.exit(0))
            assert caught.value.code == 0

    def test_the_first_ones_bug_does_not_leave_the_others_waiting(self, world: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            world(0, lambda: 1 // 0)
        with pytest.raises(ConfigError, match="The first training process failed"):
            world(1, dict)
