# SPDX-License-Identifier: Apache-2.0
"""EAST's weight of a prompt: how much the final answers that were sampled for it differ."""

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


def final_answer(text: str, pattern: str) -> str | None:
    """Return the last match of a pattern, or of its group where it has one; None where there is none."""
    found = [match[match.re.groups] for match in re.finditer(pattern, text)]
    return found[-1].strip() if found and found[-1] is not None else None


def entropy_weights(
    answers: Mapping[Hashable, tuple[str | None, Sequence[str | None]]], power: float
) -> dict[Any, float]:
    r"""Compute w = H^a / c for each prompt: H is the entropy of its answers in bits, c the mean of H^a.

    Args:
        answers: The right answer of each prompt and those that were sampled; None stands for a text without one, which
            is not right, and the same answer as others without.
        power: a.

    Returns:
        Weights, whose mean is 1, by prompt; without those whose answers are all right or none right.

    Source: EAST, arXiv 2503.23913. That c is the mean over the prompts kept is this package's reading.
    """
    powers = {}
    for prompt, (right, given) in answers.items():
        if right is not None and 0 < given.count(right) < len(given):
            shares = [count / len(given) for count in Counter(given).values()]
            powers[prompt] = (-sum(share * math.log2(share) for share in shares)) ** power
    mean = fmean(powers.values()) if powers else 1.0
    return {prompt: value / mean for prompt, value in powers.items()}


def weigh(
    triplets: Sequence[Triplet], decode: Callable[[Any], str], pattern: str, power: float
) -> tuple[list[Triplet], int]:
    r"""Give triplets the weight of their prompt among the responses of one round, and leave out those that have none.

    Returns:
        The triplets kept, and how many prompts of a round have no weight.

    Raises:
        DataError: If no prompt has one.
    """
    answers: dict[Any, tuple[str | None, list[str | None]]] = {}
    for triplet in triplets:
        prompt = triplet.id, triplet.iteration
        if prompt not in answers:
            answers[prompt] = final_answer(decode(triplet.target_ids), pattern), []
        answers[prompt][1].append(final_answer(decode(triplet.generated_ids), pattern))
    weights = entropy_weights(answers, power)
    if not weights:
        found = sum(right is not None for right, _ in answers.values())
        raise DataError(
            f"`tpaw_prompt_weight: entropy` leaves none of {len(answers)} prompts: `tpaw_answer_pattern: {pattern}` "
            f"finds an answer in {found} targets, and nowhere are some responses right and others wrong. Correct the "
            "pattern, or sample more responses (`tpaw_samples_per_prompt`)."
        )
    numbered = ((triplet, weights.get((triplet.id, triplet.iteration))) for triplet in triplets)
    kept = [replace(triplet, weight=weight) for triplet, weight in numbered if weight is not None]
    return kept, len(answers) - len(weights)
