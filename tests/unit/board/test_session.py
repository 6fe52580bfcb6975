# SPDX-License-Identifier: Apache-2.0
"""Start, Abort and what the page shows meanwhile; a small program stands in for the one that plays."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import gradio as gr
import pytest
import yaml

from llamafactory_tpaw.board import play as play_module
from llamafactory_tpaw.board import results as results_module
from llamafactory_tpaw.board import session as session_module
from llamafactory_tpaw.board.session import as_markdown, command
from tests.unit.board.page import DrivenPage


WAIT_S = 60


@pytest.fixture
def program(fresh: DrivenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Say what stands in for Python: lines of a shell script."""
    path = tmp_path / "python"

    def write(script: str) -> None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setattr(play_module.sys, "executable", str(path))
    yield write
    session = getattr(fresh.engine.runner, "tpaw_session", None)
    if session is not None and session.play is not None:
        session.play._kill()
        assert session.attempt.ended.wait(WAIT_S)


@pytest.fixture
def held(program: Callable[[str], None], tmp_path: Path) -> Callable[[], None]:
    """A program that plays until the function is called."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program(f"echo plays on; exec cat {pipe}")
    return lambda: pipe.write_text("")


def session_of(page: DrivenPage) -> Any:
    return session_module.session_of(page.engine.runner)


def until(steps: Iterator[dict[str, Any]], text: str) -> dict[str, Any]:
    return next(step for step in steps if text in str(step.get("train.output_box")))


def test_start_writes_run_files_and_plays_them(fresh: DrivenPage, program: Callable[[str], None]) -> None:
    program('echo "$@"')
    fresh.show(tpaw_iterations=2, tpaw_eta="7")
    shown = list(fresh.steps("start_btn"))
    assert shown[0]["train.output_box"] == "Checks"
    assert shown[-1]["train.output_box"].startswith("Finished.")
    assert fresh.properties["train.progress_bar", "visible"] is False
    files = [f"saves/Tiny/full/tpaw_iter{iteration}/training_args.yaml" for iteration in range(2)]
    assert f"-m llamafactory_tpaw run {' '.join(files)}" in shown[-1]["train.output_box"]
    first, second = (yaml.safe_load(Path(file).read_text()) for file in files)
    assert (first["tpaw_iteration"], first["tpaw_eta"], first["default_system"]) == (0, 7.0, "")
    assert second["model_name_or_path"] == "saves/Tiny/full/tpaw_iter0"
    assert "trust_remote_code" not in first
    assert not fresh.engine.runner.running
    assert fresh.engine.runner.running_data is None


def test_output_folder_brings_the_fields_back(fresh: DrivenPage, program: Callable[[str], None]) -> None:
    program("true")
    fresh.show(tpaw_iterations=2, tpaw_eta="7")
    list(fresh.steps("start_btn"))
    fresh.values = dict(fresh.initial)
    fresh.show(top__lang="en", top__model_name="Custom", top__finetuning_type="full")
    fresh.show(output_dir="saves/Tiny/full/tpaw_iter1")
    fresh.fire("output_dir", "input")
    assert (fresh["tpaw_iteration"], fresh["tpaw_eta"], fresh["training_stage"]) == (1, 7.0, "TPAW")
    assert fresh["tpaw_players"] == ["saves/Tiny/full/sft", "saves/Tiny/full/tpaw_iter0"]
    assert fresh["top.model_path"] == "saves/Tiny/full/tpaw_iter0"


@pytest.mark.parametrize(
    ("field", "typed", "message"),
    [
        ("learning_rate", "fast", "`learning_rate` is 'fast'"),
        ("tpaw_iterations", None, "iterations to play is None"),
        ("tpaw_prompts", "nothing", "`tpaw_prompts: nothing` is not an entry"),
        ("tpaw_players", ["saves/none"], "saves/none"),
        ("top.model_path", "saves/none", "saves/none"),
        ("dataset", ["<script>", "tiny_tpaw_iter0"], "`dataset: <script>` is not an entry"),
        ("output_dir", "../outside", "outside"),
        ("dataset_dir", "../outside", "`dataset_dir` is '../outside'"),
        ("extra_args", '{"tpaw_etta": 1}', "`tpaw_etta` is not a key of `train`. Did you mean `tpaw_eta`?"),
        ("extra_args", '{"mask_history": true}', "`mask_history: True` does not go with stage `tpaw`"),
        ("top.template", "nothing", "`template: nothing` is not a template"),
    ],
)
def test_wrong_input_starts_nothing(
    fresh: DrivenPage, program: Callable[[str], None], field: str, typed: Any, message: str
) -> None:
    program("touch started")
    fresh.values[fresh.element(field)] = typed
    before = sorted(Path().rglob("*"))
    *_, last = fresh.steps("start_btn")
    assert message in last["train.output_box"].replace("&lt;", "<").replace("&gt;", ">")
    assert "<script>" not in last["train.output_box"]
    assert fresh.warnings
    assert "<script>" not in fresh.warnings[-1]
    assert sorted(Path().rglob("*")) == before
    assert not fresh.engine.runner.running


def test_every_problem_is_said_at_once(fresh: DrivenPage, program: Callable[[str], None]) -> None:
    program("touch started")
    fresh.show(tpaw_prompts="nothing", cutoff_len=128, extra_args='{"tpaw_etta": 1, "use_cpu": 3}')
    *_, last = fresh.steps("start_btn")
    assert last["train.output_box"].startswith("Nothing was started:")
    assert "tpaw_etta" in last["train.output_box"]
    assert "tpaw_prompts: nothing" in last["train.output_box"]


def test_failure_shows_code_and_what_was_said(fresh: DrivenPage, program: Callable[[str], None]) -> None:
    program('echo "oops <b>"; exit 3')
    *_, last = fresh.steps("start_btn")
    assert last["train.output_box"].startswith("Failed with exit code 3.")
    assert "```\noops <b>\n" in last["train.output_box"]
    assert "exit code 3" in fresh.warnings[-1]
    assert not fresh.engine.runner.running


def test_page_that_is_loaded_meanwhile_shows_the_run(fresh: DrivenPage, held: Callable[[], None]) -> None:
    steps = fresh.steps("start_btn")
    until(steps, "plays on")
    runner = fresh.engine.runner
    assert runner.running
    assert runner.running_data[fresh.element("tpaw_run")] == "Tiny/tpaw"
    resumed = list(fresh.engine.resume())
    assert [fresh.element("resume_btn")] == list(resumed[-1])

    again = fresh.monitored()
    assert "plays on" in next(again)["train.output_box"]
    steps.close()  # the page that started it is gone
    held()
    *_, last = again
    assert last["train.output_box"].startswith("Finished.")
    assert not runner.running


@pytest.fixture
def checking(fresh: DrivenPage, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Set when the checks have begun; the checks end when the other one is set."""
    begun, end = threading.Event(), threading.Event()

    def check(*given: Any) -> None:
        begun.set()
        assert end.wait(WAIT_S)

    monkeypatch.setattr(session_module, "check", check)
    return begun, end


def test_start_outlives_the_page_that_pressed_it(
    fresh: DrivenPage, program: Callable[[str], None], checking: tuple[threading.Event, threading.Event]
) -> None:
    program("echo plays on")
    steps = fresh.steps("start_btn")
    assert next(steps)["train.output_box"] == "Checks"
    steps.close()
    resumed = list(fresh.engine.resume())
    assert [fresh.element("resume_btn")] == list(resumed[-1])
    again = fresh.monitored()
    assert next(again)["train.output_box"] == "Checks"
    checking[1].set()
    *_, last = again
    assert last["train.output_box"].startswith("Finished.\n\n```\nplays on")
    assert not fresh.engine.runner.running


def test_abort_during_the_checks_starts_nothing(
    fresh: DrivenPage, program: Callable[[str], None], checking: tuple[threading.Event, threading.Event]
) -> None:
    program("touch started")
    steps = fresh.steps("start_btn")
    next(steps)
    assert checking[0].wait(WAIT_S)
    fresh.fire("stop_btn", "click")
    until(steps, "Aborting")
    checking[1].set()
    *_, last = steps
    assert last["train.output_box"].startswith("Aborted.")
    assert not Path("started").exists()
    assert not list(Path("saves").rglob("training_args.yaml"))
    runner = fresh.engine.runner
    assert (runner.running, runner.aborted, runner.running_data) == (False, False, None)


def test_refusal_is_shown_to_a_page_that_was_loaded_meanwhile(
    fresh: DrivenPage, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("touch started")
    fresh.show(tpaw_prompts="nothing")
    steps = fresh.steps("start_btn")
    next(steps)
    steps.close()
    assert session_of(fresh).attempt.ended.wait(WAIT_S)
    *_, last = fresh.monitored()
    assert "`tpaw_prompts: nothing` is not an entry" in last["train.output_box"]


def test_two_pages_start_one_run(fresh: DrivenPage, held: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = fresh.steps("start_btn")
    until(steps, "plays on")
    session = session_of(fresh)
    data = {element: fresh.values[element] for element in session.attempt.data}
    with mock.patch.object(gr, "Warning"):
        (refused,) = session.launch(data)
    assert refused == {fresh.element("output_box"): "A process is in running, please abort it first."}
    held()
    list(steps)


def test_checks_that_fail_unexpectedly_say_so(
    fresh: DrivenPage, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("touch started")
    monkeypatch.setattr(session_module, "check", lambda runs, places: int("<b>"))
    *_, last = fresh.steps("start_btn")
    assert "The checks failed with ValueError: invalid literal" in last["train.output_box"]
    assert "<b>" not in last["train.output_box"]
    assert not fresh.engine.runner.running


def test_second_start_and_other_stages_wait(fresh: DrivenPage, held: Callable[[], None]) -> None:
    steps = fresh.steps("start_btn")
    until(steps, "plays on")
    (refused,) = fresh.steps("start_btn")
    assert refused == {"train.output_box": "A process is in running, please abort it first."}
    fresh.show(training_stage="Supervised Fine-Tuning", dataset=["tiny_train"])
    (refused,) = fresh.steps("start_btn")
    assert refused == {"train.output_box": "A process is in running, please abort it first."}
    held()
    list(steps)
    assert not fresh.engine.runner.running


def test_abort_ends_the_run_and_says_so(fresh: DrivenPage, held: Callable[[], None]) -> None:
    steps = fresh.steps("start_btn")
    until(steps, "plays on")
    fresh.fire("stop_btn", "click")
    *_, last = steps
    assert last["train.output_box"].startswith("Aborted. Start continues where it stopped.")
    runner = fresh.engine.runner
    assert (runner.running, runner.aborted) == (False, False)
    assert session_of(fresh).play.returncode == 143


def test_abort_of_other_stages_is_llamaboards(page: DrivenPage) -> None:
    page.fire("stop_btn", "click")
    assert page.engine.runner.aborted is True


def test_demo_mode_starts_nothing(fresh: DrivenPage, program: Callable[[str], None]) -> None:
    program("touch started")
    fresh.engine.runner.demo_mode = True
    (refused,) = fresh.steps("start_btn")
    assert "demo" in refused["train.output_box"]
    assert not Path("started").exists()


def test_without_a_run_nothing_is_drawn(page: DrivenPage) -> None:
    page.fire("output_box", "change")
    assert not [name for name, _ in page.properties if name.startswith("train.tpaw_")]


def test_charts_and_the_missing_report_are_shown_at_the_end(fresh: DrivenPage, program: Callable[[str], None]) -> None:
    program("exit 1")
    list(fresh.steps("start_btn"))
    fresh.fire("output_box", "change")
    assert fresh.properties["train.tpaw_charts", "visible"] is True
    assert "when the first iteration is finished" in fresh["tpaw_report"]


def test_command_is_one_that_a_shell_reads() -> None:
    shown = command({"default_system": "", "a": "x y", "b": None, "c": {"k": 1}, "d": ["e", "f"]})
    assert shown.split(" \\\n    ")[1:] == ["--default_system ''", "--a 'x y'", "--c '{\"k\": 1}'", "--d e,f"]


def test_messages_are_shown_as_they_are() -> None:
    assert as_markdown(["`a` is <b>\n$$x$$", "two"]) == "- `a` is &lt;b&gt; $\u200b$x$\u200b$\n- two"
    assert as_markdown(["![](http://a/b.png) [a][b]"]) == "- ![]\u200b(http://a/b.png) [a]\u200b[b]"
    assert as_markdown(["a\x00\ud800"]) == "- a\u2400\ufffd"


def test_command_stays_one_text(fresh: DrivenPage) -> None:
    fresh.show(extra_args=json.dumps({"default_system": "```\n<b>", "a; rm b": 1}))
    *_, last = fresh.steps("cmd_preview_btn")
    first, *lines = last["train.output_box"].rstrip().split("\n")
    assert (first, lines[-1]) == ("````bash", "````")
    assert "    '--a; rm b' 1" in last["train.output_box"]


def test_new_run_gets_its_entries(fresh: DrivenPage, program: Callable[[str], None]) -> None:
    program("true")
    fresh.show(tpaw_run="mine", tpaw_iterations=2, tpaw_prompts="tiny_train")
    fresh.values[fresh.element("top.model_path")] = "saves/Tiny/full/sft"
    fresh.fire("tpaw_run", "input")
    info = Path("data/dataset_info.json")
    fresh.show(learning_rate="fast")
    list(fresh.steps("start_btn"))
    assert "Custom_mine_iter0" not in info.read_text()
    fresh.show(learning_rate="1e-3")
    *_, last = fresh.steps("start_btn")
    assert last["train.output_box"].startswith("Finished.")
    assert "Custom_mine_iter0" in info.read_text()
    assert "Custom_mine_iter1" in info.read_text()
    written = yaml.safe_load(Path("saves/Custom/full/mine_iter1/training_args.yaml").read_text())
    assert written["dataset"] == "Custom_mine_iter0,Custom_mine_iter1"
    assert written["model_name_or_path"] == "saves/Custom/full/mine_iter0"


def test_report_is_linked_and_nothing_beside_it_can_be_read(
    fresh: DrivenPage, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("true")
    report = Path("saves/a b.html")
    report.write_text("report")
    monkeypatch.setattr(session_module, "write_run_report", lambda folders: report)
    opened: list[Any] = []
    monkeypatch.setattr(results_module.gr, "set_static_paths", opened.extend)
    list(fresh.steps("start_btn"))
    fresh.fire("output_box", "change")
    assert opened == [report]
    assert f'href="gradio_api/file={str(report.resolve()).replace(" ", "%20")}"' in fresh["tpaw_report"]
    assert fresh.properties["train.tpaw_report", "visible"] is True
