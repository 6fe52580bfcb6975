# SPDX-License-Identifier: Apache-2.0
"""Two iterations of each kind of training that LlamaFactory has beside full and plain LoRA."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.team.manifest import read_manifest
from tests.integration.adapters import settings_of
from tests.integration.pairs import add_pairs, make_pairs
from tests.runs import Project


pytestmark = pytest.mark.integration
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "whole modules": {"additional_target": "lm_head"},
    "8 bits": {"quantization_bit": 8, "quantization_method": "bnb"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
}
# Of a log-prob of 8-bit weights as much is rounding.
ROUNDING = {"8 bits": 0.02}
REWARD_SCALE = 0.1


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    project = Project(tmp_path, tiny_model)
    for index in range(2):
        add_pairs(project, f"pairs{index}", make_pairs(8, seed=index))
    return project


@pytest.mark.parametrize("kind", KINDS)
def test_two_iterations(project: Project, train_here: Callable[..., list[dict[str, Any]]], kind: str) -> None:
    if kind == "8 bits":
        pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    model, first, second = str(project.model), "saves/play_iter0", "saves/play_iter1"
    common = dict.fromkeys(("tpaw_prompts", "temperature", "top_p", "top_k", "max_new_tokens")) | KINDS[kind]
    given = [
        settings_of(project, 0, players=[], dataset="pairs0", **common),
        settings_of(project, 1, first, players=[model], dataset="pairs0,pairs1", **common),
    ]
    if kind == "freeze":
        start = {"model_name_or_path": first, "adapter_name_or_path": None, "tpaw_players": f"{model},{first}"}
        given[1] = {key: value for key, value in (given[1] | start).items() if value is not None}
    for settings in given:
        history = train_here(project, settings)
        assert all(math.isfinite(entry["loss"]) for entry in history)
    rounding = ROUNDING.get(kind, 1e-5) * REWARD_SCALE * abs(history[0]["logps/target"])
    assert abs(history[0]["rewards/target/theta_1"]) <= rounding, "theta_1 is what is trained"
    assert abs(history[0]["rewards/target/theta_0"]) > 0.5 > 2 * rounding, "theta_0 is another one"
    manifest = read_manifest(project.root / second)
    assert manifest.players[1]["fingerprint"] == read_manifest(project.root / first).result["fingerprint"]
    assert len({player["fingerprint"] for player in manifest.players}) == 2
