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

from tests.integration.pairs import add_pairs, make_pairs, pair_settings
from tests.runs import Project, Result


pytestmark = pytest.mark.integration

Train = Callable[[Project, dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    project = Project(tmp_path_factory.mktemp("training"), tiny_model)
    add_pairs(project, "pairs", make_pairs(20))
    return project


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_accumulation_changes_nothing(
    project: Project, train_here: Train, monkeypatch: pytest.MonkeyPatch, warmup_steps: int
) -> None:
    """8 x 1 and 1 x 8 give the same update, also in the last step, which has only 4 triplets.

    With warm-up the first update is nil, so that policy and newest player are one model in two steps.
    """
    from llamafactory_tpaw.train.trainer import TpawTrainer

    anchored, one_model = TpawTrainer._anchored, set()
    monkeypatch.setattr(
        TpawTrainer,
        "_anchored",
        lambda trainer, *args: one_model.add(trainer.state.global_step) or anchored(trainer, *args),
    )
    logged = {}
    for batch, steps in ((8, 1), (1, 8)):
        settings = pair_settings(
            project,
            "pairs",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.01,
            max_grad_norm=0.0,
            warmup_steps=warmup_steps,
            output_dir=f"saves/{batch}x{steps}_{warmup_steps}",
        )
        logged[batch] = train_here(project, settings)
    assert len(logged[8]) == len(logged[1]) == 3
    for whole, accumulated in zip(logged[8], logged[1], strict=True):
        assert accumulated["loss"] == pytest.approx(whole["loss"], abs=2e-5)
        assert accumulated["rewards/margin"] == pytest.approx(whole["rewards/margin"], abs=2e-5)
        assert accumulated["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    assert one_model == set(range(warmup_steps + 1))
    assert [entry["learning_rate"] == 0.0 for entry in logged[8]] == [bool(warmup_steps), False, False]
    whole, accumulated = (
        load_file(project.root / "saves" / f"{name}_{warmup_steps}" / "model.safetensors") for name in ("8x1", "1x8")
    )
    start = load_file(project.model / "model.safetensors")
    assert max(float((whole[name] - start[name]).abs().max()) for name in start) > 1e-3
    for name in whole:
        torch.testing.assert_close(accumulated[name], whole[name], rtol=0, atol=2e-6)


def test_held_out_triplets_are_evaluated(project: Project, train_here: Train) -> None:
    settings = pair_settings(
        project, "pairs", val_size=5, eval_strategy="steps", eval_steps=2, output_dir="saves/evaluated"
    )
    steps = train_here(project, settings)
    assert len(steps) == 4  # 15 triplets are left
    state = json.loads((project.root / "saves/evaluated/trainer_state.json").read_text())
    evaluations = [entry for entry in state["log_history"] if "eval_loss" in entry]
    assert len(evaluations) == 2
    assert {"eval_rewards/target", "eval_rewards/margin", "eval_logps/target", "eval_weights/player/theta_0"} <= set(
        evaluations[0]
    )
    manifest = json.loads((project.root / "saves/evaluated/tpaw.json").read_text())
    assert manifest["counts"]["held_out_triplets"] == 5


def test_one_command_an_iteration_leaves_everything_behind(played: tuple[Project, list[Result]]) -> None:
    project, _ = played
    folder = project.root / "saves" / "play_iter2"
    for name in ("model.safetensors", "README.md", "training_loss.png", "training_rewards_target.png"):
        assert (folder / name).stat().st_size > 0
    log = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    assert {"loss", "accuracy", "rewards/target/theta_2", "weights/player/theta_0"} <= set(log[0])
    manifest = json.loads((folder / "tpaw.json").read_text())
    assert manifest["status"] == "finished"
    assert [player["name"] for player in manifest["players"]] == ["theta_0", "theta_1", "theta_2"]
    for name, source in zip(("play_iter0", "play_iter1", "play_iter2"), manifest["triplets"], strict=True):
        assert source["entry"] == name
        assert source["rows"] == len(project.triplets(name)) == 16
    first = project.history("play_iter2")[0]
    assert sum(first[f"weights/player/theta_{theta}"] for theta in range(3)) == pytest.approx(1.0, abs=1e-6)
    # At most rounding away from 0, where the older players are far.
    assert abs(first["rewards/target/theta_2"]) < 1e-4 < abs(first["rewards/target/theta_0"])


def test_iteration_2_scores_only_what_is_new(played: tuple[Project, list[Result]]) -> None:
    """6 of 12 blocks: theta_2 on everything, theta_0 and theta_1 on D_2. Two epochs score once."""
    project, results = played
    lines = [line for line in results[2].output.splitlines() if "Scored " in line]
    assert len(lines) == 1
    assert "Scored 6 of 12 blocks" in lines[0]
    for theta, states in enumerate(
        (
            "target cached, generated 0 cached, generated 1 cached, generated 2 scored",
            "target cached, generated 0 cached, generated 1 cached, generated 2 scored",
            "target scored, generated 0 scored, generated 1 scored, generated 2 scored",
        )
    ):
        assert any(f"theta_{theta} (" in line and states in line for line in results[2].output.splitlines())
    counts = json.loads((project.root / "saves/play_iter2/tpaw.json").read_text())["counts"]
    assert (counts["blocks"], counts["scored_blocks"]) == (12, 6)
    assert [
        json.loads((project.root / f"saves/play_iter{k}/tpaw.json").read_text())["counts"]["scored_blocks"]
        for k in (0, 1)
    ] == [2, 4]


def test_generate_and_score_alone_leave_nothing_but_training(
    tmp_path: Path, tiny_model: Path, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory_tpaw import cli

    project = Project(tmp_path, tiny_model)
    settings = project.settings(0, max_steps=1)
    monkeypatch.chdir(tmp_path)
    name = project.write("iter0.yaml", settings)
    assert cli.main(["generate", name]) == 0
    rows = project.triplets("play_iter0")
    assert len(rows) == 16
    assert not (tmp_path / "saves/.tpaw_cache/logps").exists()
    assert cli.main(["score", name, "tpaw_score_batch_tokens=512"]) == 0
    parts = sorted((tmp_path / "saves/.tpaw_cache/logps").rglob("part-*"))
    assert parts
    train_here(project, settings)
    assert project.triplets("play_iter0") == rows
    assert sorted((tmp_path / "saves/.tpaw_cache/logps").rglob("part-*")) == parts
    counts = json.loads((tmp_path / "saves/play_iter0/tpaw.json").read_text())["counts"]
    assert (counts["blocks"], counts["scored_blocks"]) == (2, 0)


def test_every_triplet_meets_every_player(played: tuple[Project, list[Result]]) -> None:
    project, _ = played
    assert len(project.history("play_iter2")) == 3 * 16 * 2 // 4
    state = json.loads((project.root / "saves/play_iter2/trainer_state.json").read_text())
    assert state["log_history"][-1]["epoch"] == 2.0


def test_gamma_0_is_the_plain_average_and_eta_1_no_weighting(
    played: tuple[Project, list[Result]], train_here: Train
) -> None:
    project, _ = played
    settings = project.settings(2, tpaw_gamma=0.0, tpaw_eta=1.0, output_dir="saves/plain", max_steps=2)
    for entry in train_here(project, settings):
        for theta in range(3):
            assert entry[f"weights/player/theta_{theta}"] == pytest.approx(1 / 3, abs=1e-6)


def test_tspin_takes_y_0_from_iteration_0(played: tuple[Project, list[Result]], train_here: Train) -> None:
    """Iteration 1: the first logged loss is the formula on the model's own log-probs."""
    project, _ = played
    settings = project.settings(
        1,
        tpaw_objective="tspin",
        tpaw_proto="play_iter0",
        tpaw_players=None,
        dataset="play_iter1",
        per_device_train_batch_size=16,
        max_steps=1,
        output_dir="saves/tspin",
    )
    (entry,) = train_here(project, settings)
    target, generated, proto = _logps(project, settings)
    expected = -torch.nn.functional.logsigmoid(target - generated) - 0.1 * torch.nn.functional.logsigmoid(
        generated - proto
    )
    assert entry["loss"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert entry["logps/target"] == pytest.approx(float(target.mean()), rel=1e-5)
    manifest = json.loads((project.root / "saves/tspin/tpaw.json").read_text())
    assert manifest["players"] == []
    assert manifest["objective"] == "tspin"


def _logps(project: Project, settings: dict[str, Any]) -> list[torch.Tensor]:
    """Score target, y' and y_0 of all prompts with plain transformers, one by one."""
    from transformers import AutoModelForCausalLM

    from llamafactory_tpaw.arguments.parsed import parse_single_process
    from llamafactory_tpaw.train.setup import load_setup

    setup = load_setup(parse_single_process(settings))
    model = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"]).eval()
    rows = []
    for triplet in setup.train:
        sums = []
        for response in triplet.responses:
            ids = torch.tensor([[*triplet.prompt_ids.tolist(), *response.tolist()]])
            with torch.no_grad():
                logps = model(ids).logits[0, :-1].log_softmax(-1)
            start = len(triplet.prompt_ids) - 1
            sums.append(logps[start:].gather(1, ids[0, start + 1 :, None]).sum())
        rows.append(torch.stack(sums))
    return list(torch.stack(rows).T)
