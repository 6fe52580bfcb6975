# SPDX-License-Identifier: Apache-2.0
"""The weights of prompts by the entropy of their answers: by hand, and what is left out."""

from __future__ import annotations

import pytest

from llamafactory_tpaw.data.weights import entropy_weights, final_answer, weigh
from llamafactory_tpaw.errors import DataError
from tests.unit.data.test_collator import play


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        (r"#### *(.+)", "1 + 2 = 3\n#### 3 \n", "3"),
        (r"#### *(.+)", "it is 3", None),
        (r"-?\d+", "34 - 36 = -2", "-2"),
        (r"yes|(no)", "no, yes", None),
        (r"(\d+)", "", None),
    ],
)
def test_the_last_match_is_the_answer(pattern: str, text: str, answer: str | None) -> None:
    assert final_answer(text, pattern) == answer


ANSWERS = {
    "half": ("3", ["3", "4"]),
    "four": ("3", ["3", "4", None, None]),
    "right": ("3", ["3", "3"]),
    "wrong": ("3", ["4", "5"]),
    "unknown": (None, ["3", None]),
}


@pytest.mark.parametrize(
    ("power", "half", "four"), [(1.0, 0.8, 1.2), (2.0, 2 / 3.25, 4.5 / 3.25), (0.0, 1.0, 1.0), (-1.0, 1.2, 0.8)]
)
def test_weights_by_hand(power: float, half: float, four: float) -> None:
    """H is 1 bit for two answers that differ, and 2 * 1/4 * 2 + 1/2 * 1 = 1.5 bits for shares 1/4, 1/4, 1/2.

    a = 1: c = (1 + 1.5) / 2 = 1.25, w = (0.8, 1.2). a = 2: c = (1 + 2.25) / 2 = 1.625.
    a = -1: c = (1 + 2/3) / 2 = 5/6.
    """
    assert entropy_weights(ANSWERS, power) == pytest.approx({"half": half, "four": four})


def test_each_round_s_responses_are_one_group() -> None:
    """Targets say 2: theta_0 was right once of two times, theta_1 twice, so only the first round has a weight."""
    texts = {2: "2", 3: "3", 4: "2 or 2"}
    triplets = [play("a-0", iteration, (text,)) for text, iteration in ((2, 0), (3, 0), (2, 1), (4, 1))]
    kept, dropped = weigh(triplets, lambda ids: texts.get(int(ids[0]), "2"), r"\d", 1.0)
    assert [(one.iteration, one.weight) for one in kept] == [(0, 1.0), (0, 1.0)]
    assert dropped == 1
    with pytest.raises(DataError, match=r"leaves none of 2 prompts: .* finds an answer in 0 targets"):
        weigh(triplets, str, "never", 1.0)
