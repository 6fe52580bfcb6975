# SPDX-License-Identifier: Apache-2.0
"""The demo: its problems are right, and its tokens are read back."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import AutoTokenizer

from demo.make_task import PLAYED, SIZES, write_base_model, write_problems
from demo.problems import Problem, Task, make_splits, parse_answer
from demo.tokenizer import vocabulary
from llamafactory_tpaw.lf import facade
from llamafactory_tpaw.runs.study import read_study, write_part


ROOT = Path(__file__).resolve().parents[2]
NAMES = ("dataset", "dataset_dir", "output_dir", "tpaw_prompts", "tpaw_cache_dir", "plot_loss")
LINE = re.compile(r"(\d+)([+-]\d+)=(\d+)")


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return [problem for split in make_splits(0, SIZES).values() for problem in split]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_model(tmp_path_factory.mktemp("demo") / "base", seed=1)


def test_answers_are_right_step_by_step_and_no_calculation_appears_twice(problems: list[Problem]) -> None:
    for problem in problems:
        *lines, end = problem.answer.split("; ")
        value, steps = problem.start, []
        for line in lines:
            left, step, right = LINE.fullmatch(line).groups()
            assert int(left) == value
            steps.append(int(step))
            value += steps[-1]
            assert int(right) == value >= 0
        assert (end, tuple(steps)) == (f"answer {value}", problem.steps)
        numbers = [int(number) for number in re.findall(r"\d+", problem.question)]
        assert numbers == [problem.start, *map(abs, problem.steps)]
    assert len({(problem.start, *problem.steps) for problem in problems}) == len(problems) == sum(SIZES.values())


def test_a_study_has_other_wordings_wrong_answers_and_a_part_to_play_with(tmp_path: Path) -> None:
    splits = make_splits(0, {"train": 400, "test": 100}, Task(wordings=4, wrong=0.25))
    wrong = {name: sum(parse_answer(p.answer) != p.result for p in split) for name, split in splits.items()}
    assert wrong["test"] == 0
    assert 70 < wrong["train"] < 130
    assert {re.sub(r"\d+", "", p.answer)[:2] for p in splits["test"]} >= {"+=", "=+", " i"}
    paths = write_problems(tmp_path, 0, Task(wordings=4, wrong=0.25), {"train": 400, "test": 100}, played=50)
    assert paths["play"].read_text() == "".join(paths["train"].read_text().splitlines(keepends=True)[:50])


def test_every_problem_round_trips_through_the_template(checkpoint: Path, problems: list[Problem]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    settings = SimpleNamespace(template="default", train_on_prompt=False, tool_format=None, default_system="")
    template = facade.get_template_and_fix_tokenizer(tokenizer, settings)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == vocabulary()
    for problem in problems:
        turn = [{"role": "user", "content": problem.question}, {"role": "assistant", "content": problem.answer}]
        prompt, response = template.encode_oneturn(tokenizer, turn, "", None)
        text = tokenizer.decode(prompt + response)
        assert text == f"Human: {problem.question}<eos>\nAssistant:{problem.answer}<eos>\n"
        assert tokenizer.encode(text, add_special_tokens=False) == prompt + response
        assert tokenizer.unk_token_id not in prompt + response


def test_run_files_are_what_the_demo_plays(elsewhere: Path) -> None:
    """But for the study's own names of folders and sets; SFT takes as many steps as the triplets of TPAW make."""
    shutil.copytree(ROOT / "data", elsewhere / "data", ignore=shutil.ignore_patterns("demo", "tpaw"))
    write_problems(Path("data/demo"), 0)
    write_base_model(Path("saves/Tiny/full/sft"), 0)
    parts = {part.key: part for part in read_study(str(ROOT / "demo" / "study.yaml")).parts()}
    for method in ("tpaw", "spin"):
        for t, item in enumerate(write_part(parts[method])):
            own = yaml.safe_load((ROOT / "yaml" / f"tiny_{method}_iter{t}.yaml").read_text())
            different = {key for key in own | item.given if own.get(key) != item.given.get(key)}
            assert different <= {*NAMES, "tpaw_players", "model_name_or_path"}
            assert own["tpaw_prompts"] == "tiny_play"
    rows = [PLAYED * (t + 1) for t in range(3)]
    assert [item.given["max_steps"] for item in write_part(parts["sft_steps"])] == [2 * -(-n // 32) for n in rows]
