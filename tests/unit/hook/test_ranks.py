# SPDX-License-Identifier: Apache-2.0
"""How an error or a stop in a training process becomes the command's."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError, GenerationError, TpawError
from llamafactory_tpaw.hook import ranks
from llamafactory_tpaw.lf import signals
from llamafactory_tpaw.lf.signals import SAVING_S, Terminated


@pytest.fixture
def handed(tmp_path: Path) -> dict[str, Any]:
    return {"folder": str(tmp_path), "cwd": "."}


@pytest.fixture
def launcher() -> ModuleType:
    return ModuleType("launcher")


def command(handed: dict[str, Any], launcher: ModuleType, *errors: BaseException) -> None:
    """Do what ranks do that end by these errors, and then what LlamaFactory's launcher does when torchrun failed."""
    with ranks.awaited(launcher, f"{handed['folder']}/plan.yaml"):
        for error in errors:
            with pytest.raises(type(error)), ranks.recorded(handed):
                raise error
        raise subprocess.CalledProcessError(1, ["torchrun"])


@pytest.mark.parametrize("error", [ConfigError(["one.", "two."]), GenerationError("the engine is gone.")])
def test_error_of_a_rank_replaces_torchruns(handed: dict[str, Any], launcher: ModuleType, error: TpawError) -> None:
    with pytest.raises(TpawError) as caught:
        command(handed, launcher, error, ConfigError("which came of it."))
    assert (caught.value.problems, caught.value.exit_code) == (error.problems, error.exit_code)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Terminated()])
def test_stop_of_a_rank_is_the_commands(handed: dict[str, Any], launcher: ModuleType, stop: BaseException) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        command(handed, launcher, stop)
    assert caught.type is type(stop)


class TestRank:
    @pytest.fixture(autouse=True)
    def _is_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setattr(signals, "end_with_parent", lambda: None)

    def end(self, handed: dict[str, Any] | None, error: BaseException) -> Any:
        with pytest.raises(SystemExit) as caught, ranks.as_rank(handed):
            raise error
        return caught.value.code

    def test_the_command_speaks_for_it(self, handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        assert self.end(handed, GenerationError("the engine is gone.")) == GenerationError.exit_code
        assert self.end(handed, Terminated()) == 143
        assert capsys.readouterr().err == ""

    def test_it_speaks_itself_under_a_users_torchrun(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.end(None, GenerationError("the engine is gone.")) == GenerationError.exit_code
        assert "the engine is gone." in capsys.readouterr().err
        assert self.end(None, KeyboardInterrupt()) == 130
        assert "the same command continues" in capsys.readouterr().err
        monkeypatch.setenv("RANK", "1")
        assert self.end(None, KeyboardInterrupt()) == 130
        assert capsys.readouterr().err == ""


def test_torchrun_may_save_and_start_again(monkeypatch: pytest.MonkeyPatch, launcher: ModuleType) -> None:
    started: list[Any] = []
    monkeypatch.setattr(signals, "run_child", lambda words, **options: started.append((words[1:], options)) or 7)
    with pytest.raises(TpawError, match="exit code 7"), ranks.awaited(launcher, "plan.yaml"):
        launcher.subprocess.run(["torchrun", "--nnodes", "1"], env={"MAX_RESTARTS": "2"}, check=True)
    environment = {"MAX_RESTARTS": "2", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    options = {"env": environment, "patience_s": SAVING_S, "through": True}
    assert started == [(["-m", "torch.distributed.run", "--nnodes", "1"], options)]
    assert launcher.subprocess is subprocess
