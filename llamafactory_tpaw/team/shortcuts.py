# SPDX-License-Identifier: Apache-2.0
"""What a model's forward pass can do without, found by trying it on a few tokens, whatever the architecture."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from ..data.files import readable_bytes
from ..data.layout import Layout, Row, lay_out, pack, separate
from ..errors import ConfigError, Findings
from ..lf import facade
from ..lf.logs import get_logger
from .cache import SHORT
from .forward import ROUNDING, attention_of, response_logps, rounding, text_config, unwrap
from .sharding import autocast_dtype, sharding_of


if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

# Attention that takes a mask for every pair of tokens, and attention that keeps sequences apart by their positions.
MASKED_ATTENTION = ("sdpa", "eager")
PACKED_ATTENTION = ("flash_attention_2", "flash_attention_3")
# What architectures call the width of a window; the few tokens of a trial fit into most.
WINDOWS = ("sliding_window", "window_size", "attention_window", "attention_window_size")
# A small model that is tried in place of one in shards, or of one that is not loaded (in float32: 2 layers of 70B).
SMALL_LAYERS, SMALL_VOCABULARY, SMALL_BYTES = 2, 512, 2**33
NOT_CAUSAL = "so players would judge by the length of other rows. Use an architecture with causal attention."
TRIED_PROMPT, TRIED_RESPONSES = 6, (4, 7, 5)
# What architectures raise that do not take what is tried.
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError)

logger = get_logger(__name__)


class Shortcuts(NamedTuple):
    """How a model is run: `head` for log-probs in blocks of the vocabulary instead of from logits, and its layout."""

    head: bool = False
    layout: Layout = Layout()


def check_causal(model_args: Any, findings: Findings) -> None:
    """See by two layers with random weights, on the CPU, that no token sees those that come after it."""
    try:
        config = _with_fewer_layers(facade.load_config(model_args))
        text = config.get_text_config()
        how = {"dtype": torch.float32, "trust_remote_code": model_args.trust_remote_code}
        text.vocab_size, text.pad_token_id = min(SMALL_VOCABULARY, text.vocab_size), 0
        with torch.device("meta"):
            meant = AutoModelForCausalLM.from_config(config, **how)
        size = sum(weight.nbytes for weight in meant.parameters())
        if size > SMALL_BYTES:
            raise ValueError(f"{SMALL_LAYERS} of its layers take {readable_bytes(size)}")
        with torch.random.fork_rng([]), torch.no_grad():
            model = AutoModelForCausalLM.from_config(config, **how).eval()
            tokens = torch.arange(1, 65).view(2, 32)
            tokens[1, :16] = tokens[0, :16]  # two rows that end otherwise
            first, second = model(input_ids=tokens, use_cache=False).logits[:, :16]
    except (*REFUSALS, ImportError, OSError) as error:
        text = "Whether attention is causal is tried when the model is loaded, since no small one of its kind could be"
        findings.remarks.append(f"{text}: {' '.join(str(error).split())[:200]}.")
        return
    if float((first - second).abs().max()) > ROUNDING[None] * float(first.std()):
        text = f"{type(model).__name__} ({model_args.model_name_or_path}) lets tokens see those that come after them"
        findings.refuse(ConfigError, [f"{text}, {NOT_CAUSAL}"])


def find_shortcuts(model: PreTrainedModel, training_args: Any, finetuning_args: Any) -> Shortcuts:
    r"""See what the forward pass of a policy or player can do without, as `tpaw_logits` and `tpaw_layout` allow.

    The model is on its device and not wrapped yet; or in shards, wrapped or not. If padding changes its log-probs, it
    is refused by a ConfigError.
    """
    tried = model
    if sharding_of(training_args):  # no process has the whole of it
        try:
            tried = _small_model_like(model, training_args)
        except REFUSALS as error:
            _warn(model, "a trial of what it can do without: no small model of its kind could be made", error)
            return Shortcuts()
    in_training = [module for module in tried.modules() if module.training]
    try:
        trial = _Trial(tried.eval(), autocast_dtype(training_args))
        if not all(bool(sums.isfinite().all()) for sums in trial.expected.values()):
            return Shortcuts()  # what scores with it says whose and for which prompts
        # A response alone; and all behind more and other padding, by far the most of what attention could see.
        apart = trial.difference(trial.apart[:1], pad_to_multiple_of=1)
        apart = apart or trial.difference(trial.apart, pad_to_multiple_of=64, pad_token_id=1)
        if apart:
            raise ConfigError(
                f"{type(unwrap(model)).__name__} gives a response a log-prob that differs by {apart:.4g} nats with "
                f"padding behind it, {NOT_CAUSAL}"
            )
        blocks = finetuning_args.tpaw_logits == "blocks"
        head = blocks and trial.agrees("log-probs in blocks", trial.apart, head=True)
        # A head in shards that is more than one matrix gathers its parts by itself, so it is not replaced.
        head = head and type(unwrap(model).get_output_embeddings()) is torch.nn.Linear
        return Shortcuts(head, _layout(trial, finetuning_args.tpaw_layout))
    finally:
        for module in in_training:
            module.training = True


def _layout(trial: _Trial, asked: str) -> Layout:
    """Choose how the model takes its batches, as `tpaw_layout` asks."""
    attention = attention_of(trial.model)
    if asked == "auto" and attention in PACKED_ATTENTION:
        return Layout(packed=trial.agrees("packed rows", trial.apart, packed=True))
    if asked == "padded":
        return Layout()
    if _sees_everything(trial.model):
        shared = trial.agrees("shared prompts", trial.shared)
        return Layout(sharing=("cheaper" if asked == "auto" else "always") if shared else "never")
    if asked == "shared":
        logger.warning_rank0_once(
            f"`tpaw_layout: shared` has no effect: {type(unwrap(trial.model)).__name__} with {attention} attention "
            "takes no mask that could hide responses from each other. Full attention with `flash_attn: sdpa` would."
        )
    return Layout()


class _Trial:
    """Compares ways to score the same few responses with a model."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None) -> None:
        self.model, self.dtypes = model, {weight.dtype for weight in model.parameters()}
        # Without autocast, too, where that can be: its rounding would cover what a way gets wrong.
        exact = self.dtypes == {torch.float32} and attention_of(model) not in PACKED_ATTENTION
        # Spread over the vocabulary, whose first ones are special tokens that round worse than others.
        tokens = np.arange(TRIED_PROMPT + sum(TRIED_RESPONSES), dtype=np.int32) * 7919 % text_config(model).vocab_size
        prompt, *responses = np.split(tokens, TRIED_PROMPT + np.cumsum([0, *TRIED_RESPONSES[:-1]]))
        self.shared = [Row(prompt, responses)]
        self.apart = separate(self.shared)
        self.expected = {kind: self.score(self.apart, kind) for kind in ({None, dtype} if exact else {dtype})}

    @torch.no_grad()
    def score(
        self, rows: Sequence[Row], dtype: torch.dtype | None, head: bool = False, packed: bool = False, **padding: int
    ) -> torch.Tensor:
        """Score the responses under autocast to a dtype: (S,) in nats."""
        batch = pack(rows) if packed else lay_out(rows, **{"pad_token_id": 0} | padding)
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        return response_logps(self.model, batch, dtype, head=head).sums

    def difference(self, rows: Sequence[Row], **way: Any) -> float:
        """How far the log-probs of the first rows are off when they are scored another way, in nats; 0 in rounding."""
        for dtype, expected in self.expected.items():
            found = self.score(rows, dtype, **way)
            size = torch.maximum(expected.abs(), expected.new_tensor(TRIED_RESPONSES))[: len(found)] + SHORT
            apart = (found - expected[: len(found)]).abs()
            if not bool((apart <= rounding(dtype, *self.dtypes) * size).all()):
                return float(apart.max())
        return 0.0

    def agrees(self, what: str, rows: Sequence[Row], **way: bool) -> bool:
        """Whether a way gives the same log-probs; says so where it does not."""
        try:
            apart = self.difference(rows, **way)
            if apart:
                raise ValueError(f"it gives log-probs that differ by up to {apart:.3g} nats")
        except REFUSALS as error:
            _warn(self.model, what, error)
            return False
        return True


def _warn(model: torch.nn.Module, what: str, error: Exception) -> None:
    logger.debug("Where it failed:", exc_info=True)
    logger.warning_rank0_once(
        f"{type(unwrap(model)).__name__} is run without {what}, which costs time or memory only: "
        f"{type(error).__name__}: {' '.join(str(error).split())[:200]}."
    )


def _small_model_like(model: torch.nn.Module, training_args: Any) -> PreTrainedModel:
    """Make a model with random weights that is built as another one but for fewer layers."""
    inner = unwrap(model)
    inner = inner.get_base_model() if hasattr(inner, "peft_config") else inner
    config = _with_fewer_layers(inner.config)
    kind = next(kind for kind in type(inner).__mro__ if not kind.__name__.startswith("FSDP"))
    devices = [training_args.device] if training_args.device.type == "cuda" else []
    zero = getattr(training_args, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()  # or transformers would build shards of it
    try:
        with torch.random.fork_rng(devices), torch.device(training_args.device):
            return kind._from_config(config, attn_implementation=attention_of(inner), dtype=inner.dtype)
    finally:
        if zero is not None:
            set_hf_deepspeed_config(zero)


def _with_fewer_layers(config: Any) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = min(SMALL_LAYERS, text.num_hidden_layers)
    if vars(text).get("layer_types"):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    return config


def _sees_everything(model: PreTrainedModel) -> bool:
    """Whether one mask of ours can stand for those of all layers: no sliding windows, no other kinds of memory."""
    config = text_config(model)
    # ALiBi counts distances in the row, not by positions.
    return (
        attention_of(model) in MASKED_ATTENTION
        and not getattr(config, "alibi", False)
        and not getattr(getattr(config, "attn_config", None), "alibi", False)
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not any(getattr(config, name, None) for name in WINDOWS)
    )
