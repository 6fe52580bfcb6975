# SPDX-License-Identifier: Apache-2.0
"""Choosing each row's next token: penalty, temperature, top-k, top-p, and a draw by the prompt's own random number."""

from __future__ import annotations

import math

import numpy as np
import torch
from transformers import TopPLogitsWarper

from ..errors import GenerationError
from .base import Request, SamplingSettings


def uniforms_of(request: Request, settings: SamplingSettings) -> np.ndarray:
    """The random numbers of a prompt, float64 in [0, 1): its step s uses the s-th, whatever its neighbours are."""
    generator = torch.Generator().manual_seed(request.seed(settings.seed))
    return torch.rand(request.max_new_tokens, dtype=torch.float64, generator=generator).numpy()


def choose(
    logits: torch.Tensor, uniforms: torch.Tensor | None, settings: SamplingSettings, seen: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Choose one token a row, (B,), by logits, (B, V), which are left unchanged; it depends on that row alone.

    Uniforms are one number in [0, 1) a row, float64 (B,); None where the temperature is 0. `seen` is what each row's
    prompt and response hold so far, bool (B, V); None where there is no penalty. The other thing returned is whether
    all rows had probabilities, (): read it when the device is waited for anyway.
    """
    scores = logits.float()
    if seen is not None:
        penalty = settings.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if settings.temperature == 0:
        best = scores.max(-1)  # NaN is the largest of all
        return best.indices, best.values.isfinite().all()
    if settings.temperature != 1:
        scores = scores / settings.temperature
    ids = None
    if 0 < settings.top_k < scores.shape[-1]:
        ids = scores.topk(settings.top_k).indices.sort().values
        scores = scores.gather(-1, ids)
    if settings.top_p < 1:
        scores = TopPLogitsWarper(settings.top_p)(None, scores)
    tokens, sound = draw(scores, uniforms)
    return tokens if ids is None else ids.gather(-1, tokens[:, None])[:, 0], sound


def draw(scores: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Invert the cumulative distribution of softmax(scores) at one number a row; returns what `choose` does.

    First over blocks of tokens and then inside one, so that no cumulative sum of the vocabulary's size is made.
    """
    vocabulary = scores.shape[-1]
    root = math.isqrt(vocabulary)
    size = next((size for size in range(root, 8 * root) if vocabulary % size == 0), vocabulary)
    blocks = scores.softmax(-1).unflatten(-1, (-1, size))
    sums = blocks.sum(-1)
    total = sums.sum(-1, dtype=torch.float64, keepdim=True)
    block, before = _find(sums, uniforms[:, None].to(total) * total)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]]
    place, _ = _find(inside, uniforms[:, None].to(total) * total - before)
    return (block * size + place)[:, 0], total.isfinite().all()


def _find(masses: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the mass in which a number falls when they are put one after the other, and the sum of those before it."""
    cumulative = masses.cumsum(-1, dtype=torch.float64)
    last = cumulative[:, -1:]
    # Rounding may take the number to the end of all, where nothing is.
    target = torch.minimum(target, last.nextafter(torch.zeros_like(last)))
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=masses.shape[-1] - 1)  # NaN is at no place
    return place, (cumulative - masses).gather(-1, place)


def refuse_unsound(sound: bool) -> None:
    """Raise GenerationError where the model gave NaN."""
    if not sound:
        raise GenerationError(
            "The model's probabilities are NaN. Look at the checkpoint and its dtype; a model trained in bf16 may not "
            "be run in fp16."
        )
