# SPDX-License-Identifier: Apache-2.0
"""SPIN, the special case of one player and no weights, against LlamaFactory's own `dpo` stage, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.integration.pairs import add_pairs, make_pairs, pair_settings
from tests.runs import Project


STEPS = 24
TOLERANCE = 1e-5
SPIN = {"tpaw_team_size": 1, "tpaw_eta": 1.0, "tpaw_gamma": 0.0}

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("spin"))


def make_project(root: Path) -> Project:
    """Pairs with responses of up to 100 tokens and a cutoff far beyond them.

    The model has no attention dropout: stage `dpo` leaves that on in the policy, stage `tpaw` does not. It has seen
    such sentences, so that log-probs are about 1 nat a token: float32 sums of several hundred nats are spaced wider
    than the tolerance.
    """
    rows = make_pairs(2 * STEPS, words=(2, 34))
    model = tiny.save_model(root / "theta_0", attention_dropout=0.0, initializer_range=0.05)
    seen = [
        f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n{row['chosen']}<|im_end|>\n"
        for row in make_pairs(200, seed=1, words=(2, 34))
    ]
    project = Project(root, tiny.teach(model, seen))
    add_pairs(project, "pairs", rows)
    return project


@pytest.mark.parametrize(
    ("reward_scale", "order"),
    # Groups are shuffled as wholes, so stage `dpo` visits the pairs in another order unless neither shuffles.
    [(0.1, {"tpaw_grouping": "none"}), (0.5, {"tpaw_grouping": "prompt", "disable_shuffling": True})],
)
def test_losses_rewards_and_weights_agree(
    project: Project, train_here: Callable[..., list[dict[str, Any]]], reward_scale: float, order: dict[str, object]
) -> None:
    shared = {"optim": "sgd", "learning_rate": 0.02, "per_device_train_batch_size": 2, "cutoff_len": 512}
    ours = pair_settings(project, "pairs", **shared, **SPIN, **order, tpaw_reward_scale=reward_scale)
    dpo = {"stage": "dpo", "pref_beta": reward_scale, "pref_loss": "sigmoid"}
    theirs = {key: value for key, value in ours.items() if not key.startswith("tpaw_")} | dpo
    names = [f"{name}_{reward_scale}" for name in ("spin", "dpo")]
    spin, dpo = (
        train_here(project, settings | {"output_dir": f"saves/{name}"})
        for settings, name in zip((ours, theirs), names, strict=True)
    )
    assert len(spin) == len(dpo) == STEPS
    assert max(entry["length/generated"] for entry in spin) <= 100
    for own, reference in zip(spin, dpo, strict=True):
        assert own["loss"] == pytest.approx(reference["loss"], abs=TOLERANCE)
        assert own["rewards/target"] == pytest.approx(reference["rewards/chosen"], abs=TOLERANCE)
        assert own["rewards/generated"] == pytest.approx(reference["rewards/rejected"], abs=TOLERANCE)
    assert abs(spin[-1]["loss"] - spin[0]["loss"]) > 100 * TOLERANCE

    start = load_file(project.model / "model.safetensors")
    ours_end, theirs_end = (load_file(project.root / "saves" / name / "model.safetensors") for name in names)
    assert max(float((ours_end[name] - start[name]).abs().max()) for name in start) > 100 * TOLERANCE
    for name in theirs_end:
        torch.testing.assert_close(ours_end[name], theirs_end[name], rtol=0, atol=TOLERANCE)
