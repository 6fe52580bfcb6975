# SPDX-License-Identifier: Apache-2.0
"""Training on several responses a prompt, and on triplets of an opponent model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from llamafactory_tpaw.data.opponents import Limits, Triplet, load_triplets
from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.team.fingerprint import fingerprint_checkpoint
from llamafactory_tpaw.team.manifest import read_manifest
from llamafactory_tpaw.train.setup import load_setup
from tests import encoders, tiny
from tests.integration.pairs import pair_settings
from tests.runs import Project
from tests.unit.data.writing import make_prompt, make_row, write_round


pytestmark = pytest.mark.integration

Train = Callable[[Project, dict[str, Any]], list[dict[str, Any]]]

PROMPTS, SAMPLES = 6, 3
SCALE = 0.1
SPIN = {"tpaw_team_size": 1, "tpaw_eta": 1.0, "tpaw_gamma": 0.0, "tpaw_reward_scale": SCALE}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    return Project(tmp_path_factory.mktemp("samples"), tiny_model)


@pytest.fixture(scope="module")
def triplets(project: Project) -> list[Triplet]:
    """D_0 with three responses a prompt: the last one failed, and of one prompt two are the same."""
    encoder = encoders.build_encoder(encoders.parse(project))
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


@torch.no_grad()
def loss_of(policy: Path, player: Path, triplets: list[Triplet]) -> float:
    """SPIN's loss as it is written down, one triplet after another; the mean over triplets."""
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (policy, player)]
    losses = []
    for triplet in triplets:
        ratios = []
        for response in (triplet.target_ids, triplet.generated_ids):
            ids, start = torch.tensor([[*triplet.prompt_ids, *response]]), len(triplet.prompt_ids) - 1
            labels = torch.tensor(response).long()[:, None]
            sums = [model(ids).logits[0, start:-1].log_softmax(-1).gather(1, labels).sum() for model in models]
            ratios.append(sums[0] - sums[1])
        losses.append(-logsigmoid(SCALE * (ratios[0] - ratios[1])))
    return float(torch.stack(losses).mean())


def test_the_loss_is_the_mean_over_triplets(project: Project, triplets: list[Triplet], train_here: Train) -> None:
    """Grouped or not, in batches that hold parts of groups; each sequence is scored once, equal ones together."""
    assert len(triplets) == PROMPTS * SAMPLES - 1
    steps = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 5, "max_steps": 2}
    sgd = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
    saved = {"save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    logged, manifests = {}, {}
    for grouping in ("prompt", "none"):
        kind = {"tpaw_grouping": grouping, "output_dir": f"saves/{grouping}"}
        logged[grouping] = train_here(project, pair_settings(project, "d0", **SPIN, **steps, **sgd, **saved, **kind))
        manifests[grouping] = read_manifest(project.root / "saves" / grouping)
    for grouped, plain in zip(logged["prompt"], logged["none"], strict=True):
        for key in ("loss", "rewards/margin", "grad_norm"):
            assert grouped[key] == pytest.approx(plain[key], abs=1e-5)
    after_one = project.root / "saves" / "prompt" / "checkpoint-1"
    expected = loss_of(after_one, project.model, triplets)
    assert logged["prompt"][1]["loss"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - logged["prompt"][0]["loss"]) > 1e-3, "or the first update would not be seen"

    counts = manifests["prompt"].counts
    assert (counts["train_triplets"], counts["repeated_triplets"]) == (17, 1)
    assert counts["scored_sequences"] == PROMPTS + 16, "targets and responses once each, the repeated one not again"
    assert manifests["none"].counts["scored_sequences"] == 0
    (source,) = manifests["prompt"].triplets
    assert [source[key] for key in ("rows", "samples", "failed", "opponent")] == [17, SAMPLES, 1, ""]


def test_held_out_prompts_take_all_their_responses(project: Project, triplets: list[Triplet]) -> None:
    setup = load_setup(encoders.parse(project, dataset="d0", tpaw_prompts=None, val_size=2))
    names = {triplet.id for triplet in setup.held_out}
    assert len(names) == 2
    assert len(setup.train) + len(setup.held_out) == len(triplets)
    assert not names & {triplet.id for triplet in setup.train}


def test_triplets_of_an_opponent(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are read where the run names the opponent, with a notice, and refused where it does not."""
    monkeypatch.chdir(project.root)
    weak = tiny.save_model(project.root / "weak", seed=7)
    encoder = encoders.build_encoder(encoders.parse(project))
    generator = fingerprint_checkpoint(weak, project.root / "cache")
    rows = [make_row(encoder, make_prompt(encoder), "weak")]
    write_round(project, encoder, rows, "d_weak", generator=generator, opponent="../../weak")
    with caplog.at_level(logging.WARNING):
        setup = load_setup(encoders.parse(project, dataset="d_weak", tpaw_prompts=None, tpaw_opponent_model="weak"))
    assert f"d_weak.jsonl was generated by the opponent {weak}, not by theta_0." in caplog.text
    assert setup.sources[0]["generator"] == generator
    assert [member.player.name for member in setup.team.members] == ["theta_0"], "an opponent is no player"
    with pytest.raises(DataError, match=r"by the opponent .*weak, not by theta_0, and this run names none"):
        load_setup(encoders.parse(project, dataset="d_weak", tpaw_prompts=None))


def test_an_opponent_with_other_tokens_gives_texts(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a served model have no ids: the text is encoded."""
    monkeypatch.chdir(project.root)
    encoder = encoders.build_encoder(encoders.parse(project))
    row = make_row(encoder, make_prompt(encoder), "weak")
    row.generated_ids.clear()
    write_round(project, encoder, [row], "d_big", generator="served:1", generator_path="big", opponent="big")
    keys = {"tpaw_engine": "openai", "tpaw_engine_url": "http://localhost:1/v1", "tpaw_opponent_model": "big"}
    (triplet,) = load_setup(encoders.parse(project, dataset="d_big", **keys)).train
    assert triplet.generated_ids.tolist() == encoder.encode_text("weak", "stop").tolist()
