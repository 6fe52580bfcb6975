# SPDX-License-Identifier: Apache-2.0
"""The command line of `llamafactory-tpaw`: help, hand-over, errors and completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from llamafactory_tpaw import _hook, cli
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.hook import bootstrap
from tests.unit.hook.conftest import calls as calls
from tests.unit.report.played import play_three
from tests.unit.team.checkpoints import flip


@pytest.fixture(autouse=True)
def _keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_a_closed_pipe_is_no_traceback() -> None:
    script = "import sys; from llamafactory_tpaw import cli; sys.exit(cli.main(['completion', 'tcsh']))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


@pytest.mark.parametrize("argv", [["nonsense"], ["generate"], ["--nonsense"], ["run"], ["completion", "fish"]])
def test_wrong_use_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: llamafactory-tpaw" in capsys.readouterr().err


def test_commands_hand_their_arguments_over(calls: object, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    launcher = sys.modules["llamafactory_tpaw.runs.launcher"]
    monkeypatch.setattr(launcher, "generate", lambda argv: seen.append(argv), raising=False)
    monkeypatch.setattr(launcher, "score", lambda argv: seen.append(argv) or 5, raising=False)
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
    assert cli.main(["train", "-h"]) == 0
    assert seen == [["llamafactory-cli", "train", "-h"]]
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(bootstrap.STARTUP_FOLDER), "before"]


def test_run_without_a_run_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bootstrap, "activate", lambda: None)
    assert cli.main(["run", "seed=1"]) == ConfigError.exit_code
    assert "No run file is given, only seed=1." in capsys.readouterr().err


def test_switched_off_hook_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not getattr(f, "llamafactory_tpaw", False)])
    monkeypatch.setenv(_hook.SWITCH, "0")
    assert cli.main(["generate", "a.yaml"]) == 2
    assert "Unset the variable" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert {name for name in cli.COMMANDS if name not in text} == set()
    (tmp_path / "script").write_text(text)
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_lineage(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thetas = play_three()
    assert cli.main(["lineage", "saves/iter2", "--verify"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "\x1b" not in output
    assert all(line == line.rstrip() for line in output.splitlines())
    assert "theta_3 <- theta_2  saves/iter2" in output
    assert output.endswith("\n20 ok, 0 changed, 0 missing\n")
    assert cli.main(["lineage", "saves/iter2", "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart LR\n")
    flip(thetas[1] / "model.safetensors", -1)
    assert cli.main(["lineage", "saves/iter2", "--json", "--verify"]) == 3
    output, errors = capsys.readouterr()
    (error,) = errors.splitlines()
    assert error.startswith("llamafactory-tpaw: error: theta_1 (saves/iter0): model.safetensors was changed")
    content = json.loads(output)
    assert [node["name"] for node in content["checkpoints"]] == ["theta_3", "theta_2", "theta_1", "theta_0"]
    assert [check["name"] for check in content["verification"] if check["state"] != "ok"] == ["theta_1"]
