# SPDX-License-Identifier: Apache-2.0
"""Memory of the device at the peaks of an iteration: sampling, scoring, training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ...team.sharding import autocast_dtype
from .figures import Figure
from .layers import size_in_training, trace_deep_training
from .optimizers import optimizer_bytes, step_bytes
from .passes import (
    Pass,
    collator_of,
    model_without_data,
    see_shortcuts,
    size_of,
    trace_generation,
    trace_scoring,
    trace_training,
    whole_pass,
)
from .spread import spread_of
from .tracing import ByteTracer
from .workload import worst_batch


if TYPE_CHECKING:
    from ...arguments.parsed import RunArguments
    from ...data.collator import TripletCollator
    from ..preflight import Plan
    from .workload import Workload

# What the driver, the kernels and the allocator's rounding take of a device beside tensors.
DEVICE_SHARE = 0.9
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Traced:
    """The passes of an iteration over the model without data.

    Attributes:
        parameters: Number of weights.
        weight_bytes: Bytes of the weights in training.
        moved: Number of the weights that an update moves: all of them, or an adapter's.
        moved_bytes: Their bytes.
        sampling_bytes: Bytes of the weights in generation; 0 where nothing is generated.
        training: A training step over the largest batch.
        scoring: A batch to score, or None where no player scores.
        first: Generation's step over the prompts, or None.
        last: Its last step, or None.
        rows: Rows of a batch of generation.
        collator: Lays batches out as the Trainer does.
        first_model: Seconds to make the first model of this process, which imports what a model needs.
    """

    parameters: int
    weight_bytes: int
    moved: int
    moved_bytes: int
    sampling_bytes: int
    training: Pass
    scoring: Pass | None
    first: Pass | None
    last: Pass | None
    rows: int
    collator: TripletCollator
    first_model: float


class Device(NamedTuple):
    """Where the run computes: what it is called and how many bytes it has."""

    name: str
    total: int


def trace_run(run: RunArguments, plan: Plan, tokenizer: Any, workload: Workload) -> Traced:
    """Trace an iteration's passes over its largest batches."""
    batch = worst_batch(workload, plan, run.training.per_device_train_batch_size, run.data.cutoff_len)
    tracer = ByteTracer()
    begun = time.perf_counter()
    model = model_without_data(run, tokenizer, tracer, trainable=True)
    first_model = time.perf_counter() - begun
    size = size_in_training(model)
    deep = trace_deep_training(run, tokenizer, size, batch)
    if deep is None:
        shortcuts = see_shortcuts(run, tracer, model)
        training = whole_pass(trace_training(run, tokenizer, tracer, model, shortcuts, batch))
    else:
        training, shortcuts = deep
    scoring = None
    if workload.players:
        scoring = trace_scoring(run, tokenizer, tracer, model, shortcuts, batch[0])
    del model
    first = last = None
    sampling_bytes = rows = 0
    if workload.generates:
        prompt, new = len(batch[0].prompt_ids), len(batch[0].generated_ids)
        rows = max(min(run.finetuning.tpaw_generate_batch_tokens // (prompt + new), workload.new_rows or 1 << 30), 1)
        tracer = ByteTracer()
        model = model_without_data(run, tokenizer, tracer, trainable=False)
        _cast(model, run, tracer)
        sampling_bytes = size_of(model)
        first, last = trace_generation(tracer, model, rows, prompt, new)
    collator = collator_of(run, tokenizer, shortcuts)
    return Traced(*size, sampling_bytes, training, scoring, first, last, rows, collator, first_model)


def memory_figures(run: RunArguments, traced: Traced, vocabulary: int) -> dict[str, list[Figure]]:
    r"""Say what each part of an iteration needs at its peak; the last figure of each is the sum.

    Args:
        run: The run's arguments.
        traced: Its passes.
        vocabulary: Tokens that the model scores.
    """
    parts = {}
    if traced.last is not None:
        parts["generation"] = _generation(traced, vocabulary)
    if traced.scoring is not None:
        shape = f"traced on a batch of {traced.scoring.tokens} tokens without data"
        parts["scoring"] = _with_sum(
            [
                _bytes(
                    "weights of one player",
                    spread_of(run).share(traced.weight_bytes, 3),
                    "from the config, in the dtypes of training" + spread_of(run).describe(3),
                ),
                _bytes("activations", traced.scoring.step.peak, shape),
            ]
        )
    parts["training"] = _training(run, traced)
    return parts


def _generation(traced: Traced, vocabulary: int) -> list[Figure]:
    sampler = 28 * traced.rows * vocabulary
    peak = max(traced.first.step.peak, traced.last.step.peak)
    shape = f"{traced.rows} rows of {traced.first.tokens // traced.rows} prompt tokens and the longest response"
    return _with_sum(
        [
            _bytes("weights", traced.sampling_bytes, "from the config, in the dtype of generation"),
            _bytes("keys, values and activations", peak, f"traced without data: {shape}"),
            _bytes("sampler", sampler, "28 bytes a row and token of the vocabulary: float32 and float64 copies"),
        ]
    )


def _training(run: RunArguments, traced: Traced) -> list[Figure]:
    step = traced.training.step
    optim = str(getattr(run.training.optim, "value", run.training.optim))
    state, state_how = optimizer_bytes(optim, traced.moved, traced.moved_bytes)
    spread = spread_of(run)
    weights, gradients = spread.share(traced.weight_bytes, 3), spread.share(step.gradients, 2)
    state, state_how = spread.share(state, 1), state_how + spread.describe(1)
    temporary = spread.share(step_bytes(optim, traced.moved_bytes, run.training.device.type), 1)
    accumulates = run.training.gradient_accumulation_steps > 1
    # Without accumulation the gradients come while the activations go.
    together = step.gradients + step.activations if accumulates else step.peak
    together -= step.gradients - gradients
    figures = [
        _bytes("weights", weights, _weights_how(run) + spread.describe(3)),
        _bytes("gradients", gradients, f"one for each trained weight, in its dtype{spread.describe(2)}"),
        _bytes("optimizer", state, state_how),
        _bytes(
            "activations",
            step.activations,
            f"traced without data: forward and backward pass of {run.training.per_device_train_batch_size} triplets, "
            f"{traced.training.tokens} tokens with padding, at the longest sequences expected"
            + (", autocast's copies of the weights included" if autocast_dtype(run.training) else ""),
        ),
    ]
    total = weights + state + max(together, gradients + temporary)
    how = "weights and optimizer, and the most of gradients and activations at a time"
    return [*figures, _bytes("peak", total, how)]


def _weights_how(run: RunArguments) -> str:
    kind = run.finetuning.finetuning_type
    if kind == "full":
        return "from the config; LlamaFactory trains float32 unless `pure_bf16`"
    counted = ", counted as if they were not quantized" if run.model.quantization_bit else ""
    what = "the model's in its dtype, the adapter's in float32" if kind == "lora" else "those trained in float32"
    return f"from the config: {what}{counted}"


def device_of(run: RunArguments) -> Device:
    """The device that the run computes on, with its memory."""
    if run.training.device.type == "cuda":
        properties = torch.cuda.get_device_properties(run.training.device)
        return Device(properties.name, properties.total_memory)
    import psutil

    total = psutil.virtual_memory().total
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return Device("the CPU", min(total, int(limit)) if limit.isdigit() else total)


def _cast(model: torch.nn.Module, run: RunArguments, tracer: ByteTracer) -> None:
    """Give the weights the dtype of generation."""
    dtype = torch.bfloat16 if run.finetuning.pure_bf16 else autocast_dtype(run.training) or torch.float32
    with tracer:
        for weight in model.parameters():
            weight.data = weight.data.to(dtype)


def _bytes(name: str, amount: float, how: str) -> Figure:
    return Figure(name, amount, "bytes", how)


def _with_sum(figures: list[Figure]) -> list[Figure]:
    return [*figures, _bytes("peak", sum(figure.amount for figure in figures), "the sum")]
