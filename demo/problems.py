# SPDX-License-Identifier: Apache-2.0
"""Word problems of two or three additions and subtractions, answered step by step."""

from __future__ import annotations

import random
from typing import NamedTuple


NAMES = ("Tom", "Mia", "Ana", "Ben", "Eva", "Sam")
ITEMS = ("apples", "books", "coins", "pens", "cards", "cups")
GAINS = ("buys", "finds", "wins", "makes")
LOSSES = ("loses", "sells", "gives", "drops")
ANSWER_MARK = "answer "


class Task(NamedTuple):
    """How large numbers are, in how many ways an answer is written, and the share of wrong training answers."""

    start: int = 60
    step: int = 30
    wordings: int = 1
    wrong: float = 0.0


DEMO = Task()


# What stands between two steps, and how one is written; the first is the demo's.
WORDINGS = (
    ("; ", "{calculation}={result}"),
    (", then ", "{calculation}={result}"),
    ("; ", "{result}={calculation}"),
    (". ", "{result} is {calculation}"),
)


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


def worked_answer(start: int, steps: tuple[int, ...], wording: int = 0, slip: tuple[int, int] = (0, 0)) -> str:
    """Write the calculation step by step: `34+12=46; 46-7=39; answer 39`.

    Args:
        start: The first number.
        steps: What is added, one after the other.
        wording: One of WORDINGS.
        slip: A step's index, and by how much its result is wrong.
    """
    between, order = WORDINGS[wording]
    lines, value = [], start
    for index, step in enumerate(steps):
        result = value + step + (slip[1] if index == slip[0] else 0)
        calculation = f"{value}{'+' if step > 0 else '-'}{abs(step)}"
        lines.append(order.format(calculation=calculation, result=result))
        value = result
    return f"{between.join(lines)}; {ANSWER_MARK}{value}"


def parse_answer(response: str) -> int | None:
    r"""Read the number after the last `answer `.

    Args:
        response: The text of a response, without the tokens that end the turn.

    Returns:
        The number, or None where the response does not end in `answer ` and digits.
    """
    _, mark, number = response.strip().rpartition(ANSWER_MARK)
    return int(number) if mark and number.isascii() and number.isdigit() else None


def sample_problem(rng: random.Random, task: Task = DEMO) -> Problem:
    """Draw one problem; no intermediate result is negative."""
    start = rng.randint(10, task.start)
    steps, value = [], start
    for _ in range(rng.choice((2, 3))):
        size = rng.randint(1, task.step)
        step = size if value < size or rng.random() < 0.5 else -size
        steps.append(step)
        value += step
    question = _write_question(rng, start, steps)
    wording = rng.randrange(task.wordings) if task.wordings > 1 else 0
    return Problem(question, worked_answer(start, tuple(steps), wording), start, tuple(steps))


def spoil(rng: random.Random, problem: Problem) -> Problem:
    """Return the problem with an answer in which one step is wrong by 1 or 10, and all that follows from it."""
    slip = rng.randrange(len(problem.steps)), rng.choice((1, 10))
    return problem._replace(answer=worked_answer(problem.start, problem.steps, slip=slip))


def make_splits(seed: int, sizes: dict[str, int], task: Task = DEMO) -> dict[str, list[Problem]]:
    r"""Draw splits in which no calculation appears twice, neither within a split nor across them.

    Args:
        seed: The same seed gives the same problems.
        sizes: Name of each split and how many problems it gets.
        task: What the problems are like; wrong answers are in the split `train` alone.

    Returns:
        The problems of each split, in the order of `sizes`.
    """
    rng = random.Random(seed)
    seen: set[tuple[int, ...]] = set()
    splits: dict[str, list[Problem]] = {}
    for name, size in sizes.items():
        problems: list[Problem] = []
        while len(problems) < size:
            problem = sample_problem(rng, task)
            calculation = (problem.start, *problem.steps)
            if calculation not in seen:
                seen.add(calculation)
                is_wrong = name == "train" and task.wrong > 0 and rng.random() < task.wrong
                problems.append(spoil(rng, problem) if is_wrong else problem)
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
