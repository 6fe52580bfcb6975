# SPDX-License-Identifier: Apache-2.0
"""A whole run copied to another folder, with other times and inodes: it verifies, and the next iteration trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw import cli
from llamafactory_tpaw.runs import launcher
from tests.runs import Project, Result


pytestmark = pytest.mark.integration

Train = Callable[..., list[dict[str, Any]]]


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


def settings(project: Project, iteration: int, **changes: Any) -> dict[str, Any]:
    return project.settings(iteration, num_train_epochs=2.0, **changes)


def fingerprints(described: Any) -> list[str]:
    return [each["fingerprint"] for each in (described if isinstance(described, list) else [described])]


def verified(capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run `lineage --verify` and return its exit code, stdout and stderr."""
    capsys.readouterr()
    return cli.main(["lineage", "saves", "--verify"]), *capsys.readouterr()


def test_it_verifies_and_continues(moved: Project, train_here: Train, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, errors = verified(capsys)
    assert (code, errors) == (0, "")
    assert output.endswith(" ok, 0 changed, 0 missing\n")
    for iteration in range(3):
        with pytest.raises(SystemExit) as finished, launcher.prepared(settings(moved, iteration, plot_loss=True)):
            pass
        assert finished.value.code == 0

    before = manifest(2)
    Path("saves/play_iter2").rename("saves/before")
    train_here(moved, settings(moved, 2))
    again = manifest(2)
    assert [again["counts"][name] for name in ("blocks", "scored_blocks", "scored_sequences")] == [12, 0, 0]
    for name in ("result", "players"):
        assert fingerprints(again[name]) == fingerprints(before[name])

    assert launcher.generate(settings(moved, 3)) == 0
    train_here(moved, settings(moved, 3))
    newest = manifest(3)
    assert newest["status"] == "finished"
    assert [player["path"] for player in newest["players"]] == [f"../play_iter{index}" for index in range(3)]
    # Of the players θ_1, θ_2, θ_3 the last is new to everything, the others to what θ_3 generated.
    assert (newest["counts"]["blocks"], newest["counts"]["scored_blocks"]) == (12, 6)
    code, output, errors = verified(capsys)
    assert (code, errors) == (0, "")
    assert "theta_4 <- theta_3  saves/play_iter3" in output
