# SPDX-License-Identifier: Apache-2.0
"""`run`: files are checked together before the first one starts, then played from where each was left."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llamafactory_tpaw.errors import DataError, TpawError
from llamafactory_tpaw.lf.given import HANDED, read_given
from llamafactory_tpaw.runs import loop
from llamafactory_tpaw.runs.loop import Item, is_finished, read_items, split_words
from tests.runs import COMMON, Project
from tests.unit.runs.test_plan import finish, project, write_triplets


__all__ = ["project"]


def write_sft(project: Project, **changes: Any) -> str:
    settings = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": "base",
        "finetuning_type": "full",
        "dataset": "additions",
        "output_dir": "saves/sft",
    }
    return project.write("sft.yaml", {**COMMON, **settings, **changes})


def write_all(project: Project, **changes: Any) -> list[str]:
    """Write the run files of stage sft and of iterations 0 and 1."""
    iterations = [project.write(f"iter{t}.yaml", project.settings(t, **changes)) for t in (0, 1)]
    return [write_sft(project), *iterations]


def problems_of(files: list[str], *overrides: str) -> list[str]:
    with pytest.raises(TpawError) as caught:
        read_items(files, overrides)
    return caught.value.problems


def finish_sft(state: str = '{"global_step": 4, "max_steps": 4}') -> None:
    Path("saves/sft/train_results.json").write_text("{}")
    Path("saves/sft/trainer_state.json").write_text(state)


class TestReading:
    def test_words_are_files_or_overrides(self, elsewhere: Path) -> None:
        Path("lr=1.yaml").touch()
        words = ["a.yaml", "seed=1", "lr=1.yaml", "runs/b=2/c.yaml", "dataset=a,b", "nope"]
        assert split_words(words) == (["a.yaml", "lr=1.yaml", "runs/b=2/c.yaml", "nope"], ["seed=1", "dataset=a,b"])

    def test_what_an_earlier_file_makes_is_no_problem(self, project: Project) -> None:
        shutil.rmtree("saves")
        items = read_items(write_all(project), ["learning_rate=2.0e-4"])
        assert [item.produces for item in items] == ["the model of stage sft", "theta_1", "theta_2"]
        assert {item.given["learning_rate"] for item in items} == {0.0002}

    def test_what_a_later_file_makes_is_one(self, project: Project) -> None:
        _, first, second = write_all(project)
        problems = problems_of([second, first])
        assert [problem.split(" ")[0] for problem in problems] == ["iter1.yaml:", "iter1.yaml:"]
        assert "theta_1 (`model_name_or_path`): saves/play_iter0 does not exist" in problems[0]
        assert "play_iter0.jsonl and its meta file are not there. Run iteration 0" in problems[1]
        write_triplets()
        finish(project)
        assert len(read_items([second, first], [])) == 2

    def test_problems_of_all_files_come_together(self, project: Project) -> None:
        sft, first, second = write_all(project, tpaw_eta=0)
        write_sft(project, learning_rate="fast")
        project.write("rm.yaml", {"stage": "rm", "output_dir": "x", "do_train": True})
        project.write("idle.yaml", {**project.settings(2), "do_train": False})
        problems = problems_of([sft, first, "nope.yaml", "rm.yaml", "run.txt", second, "idle.yaml"], "tpaw_gama=1")
        expected = [
            ("nope.yaml", "No such file"),
            ("rm.yaml", "`stage` is rm, but `run` plays the stages tpaw, sft, dpo."),
            ("run.txt", "ends with `.yaml`"),
            ("sft.yaml", "`tpaw_gama` is not a key"),
            ("sft.yaml", "`learning_rate: fast` is wrong: invalid float value: 'fast'. Correct it."),
            ("iter0.yaml", "`tpaw_gama` is not a key"),
            ("iter0.yaml", "`tpaw_eta` is 0"),
            ("iter1.yaml", "`tpaw_gama` is not a key"),
            ("iter1.yaml", "`tpaw_eta` is 0"),
            ("idle.yaml", "`do_train` is not true"),
            ("idle.yaml", "Neither `do_train` nor `do_eval` is true"),
            ("idle.yaml", "`tpaw_gama` is not a key"),
        ]
        assert len(problems) == len(expected)
        for problem, (file, text) in zip(problems, expected, strict=True):
            assert problem.startswith(f"{file}: ")
            assert text in problem

    def test_problems_of_keys_and_of_files_come_together(self, project: Project) -> None:
        project.model = Path("saves/full/sft")
        _, first, second = write_all(project)
        project.write(second, project.settings(1, tpaw_gamma=-1, tpaw_prompts="none"))
        problems = problems_of([first, second])
        assert "iter0.yaml: theta_0 (`model_name_or_path`): saves/full/sft does not exist" in problems[0]
        assert "iter1.yaml: `tpaw_gamma` is -1" in problems[1]
        assert any("iter1.yaml: `tpaw_prompts: none` is not an entry" in problem for problem in problems)
        assert not any("play_iter0" in problem for problem in problems)  # the first file makes it

    def test_one_folder_for_two_runs(self, project: Project) -> None:
        _, first, _ = write_all(project)
        project.write("again.yaml", project.settings(0))
        assert problems_of([first, "again.yaml"]) == [
            "again.yaml: `output_dir: saves/play_iter0` is that of iter0.yaml, too. Give each run its own folder."
        ]


def shift(project: Project, **changes: Any) -> list[str]:
    """Iterations 0 and 1 whose files differ by `changes`, those that begin with `first_` in iteration 0."""
    first = {key.removeprefix("first_"): changes.pop(key) for key in list(changes) if key.startswith("first_")}
    return [project.write(f"iter{t}.yaml", project.settings(t, **(changes if t else first))) for t in (0, 1)]


class TestComparing:
    """What training would refuse after hours is refused before the first file is played."""

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"tpaw_max_prompts": 12}, "`tpaw_max_prompts` was None and is 12 now"),
            ({"tpaw_turn": "first"}, "`tpaw_turn` was last and is first now"),
            ({"first_cutoff_len": 128}, "`cutoff_len` was 128 and is 256 now"),
            ({"template": "llama3"}, "`template` was qwen and is llama3 now"),
            ({"default_system": "Be brief."}, "`default_system` was None and is Be brief. now"),
            ({"tpaw_players": "base,saves/play_iter0"}, "`theta_0` was <saves/sft> and is <base> now"),
        ],
    )
    def test_what_must_agree(self, project: Project, changes: dict[str, Any], said: str) -> None:
        shutil.copytree("saves/sft", "base")
        (problem,) = problems_of(shift(project, **changes))
        said = re.sub("<(.+?)>", rf"{project.root}/\1", said)
        assert problem == (
            f"iter1.yaml: It plays with what iter0.yaml makes, but otherwise than there {said}. Give both files "
            "the same, or this one other players and rounds."
        )

    def test_a_theta_of_another_number_and_one_round_of_two_files(self, project: Project) -> None:
        files = shift(project)
        project.write("other.yaml", project.settings(0, output_dir="saves/other_iter0", temperature=0.5))
        (problem,) = problems_of([*files, "other.yaml"])
        assert problem.startswith("other.yaml: It plays with what iter0.yaml makes, but")
        assert "`temperature` was 1.0 and is 0.5 now" in problem
        players = {"tpaw_players": "saves/sft,saves/play_iter1,saves/play_iter0"}
        wrong = project.settings(2, **players, model_name_or_path="saves/play_iter0")
        (problem,) = problems_of([*files, project.write("iter2.yaml", wrong)])
        assert "saves/play_iter0` was theta_1 and is theta_2 now" in problem

    def test_what_may_differ(self, project: Project, caplog: pytest.LogCaptureFixture) -> None:
        """Sampling of later rounds, with a warning; runs that share theta_0 and D_0; rounds that no opponent uses."""
        with caplog.at_level("WARNING"):
            assert len(read_items(shift(project, temperature=0.5, seed=7), [])) == 2
        (warning,) = caplog.messages
        assert warning == "iter1.yaml samples otherwise than iter0.yaml: `temperature` was 1.0 and is 0.5 now."
        alone = {"run": "alone", "dataset": "play_iter0,alone_iter1", "tpaw_players": "saves/sft,saves/alone_iter0"}
        project.write("alone0.yaml", project.settings(0, run="alone", dataset="play_iter0"))
        project.write("alone1.yaml", project.settings(1, **alone))
        assert len(read_items([*shift(project), "alone0.yaml", "alone1.yaml"], [])) == 4
        size_1 = {"tpaw_team_size": 1, "dataset": "play_iter1", "tpaw_max_prompts": 12}
        assert len(read_items(shift(project, first_tpaw_team_size=1, **size_1), [])) == 2


class TestStageSft:
    def test_it_is_finished_when_all_is_there(self, project: Project) -> None:
        given = {"stage": "sft", "output_dir": "saves/sft"}
        item = Item("sft.yaml", given)
        assert not is_finished(item)  # weights alone may be from anywhere
        finish_sft()
        assert is_finished(item)
        assert [each.finished for each in read_items([write_sft(project)], [])] == [True]
        assert [each.finished for each in read_items(["sft.yaml"], ["overwrite_output_dir=true"])] == [False]
        Path("saves/sft/model.safetensors").unlink()
        assert not is_finished(item)
        save_file({"a.lora_A.weight": torch.zeros(1, 2)}, "saves/sft/adapter_model.safetensors")
        Path("saves/sft/adapter_config.json").write_text("{}")
        assert is_finished(item)

    @pytest.mark.parametrize("state", ['{"global_step": 3, "max_steps": 4}', "{", "{}"])
    def test_it_is_not_where_it_was_aborted(self, project: Project, state: str) -> None:
        finish_sft(state)
        item = Item("sft.yaml", {"stage": "sft", "output_dir": "saves/sft"})
        assert not is_finished(item)
        stopping = Item("sft.yaml", item.given | {"early_stopping_steps": 3})
        assert is_finished(stopping) == ("3" in state)


def item(name: str, **given: Any) -> Item:
    settings = {"stage": "tpaw", "tpaw_iteration": 0, "output_dir": f"saves/{name}"}
    return Item(f"{name}.yaml", settings | given)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What processes are handed; each ends with the code that `seed` says, -1 for 0 without a result."""
    handed: list[dict[str, Any]] = []

    def run_child(command: list[str], patience_s: float) -> int:
        assert patience_s >= 600, "a checkpoint of a large model is saved when it is asked to end"
        assert command[:-1] == [sys.executable, "-m", "llamafactory_tpaw", "train"]
        handed.append(read_given([command[-1]]))
        return max(handed[-1].get("seed", 0), 0)

    def is_finished(item: Item) -> bool:
        return any(each["output_dir"] == item.given["output_dir"] and not each.get("seed") for each in handed)

    monkeypatch.setattr(loop, "run_child", run_child)
    monkeypatch.setattr(loop, "is_finished", is_finished)
    return handed


def test_each_is_played_in_order_in_a_process_that_is_handed_its_settings(handed: list[dict[str, Any]]) -> None:
    items = item("b")._replace(finished=True), item("a", tpaw_eta=2), item("c", overwrite_output_dir=True)
    told: list[str] = []
    assert loop.play(items, told.append) == 0
    assert [each.pop(HANDED)["run_file"] for each in handed] == ["a.yaml", "c.yaml"]
    assert handed == [items[1].given, items[2].given]
    assert told == [
        "[1/3] b.yaml: skipped: saves/b holds theta_1.",
        "[2/3] a.yaml: makes theta_1.",
        "[2/3] a.yaml: finished after 0:00:00: saves/a holds theta_1.",
        "[3/3] c.yaml: makes theta_1.",
        "[3/3] c.yaml: finished after 0:00:00: saves/c holds theta_1.",
    ]


def test_failure_stops_the_rest_with_its_code(handed: list[dict[str, Any]]) -> None:
    told: list[str] = []
    assert loop.play([item("a"), item("b", seed=137), item("c")], told.append) == 137
    assert len(handed) == 2
    assert "[2/3] b.yaml: failed with exit code 137 after" in told[-1]
    with pytest.raises(DataError, match=r"b\.yaml: Its process .* saves/b holds no finished result"):
        loop.play([item("b", seed=-1)], str)


def test_what_was_finished_before_another_is_played_is_left_to_its_own_process(handed: list[dict[str, Any]]) -> None:
    sft = Item("sft.yaml", {"stage": "sft", "output_dir": "saves/sft"}, finished=True)
    assert loop.play([item("a"), item("b")._replace(finished=True), sft], str) == 0
    assert [Path(each["output_dir"]).name for each in handed] == ["a", "b"]


LIGHT = """
import sys
from llamafactory_tpaw import cli
from llamafactory_tpaw.runs import loop
assert cli.main(["run", "nope.yaml", "run.txt"]) == 2
loop.run_child = lambda command, patience_s: 3
assert loop.play([loop.Item("a.yaml", {"stage": "tpaw", "output_dir": "saves/a"})], str) == 3
print(*{"torch", "transformers", "datasets", "llamafactory"} & set(sys.modules))
"""


def test_the_process_that_waits_loads_nothing_heavy(tmp_path: Path) -> None:
    """All files are checked in another process, whose problems come one by one."""
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert [line[: line.index(" cannot")] for line in done.stderr.splitlines()[:1]] == [
        "llamafactory-tpaw: error: nope.yaml: The run file nope.yaml"
    ]
    assert done.stderr.count("llamafactory-tpaw: error: ") == 2
