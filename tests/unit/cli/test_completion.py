# SPDX-License-Identifier: Apache-2.0
"""The completion scripts, in bash as a user would press the tab key."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llamafactory_tpaw import cli
from llamafactory_tpaw.cli import completion
from llamafactory_tpaw.cli.command import RUN_FILE
from llamafactory_tpaw.errors import EnvironmentProblem


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "llamafactory-tpaw"
    path.write_text(completion.script("bash"), encoding="utf-8")
    return path


def complete(script: Path, folder: Path, *words: str) -> list[str]:
    """Return what bash offers for the last of the words after `llamafactory-tpaw`."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    lines = [
        'source "$1"; shift',
        'COMP_WORDS=(llamafactory-tpaw "$@"); COMP_CWORD=$#',
        'eval "$(complete -p llamafactory-tpaw | sed "s/.*-F \\([^ ]*\\).*/\\1/")"',
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    command = ["bash", "--norc", "-uc", "\n".join(lines), "bash", str(script), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return sorted(filter(None, done.stdout.splitlines()))


def test_bash_completes_commands(bash_script: Path, tmp_path: Path) -> None:
    assert complete(bash_script, tmp_path, "") == sorted(cli.COMMANDS)
    assert complete(bash_script, tmp_path, "gen") == ["generate"]


def test_bash_completes_options(bash_script: Path, tmp_path: Path) -> None:
    assert complete(bash_script, tmp_path, "--") == ["--help", "--version"]
    assert complete(bash_script, tmp_path, "generate", "--h") == ["--help"]


def test_bash_completes_choices(bash_script: Path, tmp_path: Path) -> None:
    assert complete(bash_script, tmp_path, "completion", "") == ["bash", "tcsh", "zsh"]


def takes_run_files(name: str) -> bool:
    _, parsers = cli.build_parsers()
    arguments = parsers[name]._get_positional_actions()
    return any(getattr(action, "complete", None) is RUN_FILE for action in arguments)


@pytest.mark.parametrize("command", filter(takes_run_files, cli.COMMANDS))
def test_bash_completes_run_files_and_folders(bash_script: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "yaml").mkdir()
    for name in ("a.yaml", "a b.yml", "a.json", "notes.txt", "yaml/c.yaml", "yaml/c.md"):
        (tmp_path / name).touch()
    assert complete(bash_script, tmp_path, command, "") == ["a b.yml", "a.yaml", "yaml"]
    assert complete(bash_script, tmp_path, command, "yaml/") == ["yaml/c.yaml"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_script_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert {name for name in cli.COMMANDS if name not in text} == set()


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_script_is_read_by_its_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(completion.script(shell), encoding="utf-8")
    subprocess.run([shell, "-n", str(path)], check=True)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["completion", "fish"])
    assert caught.value.code == 2
    assert "'bash', 'zsh', 'tcsh'" in capsys.readouterr().err


def test_without_shtab_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(EnvironmentProblem, match="pip install shtab"):
        completion.script("bash")
