# SPDX-License-Identifier: Apache-2.0
"""Before the first update policy and newest player are one model: its rewards are 0, and cached equals online."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import tiny
from tests.integration.pairs import add_pairs, make_pairs, pair_settings
from tests.runs import Project


pytestmark = pytest.mark.integration

Train = Callable[..., list[dict[str, Any]]]
# The policy has 2 triplets a batch, 4 rows of 72 tokens; let the player score as many at once.
SAME_SHAPE = {
    "tpaw_grouping": "none",
    "tpaw_layout": "padded",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "tpaw_score_batch_tokens": 4 * 72,
}


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Project]:
    """A project for each dtype that a checkpoint can have, with pairs of one length and pairs of many."""
    # Letters that the tokenizer merges with nothing: as many have as many tokens.
    equal = [
        {"question": f"{a} {b} {a}", "chosen": f"{b} {a} Q", "rejected": f"J {a} Q"} for a in "QXZJ" for b in "QX"
    ]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        root = tmp_path_factory.mktemp("step_zero")
        found[dtype] = Project(root, tiny.save_model(root / "theta_0", dtype=dtype))
        add_pairs(found[dtype], "equal", equal)
        add_pairs(found[dtype], "mixed", make_pairs(16))
    return found


@pytest.mark.parametrize(("bf16", "reference"), [(False, "cached"), (True, "online")])
@pytest.mark.parametrize("checkpoint", [torch.float32, torch.bfloat16])
def test_newest_reward_is_exactly_zero_at_the_same_shape(
    projects: dict[torch.dtype, Project], train_here: Train, checkpoint: torch.dtype, bf16: bool, reference: str
) -> None:
    project = projects[checkpoint]
    kind = {"bf16": bf16, "tpaw_reference": reference, "output_dir": f"saves/{bf16}_{reference}"}
    first = train_here(project, pair_settings(project, "equal", **SAME_SHAPE, **kind))[0]
    assert first["rewards/target/theta_0"] == first["rewards/generated/theta_0"] == 0.0
    assert first["weights/target_eta_fraction"] == 1.0
    assert first["weights/step0_flipped_fraction"] == 0.0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_at_other_shapes_cached_and_online_agree_within_rounding(
    projects: dict[torch.dtype, Project], train_here: Train
) -> None:
    project, logged = projects[torch.float32], {}
    for reference in ("cached", "online"):
        kind = {"tpaw_reference": reference, "optim": "sgd", "output_dir": f"saves/mixed_{reference}"}
        logged[reference] = train_here(project, pair_settings(project, "mixed", **kind))
    for cached, online in zip(logged["cached"], logged["online"], strict=True):
        nats = 1e-6 * abs(online["logps/target"]) + 1e-5
        assert cached["rewards/target"] == pytest.approx(online["rewards/target"], abs=0.1 * nats)
    flipped = "weights/step0_flipped_fraction"
    assert 0.0 <= logged["cached"][0][flipped] < 1.0
    assert logged["online"][0][flipped] == 0.0
    assert all(flipped not in entry for entry in logged["cached"][1:])


def test_an_evaluation_alone_loads_the_policy_as_the_players(
    projects: dict[torch.dtype, Project], train_here: Train
) -> None:
    """LlamaFactory upcasts weights only where it trains; without that, a bf16 checkpoint would differ from itself."""
    project = projects[torch.bfloat16]
    alone = {"do_train": False, "do_eval": True, "eval_dataset": "equal", "output_dir": "saves/evaluated"}
    train_here(project, pair_settings(project, "equal", **SAME_SHAPE, **alone), history=False)
    metrics = json.loads((project.root / "saves/evaluated/eval_results.json").read_text())
    assert metrics["eval_rewards/target/theta_0"] == 0.0
    assert metrics["eval_weights/target_eta_fraction"] == 1.0
