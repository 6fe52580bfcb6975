# SPDX-License-Identifier: Apache-2.0
"""A whole run copied to another folder, with other times and inodes: it verifies, and the next iteration trains."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw import cli
from llamafactory_tpaw.errors import TpawError
from llamafactory_tpaw.runs import launcher
from tests.runs import Project, Result


pytestmark = pytest.mark.integration

Train = Callable[..., list[dict[str, Any]]]
COMMON = {"num_train_epochs": 2.0}


@pytest.fixture
def moved(played: tuple[Project, list[Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The run with its cache and θ_0 in another folder, which is the working folder."""
    done, _ = played
    shutil.copytree(done.root, tmp_path / "elsewhere" / "run", copy_function=shutil.copy)
    shutil.copytree(done.model, tmp_path / "elsewhere" / "run" / "saves" / "sft", copy_function=shutil.copy)
    monkeypatch.chdir(tmp_path / "elsewhere" / "run")
    return Project(tmp_path / "elsewhere" / "run", Path("saves/sft"))


def manifest(iteration: int) -> dict[str, Any]:
    return json.loads(Path(f"saves/play_iter{iteration}/tpaw.json").read_text())


def verified(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run `lineage --verify` and return its exit code, stdout and stderr."""
    capsys.readouterr()
    code = cli.main(["lineage", "saves", "--verify", *arguments])
    return code, *capsys.readouterr()


def test_it_verifies_and_continues(moved: Project, train_here: Train, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, errors = verified(capsys)
    assert (code, errors) == (0, "")
    assert output.endswith(" ok, 0 changed, 0 missing\n")
    for iteration in range(3):
        with (
            pytest.raises(SystemExit) as finished,
            launcher.prepare(moved.settings(iteration, plot_loss=True, **COMMON)),
        ):
            pass
        assert finished.value.code == 0

    before = manifest(2)
    Path("saves/play_iter2").rename("saves/before")
    train_here(moved, moved.settings(2, **COMMON))
    again = manifest(2)
    assert (again["counts"]["scored_blocks"], again["counts"]["scored_sequences"]) == (0, 0)
    assert again["counts"]["blocks"] == 12
    assert again["result"]["fingerprint"] == before["result"]["fingerprint"]
    assert [player["fingerprint"] for player in again["players"]] == [
        player["fingerprint"] for player in before["players"]
    ]

    assert launcher.generate(moved.settings(3, **COMMON)) == 0
    train_here(moved, moved.settings(3, **COMMON))
    newest = manifest(3)
    assert newest["status"] == "finished"
    assert [player["path"] for player in newest["players"]] == [f"../play_iter{index}" for index in range(3)]
    # Of the players θ_1, θ_2, θ_3 the last is new to everything, the others to what θ_3 generated.
    assert (newest["counts"]["blocks"], newest["counts"]["scored_blocks"]) == (12, 6)
    code, output, errors = verified(capsys)
    assert (code, errors) == (0, "")
    assert "theta_4 <- theta_3  saves/play_iter3" in output


def change_a_byte(path: Path, *, in_secret: bool) -> None:
    stat = path.stat()
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))
    if in_secret:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def refusal(project: Project) -> str:
    """Start iteration 2 up to where its models would be loaded."""
    from llamafactory_tpaw.arguments.parsed import parse_single_process
    from llamafactory_tpaw.train.setup import load_setup

    settings = project.settings(2, output_dir="saves/again", **COMMON)
    try:
        with launcher.prepare(settings):
            load_setup(parse_single_process(launcher.before_parse(settings)))
    except TpawError as error:
        return str(error)
    return ""


def test_a_changed_byte_is_refused_by_name(moved: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(moved) == ""
    weights = Path("saves/play_iter0/model.safetensors")
    change_a_byte(weights, in_secret=False)
    assert "theta_1 (saves/play_iter0) has fingerprint" in refusal(moved)
    finished = moved.settings(0, plot_loss=True, **COMMON)
    refused = r"`output_dir: saves/play_iter0` holds theta_1, finished, but model\.safetensors changed since"
    with pytest.raises(TpawError, match=refused), launcher.prepare(finished):
        pass
    change_a_byte(weights, in_secret=False)
    assert refusal(moved) == ""

    change_a_byte(weights, in_secret=True)
    assert refusal(moved) == "", "neither size nor time shows it"
    code, output, errors = verified(capsys)
    assert code == 3
    assert "changed  theta_1  saves/play_iter0: model.safetensors\n" in output
    assert errors.startswith("llamafactory-tpaw: error: theta_1 (saves/play_iter0): model.safetensors was changed")
    assert len(errors.splitlines()) == 1
    assert "theta_1 (saves/play_iter0) has fingerprint" in refusal(moved), "what was found is kept"
