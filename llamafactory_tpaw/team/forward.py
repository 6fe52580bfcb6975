# SPDX-License-Identifier: Apache-2.0
"""The one forward pass that policy and players share, and the numerics that make two of them comparable."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import is_flash_attn_2_available

from ..arguments.start import Start
from ..objectives import SequenceLogps
from ..objectives.head import head_logps
from ..objectives.logps import logits_at
from .sharding import precision_of


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..arguments.parsed import RunArguments

# How far two scores of one sequence may be apart in batches of different shapes, by the dtype that is computed in: a
# share of the larger of their size in nats and their number of tokens, and `SHORT`. Far above what was seen, far below
# what other weights give. Coarse are bfloat16 and 8 or 4 bits, whose kernels round by what is in a batch together.
ROUNDING = {None: 1e-3, torch.float32: 1e-3, torch.float16: 5e-3}
COARSE = 2e-2
# Noise that mixtures of experts add while they train, where modules keep how much.
ROUTING_NOISE = ("jitter_noise", "input_jitter_noise")
MODEL_INPUTS = ("input_ids", "position_ids")


def response_logps(
    model: nn.Module, batch: Mapping[str, Tensor], dtype: torch.dtype | None = None, *, head: bool = False
) -> SequenceLogps:
    r"""Score the S responses of a batch of `lay_out` or `pack`: sums in nats, float32 (S,), and token counts (S,).

    `dtype` is of autocast around a player; the policy's Trainer brings its own. With `head` the model's head is
    replaced by `response_head`; otherwise its logits are taken, in any dtype.
    """
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    if "segments" in batch:
        inputs["attention_mask"] = segment_mask(batch["segments"], unwrap(model).dtype)
    autocast = torch.autocast(batch["input_ids"].device.type, dtype=dtype) if dtype else contextlib.nullcontext()
    with autocast, response_head(model, batch) if head else contextlib.nullcontext():
        logits = model(**inputs, use_cache=False).logits
    token_logps = logits if head else logits_at(logits, batch["response_places"], batch["response_tokens"])
    # Each sum runs over its own tokens only, so that neighbours and padding change no bit of it.
    sums = torch.segment_reduce(token_logps.double(), "sum", lengths=batch["response_counts"], unsafe=True)
    return SequenceLogps(sums.float(), batch["response_counts"])


def segment_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Let every token see the prompt and its own response up to itself; padding sees itself alone.

    `dtype` is the model's: booleans would be made into it in every layer, and be kept for the backward.
    """
    asking, asked = segments[:, :, None], segments[:, None, :]
    seen = ((asked == 0) | (asked == asking)) & (asking >= 0)
    seen = (seen.tril() | torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device))[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


@contextlib.contextmanager
def response_head(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[None]:
    r"""Let the model return, as its `logits`, the log-probs of a batch's response tokens: float32 (M,).

    The pass goes through the model's own forward, so that wrappers for mixed precision and several processes see it;
    only the head is another one meanwhile. A head that is an adapter, quantized or with a hook is a TypeError.
    """
    head = unwrap(model).get_output_embeddings()
    if type(head) is not nn.Linear or "forward" in vars(head):
        raise TypeError("the head is more than one matrix")
    # What some architectures do to the scores after the head, and the values with which they do nothing.
    scale, softcap, neutral, config = 1.0, None, [], text_config(model)
    if isinstance(getattr(config, "final_logit_softcapping", None), int | float):  # Gemma
        softcap = float(config.final_logit_softcapping)
        neutral.append((config, "final_logit_softcapping", None))
    if isinstance(getattr(config, "logits_scaling", None), int | float):  # Granite
        scale = 1.0 / config.logits_scaling
        neutral.append((config, "logits_scaling", 1.0))
    # Cohere. An adapter's wrapper shows the attribute of the model inside; set on the wrapper it would change nothing.
    for module in unwrap(model).modules():
        if isinstance(vars(module).get("logit_scale"), int | float):
            scale *= module.logit_scale
            neutral.append((module, "logit_scale", 1.0))

    def forward(hidden: Tensor) -> Tensor:
        states = hidden.flatten(0, -2).index_select(0, batch["response_places"])
        return head_logps(states, head.weight, batch["response_tokens"], head.bias, scale=scale, softcap=softcap)

    values = [getattr(owner, name) for owner, name, _ in neutral]
    head.forward = forward
    for owner, name, value in neutral:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(neutral, values, strict=True):
            setattr(owner, name, value)
        del head.forward


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside of what DDP and engines put around it."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the language model, also where it is part of a larger one."""
    return unwrap(model).config.get_text_config()


def attention_of(model: nn.Module) -> str:
    """Return the name of the model's attention implementation, e.g. `sdpa`."""
    return str(getattr(text_config(model), "_attn_implementation", None))


def disable_dropout(model: nn.Module) -> None:
    """Set what makes a training pass random to 0: dropout, of layers too, and noise on the way to experts."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("drop" in name or name in ROUTING_NOISE) and isinstance(value, float):
                setattr(module, name, 0.0)


def rounding(*dtypes: torch.dtype | None) -> float:
    """How far two scores of one sequence may be apart, by the dtypes of autocast (or None) and of all weights."""
    return max(ROUNDING.get(dtype, COARSE) for dtype in dtypes)


def numerics(run: RunArguments, adapters: int) -> dict[str, str]:
    r"""Everything of a run, beside weights, config and tokens, that changes a player's log-prob.

    LlamaFactory upcasts trainable weights to float32 unless told to train in pure bf16; players are loaded the same
    way, so that policy and newest player agree at the first step. In how many processes, and how they hold the
    weights, changes nothing but the dtypes.
    """
    model_args, finetuning_args, precision = run.model, run.finetuning, precision_of(run)
    start = Start.of(vars(model_args) | vars(finetuning_args))
    weights = "as in the checkpoint"
    if precision.weights is not None:  # then all of them are in one dtype, whatever is trained
        weights = _name(precision.weights)
    elif start.finetuning_type == "freeze" and not finetuning_args.pure_bf16:
        keys = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules", "use_llama_pro")
        trained = ", ".join(f"{key} {getattr(finetuning_args, key)}" for key in keys)
        weights = f"as in the checkpoint, float32 where trained: {trained}"
    elif not (start.is_lora or finetuning_args.pure_bf16 or finetuning_args.use_badam):
        weights = "float32"
    attention = str(getattr(model_args.flash_attn, "value", model_args.flash_attn))
    if attention == "fa2" and not is_flash_attn_2_available():
        attention = "fa2, not installed"  # LlamaFactory falls back to another one
    found = {
        "masking": "response tokens, end of turn included; prompt and padding masked",
        "weights": weights,
        "autocast": "none" if precision.autocast is None else _name(precision.autocast),
        "attention": attention,
        "rope_scaling": str(model_args.rope_scaling),
        "shift_attn": str(model_args.shift_attn),
        "tf32": str(run.training.tf32),
        "upcast_layernorm": str(model_args.upcast_layernorm),
        "liger_kernel": str(model_args.enable_liger_kernel),
        "v1_kernels": str(model_args.use_v1_kernels),
        "device": run.training.device.type,
    }
    if adapters:
        found["adapters"] = "merged" if start.new_adapter else "the last one apart"
    if model_args.quantization_bit:
        method = getattr(model_args.quantization_method, "value", model_args.quantization_method)
        found["quantization"] = (
            f"{model_args.quantization_bit} bit by {method}, {model_args.quantization_type}, double "
            f"{model_args.double_quantization}, computed in {model_args.compute_dtype}"
        )
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
