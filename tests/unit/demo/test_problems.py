# SPDX-License-Identifier: Apache-2.0
"""The demo's word problems: right, the same for a seed, and never the same calculation twice."""

from __future__ import annotations

import re

import pytest

from demo.make_task import SIZES, write_problems
from demo.problems import make_splits, parse_answer


LINE = re.compile(r"(\d+)([+-])(\d+)=(\d+)")


@pytest.fixture(scope="module")
def splits():
    return make_splits(0, SIZES)


def all_problems(splits):
    return [problem for problems in splits.values() for problem in problems]


def test_sizes(splits):
    assert {name: len(problems) for name, problems in splits.items()} == {
        "train": 1000,
        "validation": 500,
        "test": 1000,
    }


def test_answers_are_right_step_by_step(splits):
    for problem in all_problems(splits):
        lines = problem.answer.split("; ")
        value, steps = problem.start, []
        for line in lines[:-1]:
            left, sign, size, right = LINE.fullmatch(line).groups()
            assert int(left) == value
            steps.append(int(sign + size))
            value += steps[-1]
            assert int(right) == value >= 0
        assert lines[-1] == f"answer {value}"
        assert tuple(steps) == problem.steps
        assert len(steps) in (2, 3)


def test_questions_hold_the_numbers_in_order(splits):
    for problem in all_problems(splits):
        numbers = [int(number) for number in re.findall(r"\d+", problem.question)]
        assert numbers == [problem.start, *map(abs, problem.steps)]


def test_words_say_the_sign(splits):
    down = {"loses", "sells", "gives", "drops", "less", "go"}
    for problem in all_problems(splits):
        moves = re.findall(
            r"(buys|finds|wins|makes|loses|sells|gives|drops) \d+|\d+ (more|less|come|go)\b", problem.question
        )
        words = [before or after for before, after in moves]
        assert [word in down for word in words] == [step < 0 for step in problem.steps]


def test_four_templates_are_used(splits):
    shapes = {" ".join(problem.question.split(". ")[-1].split()[-2:]) for problem in splits["test"]}
    assert shapes == {"many now?", "are left?", "are there?", "the total?"}


def test_no_calculation_appears_twice(splits):
    problems = all_problems(splits)
    assert len({(problem.start, *problem.steps) for problem in problems}) == len(problems)


def test_a_seed_gives_the_same_bytes(tmp_path):
    first, again, other = (write_problems(tmp_path / str(i), seed) for i, seed in enumerate((3, 3, 4)))
    for name in SIZES:
        assert first[name].read_bytes() == again[name].read_bytes()
        assert first[name].read_bytes() != other[name].read_bytes()


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("34+7=41; answer 41", 41),
        (" answer 0 ", 0),
        ("answer 5; answer 12", 12),
        ("34+7=41", None),
        ("answer ", None),
        ("answer 4 1", None),
        ("answer -3", None),
        ("answer ²", None),
        ("", None),
    ],
)
def test_parse_answer(response, number):
    assert parse_answer(response) == number
