# SPDX-License-Identifier: Apache-2.0
"""SIGTERM at any step of a training: it ends there with a checkpoint, and what continues is as if it never came."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamafactory_tpaw.lf.signals import Terminated
from llamafactory_tpaw.train import stopping
from llamafactory_tpaw.train.trainer import TpawTrainer
from tests.runs import Project, Result


pytestmark = pytest.mark.integration
Train = Callable[..., list[dict[str, Any]]]

# Sixteen prompts, two of them held out: seven micro-batches and four steps an epoch, twelve in all.
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
def project(
    tmp_path_factory: pytest.TempPathFactory, played: tuple[Project, list[Result]], tiny_model: Path
) -> Project:
    """A project with the triplets of iteration 0."""
    root = tmp_path_factory.mktemp("stopping")
    shutil.copytree(played[0].root / "data", root / "data")
    return Project(root, tiny_model)


def stop_at(monkeypatch: pytest.MonkeyPatch, micro_batch: int, seen: Callable[[TpawTrainer], None] = id) -> None:
    """Send this process SIGTERM amid a micro-batch, counted from 0."""
    step, done = TpawTrainer.training_step, []

    def training_step(self: TpawTrainer, *args: Any) -> torch.Tensor:
        if len(done) == micro_batch:
            seen(self)
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(micro_batch)
        return step(self, *args)

    monkeypatch.setattr(TpawTrainer, "training_step", training_step)


def evaluations(project: Project, run: str) -> dict[int, float]:
    state = json.loads((project.root / "saves" / run / "trainer_state.json").read_text())
    return {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}


# Amid an epoch, also in the first of two micro-batches; in the last step of an epoch; in the last of all.
@pytest.mark.parametrize(("micro_batch", "stops_after"), [(9, 6), (8, 5), (13, 8), (20, 12)])
def test_continues_as_if_it_never_came(
    project: Project, train_here: Train, monkeypatch: pytest.MonkeyPatch, micro_batch: int, stops_after: int
) -> None:
    calm, stopped = (
        project.settings(0, **SETTINGS, output_dir=f"saves/{name}") for name in ("calm", f"stopped_{micro_batch}")
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
    histories = [project.history(name) for name in ("calm", folder.name)]
    assert [entry["step"] for entry in histories[1]] == [*range(1, STEPS + 1)]
    assert [entry["loss"] for entry in histories[1]] == pytest.approx(
        [entry["loss"] for entry in histories[0]], abs=1e-6
    )
    assert evaluations(project, folder.name) == pytest.approx(evaluations(project, "calm"), abs=1e-6)
    own, reference = (load_file(project.root / "saves" / name / "model.safetensors") for name in (folder.name, "calm"))
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, reference[name], rtol=0, atol=1e-6)


def test_a_checkpoint_that_continues_is_saved_though_none_is_asked_for(
    project: Project, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"save_strategy": "no", "save_only_model": True, "eval_strategy": "no", "load_best_model_at_end": False}
    settings = project.settings(0, **SETTINGS | quick, output_dir="saves/unasked")
    stop_at(monkeypatch, 3)
    with pytest.raises(Terminated):
        train_here(project, settings)
    checkpoint = project.root / "saves" / "unasked" / "checkpoint-2"
    assert (checkpoint / "optimizer.pt").is_file()
    assert json.loads((checkpoint / "tpaw.json").read_text())["status"] == "checkpoint"


def test_after_the_last_step_the_result_is_saved(
    project: Project, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "num_train_epochs": 0.5}
    settings = project.settings(0, **SETTINGS | quick, output_dir="saves/late")
    save = TpawTrainer.save_model

    def save_model(self: TpawTrainer, *args: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, *args, **named)

    monkeypatch.setattr(TpawTrainer, "save_model", save_model)
    with pytest.raises(Terminated):
        train_here(project, settings)
    assert json.loads((project.root / "saves" / "late" / "tpaw.json").read_text())["status"] == "finished"


def test_a_process_that_was_not_reached_stops_with_the_others(
    project: Project, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's flag comes with the sum over all of them."""
    settings = project.settings(0, **SETTINGS, output_dir="saves/other")
    reached = iter([False, False, True])

    def reduce(self: Any, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return (
            tensor + int(next(reached)) if tensor.dtype == torch.int64 and tensor.ndim == 0 and tensor == 0 else tensor
        )

    class Callback(stopping.StopBetweenSteps):
        def _reached_any(self, args: Any) -> bool:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(self.trainer.accelerator), "reduce", reduce)
                return super()._reached_any(args)

    monkeypatch.setattr(stopping, "StopBetweenSteps", Callback)
    with pytest.raises(Terminated):
        train_here(project, settings)
    assert (project.root / "saves" / "other" / "checkpoint-3" / "trainer_state.json").is_file()
