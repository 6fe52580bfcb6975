# SPDX-License-Identifier: Apache-2.0
"""The weights of prompts by the entropy of their answers: by hand, and what is left out."""

from __future__ import annotations

import pytest

from llamafactory_tpaw.data.weights import entropy_weights, weigh
from llamafactory_tpaw.errors import DataError
from tests.unit.data.test_collator import play


def test_weights_by_hand() -> None:
    """H is 1 bit for two answers that differ, and 2 * 1/4 * 2 + 1/2 * 1 = 1.5 bits for shares 1/4, 1/4, 1/2.

    c = (1 + 1.5) / 2 = 1.25, w = (0.8, 1.2).
    """
    answers = {
        "half": ("3", ["3", "4"]),
        "four": ("3", ["3", "4", None, None]),
        "right": ("3", ["3", "3"]),
        "wrong": ("3", ["4", "5"]),
        "unknown": (None, ["3", None]),
    }
    assert entropy_weights(answers) == pytest.approx({"half": 0.8, "four": 1.2})


@pytest.mark.parametrize("pattern", [r"#### *(.+)", r"-?\d+", r"(-?)(\d+)"])
def test_each_round_s_responses_are_one_group(pattern: str) -> None:
    """Targets say -2: theta_0 was right once of two times, theta_1 twice, so only the first round has a weight."""
    texts = {2: "1\n#### -2", 3: "-2\n#### 2"}
    triplets = [play("a-0", iteration, (text,)) for text, iteration in ((2, 0), (3, 0), (2, 1), (2, 1))]
    decode = lambda ids: texts.get(int(ids[0]), texts[2])  # noqa: E731
    assert [(one.iteration, one.weight) for one in weigh(triplets, decode, pattern)] == [(0, 1.0), (0, 1.0)]
    with pytest.raises(DataError, match="leaves none of 2 prompts: by `tpaw_answer_pattern: never` none"):
        weigh(triplets, str, "never")
