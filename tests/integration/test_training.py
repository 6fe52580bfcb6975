# SPDX-License-Identifier: Apache-2.0
"""Training as LlamaFactory's users know it: accumulation, evaluation, curves, logs; and T-SPIN."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from tests.integration.pairs import add_pairs, make_pairs, pair_settings
from tests.runs import Project, Result


pytestmark = pytest.mark.integration

Train = Callable[[Project, dict[str, Any]], list[dict[str, Any]]]
SGD = {"optim": "sgd", "learning_rate": 0.01, "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    project = Project(tmp_path_factory.mktemp("training"), tiny_model)
    add_pairs(project, "pairs", make_pairs(20))
    return project


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def test_accumulation_changes_nothing(project: Project, train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 x 1 and 1 x 8 give the same update, also in the last step, which has only 4 triplets.

    With warm-up the first update is none, so that policy and newest player are one model in two steps.
    """
    from llamafactory_tpaw.train.trainer import TpawTrainer

    anchored, one_model = TpawTrainer._anchored, set()
    monkeypatch.setattr(
        TpawTrainer,
        "_anchored",
        lambda trainer, *args: one_model.add(trainer.state.global_step) or anchored(trainer, *args),
    )
    logged, ends = {}, {}
    for batch, steps in ((8, 1), (1, 8)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        settings = pair_settings(project, "pairs", **SGD, **sizes, warmup_steps=1, output_dir=f"saves/{batch}")
        logged[batch] = train_here(project, settings)
        ends[batch] = load_file(project.root / "saves" / str(batch) / "model.safetensors")
    assert [entry["learning_rate"] == 0.0 for entry in logged[8]] == [True, False, False]
    assert one_model == {0, 1}
    for whole, accumulated in zip(logged[8], logged[1], strict=True):
        assert accumulated["loss"] == pytest.approx(whole["loss"], abs=2e-5)
        assert accumulated["rewards/margin"] == pytest.approx(whole["rewards/margin"], abs=2e-5)
        assert accumulated["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    start = load_file(project.model / "model.safetensors")
    assert max(float((ends[8][name] - start[name]).abs().max()) for name in start) > 1e-3
    for name in start:
        torch.testing.assert_close(ends[1][name], ends[8][name], rtol=0, atol=2e-6)


def test_held_out_triplets_are_evaluated(project: Project, train_here: Train) -> None:
    every_2 = {"eval_strategy": "steps", "eval_steps": 2}
    steps = train_here(project, pair_settings(project, "pairs", val_size=5, **every_2, output_dir="saves/evaluated"))
    assert len(steps) == 4  # 15 triplets are left
    history = read(project.root / "saves/evaluated", "trainer_state.json")["log_history"]
    first, second = (entry for entry in history if "eval_loss" in entry)
    assert {"eval_rewards/target", "eval_rewards/margin", "eval_weights/player/theta_0"} <= set(first)
    assert second["eval_loss"] != first["eval_loss"]
    assert read(project.root / "saves/evaluated", "tpaw.json")["counts"]["held_out_triplets"] == 5


def test_nan_ends_the_run_and_names_the_argument_and_the_rows(
    project: Project, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory_tpaw.errors import TpawError
    from llamafactory_tpaw.team.scorer import TeamScorer

    lookup = TeamScorer.lookup
    monkeypatch.setattr(TeamScorer, "lookup", lambda *args: lookup(*args) * float("nan"))
    with pytest.raises(TpawError, match=r"At step 0 `player_generated_logps` holds NaN or inf in rows \[0, 1"):
        train_here(project, pair_settings(project, "pairs", output_dir="saves/nan"))


def test_one_command_an_iteration_leaves_everything_behind(played: tuple[Project, list[Result]]) -> None:
    project, _ = played
    folder = project.root / "saves" / "play_iter2"
    for name in ("model.safetensors", "README.md", "training_loss.png", "training_rewards_target.png"):
        assert (folder / name).stat().st_size > 0
    first = json.loads((folder / "trainer_log.jsonl").read_text().splitlines()[0])
    assert {"loss", "accuracy", "rewards/target/theta_2", "weights/player/theta_0"} <= set(first)
    manifest = read(folder, "tpaw.json")
    assert manifest["status"] == "finished"
    assert [player["name"] for player in manifest["players"]] == ["theta_0", "theta_1", "theta_2"]
    sources = [(source["entry"], source["rows"]) for source in manifest["triplets"]]
    assert sources == [(f"play_iter{number}", 16) for number in range(3)]


def test_every_triplet_meets_every_player(played: tuple[Project, list[Result]]) -> None:
    project, _ = played
    history = project.history("play_iter2")
    assert len(history) == 3 * 16 * 2 // 4
    assert history[-1]["epoch"] == 2.0
    for entry in history:
        assert sum(entry[f"weights/player/theta_{theta}"] for theta in range(3)) == pytest.approx(1.0, abs=1e-6)
    # At most rounding away from 0, where the older players are far.
    assert abs(history[0]["rewards/target/theta_2"]) < 1e-4 < abs(history[0]["rewards/target/theta_0"])


def test_iteration_2_scores_only_what_is_new(played: tuple[Project, list[Result]]) -> None:
    """6 of 12 blocks: theta_2 on everything, theta_0 and theta_1 on D_2. Two epochs score once."""
    project, results = played
    assert [line for line in results[2].output.splitlines() if "Scored 6 of 12 blocks" in line]
    counts = [read(project.root / f"saves/play_iter{number}", "tpaw.json")["counts"] for number in range(3)]
    assert [(each["blocks"], each["scored_blocks"]) for each in counts] == [(2, 2), (6, 4), (12, 6)]


def test_tspin_takes_y_0_from_iteration_0(played: tuple[Project, list[Result]], train_here: Train) -> None:
    """Iteration 1: the first logged loss is the formula on the model's own log-probs, scored one by one."""
    from transformers import AutoModelForCausalLM

    from llamafactory_tpaw.arguments.parsed import parse_single_process
    from llamafactory_tpaw.train.setup import load_setup

    project, _ = played
    tspin = {"tpaw_objective": "tspin", "tpaw_proto": "play_iter0", "tpaw_players": None, "dataset": "play_iter1"}
    once = {"per_device_train_batch_size": 16, "max_steps": 1, "output_dir": "saves/tspin"}
    settings = project.settings(1, **tspin, **once)
    (entry,) = train_here(project, settings)
    model = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"]).eval()
    losses = []
    for triplet in load_setup(parse_single_process(settings)).train:
        sums = []
        for response in triplet.responses:
            ids = torch.tensor([[*triplet.prompt_ids, *response]])
            with torch.no_grad():
                logps = model(ids).logits[0, len(triplet.prompt_ids) - 1 : -1].log_softmax(-1)
            sums.append(logps.gather(1, torch.tensor(response).long()[:, None]).sum())
        target, generated, proto = sums
        losses.append(-logsigmoid(target - generated) - 0.1 * logsigmoid(generated - proto))
    assert entry["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    manifest = read(project.root / "saves/tspin", "tpaw.json")
    assert (manifest["objective"], manifest["players"]) == ("tspin", [])
