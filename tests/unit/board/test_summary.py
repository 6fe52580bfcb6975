# SPDX-License-Identifier: Apache-2.0
"""The table and the report of a run: what is on disk is on them, what is not leaves no trace and no error."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from llamafactory_tpaw.board import summary as module
from llamafactory_tpaw.board.locales import LANGUAGES, say
from llamafactory_tpaw.board.summary import REPORT, Summary, earlier_iterations, summarize, write_run_report
from llamafactory_tpaw.board.training_log import TRAINER_LOG
from llamafactory_tpaw.errors import DataError, EnvironmentProblem
from tests.unit.board.runs_on_disk import RUNS, folder_of, write_accuracies, write_run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(-1).mkdir(parents=True)


def rows_of(summary: Summary, lang: str = "en") -> list[list[str]]:
    lines = summary.markdown(lang).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_every_theta_has_its_row() -> None:
    folders = [write_run(0), write_run(1, status="training"), folder_of(2)]
    write_accuracies("accuracy_test.json", {-1: 4, 0: 7})
    heading, *rows = rows_of(summarize(folders))
    assert heading == [
        "Checkpoint", "Status", "Task accuracy (test)", "Reward accuracy", "Loss", "Target reward", "Margin",
        "Seconds: generation / scoring / training", "Triplets", "Generated tokens",
    ]  # fmt: skip
    numbers = ["100.0 %", "0.1000"]
    assert rows == [
        ["θ_0", "–", "40.0 %", *["–"] * 7],
        ["θ_1", "finished", "70.0 %", *numbers, "1.0000", "−2.5000", "3 / 1 / 8", "1,000", "26,399"],
        ["θ_2", "not finished", "–", *numbers, "2.0000", "−2.5000", "3 / 1 / 8", "2,000", "26,399"],
        ["θ_3", "not trained yet", *["–"] * 8],
    ]


def test_what_no_theta_has_gets_no_column() -> None:
    heading, *_ = rows_of(summarize([write_run(0)]))
    assert "Held-out accuracy" not in heading
    assert not any(name.startswith("Task accuracy") for name in heading)


def test_held_out_prompts() -> None:
    folder = write_run(0)
    with (folder / TRAINER_LOG).open("a") as stream:
        stream.write(json.dumps({"current_steps": 10, "eval_rewards/accuracy": 0.625}) + "\n")
    (result,) = (result for result in summarize([folder]).results if result.iteration == 0)
    assert (result.held_out, result.reward_accuracy) == (0.625, 1.0)


def test_the_iterations_before_are_found() -> None:
    for iteration in range(3):
        write_run(iteration)
    summary = summarize([folder_of(2)])
    assert [(result.number, result.folder.resolve()) for result in summary.results] == [
        (number, folder_of(number - 1).resolve()) for number in range(4)
    ]
    assert list(earlier_iterations(f"base+{folder_of(1)}")) == [0, 1]
    assert earlier_iterations(folder_of(-1)) == earlier_iterations("Qwen/Qwen2.5-1.5B") == earlier_iterations("") == {}


def test_a_circle_of_models_ends() -> None:
    write_run(0, policy={"name": "theta_0", "path": "../play_iter0", "fingerprint": "fp0"})
    assert list(earlier_iterations(folder_of(0))) == [0]


def test_numbers_of_other_weights_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(0)
    path = write_accuracies("accuracy_test.json", {-1: 4, 0: 7})
    (folder / "model.safetensors").write_bytes(b"trained again")
    assert [result.task and result.task.correct for result in summarize([folder]).results] == [4, None]
    # Of large weights only the time is looked at.
    monkeypatch.setattr(module, "HASHED_BYTES", 0)
    os.utime(path, (1000, 1000))
    assert [result.task for result in summarize([folder]).results] == [None, None]
    os.utime(path, (2**31, 2**31))
    assert [result.task and result.task.correct for result in summarize([folder]).results] == [4, 7]


def test_a_running_iteration_is_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(0, status="training")
    write_accuracies("accuracy_test.json", {-1: 4, 0: 7})
    assert summarize([folder]).results[1].last["loss"] == pytest.approx(0.1)
    monkeypatch.setattr(module, "digest_file", lambda path: pytest.fail(f"{path} is read again"))
    with (folder / TRAINER_LOG).open("a") as stream:
        stream.write(json.dumps({"current_steps": 11, "loss": 0.03}) + "\n")
    (result,) = summarize([folder]).results[1:]
    assert (result.last["loss"], result.last["rewards/accuracy"], result.task.correct) == (0.03, 1.0, 7)


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"checkpoint": "saves/Tiny/full/play_iter0"}]'])
def test_a_damaged_file_of_accuracies_is_passed_over(content: str) -> None:
    folder = write_run(0)
    write_accuracies("accuracy_validation.json", {0: 3})
    (RUNS.parent / "accuracy_test.json").write_text(content)
    summary = summarize([folder])
    assert (summary.task, summary.results[1].task.correct) == ("validation", 3)


def test_the_name_of_the_task_is_text() -> None:
    write_run(0)
    write_accuracies("accuracy_<script>|.json", {0: 3})
    table = summarize([folder_of(0)]).markdown("en")
    assert "<script>" not in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_nothing_on_disk_is_no_error() -> None:
    assert rows_of(summarize([folder_of(0)])) == [["Checkpoint", "Status"], ["θ_1", "not trained yet"]]
    assert write_run_report([folder_of(0)]) is None
    write_run(0, status="training")
    assert write_run_report([folder_of(0)]) is None
    (folder_of(0) / "tpaw.json").write_text("{")
    assert rows_of(summarize([folder_of(0)]))[1][1] == "not trained yet"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_table_is_in_the_language_of_the_page(lang: str) -> None:
    heading, *_, last = rows_of(summarize([write_run(0)]), lang)
    assert heading[0] == say("column_theta", lang)
    assert last[1] == say("status_finished", lang)


def test_the_report_is_one_file_in_the_folder_of_the_newest() -> None:
    folders = [write_run(0), write_run(1), folder_of(2)]
    write_accuracies("accuracy_test.json", {-1: 4, 0: 7, 1: 9})
    path = write_run_report(folders)
    assert path == folders[1] / REPORT
    text = path.read_text()
    assert "Accuracy (test): tpaw 40.0 % → <b>90.0 %</b>" in text
    assert "Iterations 0 to 1, from θ_0 (sft) to θ_2 (play_iter1)." in text
    assert "Settings of the last one: template qwen, tpaw_eta 6.0." in text
    assert text.count('src="data:image/png;base64,') == 3
    assert not re.search(r"<script|<link|https?://", text)


def test_without_a_measured_start_the_report_has_no_accuracy() -> None:
    folder = write_run(0)
    write_accuracies("accuracy_test.json", {0: 7})
    text = write_run_report([folder]).read_text()
    assert "Accuracy" not in text
    assert "<h2>Rewards</h2>" in text
    assert "Iterations 0 to 0, from θ_0 (sft) to θ_1 (play_iter0)." in text


def test_a_report_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(0)
    (folder / REPORT).mkdir()
    with pytest.raises(EnvironmentProblem, match=f"{folder / REPORT} cannot be written"):
        write_run_report([folder])
    (folder / "trainer_state.json").unlink()
    with pytest.raises(DataError, match=r"trainer_state\.json does not exist"):
        write_run_report([folder])
