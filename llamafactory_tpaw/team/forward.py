# SPDX-License-Identifier: Apache-2.0
"""The one forward pass that policy and players share, and the numerics that make two of them comparable."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import is_flash_attn_2_available

from ..objectives import SequenceLogps
from ..objectives.logps import logits_at
from .engine import Precision
from .engine import autocast_dtype as autocast_dtype
from .head import response_head, text_config, unwrap
from .shared_attention import PARTS, attends_by_parts, describe_parts


if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from ..arguments.parsed import RunArguments

# How far two scores of one sequence may be apart in batches of different shapes, by autocast dtype: a share of the
# larger of their size in nats and their number of tokens. Far above what was seen, far below what other weights give.
ROUNDING = {None: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
# The same where weights are quantized: the 8-bit kernels round activations by what is in a batch together.
QUANTIZED_ROUNDING = 2e-2
# Noise that mixtures of experts add while they train, where modules keep how much.
ROUTING_NOISE = ("jitter_noise", "input_jitter_noise")
MODEL_INPUTS = ("input_ids", "position_ids")


def response_logps(
    model: torch.nn.Module,
    batch: Mapping[str, torch.Tensor],
    context: contextlib.AbstractContextManager | None = None,
    *,
    head: bool = False,
) -> SequenceLogps:
    r"""Score the responses of a batch.

    Args:
        model: Policy or player; what it returns may be in any dtype.
        batch: What `lay_out` or `pack` return: N rows with S responses.
        context: Entered around the model alone: autocast for players; the policy's Trainer brings its own.
        head: Whether the model's head is replaced by `response_head`; otherwise its logits are taken.

    Returns:
        Sums in nats, float32 (S,), and token counts (S,).
    """
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    if "segments" in batch:
        inputs["attention_mask"] = segment_mask(batch["segments"], model)
    with context or contextlib.nullcontext(), response_head(model, batch) if head else contextlib.nullcontext():
        logits = model(**inputs, use_cache=False).logits
    token_logps = logits if head else logits_at(logits, batch["response_places"], batch["response_tokens"])
    # Each sum runs over its own tokens only, so that neighbours and padding change no bit of it.
    sums = torch.segment_reduce(token_logps.double(), "sum", lengths=batch["response_counts"], unsafe=True)
    return SequenceLogps(sums.float(), batch["response_counts"])


def segment_mask(segments: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    r"""Let every token see the prompt and its own response up to itself; padding sees itself alone.

    Args:
        segments: (N, T): 0 in the prompt, k in the k-th response, -1 in the padding.
        model: Decides the form: True where eager attention would add 0.

    Returns:
        (N, 1, T, T); it carries the parts of the rows where they are attended apart, see `shared_attention`.
    """
    asking, asked = segments[:, :, None], segments[:, None, :]
    seen = ((asked == 0) | (asked == asking)) & (asking >= 0)
    seen = seen.tril() | torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
    seen = seen[:, None]
    if attends_by_parts(segments.device, attention_of(model)):
        setattr(seen, PARTS, describe_parts(segments))
    if attention_of(model) != "eager":
        return seen
    dtype = unwrap(model).dtype
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def attention_of(model: torch.nn.Module) -> str:
    """Return the name of the model's attention implementation, e.g. `sdpa`."""
    return str(getattr(text_config(model), "_attn_implementation", None))


def disable_dropout(model: torch.nn.Module) -> None:
    """Set what makes a training pass random to 0: dropout, of layers too, and noise on the way to experts."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("drop" in name or name in ROUTING_NOISE) and isinstance(value, float):
                setattr(module, name, 0.0)


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """The autocast that accelerate wraps around the policy, for a player."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def rounding(dtype: torch.dtype | None, quantized: object) -> float:
    r"""How far two scores of one sequence may be apart, see `ROUNDING`.

    Args:
        dtype: Of autocast.
        quantized: Whether the model's weights are: its `quantization_method`, or `quantization_bit`.
    """
    return max(ROUNDING[dtype], QUANTIZED_ROUNDING) if quantized else ROUNDING[dtype]


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Make a loaded checkpoint a player: no gradients, no dropout, no recomputation."""
    model.requires_grad_(False)
    if getattr(model, "is_gradient_checkpointing", False):
        model.gradient_checkpointing_disable()
    disable_dropout(model)
    return model.eval()


def numerics(run: RunArguments, precision: Precision) -> dict[str, str]:
    r"""Everything of a run, beside weights and tokens, that changes a log-prob.

    LlamaFactory upcasts trainable weights to float32 unless told to train in pure bf16; players are loaded the same
    way, so that policy and newest player agree at the first step. In how many processes, and how they hold the
    weights, changes nothing but the dtypes.
    """
    model_args, training_args, finetuning_args = run.model, run.training, run.finetuning
    kept = finetuning_args.pure_bf16 or finetuning_args.use_badam
    weights = "as in the checkpoint" if kept else "float32"
    return {
        "masking": "response tokens, end of turn included; prompt and padding masked",
        "weights": weights if precision.weights is None else _name(precision.weights),
        "autocast": "none" if precision.autocast is None else _name(precision.autocast),
        "attention": _attention_asked(model_args.flash_attn),
        "rope_scaling": str(model_args.rope_scaling),
        "shift_attn": str(model_args.shift_attn),
        "tf32": str(training_args.tf32),
        "upcast_layernorm": str(model_args.upcast_layernorm),
        "liger_kernel": str(model_args.enable_liger_kernel),
        "v1_kernels": str(model_args.use_v1_kernels),
        "device": training_args.device.type,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _attention_asked(flash_attn: Any) -> str:
    """Name the kernel that was asked for; without its package LlamaFactory falls back to another one."""
    name = str(getattr(flash_attn, "value", flash_attn))
    return f"{name}, not installed" if name == "fa2" and not is_flash_attn_2_available() else name
