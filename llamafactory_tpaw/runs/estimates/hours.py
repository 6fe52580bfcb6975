# SPDX-License-Identifier: Apache-2.0
"""How long the parts of an iteration take: from counted operations, or from a sample measured on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .figures import Figure, readable_seconds
from .spread import spread_of
from .workload import batches_of, steps_of


if TYPE_CHECKING:
    from ...arguments.parsed import RunArguments
    from .disk import SavedBytes
    from .memory import Traced
    from .storage import Storage
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


class TrainingSample(NamedTuple):
    r"""Seconds of a short training.

    Attributes:
        token: A token of a forward and backward pass, padding included.
        update: The optimizer's update of a step, gradient clipping included.
        log: What is done between two steps: the metrics are logged, the next batch is laid out.
        begin: What a training does once: the Trainer is made, the optimizer's state too, the first step takes longer.
        files: Tokenizer and state are saved.
        curves: The curves are drawn; 0 where they are not asked for.
    """

    token: float
    update: float
    log: float
    begin: float
    files: float
    curves: float


@dataclass(frozen=True)
class Measured:
    """Seconds of a warm-up sample; None for a part that the iteration does not have.

    Attributes:
        training: A short training.
        load: Seconds to load the model for the first time in a process.
        reload: Seconds to load one more.
        token_scored: Seconds a token that a player scores.
        token_sampled: Seconds a token that is sampled, in a batch of the run's size.
    """

    training: TrainingSample
    load: float
    reload: float
    token_scored: float
    token_sampled: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        plain = {name: value for name, value in vars(self).items() if name != "training"}
        return {f"training_{name}": value for name, value in self.training._asdict().items()} | plain


def measure_speed(device: torch.device, dtype: torch.dtype | None) -> Speed:
    """Time a matrix product and a copy: a fraction of a second."""
    size = MATRIX.get(device.type, MATRIX["cuda"])
    matrix = torch.ones(size, size, device=device, dtype=dtype or torch.float32)
    product = min(_timed(lambda: matrix @ matrix, device) for _ in range(TRIES))
    copy = min(_timed(lambda: matrix.clone(), device) for _ in range(TRIES))
    moved = 2 * matrix.numel() * matrix.element_size()
    calls = CALL_SECONDS.get(device.type, CALL_SECONDS["cuda"])
    return Speed(2 * size**3 / product, moved / copy, calls)


@dataclass(frozen=True)
class Basis:
    r"""What times are estimated from.

    Attributes:
        traced: The passes, with their operations counted.
        speed: Of this machine.
        storage: Of this machine.
        startup: Seconds that a command takes before it works, measured on this one.
        measured: A warm-up sample, or None.
    """

    traced: Traced
    speed: Speed
    storage: Storage
    startup: float
    measured: Measured | None


def time_figures(run: RunArguments, workload: Workload, basis: Basis, saved: SavedBytes | None) -> list[Figure]:
    r"""Estimate the seconds of each part; the last figure is the sum.

    Args:
        run: The run's arguments.
        workload: What there is to do.
        basis: What is known of model and machine.
        saved: What training writes, or None where that cannot be told.
    """
    how = "measured on a sample" if basis.measured else _stated(basis.speed)
    figures = []
    starts = 2 if workload.generates else 1
    if workload.generates:
        figures.append(Figure("generation", _generation(workload, basis), "seconds", how))
    if workload.players and run.finetuning.tpaw_reference == "cached":
        figures.append(Figure("scoring", _scoring(workload, basis, spread_of(run).processes), "seconds", how))
    if run.training.do_train:
        figures.append(Figure("training", _training(run, workload, basis), "seconds", how))
        figures.append(_saving(basis, saved))
    figures.append(_reading(workload, basis))
    text = f"{starts} times what this command took to begin, and to import what a model needs"
    figures.append(Figure("start", starts * (basis.startup + basis.traced.first_model), "seconds", text))
    amounts = [figure.amount for figure in figures]
    total = None if None in amounts else sum(amounts)
    return [*figures, Figure("total", total, "seconds", f"the sum; lengths from {workload.how}")]


def _saving(basis: Basis, saved: SavedBytes | None) -> Figure:
    storage = basis.storage
    rates = f"{storage.write / 1e9:.3g} and {storage.hash / 1e9:.3g} GB/s"
    how = f"weights, checkpoints and the result's fingerprint at {rates}"
    if saved is None:
        return Figure("saving", None, "seconds", how)
    seconds = saved.whole / storage.write + saved.result / storage.hash
    if basis.measured is None:
        return Figure("saving", seconds, "seconds", f"{how} (measured)")
    sample = basis.measured.training
    return Figure(
        "saving",
        seconds + saved.times * sample.files + sample.curves,
        "seconds",
        f"{how}, tokenizer and curves (measured)",
    )


def _reading(workload: Workload, basis: Basis) -> Figure:
    """Prompts are encoded before they are answered, and each row of the triplets again when it is read."""
    times = workload.responses + bool(workload.generates)
    unread = workload.lacking.unread if workload.lacking else 0
    rows = None if workload.prompts is None else workload.prompts * times * workload.encode_seconds
    amount = None if rows is None else rows + unread / basis.storage.hash
    how = f"{times} times all prompts at {workload.encode_seconds * 1e3:.3g} ms (measured)"
    if unread:
        how += f", and players whose fingerprint is not known yet at {basis.storage.hash / 1e9:.3g} GB/s"
    return Figure("reading", amount, "seconds", how)


def _stated(speed: Speed) -> str:
    return (
        f"counted operations at {UTILIZATION:.0%} of a matrix product's {speed.flops / 1e12:.3g} TFLOP/s (measured), "
        f"{speed.bandwidth / 1e9:.3g} GB/s and {speed.call_seconds * 1e6:.0f} us an operation"
    )


def _generation(workload: Workload, basis: Basis) -> float | None:
    if workload.new_rows is None:
        return None
    traced, speed, measured = basis.traced, basis.speed, basis.measured
    newest = workload.triplets[workload.responses - 1 :: workload.responses]
    lengths = [len(triplet.generated_ids) for triplet in newest]
    sampled = workload.new_rows * sum(lengths) / len(lengths)
    if measured is not None and measured.token_sampled is not None:
        return measured.load + sampled * measured.token_sampled
    rows = max(min(traced.rows, workload.new_rows), 1)
    share = rows / traced.rows
    step = speed.seconds(traced.last.flops * share, traced.last.calls, traced.sampling_bytes)
    prompts = sum(len(triplet.prompt_ids) for triplet in newest) / len(newest) * workload.new_rows
    first = speed.seconds(traced.first.flops / traced.first.tokens * prompts, 0)
    # Rows that end make room for others, so most steps are of full batches.
    return first + sampled / rows * step


def _scoring(workload: Workload, basis: Basis, processes: int) -> float | None:
    count, traced = workload.scored_sequences, basis.traced
    if count is None or traced.scoring is None:
        return None
    lengths = [
        len(triplet.prompt_ids) + len(response) for triplet in workload.triplets for response in triplet.responses[:2]
    ]
    tokens = count * sum(lengths) / len(lengths) / processes
    if basis.measured is not None:
        loads = workload.scoring_players * basis.measured.reload
        return loads + tokens * basis.measured.token_scored
    batches = tokens / traced.scoring.tokens
    return basis.speed.seconds(batches * traced.scoring.flops, batches * traced.scoring.calls)


def _training(run: RunArguments, workload: Workload, basis: Basis) -> float | None:
    triplets, traced = workload.train_triplets, basis.traced
    if triplets is None and run.training.max_steps <= 0:
        return None
    size = run.training.per_device_train_batch_size
    accumulation = run.training.gradient_accumulation_steps
    whole = size * spread_of(run).processes
    steps = steps_of(triplets or 1, whole, accumulation, run.training.num_train_epochs, run.training.max_steps)
    tokens = steps * accumulation * mean_tokens(run, workload, traced)
    online = workload.players if run.finetuning.tpaw_reference == "online" else 0
    if basis.measured is not None:
        sample = basis.measured.training
        # Where nobody scored before, the policy is the first model that the process loads.
        first = workload.scoring_players == 0 or online > 0
        load = basis.measured.load if first else basis.measured.reload
        each = sample.token + online * basis.measured.token_scored
        loads = load + online * basis.measured.reload
        return loads + sample.begin + tokens * each + steps * (sample.update + sample.log)
    updated = 8 * traced.moved_bytes  # weights, gradients and states are read, three of them written
    share = tokens / traced.training.tokens
    step = steps * updated / basis.speed.bandwidth
    scored = online * traced.scoring.flops / traced.scoring.tokens * tokens if online else 0
    flops = share * traced.training.flops + scored
    return step + basis.speed.seconds(flops, steps * accumulation * traced.training.calls)


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
    sample = measured.training
    parts = [
        f"{sample.token * 1e6:.3g} us a trained token",
        f"{readable_seconds(sample.update)} an update",
        f"{readable_seconds(sample.log)} between two steps",
        f"{measured.token_scored * 1e6:.3g} us a scored token",
    ]
    if measured.token_sampled is not None:
        parts.append(f"{measured.token_sampled * 1e6:.3g} us a sampled token")
    return f"Warm-up sample: {', '.join(parts)}, {readable_seconds(measured.load)} to load the model."
