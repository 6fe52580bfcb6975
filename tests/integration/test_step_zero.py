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
# Letters that the tokenizer merges with nothing: sentences of as many letters have as many tokens.
EQUAL_LENGTH = "QXZJ"


def same_length_pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "question": " ".join(EQUAL_LENGTH[(row + shift) % 4] for shift in range(3)),
            "chosen": " ".join(EQUAL_LENGTH[(row // 4 + shift) % 4] for shift in range(3)),
            "rejected": " ".join(EQUAL_LENGTH[(row // 2 + 2 * shift + 1) % 4] for shift in range(3)),
        }
        for row in range(count)
    ]


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Project]:
    """A project for each dtype that a checkpoint can have, with pairs of one length and pairs of many."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        root = tmp_path_factory.mktemp("step_zero")
        found[dtype] = Project(root, tiny.save_model(root / "theta_0", dtype=dtype))
        add_pairs(found[dtype], "equal", same_length_pairs(8))
        add_pairs(found[dtype], "mixed", make_pairs(16))
    return found


@pytest.mark.parametrize("reference", ["cached", "online"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("checkpoint", [torch.float32, torch.bfloat16], ids=["from float32", "from bf16"])
def test_newest_reward_is_exactly_zero_at_the_same_shape(
    projects: dict[torch.dtype, Project], train_here: Train, checkpoint: torch.dtype, bf16: bool, reference: str
) -> None:
    project = projects[checkpoint]
    settings = pair_settings(
        project,
        "equal",
        bf16=bf16,
        tpaw_reference=reference,
        tpaw_cache_dir=f"saves/cache_{bf16}",
        # 2 triplets a batch are 4 rows for the policy: let the player score 4 rows of that length at once.
        tpaw_grouping="none",
        tpaw_layout="padded",
        per_device_train_batch_size=2,
        tpaw_score_batch_tokens=4 * padded_length(project, "equal"),
        output_dir=f"saves/{bf16}_{reference}",
    )
    first = train_here(project, settings)[0]
    assert first["rewards/target/theta_0"] == 0.0
    assert first["rewards/generated/theta_0"] == 0.0
    assert first["weights/target_eta_fraction"] == 1.0
    assert first["weights/step0_flipped_fraction"] == 0.0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_at_other_shapes_cached_and_online_agree_within_rounding(
    projects: dict[torch.dtype, Project], train_here: Train
) -> None:
    project = projects[torch.float32]
    logged = {}
    for reference in ("cached", "online"):
        settings = pair_settings(
            project, "mixed", tpaw_reference=reference, optim="sgd", output_dir=f"saves/mixed_{reference}"
        )
        logged[reference] = train_here(project, settings)
    for cached, online in zip(logged["cached"], logged["online"], strict=True):
        nats = 1e-6 * abs(online["logps/target"]) + 1e-5
        assert cached["rewards/target"] == pytest.approx(online["rewards/target"], abs=0.1 * nats)
    share = logged["cached"][0]["weights/step0_flipped_fraction"]
    assert 0.0 <= share < 1.0
    assert logged["online"][0]["weights/step0_flipped_fraction"] == 0.0
    assert all("weights/step0_flipped_fraction" not in entry for entry in logged["cached"][1:])


def padded_length(project: Project, name: str) -> int:
    """Length of the dataset's sequences after padding; fails unless all have the same."""
    from llamafactory_tpaw.arguments.parsed import parse_single_process
    from llamafactory_tpaw.data.opponents import Limits, load_foreign
    from llamafactory_tpaw.data.source import find_entry
    from llamafactory_tpaw.team.members import load_encoder

    settings = pair_settings(project, name) | {
        "dataset_dir": str(project.root / "data"),
        "model_name_or_path": str(project.model),
    }
    run = parse_single_process(settings)
    entry = find_entry(name, settings["dataset_dir"])
    triplets = load_foreign(entry, load_encoder(run)[2], Limits(256, 1, 0), run.model, run.data, run.training)
    lengths = {len(triplet.prompt_ids) + len(response) for triplet in triplets for response in triplet.responses}
    assert len(lengths) == 1
    return -(-lengths.pop() // 8) * 8


def test_an_evaluation_alone_loads_the_policy_as_the_players(
    projects: dict[torch.dtype, Project], train_here: Train
) -> None:
    """LlamaFactory upcasts weights only where it trains; without that, a bf16 checkpoint would differ from itself."""
    project = projects[torch.bfloat16]
    settings = pair_settings(
        project,
        "equal",
        do_train=False,
        do_eval=True,
        eval_dataset="equal",
        per_device_eval_batch_size=2,
        tpaw_grouping="none",
        tpaw_layout="padded",
        tpaw_score_batch_tokens=4 * padded_length(project, "equal"),
        tpaw_cache_dir="saves/cache_evaluated",
        output_dir="saves/evaluated",
    )
    train_here(project, settings, history=False)
    metrics = json.loads((project.root / "saves/evaluated/eval_results.json").read_text())
    assert metrics["eval_rewards/target/theta_0"] == 0.0
    assert metrics["eval_weights/target_eta_fraction"] == 1.0


def test_scores_of_other_weights_are_noticed(
    projects: dict[torch.dtype, Project], train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the players' log-probs are not those of the policy at the first step, training does not start."""
    from llamafactory_tpaw.errors import TpawError
    from llamafactory_tpaw.team.scorer import TeamScorer

    lookup = TeamScorer.lookup
    monkeypatch.setattr(TeamScorer, "lookup", lambda *args: lookup(*args) - 3.0)
    project = projects[torch.float32]
    with pytest.raises(TpawError, match=r"theta_0 and the policy are one model.*differ by 3 nats"):
        train_here(project, pair_settings(project, "mixed", output_dir="saves/foreign_scores"))
