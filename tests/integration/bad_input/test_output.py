# SPDX-License-Identifier: Apache-2.0
"""Output folders that hold something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory_tpaw.errors import DataError
from tests import tiny
from tests.runs import Project

from .conftest import Refuse
from .spoiling import anew, cut


pytestmark = pytest.mark.integration


def test_finished_with_other_settings(project: Project, refuse: Refuse) -> None:
    played = project.settings(0, num_train_epochs=2.0, plot_loss=True)
    message = refuse(played | {"tpaw_eta": 4.0, "learning_rate": 2.0e-3})
    assert "`output_dir: saves/play_iter0` holds a run that was finished with other settings" in message
    assert "`learning_rate` was 0.001 and is 0.002 now; `tpaw_eta` was 6.0 and is 4.0 now" in message
    assert "`overwrite_output_dir: true`" in message


def test_finished_from_another_checkpoint(project: Project, refuse: Refuse, tmp_path: Path) -> None:
    other = tiny.save_model(tmp_path / "other", seed=5)
    settings = project.settings(1, num_train_epochs=2.0) | {"tpaw_players": f"{other},saves/play_iter0"}
    message = refuse(settings)
    assert "`tpaw_players`: theta_0 was" in message
    assert f"and is {other} with" in message


def test_finished_but_damaged(project: Project, refuse: Refuse) -> None:
    cut(Path("saves/play_iter0/model.safetensors"))
    message = refuse(project.settings(0, num_train_epochs=2.0), DataError)
    assert "holds theta_1, finished, but damaged since: saves/play_iter0/model.safetensors is cut off" in message


def test_model_of_another_stage(project: Project, refuse: Refuse, tmp_path: Path) -> None:
    other = tiny.save_model(tmp_path / "other", seed=5)
    message = refuse(anew(project, 0) | {"output_dir": str(other)})
    assert f"`output_dir: {other}` holds a model or checkpoints, but no tpaw.json" in message


def test_folder_of_a_player(project: Project, refuse: Refuse) -> None:
    settings = project.settings(1, output_dir="saves/sft", overwrite_output_dir=True)
    assert "`output_dir: saves/sft` is the folder of theta_0, which would be overwritten" in refuse(settings)
