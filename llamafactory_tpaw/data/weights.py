# SPDX-License-Identifier: Apache-2.0
"""EAST's weight of a prompt: how much the final answers that were sampled for it differ (a reconstruction)."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..lf.logs import get_logger


if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from .opponents import Triplet

logger = get_logger(__name__)


def entropy_weights(answers: Mapping[Hashable, tuple[Any, Sequence[Any]]]) -> dict[Any, float]:
    r"""Compute w = H / c for each prompt: H is the entropy of its answers in bits, c the mean of H.

    Args:
        answers: The right answer of each prompt and those that were sampled; None stands for a text without one, which
            is not right, and the same answer as others without.

    Returns:
        Weights, whose mean is 1, by prompt; without prompts whose answers are all right or none right.

    Source: EAST, arXiv 2503.23913, with a = 1. That c is the mean over the prompts kept is this package's reading.
    """
    entropies = {}
    for prompt, (right, given) in answers.items():
        if right is not None and 0 < given.count(right) < len(given):
            shares = [count / len(given) for count in Counter(given).values()]
            entropies[prompt] = -sum(share * math.log2(share) for share in shares)
    mean = fmean(entropies.values()) if entropies else 1.0
    return {prompt: entropy / mean for prompt, entropy in entropies.items()}


def weigh(triplets: Sequence[Triplet], decode: Callable[[Any], str], pattern: str) -> list[Triplet]:
    """Give triplets the weight of their prompt in their round, and leave out those of prompts that have none."""

    def answer(ids: Any) -> Any:
        return (re.findall(pattern, decode(ids)) or [None])[-1]

    answers: dict[Any, tuple[Any, list[Any]]] = {}
    for triplet in triplets:
        prompt = triplet.id, triplet.iteration
        if prompt not in answers:
            answers[prompt] = answer(triplet.target_ids), []
        answers[prompt][1].append(answer(triplet.generated_ids))
    weights = entropy_weights(answers)
    if answers and not weights:
        found = sum(right is not None for right, _ in answers.values())
        raise DataError(
            f"`tpaw_prompt_weight: entropy` leaves none of {len(answers)} prompts: `tpaw_answer_pattern: {pattern}` "
            f"finds an answer in {found} targets, and nowhere are some responses right and others wrong. Correct the "
            "pattern, or sample more responses (`tpaw_samples_per_prompt`)."
        )
    logger.info_rank0(f"`tpaw_prompt_weight: entropy` leaves {len(weights)} of {len(answers)} prompts, with weights.")
    numbered = ((triplet, weights.get((triplet.id, triplet.iteration))) for triplet in triplets)
    return [replace(triplet, weight=weight) for triplet, weight in numbered if weight is not None]
