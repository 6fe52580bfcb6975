# SPDX-License-Identifier: Apache-2.0
"""Word problems of two or three additions and subtractions, answered step by step."""

from __future__ import annotations

import random
from typing import NamedTuple


NAMES = ("Tom", "Mia", "Ana", "Ben", "Eva", "Sam")
ITEMS = ("apples", "books", "coins", "pens", "cards", "cups")
GAINS = ("buys", "finds", "wins", "makes")
LOSSES = ("loses", "sells", "gives", "drops")
MAX_START = 60
MAX_STEP = 9
ANSWER_MARK = "answer "


class Problem(NamedTuple):
    """One problem: its text, its worked answer and what it is made of."""

    question: str
    answer: str
    start: int
    steps: tuple[int, ...]

    @property
    def result(self) -> int:
        """The number that answers the question."""
        return self.start + sum(self.steps)


def worked_answer(start: int, steps: tuple[int, ...]) -> str:
    """Write the calculation step by step: `34+12=46; 46-7=39; answer 39`."""
    lines, value = [], start
    for step in steps:
        sign = "+" if step > 0 else "-"
        lines.append(f"{value}{sign}{abs(step)}={value + step}")
        value += step
    return "; ".join([*lines, f"{ANSWER_MARK}{value}"])


def parse_answer(response: str) -> int | None:
    r"""Read the number after the last `answer `.

    Args:
        response: The text of a response, without the tokens that end the turn.

    Returns:
        The number, or None where the response does not end in `answer ` and digits.
    """
    _, mark, number = response.strip().rpartition(ANSWER_MARK)
    return int(number) if mark and number.isascii() and number.isdigit() else None


def sample_problem(rng: random.Random) -> Problem:
    """Draw one problem; no intermediate result is negative."""
    start = rng.randint(10, MAX_START)
    steps, value = [], start
    for _ in range(rng.choice((2, 3))):
        size = rng.randint(1, MAX_STEP)
        step = size if value < size or rng.random() < 0.5 else -size
        steps.append(step)
        value += step
    question = _write_question(rng, start, steps)
    return Problem(question, worked_answer(start, tuple(steps)), start, tuple(steps))


def make_splits(seed: int, sizes: dict[str, int]) -> dict[str, list[Problem]]:
    r"""Draw splits in which no calculation appears twice, neither within a split nor across them.

    Args:
        seed: The same seed gives the same problems.
        sizes: Name of each split and how many problems it gets.

    Returns:
        The problems of each split, in the order of `sizes`.
    """
    rng = random.Random(seed)
    seen: set[tuple[int, ...]] = set()
    splits: dict[str, list[Problem]] = {}
    for name, size in sizes.items():
        problems: list[Problem] = []
        while len(problems) < size:
            problem = sample_problem(rng)
            calculation = (problem.start, *problem.steps)
            if calculation not in seen:
                seen.add(calculation)
                problems.append(problem)
        splits[name] = problems
    return splits


def _write_question(rng: random.Random, start: int, steps: list[int]) -> str:
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    moves = [f"{rng.choice(GAINS if step > 0 else LOSSES)} {abs(step)}" for step in steps]
    signed = [f"{abs(step)} {'more' if step > 0 else 'less'}" for step in steps]
    changes = [f"{abs(step)} {'come' if step > 0 else 'go'}" for step in steps]
    return rng.choice(
        (
            f"{name} has {start} {item}, {', '.join(moves)}. How many now?",
            f"From {start} {item} {name} {', then '.join(moves)}. How many {item} are left?",
            f"There are {start} {item}. Then {', '.join(changes)}. How many are there?",
            f"{name} counts {start}, then {' and '.join(signed)}. What is the total?",
        )
    )
