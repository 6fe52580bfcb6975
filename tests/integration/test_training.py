# SPDX-License-Identifier: Apache-2.0
"""Training as LlamaFactory's users know it; T-SPIN; several responses a prompt."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafactory_tpaw.arguments.parsed import parse_single_process
from llamafactory_tpaw.data.opponents import Limits, Triplet, load_triplets, split_by_prompt
from llamafactory_tpaw.errors import TpawError
from llamafactory_tpaw.team import scorer
from llamafactory_tpaw.team.fingerprint import fingerprint_checkpoint
from llamafactory_tpaw.team.scorer import ScoreReport, TeamScorer
from llamafactory_tpaw.train.manifest import check_earlier_work, start_manifest
from llamafactory_tpaw.train.setup import load_setup
from tests import encoders
from tests.integration.pairs import add_pairs, logps_of, make_pairs, pair_settings
from tests.runs import Project, Result
from tests.unit.data.writing import make_prompt, make_row, write_round


pytestmark = pytest.mark.integration

Train = Callable[[Project, dict[str, Any]], list[dict[str, Any]]]
PROMPTS, SAMPLES = 6, 3
SCALE = 0.1
SPIN = {"tpaw_team_size": 1, "tpaw_eta": 1.0, "tpaw_gamma": 0.0, "tpaw_reward_scale": SCALE}
SGD = {"optim": "sgd", "learning_rate": 0.02, "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    project = Project(tmp_path_factory.mktemp("training"), tiny_model)
    add_pairs(project, "pairs", make_pairs(20))
    return project


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def test_accumulation_changes_nothing(project: Project, train_here: Train) -> None:
    """8 x 1 and 1 x 8 give the same update, also in the last step, which has only 4 triplets.

    With warm-up the first update is none, so that policy and newest player are one model in two steps.
    """
    logged, ends = {}, {}
    for batch, steps in ((8, 1), (1, 8)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        settings = pair_settings(project, "pairs", **SGD, **sizes, warmup_steps=1, output_dir=f"saves/{batch}")
        logged[batch] = train_here(project, settings)
        ends[batch] = load_file(project.root / "saves" / str(batch) / "model.safetensors")
    assert [entry["learning_rate"] == 0.0 for entry in logged[8]] == [True, False, False]
    for whole, accumulated in zip(logged[8], logged[1], strict=True):
        assert accumulated["loss"] == pytest.approx(whole["loss"], abs=2e-5)
        assert accumulated["rewards/margin"] == pytest.approx(whole["rewards/margin"], abs=2e-5)
        assert accumulated["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    start = load_file(project.model / "model.safetensors")
    assert max(float((ends[8][name] - start[name]).abs().max()) for name in start) > 1e-3
    for name in start:
        torch.testing.assert_close(ends[1][name], ends[8][name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("changes", [{"warmup_steps": 1}, {"warmup_steps": 0}])
def test_a_training_that_changes_no_weight_says_so(
    project: Project, train_here: Train, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    train_here(
        project,
        pair_settings(project, "pairs", max_steps=1, **changes, output_dir="saves/one", overwrite_output_dir=True),
    )
    is_idle = changes["warmup_steps"] == 1
    assert ("The training changed no weight of theta_0: the learning rate was 0" in caplog.text) == is_idle
    result = read(project.root / "saves/one", "tpaw.json")
    assert (result["result"]["fingerprint"] == result["policy"]["fingerprint"]) == is_idle


IRIS = {"tpaw_objective": "iris", "tpaw_reward_scale": 1.0, "tpaw_renyi_alpha": 0.5}


def iris_by_hand(model: Path, player: Path, triplets: list[Triplet]) -> float:
    """The objective over all triplets at once, from the models' own log-probs."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (model, player))
    pairs = [zip(logps_of(policy, triplet), logps_of(reference, triplet), strict=True) for triplet in triplets]
    rewards = torch.tensor([[one - other for one, other in pair] for pair in pairs], dtype=torch.float64)
    return float(2 * (0.5 * rewards[:, 1]).exp().mean().log() + 2 * (-0.5 * rewards[:, 0]).exp().mean().log())


def test_iris_is_one_objective_over_the_whole_batch(project: Project, train_here: Train) -> None:
    """16 x 1, 2 x 8 and 1 x 16 train alike, and an evaluation is of all its triplets at once."""
    logged, ends, evaluated = {}, {}, {}
    for batch, steps in ((16, 1), (2, 8), (1, 16)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "val_size": 5}
        sizes |= {"per_device_eval_batch_size": min(batch, 4), "eval_strategy": "epoch", "num_train_epochs": 2.0}
        settings = pair_settings(project, "pairs", **SGD, **IRIS, **sizes, output_dir=f"saves/iris_{batch}")
        logged[batch] = train_here(project, settings)
        ends[batch] = load_file(project.root / f"saves/iris_{batch}/model.safetensors")
        history = read(project.root / f"saves/iris_{batch}", "trainer_state.json")["log_history"]
        evaluated[batch] = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert abs(logged[16][0]["loss"]) < 1e-4 < abs(logged[16][1]["loss"])
    for batch in (2, 1):
        for whole, parts in zip(logged[16], logged[batch], strict=True):
            for key in ("loss", "weights/target_squared", "weights/generated_squared"):
                assert parts[key] == pytest.approx(whole[key], abs=1e-4)
            assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)
        assert evaluated[batch] == pytest.approx(evaluated[16], abs=1e-4)
        for name in ends[16]:
            torch.testing.assert_close(ends[batch][name], ends[16][name], rtol=0, atol=1e-5)
    assert logged[16][1]["weights/target_squared"] > 1.001
    held_out = load_setup(parse_single_process(settings)).held_out
    by_hand = iris_by_hand(project.root / "saves/iris_16", project.model, held_out)
    assert evaluated[16][-1] == pytest.approx(by_hand, abs=1e-4)
    manifest = read(project.root / "saves/iris_16", "tpaw.json")
    assert (manifest["objective"], manifest["counts"]["held_out_triplets"]) == ("iris", 5)


@pytest.mark.parametrize(
    ("factor", "shift", "said"),
    [
        (float("nan"), 0.0, r"At step 0 `player_generated_logps` holds NaN or inf in rows \[0, 1"),
        (1.0, 3.0, r"theta_0 and the policy are one model.*differ by 3 nats"),
    ],
)
def test_wrong_scores_end_the_run(
    project: Project, train_here: Train, monkeypatch: pytest.MonkeyPatch, factor: float, shift: float, said: str
) -> None:
    """NaN names the argument and the rows; log-probs that are not the policy's are noticed at the first step."""
    lookup = TeamScorer.lookup
    monkeypatch.setattr(TeamScorer, "lookup", lambda *args: lookup(*args) * factor - shift)
    with pytest.raises(TpawError, match=said):
        train_here(project, pair_settings(project, "pairs", output_dir="saves/wrong"))


def test_killed_scoring_keeps_what_was_flushed(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(project.root)
    changes = {"tpaw_cache_dir": str(tmp_path), "tpaw_score_batch_tokens": 400, "output_dir": "saves/killed"}
    run = parse_single_process(pair_settings(project, "pairs", **changes))
    setup, score_rows, scored = load_setup(run), TeamScorer.score_rows, []

    def score(*given: Any) -> Any:
        """Score three batches and die in the fourth."""
        assert gc.get_freeze_count() > 100_000  # collections pass over what was there before the player
        scored.append(sum(len(row.responses) for row in given[2]))
        if len(scored) == 4:
            raise KeyboardInterrupt
        return score_rows(*given)

    monkeypatch.setattr(scorer, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(TeamScorer, "score_rows", score)
    with pytest.raises(KeyboardInterrupt):
        TeamScorer(run, setup.team.tokenizer).fill(setup.team.members, setup.blocks())
    assert gc.get_freeze_count() == 0
    reports = [TeamScorer(run, setup.team.tokenizer).fill(setup.team.members, setup.blocks()) for _ in range(2)]
    assert [each.scored_sequences for each in reports] == [40 - sum(scored[:3]), 0]


def test_one_command_an_iteration_leaves_everything_behind(played: tuple[Project, list[Result]]) -> None:
    project, results = played
    assert all("generated first, in a separate process" in result.output for result in results)
    assert not any("Model config" in result.output for result in results)
    folder = project.root / "saves" / "play_iter2"
    for name in ("model.safetensors", "README.md", "training_loss.png", "training_rewards_target.png"):
        assert (folder / name).stat().st_size > 0
    first = json.loads((folder / "trainer_log.jsonl").read_text().splitlines()[0])
    assert {"loss", "accuracy", "rewards/target/theta_2", "weights/player/theta_0"} <= set(first)


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
    """Iteration 1: the first logged loss is the formula on the model's own log-probs."""
    project, _ = played
    tspin = {"tpaw_objective": "tspin", "tpaw_proto": "play_iter0", "tpaw_players": None, "dataset": "play_iter1"}
    once = {"per_device_train_batch_size": 16, "max_steps": 1, "output_dir": "saves/tspin"}
    settings = project.settings(1, **tspin, **once)
    (entry,) = train_here(project, settings)
    model = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"]).eval()
    losses = []
    for triplet in load_setup(parse_single_process(settings)).train:
        target, generated, proto = logps_of(model, triplet)
        losses.append(-logsigmoid(target - generated) - 0.1 * logsigmoid(generated - proto))
    assert entry["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    manifest = read(project.root / "saves/tspin", "tpaw.json")
    assert (manifest["objective"], manifest["players"]) == ("tspin", [])


def test_a_diverse_team_is_recorded_with_its_scores(
    played: tuple[Project, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theta_1 stands for theta_2, so that theta_0 is the farthest, which trained theta_1 but not theta_2."""
    project, _ = played
    monkeypatch.chdir(project.root)
    team = {"tpaw_team_size": 2, "tpaw_team_select": "diverse", "output_dir": "saves/diverse"}
    run = parse_single_process(project.settings(2, **team))
    setup, run.finetuning.tpaw_given = load_setup(run), {}
    older, newest = start_manifest(run, setup, ScoreReport()).players
    assert (older["name"], newest["name"], "score" in newest) == ("theta_0", "theta_2", False)
    assert older["score"] > 0
    assert {triplet.iteration for triplet in setup.train} == {1, 2}
    run.training.resume_from_checkpoint = "saves/diverse/checkpoint-1"
    check_earlier_work(run, setup)
    others = setup._replace(team=setup.team._replace(members=setup.team.members[1:]))
    with pytest.raises(TpawError, match="its players changed since it was begun: theta_0, theta_2 then and theta_2"):
        check_earlier_work(run, others)
    shutil.rmtree("saves/diverse")


@pytest.fixture(scope="module")
def triplets(project: Project) -> list[Triplet]:
    """D_0 with three responses a prompt: the last one failed, and of one prompt two are the same."""
    # As transformers loads it: from 5.8 on by Qwen2's own class, whatever was saved.
    tokenizer = AutoTokenizer.from_pretrained(project.model)
    encoder = encoders.build_encoder(encoders.parse(project), tokenizer)
    prompts = [make_prompt(encoder, f"Tom buys {number}. Total?", f"It is {number}.") for number in range(PROMPTS)]
    texts = [f"{number} and {sample}" for number in range(PROMPTS) for sample in range(SAMPLES)]
    texts[1] = texts[0]
    rows = [
        make_row(encoder, prompts[index // SAMPLES], text, sample=index % SAMPLES) for index, text in enumerate(texts)
    ]
    generator = fingerprint_checkpoint(project.model, project.root / "cache")
    entry, meta = write_round(
        project, encoder, rows[:-1], "d0", samples=SAMPLES, failed=[rows[-1].key], generator=generator
    )
    return load_triplets(entry, meta, encoder, Limits(256, 1, 0))


def test_prompts_are_weighed_and_responses_filtered_but_none_held_out(
    project: Project, triplets: list[Triplet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets say 0 to 5, the responses to a prompt 0, 1, 2; to the first 0, 0, 2 and to the last 0, 1.

    Of the six, three have a right and a wrong one: H = -2/3 log2 2/3 - 1/3 log2 1/3 = 0.9183, and log2 3 = 1.5850.
    """
    monkeypatch.chdir(project.root)
    entropy = {"tpaw_prompt_weight": "entropy", "tpaw_answer_pattern": r"\d+"}
    run = parse_single_process(pair_settings(project, "d0", **SPIN, **entropy, output_dir="saves/weighed"))
    setup, run.finetuning.tpaw_given = load_setup(run), {}
    assert [triplet.id for triplet in setup.train] == [triplet.id for triplet in triplets[:9]]
    mean = (0.918296 + 2 * 1.584963) / 3
    weights = 3 * [0.918296 / mean] + 6 * [1.584963 / mean]
    assert [triplet.weight for triplet in setup.train] == pytest.approx(weights, 1e-5)
    assert start_manifest(run, setup, ScoreReport()).counts["left_out_triplets"] == len(triplets) - 9
    settings = pair_settings(project, "d0", **SPIN, val_size=2, tpaw_opponent_filter="equal,shorter:99")
    left = len(triplets) - len(split_by_prompt(triplets, 2)[1])
    assert left < len(triplets)
    with pytest.raises(TpawError, match=rf"leaves nothing to train on: equal 0, shorter:99 {left}\. Take a word out"):
        load_setup(parse_single_process(settings))


def test_the_loss_is_the_mean_over_triplets(project: Project, triplets: list[Triplet], train_here: Train) -> None:
    """Grouped or not, in batches that hold parts of groups; each sequence is scored once, equal ones together."""
    assert len(triplets) == PROMPTS * SAMPLES - 1
    steps = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 5, "max_steps": 2}
    saved = {"save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    logged, manifests = {}, {}
    for grouping in ("prompt", "none"):
        kind = {"tpaw_grouping": grouping, "output_dir": f"saves/{grouping}"}
        logged[grouping] = train_here(project, pair_settings(project, "d0", **SPIN, **steps, **SGD, **saved, **kind))
        manifests[grouping] = read(project.root / "saves" / grouping, "tpaw.json")
    for grouped, plain in zip(logged["prompt"], logged["none"], strict=True):
        for key in ("loss", "rewards/margin", "grad_norm"):
            assert grouped[key] == pytest.approx(plain[key], abs=1e-5)
    after_one = project.root / "saves" / "prompt" / "checkpoint-1"
    policy, player = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (after_one, project.model))
    losses = []
    for triplet in triplets:
        ratios = [one - other for one, other in zip(logps_of(policy, triplet), logps_of(player, triplet), strict=True)]
        losses.append(-logsigmoid(SCALE * (ratios[0] - ratios[1])))
    expected = float(torch.stack(losses).mean())
    assert logged["prompt"][1]["loss"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - logged["prompt"][0]["loss"]) > 1e-3, "or the first update would not be seen"

    counts = [manifests[grouping]["counts"] for grouping in ("prompt", "none")]
    assert (counts[0]["train_triplets"], counts[0]["repeated_triplets"]) == (17, 1)
    # Targets and responses once each, the repeated one not again, and nothing in the second run.
    assert [each["scored_sequences"] for each in counts] == [PROMPTS + 16, 0]
    (source,) = manifests["prompt"]["triplets"]
    assert [source[key] for key in ("rows", "samples", "failed", "opponent")] == [17, SAMPLES, 1, ""]
