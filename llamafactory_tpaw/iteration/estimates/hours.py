# SPDX-License-Identifier: Apache-2.0
"""How long the parts of an iteration take: from counted operations, or from a sample measured on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .figures import Figure, readable_seconds
from .workload import batches_of, steps_of


if TYPE_CHECKING:
    from ...arguments.parsed import RunArguments
    from .memory import Traced
    from .workload import Workload

# What a run reaches of a plain matrix product's speed, and what starting an operation costs besides.
UTILIZATION = 0.4
CALL_SECONDS = {"cuda": 8e-6, "cpu": 12e-6}
MATRIX = {"cuda": 8192, "cpu": 768}
TRIES = 3


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second.

    Attributes:
        flops: Floating-point operations a second of a matrix product in the compute dtype.
        bandwidth: Bytes a second that are read and written.
        call_seconds: Seconds that an operation costs by itself.
    """

    flops: float
    bandwidth: float
    call_seconds: float

    def seconds(self, flops: float, calls: float, read: float = 0.0) -> float:
        """Time of a pass that computes, reads its weights and starts operations."""
        return max(flops / (UTILIZATION * self.flops), read / self.bandwidth) + calls * self.call_seconds


@dataclass(frozen=True)
class Measured:
    """Seconds of a warm-up sample; None for a part that the iteration does not have.

    Attributes:
        token_trained: Seconds a token of a training step, padding included.
        step: Seconds of the optimizer's update.
        token_scored: Seconds a token that a player scores.
        load: Seconds to load the model.
        token_sampled: Seconds a token that is sampled, in a batch of the run's size.
    """

    token_trained: float
    step: float
    token_scored: float | None
    load: float
    token_sampled: float | None


def measure_speed(device: torch.device, dtype: torch.dtype | None) -> Speed:
    """Time a matrix product and a copy: a fraction of a second."""
    size = MATRIX.get(device.type, MATRIX["cuda"])
    matrix = torch.ones(size, size, device=device, dtype=dtype or torch.float32)
    product = min(_timed(lambda: matrix @ matrix, device) for _ in range(TRIES))
    copy = min(_timed(lambda: matrix.clone(), device) for _ in range(TRIES))
    moved = 2 * matrix.numel() * matrix.element_size()
    calls = CALL_SECONDS.get(device.type, CALL_SECONDS["cuda"])
    return Speed(2 * size**3 / product, moved / copy, calls)


def time_figures(
    run: RunArguments, workload: Workload, traced: Traced, speed: Speed, startup: float, measured: Measured | None
) -> list[Figure]:
    r"""Estimate the seconds of each part; the last figure is the sum.

    Args:
        run: The run's arguments.
        workload: What there is to do.
        traced: The passes, with their operations counted.
        speed: Of this machine.
        startup: Seconds that a command takes before it works, measured on this one.
        measured: A warm-up sample, or None.
    """
    how = "measured on a sample" if measured else _stated(speed)
    figures = []
    starts = 1
    if workload.generates:
        starts += 1
        figures.append(Figure("generation", _generation(workload, traced, speed, measured), "seconds", how))
    if workload.players:
        figures.append(Figure("scoring", _scoring(workload, traced, speed, measured), "seconds", how))
    if run.training.do_train:
        figures.append(Figure("training", _training(run, workload, traced, speed, measured), "seconds", how))
    figures.append(
        Figure("start", starts * startup, "seconds", f"{starts} times what this command took before its first check")
    )
    amounts = [figure.amount for figure in figures]
    total = None if None in amounts else sum(amounts)
    return [*figures, Figure("total", total, "seconds", f"the sum; lengths from {workload.how}")]


def _stated(speed: Speed) -> str:
    return (
        f"counted operations at {UTILIZATION:.0%} of a matrix product's {speed.flops / 1e12:.3g} TFLOP/s (measured), "
        f"{speed.bandwidth / 1e9:.3g} GB/s and {speed.call_seconds * 1e6:.0f} us an operation"
    )


def _generation(workload: Workload, traced: Traced, speed: Speed, measured: Measured | None) -> float | None:
    if workload.prompts is None:
        return None
    newest = workload.triplets[workload.rounds - 1 :: workload.rounds]
    lengths = [len(triplet.generated_ids) for triplet in newest]
    sampled = workload.prompts * sum(lengths) / len(lengths)
    if measured is not None and measured.token_sampled is not None:
        return measured.load + sampled * measured.token_sampled
    rows = max(min(traced.rows, workload.prompts), 1)
    share = rows / traced.rows
    step = speed.seconds(traced.last.flops * share, traced.last.calls, traced.sampling_bytes)
    prompts = sum(len(triplet.prompt_ids) for triplet in newest) / len(newest) * workload.prompts
    first = speed.seconds(traced.first.flops / traced.first.tokens * prompts, 0)
    # Rows that end make room for others, so most steps are of full batches.
    return first + sampled / rows * step


def _scoring(workload: Workload, traced: Traced, speed: Speed, measured: Measured | None) -> float | None:
    count = workload.scored_sequences
    if count is None or traced.scoring is None:
        return None
    lengths = [
        len(triplet.prompt_ids) + len(response) for triplet in workload.triplets for response in triplet.responses[:2]
    ]
    tokens = count * sum(lengths) / len(lengths)
    if measured is not None and measured.token_scored is not None:
        return workload.players * measured.load + tokens * measured.token_scored
    batches = tokens / traced.scoring.tokens
    return speed.seconds(batches * traced.scoring.flops, batches * traced.scoring.calls)


def _training(
    run: RunArguments, workload: Workload, traced: Traced, speed: Speed, measured: Measured | None
) -> float | None:
    triplets = workload.train_triplets
    if triplets is None and run.training.max_steps <= 0:
        return None
    size = run.training.per_device_train_batch_size
    accumulation = run.training.gradient_accumulation_steps
    steps = steps_of(triplets or 1, size, accumulation, run.training.num_train_epochs, run.training.max_steps)
    tokens = steps * accumulation * mean_tokens(run, workload, traced)
    if measured is not None:
        return measured.load + tokens * measured.token_trained + steps * measured.step
    updated = 8 * traced.trained_bytes  # weights, gradients and states are read, three of them written
    share = tokens / traced.training.tokens
    step = steps * updated / speed.bandwidth
    return step + speed.seconds(share * traced.training.flops, steps * accumulation * traced.training.calls)


def mean_tokens(run: RunArguments, workload: Workload, traced: Traced) -> float:
    """Tokens of a batch on average, padding included: the sample is laid out as the Trainer does."""
    size = run.training.per_device_train_batch_size
    batches = batches_of(workload, size, grouped=run.finetuning.tpaw_grouping == "prompt")
    laid_out = [traced.collator([{"triplet": triplet} for triplet in batch]) for batch in batches]
    rows = [batch["input_ids"].numel() / len(part) for batch, part in zip(laid_out, batches, strict=True)]
    return sum(rows) / len(rows) * size


def _timed(work: object, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return max(time.perf_counter() - started, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_measured(measured: Measured) -> str:
    """What the sample showed, for a note."""
    parts = [f"{measured.token_trained * 1e6:.3g} us a trained token", f"{readable_seconds(measured.step)} an update"]
    if measured.token_scored is not None:
        parts.append(f"{measured.token_scored * 1e6:.3g} us a scored token")
    if measured.token_sampled is not None:
        parts.append(f"{measured.token_sampled * 1e6:.3g} us a sampled token")
    return f"Warm-up sample: {', '.join(parts)}, {readable_seconds(measured.load)} to load the model."
