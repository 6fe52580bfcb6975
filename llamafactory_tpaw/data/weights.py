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


if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from .opponents import Triplet


def entropy_weights(answers: Mapping[Hashable, tuple[Any, Sequence[Any]]]) -> dict[Any, float]:
    r"""Compute w = H / c for each prompt: H is the entropy of its answers in bits, c the mean of H.

    Given are the right answer and those that were sampled; None stands for a text without one, which is not right, and
    the same answer as others without. Prompts whose answers are all right or none right have no weight.

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
        raise DataError(
            f"`tpaw_prompt_weight: entropy` leaves none of {len(answers)} prompts: by `tpaw_answer_pattern: {pattern}`"
            " none has right and wrong responses. Correct the pattern, or raise `tpaw_samples_per_prompt`."
        )
    numbered = ((triplet, weights.get((triplet.id, triplet.iteration))) for triplet in triplets)
    return [replace(triplet, weight=weight) for triplet, weight in numbered if weight is not None]
