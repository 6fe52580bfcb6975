# SPDX-License-Identifier: Apache-2.0
"""Choosing each row's next token: penalty, temperature, top-k, top-p, and a draw by the prompt's own random number."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from ..errors import GenerationError
from .base import Request, SamplingSettings


# Most likely tokens among which the top-p set is looked for before the whole vocabulary is sorted.
NUCLEUS = 512


class Chosen(NamedTuple):
    """The next tokens."""

    tokens: torch.Tensor  # (B,), int64
    sound: torch.Tensor  # whether all rows had probabilities, (): read it when the device is waited for anyway


def uniforms_of(request: Request, settings: SamplingSettings) -> np.ndarray:
    """The random numbers of a prompt, float64 in [0, 1): its step s uses the s-th, whatever its neighbours are."""
    generator = torch.Generator().manual_seed(request.seed(settings.seed))
    return torch.rand(request.max_new_tokens, dtype=torch.float64, generator=generator).numpy()


def choose(
    logits: torch.Tensor, uniforms: torch.Tensor | None, settings: SamplingSettings, seen: torch.Tensor | None = None
) -> Chosen:
    r"""Choose one token a row, which depends on that row alone.

    Args:
        logits: Shape (B, V), any float dtype. Left unchanged.
        uniforms: One number in [0, 1) a row, float64, shape (B,); None where the temperature is 0.
        settings: Sampling settings.
        seen: What each row's prompt and response hold so far, bool, shape (B, V); None where there is no penalty.
    """
    scores = logits.float()
    if seen is not None:
        penalty = settings.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if settings.temperature == 0:
        best = scores.max(-1)  # NaN is the largest of all
        return Chosen(best.indices, best.values.isfinite().all())
    if settings.temperature != 1:
        scores = scores / settings.temperature
    if settings.top_k == 0 and settings.top_p == 1:
        return draw(scores, uniforms)
    scores, ids = _likeliest(scores, settings)
    picked = draw(scores, uniforms)
    return Chosen(ids.gather(-1, picked.tokens[:, None])[:, 0], picked.sound)


def _likeliest(scores: torch.Tensor, settings: SamplingSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the tokens that top-k and top-p keep, -inf for the rest, and their ids in ascending order: (B, K)."""
    vocabulary = scores.shape[-1]
    size = min(settings.top_k or (NUCLEUS if scores.device.type == "cpu" else vocabulary), vocabulary)
    kept, ids = scores.topk(size)
    if settings.top_p < 1:
        total = kept.logsumexp(-1, keepdim=True) if settings.top_k else scores.logsumexp(-1, keepdim=True)
        mass = (kept - total).exp().cumsum(-1)
        if size < vocabulary and not settings.top_k and bool((mass[:, -1] < settings.top_p).any()):
            kept, ids = scores.sort(descending=True)
            mass = (kept - total).exp().cumsum(-1)
        # A token stays if those before it hold less than top-p; the first one always does.
        beyond = mass.roll(1, -1) >= settings.top_p
        beyond[:, 0] = False
        kept = kept.masked_fill(beyond, -math.inf)
    ids, order = ids.sort()
    return kept.gather(-1, order), ids


def draw(scores: torch.Tensor, uniforms: torch.Tensor) -> Chosen:
    r"""Invert the cumulative distribution of softmax(scores) at one number a row.

    The sum runs over blocks of tokens first and over the tokens of one block then, in float64: the vocabulary is read
    once in float32, and no cumulative sum of its size is made. -inf is never drawn.
    """
    probabilities = scores.softmax(-1)
    vocabulary = probabilities.shape[-1]
    size = max(math.isqrt(vocabulary), 1)
    whole = vocabulary // size * size
    sums = probabilities[:, :whole].unflatten(-1, (-1, size)).sum(-1)
    if whole < vocabulary:
        sums = torch.cat([sums, probabilities[:, whole:].sum(-1, keepdim=True)], -1)
    cumulative = sums.double().cumsum(-1)
    total = cumulative[:, -1:]
    target = uniforms[:, None].to(total) * total
    block = torch.minimum(torch.searchsorted(cumulative, target, right=True), _last_positive(sums))
    before = (cumulative - sums.double()).gather(-1, block)
    columns = block * size + torch.arange(size, device=scores.device)
    inside = probabilities.gather(-1, columns.clamp(max=vocabulary - 1)).masked_fill(columns >= vocabulary, 0.0)
    # Rounding may leave the number a little beyond the block's end: its last possible token is meant then.
    first = torch.searchsorted(inside.double().cumsum(-1), target - before, right=True)
    offset = torch.minimum(first, _last_positive(inside))
    return Chosen((block * size + offset)[:, 0], total.isfinite().all())


def _last_positive(values: torch.Tensor) -> torch.Tensor:
    """Index of the last entry above 0 in each row, (B, 1); 0 if none is."""
    positions = torch.arange(values.shape[-1], device=values.device)
    return (positions * (values > 0)).amax(-1, keepdim=True)


def refuse_unsound(sound: bool) -> None:
    """Raise GenerationError where the model gave NaN."""
    if not sound:
        raise GenerationError(
            "The model's probabilities are NaN. Look at the checkpoint and its dtype; a model trained in bf16 may not "
            "be run in fp16."
        )
