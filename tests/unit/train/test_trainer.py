# SPDX-License-Identifier: Apache-2.0
"""When the policy stops being the newest player, as the Trainer's callback sees it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState, get_scheduler

from llamafactory_tpaw.train.trainer import _Progress


@pytest.fixture
def trainer() -> SimpleNamespace:
    return SimpleNamespace(policy_moved=False, accelerator=SimpleNamespace(optimizer_step_was_skipped=False))


def step(trainer: SimpleNamespace, rate: float) -> bool:
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}, {"lr": rate}])
    moves = _Progress(trainer)
    moves.on_step_begin(None, TrainerState(), TrainerControl(), optimizer=optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 1.0 - rate  # of the next step, which some engines set together with the update
    moves.on_optimizer_step(None, TrainerState(), TrainerControl(), optimizer=optimizer)
    return trainer.policy_moved


def begin(trainer: SimpleNamespace, at: int, warmup: int, rate: float) -> bool:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=warmup, num_training_steps=9)
    state = TrainerState(global_step=at)
    _Progress(trainer).on_train_begin(None, state, TrainerControl(), lr_scheduler=schedule)
    return trainer.policy_moved


def test_an_update_moves_the_policy_unless_fp16_skips_it(trainer: SimpleNamespace) -> None:
    assert not step(trainer, 0.0)
    trainer.accelerator.optimizer_step_was_skipped = True
    assert not step(trainer, 1e-3)
    trainer.accelerator.optimizer_step_was_skipped = False
    assert step(trainer, 1e-6)


@pytest.mark.parametrize(
    ("at", "warmup", "rate", "moved"),
    [(0, 0, 1e-3, False), (1, 0, 1e-3, True), (1, 3, 1e-3, False), (2, 3, 1e-3, True), (2, 0, 0.0, False)],
)
def test_a_resumed_training_has_moved_if_a_learning_rate_was_above_0(
    trainer: SimpleNamespace, at: int, warmup: int, rate: float, moved: bool
) -> None:
    assert begin(trainer, at, warmup, rate) == moved
