# SPDX-License-Identifier: Apache-2.0
"""A causal model whose head, for the time of one forward pass, returns log-probs of the response tokens alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..objectives.head import BLOCK_SCORES, BLOCK_SCORES_ELSEWHERE, head_logps


class _After(NamedTuple):
    """What some architectures do to the scores after the head: where it is set, and the value that does nothing."""

    owner: Any
    name: str
    neutral: float | None


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside of what DDP and engines put around it."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the language model, also where it is part of a larger one."""
    return unwrap(model).config.get_text_config()


@contextlib.contextmanager
def response_head(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[None]:
    r"""Let the model return, as its `logits`, the log-probs of a batch's response tokens: float32 (M,).

    The pass goes through the model's own forward, so that wrappers for mixed precision and several processes see it;
    only the head is another one meanwhile.

    Args:
        model: A model with an output embedding, wrapped or not.
        batch: `response_places` and `response_tokens` of `lay_out`.
    """
    head: nn.Module = unwrap(model).get_output_embeddings()
    scale, softcap, after = _after_the_head(model)
    module_forward, had_own = head.forward, "forward" in vars(head)

    def forward(hidden: Tensor) -> Tensor:
        states = hidden.flatten(0, -2).index_select(0, batch["response_places"])
        if type(head) is nn.Linear and not had_own:
            tokens = batch["response_tokens"]
            return head_logps(states, head.weight, tokens, head.bias, scale=scale, softcap=softcap)
        return _module_logps(module_forward, states, batch["response_tokens"], scale, softcap)

    values = [getattr(part.owner, part.name) for part in after]
    head.forward = forward
    for part in after:
        setattr(part.owner, part.name, part.neutral)
    try:
        yield
    finally:
        for part, value in zip(after, values, strict=True):
            setattr(part.owner, part.name, value)
        if had_own:
            head.forward = module_forward
        else:
            del head.forward


def _after_the_head(model: nn.Module) -> tuple[float, float | None, list[_After]]:
    """Return scale and soft cap of the scores and where the architecture keeps them (Cohere, Granite, Gemma)."""
    inner, config, scale, softcap, after = unwrap(model), text_config(model), 1.0, None, []
    if isinstance(getattr(config, "final_logit_softcapping", None), int | float):
        softcap = float(config.final_logit_softcapping)
        after.append(_After(config, "final_logit_softcapping", None))
    if isinstance(getattr(config, "logits_scaling", None), int | float):
        scale = 1.0 / config.logits_scaling
        after.append(_After(config, "logits_scaling", 1.0))
    # An adapter's wrapper shows the attribute of the model inside; set on the wrapper it would change nothing.
    owner = next(
        (module for module in inner.modules() if isinstance(vars(module).get("logit_scale"), int | float)), None
    )
    if owner is not None:
        scale *= owner.logit_scale
        after.append(_After(owner, "logit_scale", 1.0))
    return scale, softcap, after


def _module_logps(
    head: Callable[[Tensor], Tensor], states: Tensor, tokens: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Apply a head that is more than one matrix (LoRA, quantized) in chunks of tokens, once more in the backward."""

    def chunk_logps(chunk: Tensor, picked: Tensor) -> Tensor:
        scores = head(chunk).float() * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        return scores.gather(1, picked[:, None]).squeeze(1) - scores.logsumexp(1)

    with torch.no_grad():
        vocabulary = head(states[:1]).shape[-1]
    size = max(1, BLOCK_SCORES.get(states.device.type, BLOCK_SCORES_ELSEWHERE) // vocabulary)
    pairs = zip(states.split(size), tokens.split(size), strict=True)
    return torch.cat([checkpoint(chunk_logps, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs])
