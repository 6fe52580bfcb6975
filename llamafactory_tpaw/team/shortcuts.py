# SPDX-License-Identifier: Apache-2.0
"""What a model's forward pass can do without, found by trying it on a few tokens, whatever the architecture."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..data.layout import LayoutCosts, Row, lay_out, pack, separate
from ..errors import ConfigError
from ..lf.logs import get_logger
from .engine import sharding_of, unsharded
from .forward import attention_of, autocast, autocast_dtype, response_logps, rounding
from .head import text_config, unwrap
from .shared_attention import attends_by_parts, use_parts


if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

# Attention that takes a mask for every pair of tokens, and attention that keeps sequences apart by their positions.
MASKED_ATTENTION = ("sdpa", "eager")
PACKED_ATTENTION = ("flash_attention_2", "flash_attention_3")
# What architectures call the width of a window; the few tokens of a trial fit into most.
WINDOWS = ("sliding_window", "window_size", "attention_window", "attention_window_size")
# Layers of a small model that is tried in place of one in shards.
SMALL_LAYERS = 2
TRIED_PROMPT, TRIED_RESPONSES = 6, (4, 7, 5)

logger = get_logger(__name__)


class Shortcuts(NamedTuple):
    """What can be done without.

    Attributes:
        head: Whether log-probs come from the hidden states, in blocks of the vocabulary, instead of from logits.
        costs: Which layouts of a batch the model takes, and what they cost.
    """

    head: bool
    costs: LayoutCosts


class _Trial:
    r"""Compares ways to score the same few responses with a model.

    Float32 weights are tried without autocast, too: its rounding would cover what a way gets wrong.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None) -> None:
        self.model, self.quantized = model, getattr(unwrap(model), "quantization_method", None)
        exact = unwrap(model).dtype == torch.float32 and attention_of(model) not in PACKED_ATTENTION
        tokens = np.arange(TRIED_PROMPT + sum(TRIED_RESPONSES), dtype=np.int32) % text_config(model).vocab_size
        prompt, *responses = np.split(tokens, TRIED_PROMPT + np.cumsum([0, *TRIED_RESPONSES[:-1]]))
        self.shared = [Row(prompt, responses)]
        self.apart = separate(self.shared)
        self.expected = {kind: self.score(self.apart, kind) for kind in ({None, dtype} if exact else {dtype})}

    @torch.no_grad()
    def score(
        self,
        rows: Sequence[Row],
        dtype: torch.dtype | None,
        *,
        head: bool = False,
        packed: bool = False,
        multiple: int = 8,
    ) -> torch.Tensor:
        """Score the responses under autocast to a dtype: (S,) in nats."""
        batch = pack(rows) if packed else lay_out(rows, pad_token_id=0, pad_to_multiple_of=multiple)
        device = self.model.device
        batch = {name: value.to(device) for name, value in batch.items()}
        return response_logps(self.model, batch, autocast(device, dtype), head=head).sums

    def refuse_padding_that_counts(self) -> None:
        r"""Make sure that a row's log-probs do not depend on the padding behind it.

        Raises:
            ConfigError: If they do.
        """
        for dtype, expected in self.expected.items():
            first = self.score(self.apart[:1], dtype, multiple=1)
            # A yes means that all is well: where a model is traced without data, every question is answered with yes.
            if not bool(
                (
                    (first - expected[:1]).abs() <= rounding(dtype, self.quantized) * expected[:1].abs().clamp(min=1.0)
                ).all()
            ):
                raise ConfigError(
                    f"{type(unwrap(self.model)).__name__} gives a response {float(first):.4g} nats by itself and "
                    f"{float(expected[0]):.4g} with padding behind it, so players would judge by the length of other "
                    "rows. Stage `tpaw` cannot train this architecture; use one with causal attention."
                )

    def agrees(self, what: str, rows: Sequence[Row], **ways: bool) -> bool:
        """Whether a way gives the same log-probs; says so where it does not."""
        try:
            differences = (self._difference(rows, dtype, **ways) for dtype in self.expected)
            apart = next((difference for difference in differences if difference), None)
            if apart is None:
                return True
            reason = f"they give log-probs that differ by up to {apart:.3g} nats"
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
            logger.debug("Where it failed:", exc_info=True)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        name = type(unwrap(self.model)).__name__
        logger.warning_rank0_once(f"{name} is run without {what}, which costs time or memory only: {reason}.")
        return False

    def _difference(self, rows: Sequence[Row], dtype: torch.dtype | None, **ways: bool) -> float:
        """How far a way is off, in nats; 0 within rounding."""
        expected = self.expected[dtype]
        apart = (self.score(rows, dtype, **ways) - expected).abs()
        size = torch.maximum(expected.abs(), expected.new_tensor(TRIED_RESPONSES))
        return 0.0 if bool((apart <= rounding(dtype, self.quantized) * size).all()) else float(apart.max())


def find_shortcuts(model: PreTrainedModel, training_args: Any, finetuning_args: Any) -> Shortcuts:
    r"""See what a model's forward pass can do without.

    Args:
        model: Policy or player: on its device and not wrapped yet; or in shards, wrapped or not.
        training_args: LlamaFactory's, for autocast.
        finetuning_args: LlamaFactory's, with `tpaw_logits` and `tpaw_layout`.

    Raises:
        ConfigError: If padding changes the model's log-probs.
    """
    if sharding_of(training_args):
        return _of_shards(model, training_args, finetuning_args)
    in_training = [module for module in model.modules() if module.training]
    try:
        return _try(model.eval(), autocast_dtype(training_args), finetuning_args)
    finally:
        for module in in_training:
            module.training = True


def _of_shards(model: torch.nn.Module, training_args: Any, finetuning_args: Any) -> Shortcuts:
    """Try a small model of the same kind in place of one that no process has as a whole."""
    costs = layout_costs(model)
    try:
        small = small_model_like(model, training_args)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        logger.debug("Where it failed:", exc_info=True)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        logger.warning_rank0_once(
            f"{type(unwrap(model)).__name__} is in shards, and no small model of its kind could be made to try what "
            f"it can do without. It is run plainly, which costs time or memory only: {reason}."
        )
        return Shortcuts(False, costs)
    found = _try(small.eval(), autocast_dtype(training_args), finetuning_args)
    costs = replace(costs, **{name: getattr(found.costs, name) for name in ("sharing", "by_parts", "packed")})
    # Any other head gathers its parts by itself, as often as it is applied, which differs between processes.
    plain = type(unwrap(model).get_output_embeddings()) is torch.nn.Linear
    if found.head and not plain:
        logger.warning_rank0_once(
            "The head is more than one matrix and in shards, so the model is run without log-probs in blocks, which "
            "costs memory only."
        )
    return Shortcuts(found.head and plain, costs)


def small_model_like(model: torch.nn.Module, training_args: Any) -> PreTrainedModel:
    """Make a model with random weights that is built as another one but for fewer layers."""
    inner = unwrap(model)
    inner = inner.get_base_model() if hasattr(inner, "peft_config") else inner
    config = copy.deepcopy(inner.config)
    text = config.get_text_config()
    text.num_hidden_layers = min(SMALL_LAYERS, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    kind = next(kind for kind in type(inner).__mro__ if not kind.__name__.startswith("FSDP"))
    devices = [training_args.device] if training_args.device.type == "cuda" else []
    with unsharded(training_args), torch.random.fork_rng(devices), torch.device(training_args.device):
        return kind._from_config(config, attn_implementation=attention_of(inner), dtype=inner.dtype)


def _try(model: PreTrainedModel, dtype: torch.dtype | None, finetuning_args: Any) -> Shortcuts:
    trial = _Trial(model, dtype)
    trial.refuse_padding_that_counts()
    layout, costs = finetuning_args.tpaw_layout, layout_costs(model)
    head = finetuning_args.tpaw_logits == "blocks" and trial.agrees("log-probs in blocks", trial.apart, head=True)
    if layout == "auto" and attention_of(model) in PACKED_ATTENTION:
        return Shortcuts(head, replace(costs, packed=trial.agrees("packed rows", trial.apart, packed=True)))
    if layout != "padded" and _sees_everything(model):
        by_parts = attends_by_parts(model.device, attention_of(model))
        if by_parts:
            use_parts()
        if not trial.agrees("shared prompts", trial.shared):
            return Shortcuts(head, costs)
        return Shortcuts(head, replace(costs, sharing="cheaper" if layout == "auto" else "always", by_parts=by_parts))
    if layout == "shared":
        logger.warning_rank0_once(
            f"`tpaw_layout: shared` has no effect: {type(unwrap(model)).__name__} with {attention_of(model)} "
            f"attention takes no mask that could hide responses from each other. Full attention with "
            f"{' or '.join(MASKED_ATTENTION)} (`flash_attn: sdpa`) would."
        )
    return Shortcuts(head, costs)


def layout_costs(model: PreTrainedModel) -> LayoutCosts:
    """Count what a token and a pair of tokens cost in the layers of a model."""
    inner, config = unwrap(model), text_config(model)
    embeddings = {id(part.weight) for part in (inner.get_input_embeddings(), inner.get_output_embeddings()) if part}
    # Of a weight in shards DeepSpeed keeps how large it is.
    sizes = [getattr(part, "ds_shape", part.shape) for part in inner.parameters() if id(part) not in embeddings]
    weights = sum(size.numel() for size in sizes if len(size) > 1)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return LayoutCosts(token=float(weights), pair=2.0 * config.num_hidden_layers * width)


def _sees_everything(model: PreTrainedModel) -> bool:
    """Whether one mask of ours can stand for those of all layers: no sliding windows, no other kinds of memory."""
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # ALiBi counts distances in the row, not by positions.
    counts_distances = getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False)
    return (
        attention_of(model) in MASKED_ATTENTION
        and not counts_distances
        and kinds == {"full_attention"}
        and not any(getattr(config, name, None) for name in WINDOWS)
    )
