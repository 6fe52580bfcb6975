# SPDX-License-Identifier: Apache-2.0
"""`tpaw_keep_checkpoints: needed` over three real trainings: what is gone when, and what says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.lf.given import read_given
from llamafactory_tpaw.runs.launcher import prepared
from tests.integration.pairs import add_pairs, make_pairs, pair_settings
from tests.runs import Project


pytestmark = pytest.mark.integration


def test_weights_go_when_the_window_has_passed(
    tmp_path: Path, tiny_model: Path, train_here: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, kept = Project(tmp_path, tiny_model), []
    monkeypatch.chdir(tmp_path)
    folders = [f"saves/play_iter{iteration}" for iteration in range(3)]
    for iteration in range(3):
        add_pairs(project, f"pairs{iteration}", make_pairs(4, seed=iteration))
        players = [str(tiny_model), *folders[:iteration]]
        settings = pair_settings(
            project,
            ",".join(f"pairs{index}" for index in range(iteration + 1)),
            tpaw_iteration=iteration,
            tpaw_team_size=1,
            tpaw_players=",".join(players),
            tpaw_keep_checkpoints="needed",
            model_name_or_path=players[-1],
            output_dir=folders[iteration],
            save_strategy="steps",
            save_steps=1,
        )
        with prepared(settings, project.write(f"iter{iteration}.yaml", settings)) as plan_file:
            train_here(project, read_given([plan_file]))
            before = weights(project)
        kept.append((before, weights(project)))
    (_, after_zero), (_, after_one), (two, after_two) = kept
    assert runs_of(after_zero) == {"play_iter0"}
    assert runs_of(after_one) == {"play_iter0", "play_iter1"}, "theta_1 was the team of iteration 1"
    assert runs_of(two) == {"play_iter0", "play_iter1", "play_iter2"}, "nothing goes while an iteration trains"
    assert runs_of(after_two) == {"play_iter1", "play_iter2"}
    assert "play_iter0/checkpoint-1" in after_zero - after_one, "those on the way go first"
    assert (tiny_model / "model.safetensors").is_file(), "theta_0 stays"
    assert len(project.history("play_iter0")) > 0, "what was logged stays"
    result = project.command("llamafactory-tpaw", "lineage", folders[2])
    assert result.code == 0, result.output
    assert "pruned" in result.output


def weights(project: Project) -> set[str]:
    """Folders below `saves` that hold weights."""
    root = project.root / "saves"
    return {str(path.parent.relative_to(root)) for path in root.rglob("model.safetensors")}


def runs_of(found: set[str]) -> set[str]:
    return {Path(name).parts[0] for name in found}
