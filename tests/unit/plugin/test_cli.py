# SPDX-License-Identifier: Apache-2.0
"""The command line of `llamafactory-tpaw`."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from llamafactory_tpaw import __version__, cli
from llamafactory_tpaw.errors import GenerationError
from llamafactory_tpaw.plugin import bootstrap


@pytest.fixture(autouse=True)
def _keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert __version__ in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"llamafactory-tpaw {name} yaml/" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["nonsense"], ["generate"], ["--nonsense"]])
def test_wrong_use_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: llamafactory-tpaw" in capsys.readouterr().err


def test_commands_hand_their_arguments_over(calls: object, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    launcher = sys.modules["llamafactory_tpaw.iteration.launcher"]
    monkeypatch.setattr(launcher, "generate", lambda argv: seen.append(argv))
    monkeypatch.setattr(launcher, "score", lambda argv: seen.append(argv) or 5)
    assert cli.main(["generate", "a.yaml", "b=c"]) == 0
    assert cli.main(["score", "a.yaml"]) == 5
    assert seen == [["a.yaml", "b=c"], ["a.yaml"]]


def test_train_is_llamafactory_cli_train(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fake = ModuleType("llamafactory.cli")
    fake.main = lambda: seen.append(list(sys.argv))
    monkeypatch.setitem(sys.modules, "llamafactory.cli", fake)
    monkeypatch.setattr("llamafactory.cli", fake, raising=False)
    monkeypatch.setenv("PYTHONPATH", "before")
    for _ in range(2):
        assert cli.main(["train", "-h"]) == 0
    assert seen == [["llamafactory-cli", "train", "-h"]] * 2
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(bootstrap.STARTUP_FOLDER), "before"]


def test_errors_are_messages(
    calls: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(argv: list[str]) -> None:
        raise GenerationError("the engine is gone.")

    monkeypatch.setattr(sys.modules["llamafactory_tpaw.iteration.launcher"], "generate", generate)
    monkeypatch.delenv("LLAMAFACTORY_VERBOSITY", raising=False)
    assert cli.main(["generate", "a.yaml"]) == GenerationError.exit_code
    assert capsys.readouterr().err == "llamafactory-tpaw: error: the engine is gone.\n"


def test_switched_off_hook_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not getattr(f, "llamafactory_tpaw", False)])
    monkeypatch.setenv("LLAMAFACTORY_TPAW", "0")
    assert cli.main(["generate", "a.yaml"]) == 2
    assert "Unset the variable" in capsys.readouterr().err
