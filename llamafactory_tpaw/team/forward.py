# SPDX-License-Identifier: Apache-2.0
"""The one forward pass that policy and players share, and the numerics that make two of them comparable."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from ..objectives import SequenceLogps, sequence_logps


if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

# How far two scores of one sequence may be apart in batches of different shapes, by autocast dtype: a share of the
# larger of their size in nats and their number of tokens. Far above what was seen, far below what other weights give.
ROUNDING = {None: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


def response_logps(
    model: torch.nn.Module,
    batch: Mapping[str, torch.Tensor],
    context: contextlib.AbstractContextManager | None = None,
) -> SequenceLogps:
    r"""Score the responses of a batch.

    Args:
        model: Policy or player; what it returns may be in any dtype.
        batch: `input_ids`, `attention_mask`, `labels`, each (N, T), and `position_ids` where padded on the left.
        context: Entered around the model alone: autocast for players; the policy's Trainer brings its own.

    Returns:
        Sums in nats, float32 (N,), and token counts (N,).
    """
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    with context or contextlib.nullcontext():
        logits = model(**inputs, use_cache=False).logits
    return sequence_logps(logits, batch["labels"])


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout probability to 0, also those that attention modules keep as plain numbers."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def autocast_dtype(training_args: Any) -> torch.dtype | None:
    """The dtype under which the Trainer runs the policy's forward pass, or None for none."""
    if training_args.bf16:
        return torch.bfloat16
    return torch.float16 if training_args.fp16 else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """The autocast that accelerate wraps around the policy, for a player."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Make a loaded checkpoint a player: no gradients, no dropout, no recomputation."""
    model.requires_grad_(False)
    if getattr(model, "is_gradient_checkpointing", False):
        model.gradient_checkpointing_disable()
    disable_dropout(model)
    return model.eval()


def numerics(model_args: Any, training_args: Any, finetuning_args: Any) -> dict[str, str]:
    r"""Everything of a run, beside weights and tokens, that changes a log-prob.

    LlamaFactory upcasts trainable weights to float32 unless told to train in pure bf16; players are loaded the same
    way, so that policy and newest player agree at the first step.
    """
    kept = finetuning_args.pure_bf16 or finetuning_args.use_badam
    dtype = autocast_dtype(training_args)
    return {
        "masking": "response tokens, end of turn included; prompt and padding masked",
        "weights": "as in the checkpoint" if kept else "float32",
        "autocast": "none" if dtype is None else str(dtype).removeprefix("torch."),
        "attention": str(model_args.flash_attn),
        "rope_scaling": str(model_args.rope_scaling),
        "shift_attn": str(model_args.shift_attn),
        "tf32": str(training_args.tf32),
        "upcast_layernorm": str(model_args.upcast_layernorm),
        "liger_kernel": str(model_args.enable_liger_kernel),
        "v1_kernels": str(model_args.use_v1_kernels),
        "device": training_args.device.type,
    }
