# SPDX-License-Identifier: Apache-2.0
"""LlamaBoard's seams: on modules that are not as expected, and a page that has to do without the tab."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamafactory_tpaw import doctor
from llamafactory_tpaw.hook import board, seams
from llamafactory_tpaw.lf import status
from llamafactory_tpaw.lf.status import SeamMissing


class Runner:
    """A runner as `extend_runner` expects it."""

    def __init__(self, manager: Any, demo_mode: bool = False) -> None:
        self.manager, self.trainer, self.running, self.running_data, self.aborted = manager, None, False, None, False

    def _initialize(self, data: Any, do_train: bool, from_preview: bool) -> str:
        return "llamaboard's"

    def _parse_train_args(self, data: Any) -> Any: ...

    def _launch(self, data: Any, do_train: bool) -> Any:
        yield

    def monitor(self) -> Any:
        yield

    def set_abort(self) -> Any: ...

    def check_output_dir(self, lang: Any, model_name: Any, finetuning_type: Any, output_dir: Any) -> Any: ...


def create_train_tab(engine: Any) -> Any:
    input_elems = engine.manager.get_base_elems()
    rlhf_tab = output_box = engine.runner
    return input_elems, rlhf_tab, output_box


TARGETS: dict[str, tuple[Callable[[ModuleType], None], dict[str, Any]]] = {
    "words": (board.extend_words, {"LOCALES": {"learning_rate": {"en": {"label": "Learning rate"}}}}),
    "runner": (board.extend_runner, {"Runner": Runner}),
    "train": (board.extend_train_tab, {"create_train_tab": create_train_tab}),
}


def fake(**names: Any) -> ModuleType:
    module = ModuleType("llamafactory.fake")
    vars(module).update(names)
    return module


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_there(name: str) -> None:
    with pytest.raises(SeamMissing):
        TARGETS[name][0](fake())


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("words", {"LOCALES": []}, "`LOCALES` is not a dict of texts by language"),
        ("words", {"LOCALES": {"learning_rate": {"en": {}}, "tpaw_eta": {}}}, "it has texts for tpaw_eta already"),
        ("train", {"create_train_tab": lambda engine, more: engine}, "`create_train_tab` no longer refers to"),
        ("train", {"create_train_tab": lambda page: page}, "takes \\(page\\) instead of \\(engine, ...\\)"),
    ],
)
def test_what_differs_is_named_and_left_alone(name: str, changed: dict[str, Any], message: str) -> None:
    extend, names = TARGETS[name]
    module = fake(**(names | changed))
    before = dict(vars(module))
    with pytest.raises(SeamMissing, match=message):
        extend(module)
    assert vars(module) == before


@pytest.mark.parametrize("method", board.METHODS)
def test_runner_with_another_method_is_left_alone(method: str) -> None:
    changed = type("Runner", (Runner,), {method: lambda self, other: other})
    before = dict(vars(changed))
    with pytest.raises(SeamMissing, match=f"`Runner.{method}` takes"):
        board.extend_runner(fake(Runner=changed))
    assert dict(vars(changed)) == before
    gone = type("Runner", (), {name: value for name, value in vars(Runner).items() if name != method})
    with pytest.raises(SeamMissing, match=f"no method `{method}`"):
        board.extend_runner(fake(Runner=gone))


def test_runner_without_a_flag_is_left_alone() -> None:
    flagless = type("Runner", (Runner,), {"__init__": lambda self, manager: None})
    with pytest.raises(SeamMissing, match="`Runner` has no `aborted` and `manager`"):
        board.extend_runner(fake(Runner=flagless))


@pytest.fixture
def missed(monkeypatch: pytest.MonkeyPatch) -> status.SeamStatus:
    """LlamaBoard's runner is another one."""
    status.require_seams()
    seam = status.SeamStatus("board_runner", "a.Runner", "Start", False, True, "missing", "there is no `Runner`")
    monkeypatch.setitem(status.RECORD, "board_runner", seam)
    return seam


def test_page_opens_without_the_tab_and_says_so(
    missed: status.SeamStatus, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = pytest.importorskip("tests.unit.board.page")
    monkeypatch.chdir(tmp_path)
    built = page.build_page()
    said = capsys.readouterr().err
    assert said.count("LlamaBoard opens without the tab for stage `tpaw`") == 1
    assert "seam `board_runner`, `a.Runner` (Start): there is no `Runner`" in said
    assert not [name for name in built.manager._id_to_elem if "tpaw" in name]
    shown = [block for block in built.blocks.blocks.values() if block.elem_id == "tpaw_missing"]
    assert "a.Runner" in shown[0].value

    built.show(top__lang="en", top__model_name="Custom", top__model_path="theta", dataset=["one"], output_dir="out")
    assert "--stage sft" in built.fire("cmd_preview_btn")


def test_extended_methods_get_the_original_and_stay_what_gradio_takes_them_for() -> None:
    kind = type("Runner", (Runner,), dict(vars(Runner)))
    board.extend_runner(fake(Runner=kind))
    for name in board.METHODS:
        found = getattr(kind, name)
        assert found.__wrapped__ is getattr(Runner, name)
        assert inspect.isgeneratorfunction(found) == inspect.isgeneratorfunction(getattr(Runner, name))


def test_doctor_warns_of_it(missed: status.SeamStatus) -> None:
    (finding,) = doctor.seam_findings([vars(missed)])
    assert (finding.level, "`a.Runner` (Start), is missing: there is no `Runner`" in finding.text) == ("warning", True)


def test_training_hears_nothing_of_it(missed: status.SeamStatus, caplog: pytest.LogCaptureFixture) -> None:
    status._said.clear()
    status.require_seams()
    assert "board_runner" not in caplog.text
    assert status.missing_message() is None


def test_stage_that_cannot_be_trained_has_no_tab(monkeypatch: pytest.MonkeyPatch) -> None:
    seam = status.SeamStatus("dispatch", "a.b", "starts it", True, False, "missing", "it moved")
    monkeypatch.setitem(status.RECORD, "dispatch", seam)
    assert "it moved" in board.missing_board()


def test_every_seam_of_the_board_says_that_it_is_one() -> None:
    ours = {seam.name for seam in seams.SEAMS if seam.target.startswith("webui.")}
    assert {seam.name for seam in seams.SEAMS if seam.board} == ours
