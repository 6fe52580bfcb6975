# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are missing, half saved, not finished or changed since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llamafactory_tpaw.errors import DataError
from tests import tiny
from tests.runs import Project

from .conftest import Refuse
from .spoiling import anew, change_json, cut


pytestmark = pytest.mark.integration


def test_absent(project: Project, refuse: Refuse) -> None:
    shutil.rmtree("saves/play_iter0")
    message = refuse(anew(project, 2))
    assert "theta_1 (`tpaw_players`): saves/play_iter0 does not exist. Give the folder" in message
    message = refuse(anew(project, 0, model_name_or_path="/no/model", tpaw_players=None))
    assert "theta_0 (`model_name_or_path`): /no/model does not exist" in message


def test_absent_everywhere(project: Project, refuse: Refuse) -> None:
    message = refuse(anew(project, 0, model_name_or_path="nobody/nothing", tpaw_players=None), DataError)
    assert "theta_0 is `nobody/nothing`, which is no folder here and cannot be had from the hub" in message


def test_half_saved_weights(project: Project, refuse: Refuse) -> None:
    cut(Path("saves/play_iter1/model.safetensors"))
    message = refuse(anew(project, 2))
    assert "theta_2 (`model_name_or_path`): saves/play_iter1/model.safetensors is cut off or damaged" in message
    assert "Save or download it again" in message


def test_absent_shard(project: Project, refuse: Refuse) -> None:
    Path("saves/sft/model.safetensors").rename("saves/sft/model-1-of-2.safetensors")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    Path("saves/sft/model.safetensors.index.json").write_text(json.dumps(index))
    assert "theta_0 (`tpaw_players`): saves/sft/model-2-of-2.safetensors is missing" in refuse(anew(project, 1))


@pytest.mark.parametrize("theta", [0, 1])
def test_training_not_finished(project: Project, refuse: Refuse, theta: int) -> None:
    change_json(Path("saves/play_iter0/tpaw.json"), status="training")
    settings = anew(project, 1)
    if theta == 0:
        settings = anew(project, 0, model_name_or_path="saves/play_iter0", tpaw_players=None)
    message = refuse(settings)
    assert f"theta_{theta} is saves/play_iter0, whose tpaw.json says that its training is not finished." in message
    assert "Run iteration 0 again" in message


def test_damaged_tpaw_json(project: Project, refuse: Refuse) -> None:
    for content in ("[]", '{"schema": 1}', Path("saves/play_iter0/tpaw.json").read_text()[:400]):
        Path("saves/play_iter0/tpaw.json").write_text(content)
        message = refuse(anew(project, 1))
        assert "saves/play_iter0/tpaw.json is damaged (" in message
        assert "repeat the iteration with `overwrite_output_dir: true`" in message


def test_changed_since(project: Project, refuse: Refuse, tmp_path: Path) -> None:
    other = tiny.save_model(tmp_path / "other", seed=5)
    shutil.copy(other / "model.safetensors", "saves/play_iter0/model.safetensors")
    message = refuse(anew(project, 1))
    assert "theta_1 (saves/play_iter0) has fingerprint" in message
    assert "the weights were changed after the iteration" in message
