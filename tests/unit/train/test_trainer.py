# SPDX-License-Identifier: Apache-2.0
"""When the policy stops being the newest player; IRIS over several batches and processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, get_scheduler

from llamafactory_tpaw.data.collator import IS_PADDING
from llamafactory_tpaw.objectives import SequenceLogps
from llamafactory_tpaw.train import trainer as trainer_module
from llamafactory_tpaw.train.metrics import MetricBuffer
from llamafactory_tpaw.train.trainer import TpawTrainer, _Progress


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


def test_deepspeed_does_not_round_log_probs_to_the_model_s_dtype() -> None:
    """bf16 has steps of 2 nats at -301.25; the Trainer would cast every float of a batch."""
    trainer = object.__new__(TpawTrainer)
    trainer.is_deepspeed_enabled, trainer.args = True, SimpleNamespace(device=torch.device("cpu"))
    config = SimpleNamespace(dtype=lambda: torch.bfloat16)
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(hf_ds_config=config)))
    prepared = trainer._prepare_inputs({"player_target_logps": torch.tensor([[-301.25]])})
    assert prepared["player_target_logps"].item() == -301.25


def collect(
    accelerator: SimpleNamespace, processes: int, batches: list[Any], objective: str = "iris"
) -> tuple[TpawTrainer, Tensor]:
    """A process whose policy's log-probs are linear in the features, when it has its batches of a step."""
    policy, trainer = nn.Linear(2, 1, bias=False), object.__new__(TpawTrainer)
    policy.weight.data = torch.tensor([[0.5, -1.0]])
    keys = {"tpaw_objective": objective, "tpaw_reward_scale": 1.0, "tpaw_renyi_alpha": 0.5}
    keys |= {"tpaw_eta": 6.0, "tpaw_gamma": 0.5}
    vars(trainer).update(
        accelerator=accelerator,
        args=SimpleNamespace(world_size=processes, device=torch.device("cpu")),
        compute_loss_context_manager=contextlib.nullcontext,
        finetuning_args=SimpleNamespace(**keys),
        model_wrapped=policy,
        online_team=None,
        optimizer=SimpleNamespace(train=lambda: None),
        player_names=["theta_0"],
        policy_moved=True,
        shortcuts=SimpleNamespace(head=False),
        state=TrainerState(global_step=1),
        _buffers={"train": MetricBuffer()},
        _get_num_items_in_batch=lambda batches, device: None,
        _prepare_inputs=lambda batch: batch,
    )
    return trainer, trainer.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))[1]


def batch_of(triplets: list[int], *, padding: bool = False) -> dict[str, Tensor]:
    """A batch of numbered triplets: features of target and generated response, and the player's log-probs."""
    features = torch.tensor([[float(n % 3), n / 4] for n in triplets] + [[n / 2, float(-n % 3)] for n in triplets])
    batch = {"features": features, "target_index": torch.arange(len(triplets))}
    batch["generated_index"] = batch["target_index"] + len(triplets)
    for name in ("player_target_logps", "player_generated_logps"):
        batch[name] = torch.tensor([[-0.3 * n] for n in triplets])
    batch["weights"] = torch.ones(len(triplets))
    batch["truncated"] = batch["equal"] = torch.zeros(len(triplets), dtype=torch.bool)
    return batch | ({IS_PADDING: torch.ones(())} if padding else {})


def one_step(batches: list[list[dict[str, Tensor]]]) -> tuple[float, Tensor]:
    """Loss and gradient of an optimizer step whose batches each process has, averaged as DDP does."""
    sums: list[Tensor] = []
    each = SimpleNamespace(gather=lambda value: sums.append(value) or value, reduce=lambda value, reduction: value)
    counts = [collect(each, len(batches), own)[1] for own in batches]
    joined = SimpleNamespace(gather=lambda value: torch.cat(sums), reduce=lambda value, reduction: sum(counts))
    loss, gradient = 0.0, torch.zeros(1, 2)
    for own in batches:
        trainer, count = collect(joined, len(batches), own)
        policy = trainer.model_wrapped.train()
        for inputs in own:
            part = trainer.compute_loss(policy, inputs, num_items_in_batch=count)
            part.backward()
            loss += part.item() / len(batches)
        gradient += policy.weight.grad / len(batches)
    return loss, gradient


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(model: nn.Module, inputs: dict[str, Tensor], head: bool) -> SequenceLogps:
        return SequenceLogps(model(inputs["features"])[:, 0], torch.ones(len(inputs["features"])))

    monkeypatch.setattr(trainer_module, "response_logps", score)


def test_weights_multiply_the_losses_of_their_triplets(scored: None) -> None:
    """The mean is over the number of triplets: 0.5 and 2 of the losses of two, over 2."""
    single = SimpleNamespace(gather=lambda value: value, reduce=lambda value, reduction: value)

    def loss(triplets: list[int], weights: list[float]) -> float:
        trainer, count = collect(single, 1, [batch := batch_of(triplets)], "tpaw")
        batch |= {"weights": torch.tensor(weights)}
        return trainer.compute_loss(trainer.model_wrapped.train(), batch, num_items_in_batch=count).item()

    expected = (0.5 * loss([1], [1.0]) + 2.0 * loss([4], [1.0])) / 2
    assert loss([1, 4], [0.5, 2.0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "shared_out",
    [
        lambda: [[batch_of([n]) for n in range(5)]],
        lambda: [[batch_of([0, 3]), batch_of([1, 2, 4])]],
        lambda: [[batch_of([0, 1, 2])], [batch_of([3, 4])]],
        lambda: [[batch_of([0, 1]), batch_of([4])], [batch_of([2, 3]), batch_of([4], padding=True)]],
    ],
    ids=["5 x 1", "2 and 3", "two processes", "two processes, one with padding"],
)
def test_iris_is_normalised_over_all_batches_and_processes_of_a_step(
    shared_out: Callable[[], list[list[dict[str, Tensor]]]], scored: None
) -> None:
    loss, gradient = one_step([[batch_of([0, 1, 2, 3, 4])]])
    parts_loss, parts_gradient = one_step(shared_out())
    assert parts_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(parts_gradient, gradient, rtol=1e-5, atol=1e-6)
