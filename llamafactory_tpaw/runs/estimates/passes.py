# SPDX-License-Identifier: Apache-2.0
"""The run's own passes over a model without data: a training step, a batch to score, a step of generation."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ...arguments.start import ADAPTER_CONFIG, is_adapter
from ...data.collator import TripletCollator, TripletDataset
from ...data.layout import Row
from ...lf import facade
from ...team.checkpoint import read_object
from ...team.forward import autocast, disable_dropout, freeze, response_logps
from ...team.scorer import TeamScorer
from ...team.sharding import autocast_dtype
from ...team.shortcuts import Shortcuts, find_shortcuts
from .head_blocks import head_on
from .tracing import ByteTracer, Step, most_of, trace_peak, trace_phases


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...arguments.parsed import RunArguments
    from ...data.opponents import Triplet

HOST = torch.device("cpu")


class Pass(NamedTuple):
    """What a pass over a batch takes.

    Attributes:
        step: Bytes beyond the weights.
        flops: Floating-point operations, those of the backward pass and of recomputation included.
        calls: Operations that were started.
        tokens: Tokens of the batch, padding included.
    """

    step: Step
    flops: int
    calls: int
    tokens: int


def model_without_data(run: RunArguments, tokenizer: Any, tracer: ByteTracer, *, trainable: bool) -> torch.nn.Module:
    r"""Make θ_t as LlamaFactory does, adapters of its config and dtypes included, but without reading a weight.

    Args:
        run: The run's arguments.
        tokenizer: The tokenizer, already adapted to the template.
        tracer: Counts its bytes.
        trainable: Whether it is trained: then LlamaFactory upcasts its weights and sets up checkpointing.
    """
    model_args = copy.copy(run.model)
    model_args.train_from_scratch = True  # from the config alone
    # Kernels that run on a device only; they take no more memory than what stands in for them.
    model_args.enable_liger_kernel = model_args.use_v1_kernels = False
    if str(getattr(model_args.flash_attn, "value", model_args.flash_attn)).startswith("fa"):
        model_args.flash_attn = type(run.model.flash_attn)("sdpa")
    model_args.quantization_bit = None  # weights are quantized while they are read
    finetuning_args = copy.copy(run.finetuning)
    if model_args.adapter_name_or_path:
        # A new adapter takes as much as one that is read; those that are merged leave nothing behind.
        last = Path(model_args.adapter_name_or_path[-1])
        if not finetuning_args.create_new_adapter and is_adapter(last):
            finetuning_args.lora_rank = int(read_object(last / ADAPTER_CONFIG).get("r") or finetuning_args.lora_rank)
        model_args.adapter_name_or_path = None
    stay = _modules_stay() if finetuning_args.finetuning_type == "lora" else contextlib.nullcontext()
    with tracer, stay:
        return facade.load_model(tokenizer, model_args, finetuning_args, trainable)


@contextlib.contextmanager
def _modules_stay() -> Iterator[None]:
    """Keep peft from moving a new adapter to where the model is: it is there, and without data it cannot be moved."""
    move = torch.nn.Module.to
    torch.nn.Module.to = lambda module, *_, **__: module
    try:
        yield
    finally:
        torch.nn.Module.to = move


def size_of(model: torch.nn.Module) -> int:
    """Bytes of a model's weights and buffers, those that are shared once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def head_of(run: RunArguments, tracer: ByteTracer) -> contextlib.AbstractContextManager[None]:
    """Count the head's blocks as on the run's device."""
    return head_on(run.training.device.type, tracer)


def see_shortcuts(run: RunArguments, tracer: ByteTracer, model: torch.nn.Module) -> Shortcuts:
    """See what the run's forward pass does without; whether results agree is taken for granted."""
    disable_dropout(model)
    with tracer, head_of(run, tracer):
        return find_shortcuts(model, run.training, run.finetuning)


def trace_training(
    run: RunArguments,
    tokenizer: Any,
    tracer: ByteTracer,
    model: torch.nn.Module,
    shortcuts: Shortcuts,
    triplets: Sequence[Triplet],
) -> tuple[Pass, ...]:
    """Trace a training step over a batch of triplets, laid out as the Trainer does; see `trace_phases`.

    Returns:
        A pass for each phase; they differ in their bytes only.
    """
    tracer.watch_gradients(model)
    batch = collator_of(run, tokenizer, shortcuts)(TripletDataset(list(triplets)))
    dtype = autocast_dtype(run.training)

    def forward() -> torch.Tensor:
        with autocast(HOST, dtype):
            return response_logps(model, batch, head=shortcuts.head).sums

    tracer.reset_work()
    with head_of(run, tracer):
        phases = trace_phases(tracer, model, forward)
    return tuple(Pass(step, tracer.flops, tracer.calls, batch["input_ids"].numel()) for step in phases)


def whole_pass(phases: Sequence[Pass]) -> Pass:
    """Phases of one pass together."""
    return phases[0]._replace(step=most_of([phase.step for phase in phases]))


def collator_of(run: RunArguments, tokenizer: Any, shortcuts: Shortcuts) -> TripletCollator:
    """The collator that the Trainer has."""
    return TripletCollator(tokenizer.pad_token_id, run.finetuning.tpaw_grouping == "prompt", shortcuts.layout)


def trace_scoring(
    run: RunArguments,
    tokenizer: Any,
    tracer: ByteTracer,
    model: torch.nn.Module,
    shortcuts: Shortcuts,
    triplet: Triplet,
) -> Pass:
    """Trace a batch of `tpaw_score_batch_tokens`, rows like the triplet's longest; the model becomes a player."""
    scorer = TeamScorer(run, tokenizer)
    scorer.device = HOST
    length = len(triplet.prompt_ids) + max(map(len, triplet.responses))
    rows = max(scorer.batch_tokens // length, 1)
    row = Row(triplet.prompt_ids, [np.zeros(length - len(triplet.prompt_ids), dtype=np.int32)])
    freeze(model)
    tracer.reset_work()
    with head_of(run, tracer):
        peak, _ = trace_peak(tracer, lambda: scorer.score_rows(model, [row] * rows, shortcuts))
    return Pass(Step(peak, 0, peak), tracer.flops, tracer.calls, rows * length)


def trace_generation(
    tracer: ByteTracer, model: torch.nn.Module, rows: int, prompt_tokens: int, new_tokens: int
) -> tuple[Pass, Pass]:
    r"""Trace the first step over the prompts and the last step, when the keys and values of all tokens are kept.

    Args:
        tracer: The tracer under which the model was made.
        model: In the dtype of generation.
        rows: Prompts in a batch.
        prompt_tokens: Length of each.
        new_tokens: Tokens that are sampled for each.
    """

    def run(tokens: int, **more: Any) -> Any:
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        return model(input_ids=ids, use_cache=True, logits_to_keep=1, **more)

    tracer.reset_work()
    first_peak = trace_peak(tracer, lambda: run(prompt_tokens))[0]
    first = Pass(Step(first_peak, 0, first_peak), tracer.flops, tracer.calls, rows * prompt_tokens)
    before = tracer.live
    kept = trace_peak(tracer, lambda: run(prompt_tokens + new_tokens - 1))[1].past_key_values
    cache = tracer.live - before
    tracer.reset_work()
    peak = trace_peak(tracer, lambda: run(1, past_key_values=kept))[0]
    peak += cache
    return first, Pass(Step(peak, 0, peak), tracer.flops, tracer.calls, rows)
