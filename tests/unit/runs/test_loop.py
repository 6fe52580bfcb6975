# SPDX-License-Identifier: Apache-2.0
"""`run`: files are checked together before the first one starts, then played from where each was left."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llamafactory_tpaw.errors import ConfigError, TpawError
from llamafactory_tpaw.lf.given import HANDED, read_given
from llamafactory_tpaw.runs import loop
from llamafactory_tpaw.runs.loop import Item, Progress, find_progress, read_items, split_words, summarize
from llamafactory_tpaw.team.manifest import write_manifest
from tests.runs import COMMON, Project
from tests.unit.runs.test_plan import finish, project, write_triplets
from tests.unit.team.test_manifest import make_manifest


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
    def test_words_are_files_or_overrides(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("lr=1.yaml").touch()
        words = ["a.yaml", "seed=1", "lr=1.yaml", "runs/b=2/c.yaml", "dataset=a,b", "nope"]
        assert split_words(words) == (["a.yaml", "lr=1.yaml", "runs/b=2/c.yaml", "nope"], ["seed=1", "dataset=a,b"])

    def test_what_an_earlier_file_makes_is_no_problem(self, project: Project) -> None:
        shutil.rmtree("saves")
        items = read_items(write_all(project), ["learning_rate=2.0e-4"])
        assert [item.produces for item in items] == ["the model of stage sft", "theta_1", "theta_2"]
        assert {item.given["learning_rate"] for item in items} == {0.0002}
        assert [item.triplets for item in items] == [
            None,
            Path("data/tpaw/play_iter0.jsonl"),
            Path("data/tpaw/play_iter1.jsonl"),
        ]

    def test_what_no_file_makes_is_one(self, project: Project) -> None:
        project.model = Path("saves/full/sft")
        _, first, second = write_all(project)
        problems = problems_of([first, second])
        assert [problem.partition(":")[0] for problem in problems] == [first, second]
        assert all("saves/full/sft does not exist" in problem for problem in problems)

    def test_what_a_later_file_makes_is_one(self, project: Project) -> None:
        _, first, second = write_all(project)
        problems = problems_of([second, first])
        assert problems[0] == (
            "iter1.yaml starts from saves/play_iter0, which iter0.yaml makes later in the list. Name iter0.yaml first."
        )
        assert [problem.split(" ")[0] for problem in problems[1:]] == ["iter1.yaml:", "iter1.yaml:"]
        assert "theta_1 (`model_name_or_path`): saves/play_iter0 does not exist" in problems[1]
        assert "play_iter0.jsonl and its meta file are not there. Run iteration 0" in problems[2]

    def test_an_opponent_that_a_later_file_makes(self, project: Project) -> None:
        project.write("iter0.yaml", project.settings(0, tpaw_opponent_model="saves/other_iter0"))
        project.write("other.yaml", project.settings(0, run="other"))
        assert len(read_items(["other.yaml", "iter0.yaml"], [])) == 2
        assert problems_of(["iter0.yaml", "other.yaml"])[0] == (
            "iter0.yaml samples from saves/other_iter0, which other.yaml makes later in the list. Name other.yaml "
            "first."
        )

    def test_a_later_file_may_make_again_what_is_there(self, project: Project) -> None:
        _, first, second = write_all(project)
        write_triplets()
        finish(project)
        assert len(read_items([second, first], [])) == 2

    def test_problems_of_all_files_come_together(self, project: Project) -> None:
        sft, first, second = write_all(project, tpaw_eta=0)
        project.write("dpo.yaml", {"stage": "dpo", "output_dir": "x", "do_train": True})
        project.write("idle.yaml", {**project.settings(2), "do_train": False})
        problems = problems_of([sft, first, "nope.yaml", "dpo.yaml", "run.txt", second, "idle.yaml"], "tpaw_gama=1")
        expected = [
            ("nope.yaml", "No such file"),
            ("dpo.yaml", "`stage: dpo` is none that `run` plays: tpaw and sft. Train it with `llamafactory-cli"),
            ("run.txt", "ends with `.yaml`"),
            ("sft.yaml", "`tpaw_gama` is not a key"),
            ("iter0.yaml", "`tpaw_gama` is not a key"),
            ("iter0.yaml", "`tpaw_eta` is 0"),
            ("iter1.yaml", "`tpaw_gama` is not a key"),
            ("iter1.yaml", "`tpaw_eta` is 0"),
            ("idle.yaml", "`do_train` is not true"),
            ("idle.yaml", "`tpaw_gama` is not a key"),
        ]
        assert len(problems) == len(expected)
        for problem, (file, text) in zip(problems, expected, strict=True):
            assert problem.startswith(f"{file}: ")
            assert text in problem

    def test_wrong_types_in_both_stages(self, project: Project) -> None:
        sft, first, _ = write_all(project)
        Path("bare.yaml").write_text("output_dir: x")
        assert problems_of([sft, first, "bare.yaml"], "learning_rate=fast") == [
            "bare.yaml: `stage` is missing. `run` plays run files of the stages tpaw and sft.",
            "sft.yaml: `learning_rate: fast` is wrong: invalid float value: 'fast'. Correct it.",
            "iter0.yaml: `learning_rate: fast` is wrong: invalid float value: 'fast'. Correct it.",
        ]

    def test_problems_of_keys_and_of_files_come_together(self, project: Project) -> None:
        project.model = Path("saves/full/sft")
        _, first, second = write_all(project)
        project.write(second, project.settings(1, tpaw_gamma=-1, tpaw_prompts="none"))
        problems = problems_of([first, second])
        assert "iter0.yaml: theta_0 (`model_name_or_path`): saves/full/sft does not exist" in problems[0]
        assert "iter1.yaml: `tpaw_gamma` is -1" in problems[1]
        assert any("iter1.yaml: `tpaw_prompts: none` is not an entry" in problem for problem in problems)
        assert not any("play_iter0" in problem for problem in problems)  # the first file makes it

    def test_a_file_given_twice(self, project: Project) -> None:
        _, first, _ = write_all(project)
        assert problems_of([first, f"./{first}"]) == ["./iter0.yaml is given twice. Name each run file once."]

    def test_one_folder_for_two_runs(self, project: Project) -> None:
        _, first, _ = write_all(project)
        project.write("again.yaml", project.settings(0))
        assert problems_of([first, "again.yaml"]) == [
            "again.yaml: `output_dir: saves/play_iter0` is that of iter0.yaml, too. Give each run its own folder."
        ]

    def test_folder_must_be_named(self, project: Project) -> None:
        project.write("iter0.yaml", project.settings(0, output_dir=None))
        assert problems_of(["iter0.yaml"]) == [
            "iter0.yaml: `output_dir` is missing. Name the folder in which the result is saved."
        ]

    def test_finished_run_with_other_settings(self, project: Project) -> None:
        project.write("iter0.yaml", finish(project))
        read_items(["iter0.yaml"], [])
        (problem,) = problems_of(["iter0.yaml"], "tpaw_eta=3.0")
        assert "iter0.yaml: `output_dir: saves/play_iter0` holds a run that was finished with other" in problem


class TestProgress:
    def item(self, project: Project, **changes: Any) -> Item:
        return Item("iter0.yaml", project.settings(0, **changes))

    def test_of_an_iteration(self, project: Project) -> None:
        item = self.item(project)
        assert find_progress(item).detail == "samples D_0, then trains theta_1"
        assert find_progress(item).state == "new"
        shutil.copytree("saves/sft", "weak")
        other = self.item(project, tpaw_samples_per_prompt=4, tpaw_opponent_model="weak")
        assert find_progress(other).detail == (
            "samples D_0 with 4 responses a prompt from the opponent weak, then trains theta_1"
        )
        path = Path("data/tpaw/play_iter0.jsonl")
        path.parent.mkdir()
        path.with_name(f"{path.name}.partial").touch()
        assert find_progress(item).detail == "continues to sample D_0, then trains theta_1"
        path.with_name(f"{path.name}.partial").unlink()
        write_triplets()
        assert find_progress(item).detail == "D_0 is there; trains theta_1"
        assert find_progress(item).state == "begun"

    def test_of_an_iteration_whose_training_began(self, project: Project) -> None:
        item = Item("iter0.yaml", finish(project, status="training"))
        progress = find_progress(item)
        assert (progress.state, progress.resume) == ("begun", {"overwrite_output_dir": True})
        checkpoint = Path("saves/play_iter0/checkpoint-7")
        shutil.copytree("saves/sft", checkpoint)
        for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"):
            (checkpoint / name).write_text("{}")
        progress = find_progress(item)
        assert progress.detail == f"continues to train theta_1 from {checkpoint}"
        assert progress.resume == {"resume_from_checkpoint": str(checkpoint)}

    def test_of_a_finished_iteration(self, project: Project) -> None:
        given = finish(project)
        assert find_progress(Item("iter0.yaml", given)).state == "finished"
        again = Item("iter0.yaml", given | {"overwrite_output_dir": True})
        assert find_progress(again).state == "new"

    def test_without_prompts_nothing_is_sampled(self, project: Project) -> None:
        write_triplets()
        item = self.item(project, tpaw_prompts=None)
        assert (item.triplets, find_progress(item).detail) == (None, "trains theta_1")

    def test_of_stage_sft(self, project: Project) -> None:
        given = {"stage": "sft", "output_dir": "saves/sft"}
        item = Item("sft.yaml", given)
        assert find_progress(item).state == "new"  # weights alone may be from anywhere
        finish_sft()
        assert find_progress(item).state == "finished"
        assert find_progress(Item("sft.yaml", given | {"overwrite_output_dir": "true"})).state == "new"
        Path("saves/sft/model.safetensors").unlink()
        assert find_progress(item).state == "new"
        save_file({"a.lora_A.weight": torch.zeros(1, 2)}, "saves/sft/adapter_model.safetensors")
        Path("saves/sft/adapter_config.json").write_text("{}")
        assert find_progress(item).state == "finished"
        Path("saves/sft/checkpoint-2").mkdir()
        Path("saves/sft/train_results.json").unlink()
        assert find_progress(item).state == "begun"

    @pytest.mark.parametrize("state", ['{"global_step": 3, "max_steps": 4}', "{", "{}"])
    def test_of_stage_sft_that_was_aborted(self, project: Project, state: str) -> None:
        finish_sft(state)
        item = Item("sft.yaml", {"stage": "sft", "output_dir": "saves/sft"})
        assert find_progress(item).state == "new"
        stopping = Item("sft.yaml", item.given | {"early_stopping_steps": 3})
        assert find_progress(stopping).state == ("finished" if "3" in state else "new")


FINISHED = Progress("finished", "it is there")


class World:
    """Fake processes and what they leave behind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: dict[str, Any] = {}  # by output folder; an exception is raised
        self.codes: dict[str, Any] = {}  # by output folder; what its process ends with
        self.handed: list[dict[str, Any]] = []
        self.streams: dict[str, Any] = {}
        self.told: list[tuple[int, str]] = []
        monkeypatch.setattr(loop, "find_progress", self.find_progress)
        monkeypatch.setattr(loop, "run_child", self.run_child)

    def find_progress(self, item: Item) -> Progress:
        state = self.states.get(item.folder.name, Progress("new", "begins"))
        if isinstance(state, Exception):
            raise state
        return state

    def run_child(self, command: list[str], patience_s: float, **streams: Any) -> int:
        assert patience_s >= 600, "a checkpoint of a large model is saved when it is asked to end"
        assert command[:-1] == [sys.executable, "-m", "llamafactory_tpaw", "train"]
        self.handed.append(read_given([command[-1]]))
        self.streams = streams
        name = Path(self.handed[-1]["output_dir"]).name
        code = self.codes.get(name, 0)
        if isinstance(code, BaseException):
            raise code
        if code == 0:
            self.states[name] = FINISHED
        return max(code, 0)

    def play(self, *items: Item, **changes: Any) -> int:
        return loop.play(items, lambda index, text: self.told.append((index, text)), **changes)


def item(name: str, **given: Any) -> Item:
    settings = {"stage": "tpaw", "tpaw_iteration": 0, "output_dir": f"saves/{name}"}
    return Item(f"{name}.yaml", settings | given)


class TestPlay:
    @pytest.fixture
    def world(self, monkeypatch: pytest.MonkeyPatch) -> World:
        return World(monkeypatch)

    def test_each_is_played_in_order_in_a_process_that_is_handed_its_settings(self, world: World) -> None:
        items = item("a", tpaw_eta=2), item("b")
        assert world.play(*items) == 0
        assert [handed.pop(HANDED)["run_file"] for handed in world.handed] == ["a.yaml", "b.yaml"]
        assert world.handed == [each.given for each in items]
        assert [each.status for each in items] == ["finished", "finished"]
        assert world.told == [
            (0, "begins."),
            (0, "finished: saves/a holds theta_1."),
            (1, "begins."),
            (1, "finished: saves/b holds theta_1."),
        ]
        assert world.streams == {}

    def test_finished_ones_start_no_process(self, world: World) -> None:
        world.states = {"a": FINISHED, "b": Progress("begun", "goes on")}
        items = item("a"), item("b")
        world.play(*items)
        assert len(world.handed) == 1
        assert [each.status for each in items] == ["skipped", "continued"]
        assert world.told[:2] == [(0, "skipped: it is there."), (1, "goes on.")]

    @pytest.mark.parametrize("code", [1, 3, 137])
    def test_failure_stops_the_rest_with_its_code(self, world: World, code: int) -> None:
        world.codes = {"b": code}
        items = item("a"), item("b"), item("c")
        assert world.play(*items) == code
        assert [each.status for each in items] == ["finished", "failed", "waiting"]
        assert len(world.handed) == 2

    def test_a_process_that_ends_well_without_result_failed(self, world: World) -> None:
        world.codes = {"a": -1}  # the fake's sign for that
        items = item("a"), item("b")
        assert world.play(*items) == 3
        assert [each.status for each in items] == ["failed", "waiting"]
        assert "saves/a holds no finished result" in items[0].reason

    def test_what_went_wrong_since_the_check_is_told(self, world: World) -> None:
        world.states = {"b": ConfigError("other settings.")}
        items = item("a"), item("b")
        assert world.play(*items) == 2
        assert [(each.status, each.reason) for each in items] == [("finished", ""), ("failed", "other settings.")]

    def test_interruption_is_noted_and_passed_on(self, world: World) -> None:
        world.codes = {"b": KeyboardInterrupt()}
        items = item("a"), item("b"), item("c")
        with pytest.raises(KeyboardInterrupt):
            world.play(*items)
        assert [each.status for each in items] == ["finished", "interrupted", "waiting"]

    def test_result_is_asked_for_even_where_it_was_overwritten(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With `overwrite_output_dir` a result never counts as finished beforehand, but must be there afterwards."""

        def find(asked: Item) -> Progress:
            return Progress("new", "again") if asked.given["overwrite_output_dir"] else FINISHED

        monkeypatch.setattr(loop, "find_progress", find)
        again = item("a", overwrite_output_dir=True)
        world.play(again)
        assert again.status == "finished"

    def test_stage_sft_is_told_where_to_continue(self, world: World) -> None:
        resume = {"resume_from_checkpoint": "saves/a/checkpoint-4"}
        world.states = {"a": Progress("begun", "goes on", resume)}
        world.play(sft := item("a", stage="sft"))
        assert world.handed == [sft.given | resume]

    def test_stdout_stays_free(self, world: World) -> None:
        world.play(item("a"), to_stderr=True)
        assert world.streams == {"stdout": 2}


class TestSummary:
    def done(self, folder: Path, **changes: Any) -> dict[str, Any]:
        done = item("a", output_dir=str(folder))
        for name, value in changes.items():
            setattr(done, name, value)
        return summarize(done)

    def test_of_an_iteration(self, tmp_path: Path) -> None:
        write_manifest(tmp_path, make_manifest(seconds={"train": 3.0}, counts={"train_triplets": 16}))
        logged = [
            {"step": 1, "loss": 0.9, "rewards/target": -1.0, "rewards/margin": 0.1},
            {"step": 2, "loss": 0.5, "rewards/target": 0.25, "rewards/margin": 0.75},
            {"step": 2, "train_runtime": 2.0, "train_loss": 0.7},
        ]
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": logged}))
        assert self.done(tmp_path, status="continued", seconds=7.04) == {
            "file": "a.yaml",
            "stage": "tpaw",
            "output_dir": str(tmp_path),
            "status": "continued",
            "wall_seconds": 7.0,
            "result": f"theta_{make_manifest().produces}",
            "seconds": {"train": 3.0},
            "counts": {"train_triplets": 16},
            "loss": 0.5,
            "target_reward": 0.25,
            "margin": 0.75,
        }

    def test_of_stage_sft(self, tmp_path: Path) -> None:
        logged = [{"step": 1, "loss": 0.9}, {"step": 2, "train_runtime": 2.0}]
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": logged}))
        row = self.done(tmp_path, status="skipped")
        assert (row["seconds"], row["loss"]) == ({"train": 2.0}, 0.9)

    def test_of_what_is_not_done(self, tmp_path: Path) -> None:
        assert "loss" not in self.done(tmp_path)
        row = self.done(tmp_path, status="failed", exit_code=3, reason="no.")
        assert (row["exit_code"], row["reason"]) == (3, "no.")
