# SPDX-License-Identifier: Apache-2.0
r"""Trains one iteration with policy and players under torch's `fully_shard`, in processes that torchrun started.

On the CPU accelerate leaves FSDP out, so what it would do is done here: the policy is cut into shards before the
Trainer sees it, gradients are clipped by their norm over all shards, and whole weights are gathered to be saved. The
rest is the package's own: scoring, the trainer, its loss and its metrics.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from llamafactory_tpaw.team import sharding


def assert_sharded(model: torch.nn.Module) -> None:
    """Between passes every weight is a shard, and no process has them all."""
    model.reshard()  # what is not within a layer is only given back when it is asked for
    weights = list(model.parameters())
    assert all(isinstance(weight, DTensor) for weight in weights)
    held = sum(weight.to_local().numel() for weight in weights)
    assert held < 0.6 * sum(weight.numel() for weight in weights)


def take_as_it_is(accelerator: Accelerator, model: torch.nn.Module, *args: Any, **named: Any) -> torch.nn.Module:
    accelerator._models.append(model)
    return model


def clip(accelerator: Accelerator, weights: Any, max_norm: float, norm_type: int = 2) -> torch.Tensor:
    return torch.nn.utils.clip_grad_norm_(weights, max_norm, norm_type).full_tensor()


def save_model(trainer: Any) -> None:
    """Write the whole weights."""
    assert_sharded(trainer.model)
    weights = {name: weight.full_tensor() for name, weight in trainer.model.state_dict().items()}
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        save_file(weights, folder / "model.safetensors")
        trainer.model.config.save_pretrained(folder)


def main() -> None:
    """Put the shards in and train."""
    sharding.sharding_of = lambda training_args: "fsdp"
    # They take the function above from there when they are imported.
    scorer = importlib.import_module("llamafactory_tpaw.team.scorer")
    workflow = importlib.import_module("llamafactory_tpaw.train.workflow")
    find_shortcuts, score_rows = workflow.find_shortcuts, scorer.TeamScorer.score_rows

    def shard_policy(policy: torch.nn.Module, training_args: Any, *rest: Any) -> Any:
        found = find_shortcuts(policy, training_args, *rest)
        assert found.head, "log-probs come in blocks of the vocabulary, also from a head in shards"
        assert_sharded(sharding.fully_sharded(policy, training_args.device))
        return found

    def score_sharded(self: Any, model: torch.nn.Module, *rest: Any) -> Any:
        assert_sharded(model)
        return score_rows(self, model, *rest)

    workflow.find_shortcuts, scorer.TeamScorer.score_rows = shard_policy, score_sharded
    Accelerator.prepare_model, Accelerator.clip_grad_norm_ = take_as_it_is, clip
    workflow.TpawTrainer.save_model = save_model
    importlib.import_module("llamafactory.train.tuner").run_exp()


if __name__ == "__main__":
    main()
