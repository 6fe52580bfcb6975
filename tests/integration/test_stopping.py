# SPDX-License-Identifier: Apache-2.0
"""SIGTERM at any step of a training: it ends there with a checkpoint, and what continues is as if it never came."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamafactory_tpaw.lf.signals import Terminated
from llamafactory_tpaw.train.trainer import TpawTrainer
from tests.integration.pairs import add_pairs, make_pairs, pair_settings
from tests.runs import Project


pytestmark = pytest.mark.integration
Train = Callable[..., list[dict[str, Any]]]

# Sixteen pairs, two of them held out: seven micro-batches and four steps an epoch, twelve in all.
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 3.0,
    "val_size": 2,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
}
STEPS = 12


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    project = Project(tmp_path_factory.mktemp("stopping"), tiny_model)
    add_pairs(project, "pairs", make_pairs(16))
    return project


def stop_at(monkeypatch: pytest.MonkeyPatch, micro_batch: int) -> None:
    """Send this process SIGTERM amid a micro-batch, counted from 0."""
    step, done = TpawTrainer.training_step, []

    def training_step(self: TpawTrainer, *args: Any) -> torch.Tensor:
        if len(done) == micro_batch:
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(micro_batch)
        return step(self, *args)

    monkeypatch.setattr(TpawTrainer, "training_step", training_step)


def result(project: Project, name: str) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, evaluations and weights."""
    folder = project.root / "saves" / name
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses, evaluations = ([entry[key] for entry in history if key in entry] for key in ("loss", "eval_loss"))
    return losses, evaluations, load_file(folder / "model.safetensors")


# Amid an epoch, in the first of two micro-batches; in the last step of an epoch.
@pytest.mark.parametrize(("micro_batch", "stops_after"), [(8, 5), (13, 8)])
def test_continues_as_if_it_never_came(
    project: Project, train_here: Train, monkeypatch: pytest.MonkeyPatch, micro_batch: int, stops_after: int
) -> None:
    calm, stopped = (
        pair_settings(project, "pairs", **SETTINGS, output_dir=f"saves/{name}")
        for name in ("calm", f"stopped_{micro_batch}")
    )
    if not (project.root / "saves" / "calm").exists():
        train_here(project, calm)
    folder = project.root / stopped["output_dir"]
    with monkeypatch.context() as patch:
        stop_at(patch, micro_batch)
        with pytest.raises(Terminated):
            train_here(project, stopped)
    assert not (folder / "model.safetensors").exists()
    whole = sorted(path.name for path in folder.glob("checkpoint-*") if (path / "optimizer.pt").is_file())
    assert f"checkpoint-{stops_after}" in whole
    train_here(project, stopped)
    (losses, evaluations, weights), calm = result(project, folder.name), result(project, "calm")
    assert losses == pytest.approx(calm[0], abs=1e-6)
    assert len(losses) == STEPS
    assert evaluations == pytest.approx(calm[1], abs=1e-6)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, calm[2][name], rtol=0, atol=1e-6)


# In the second step of four, and in the last one.
@pytest.mark.parametrize(("micro_batch", "status"), [(3, "checkpoint"), (6, "finished")])
def test_a_checkpoint_is_saved_though_none_is_asked_for_and_after_the_last_step_the_result(
    project: Project, train_here: Train, monkeypatch: pytest.MonkeyPatch, micro_batch: int, status: str
) -> None:
    quick = {"save_strategy": "no", "save_only_model": True, "eval_strategy": "no", "load_best_model_at_end": False}
    settings = pair_settings(
        project, "pairs", **SETTINGS | quick | {"num_train_epochs": 1.0}, output_dir=f"saves/unasked_{micro_batch}"
    )
    stop_at(monkeypatch, micro_batch)
    with pytest.raises(Terminated):
        train_here(project, settings)
    folder = project.root / settings["output_dir"]
    checkpoint = folder / "checkpoint-2"
    assert (checkpoint / "optimizer.pt").is_file() == (status == "checkpoint")
    described = folder if status == "finished" else checkpoint
    assert json.loads((described / "tpaw.json").read_text())["status"] == status
