# SPDX-License-Identifier: Apache-2.0
"""LlamaBoard's seams: on modules that are not as expected, and a page that has to do without the tab."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
        self.manager, self.running, self.running_data, self.aborted = manager, False, None, False
        self.do_train = True

    def _initialize(self, data: Any, do_train: bool, from_preview: bool) -> str:
        return "llamaboard's"

    def _parse_train_args(self, data: Any) -> Any: ...

    def _preview(self, data: Any, do_train: bool) -> Any: ...

    def _launch(self, data: Any, do_train: bool) -> Any: ...

    def _build_config_dict(self, data: Any) -> Any: ...

    def load_args(self, lang: Any, config_path: Any) -> Any: ...

    def monitor(self) -> Any: ...

    def set_abort(self) -> Any: ...


def create_train_tab(engine: Any) -> Any:
    input_elems = engine.manager.get_base_elems()
    rlhf_tab = output_box = engine.runner, change_stage
    return input_elems, rlhf_tab, output_box


def change_stage(training_stage: str = "sft") -> Any:
    return [], training_stage == "pt"


def create_footer() -> dict[str, Any]:
    return {}


def get_model_info(model_name: str) -> Any: ...


def list_checkpoints(model_name: str, finetuning_type: str) -> Any: ...


def can_preview(dataset_dir: str, dataset: list[str]) -> Any: ...


def load_config() -> dict[str, Any]:
    return {"lang": None}


def save_config(lang: str, hub_name: str | None = None) -> dict[str, Any]:
    return load_config() | {"lang": lang}


TARGETS: dict[str, tuple[Callable[[ModuleType], None], dict[str, Any]]] = {
    "words": (board.extend_words, {"LOCALES": {"learning_rate": {"en": {"label": "Learning rate"}}}}),
    "runner": (board.extend_runner, {"Runner": Runner}),
    "train": (board.extend_train_tab, {"create_train_tab": create_train_tab, "change_stage": change_stage}),
    "tabs": (board.extend_tabs, {"create_footer": create_footer}),
    "top": (board.extend_top, {"get_model_info": get_model_info, "list_checkpoints": list_checkpoints}),
    "data": (board.extend_data, {"can_preview": can_preview}),
    "settings": (board.extend_settings, {"load_config": load_config, "save_config": save_config}),
}


def fake(**names: Any) -> ModuleType:
    module = ModuleType("llamafactory.fake")
    vars(module).update(names)
    return module


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("runner", "words")])
def test_what_is_as_expected_is_extended(name: str) -> None:
    extend, names = TARGETS[name]
    module = fake(**names)
    extend(module)
    assert {name for name, value in names.items() if getattr(module, name) is value} == set()


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
        ("train", {"change_stage": lambda stage: stage}, "`change_stage` takes \\(stage\\)"),
        ("tabs", {"create_footer": lambda engine: engine}, "`create_footer` takes arguments"),
        ("top", {"get_model_info": lambda name: name}, "`get_model_info` takes \\(name\\)"),
        ("top", {"list_checkpoints": lambda name: name}, "`list_checkpoints` takes \\(name\\)"),
        ("data", {"can_preview": lambda dataset: dataset}, "`can_preview` takes \\(dataset\\)"),
        ("settings", {"save_config": lambda name: name}, "`save_config` takes \\(name\\)"),
    ],
)
def test_what_differs_is_named_and_left_alone(name: str, changed: dict[str, Any], message: str) -> None:
    extend, names = TARGETS[name]
    module = fake(**(names | changed))
    before = dict(vars(module))
    with pytest.raises(SeamMissing, match=message):
        extend(module)
    assert vars(module) == before


# As LlamaBoard writes its settings: the file is empty for a while.
SETTINGS = """
def load_config():
    return content[0]

def save_config(lang):
    content[0] = load_config() and ""
    half_written.set()
    wait()
    content[0] = lang
"""


def test_settings_are_not_read_while_they_are_written() -> None:
    half_written, asked = threading.Event(), threading.Event()
    module = fake(content=["en"], half_written=half_written, wait=lambda: asked.wait(60))
    exec(SETTINGS, vars(module))
    board.extend_settings(module)
    with ThreadPoolExecutor() as pool:
        saved = pool.submit(module.save_config, "zh")
        assert half_written.wait(60)
        read = pool.submit(module.load_config)
        with pytest.raises(TimeoutError):
            read.result(timeout=0.2)
        asked.set()
        saved.result()
        assert read.result() == "zh"


@pytest.mark.parametrize("method", board.RUNNER_METHODS)
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
    with pytest.raises(SeamMissing, match="`Runner` has no `manager` and `running`"):
        board.extend_runner(fake(Runner=flagless))


@pytest.fixture
def missed(monkeypatch: pytest.MonkeyPatch) -> status.SeamStatus:
    """LlamaBoard's runner is another one."""
    status.require_seams()
    seam = status.SeamStatus("board_runner", "a.Runner", "Start", False, "missing", "there is no `Runner`", board=True)
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
    assert "seam `board_runner`, `a.Runner`: there is no `Runner`" in said
    assert not [name for name in built.manager._id_to_elem if "tpaw" in name]
    shown = [block for block in built.blocks.blocks.values() if block.elem_id == "tpaw_missing"]
    assert "a.Runner" in shown[0].value

    built.show(top__lang="en", top__model_name="Custom", top__model_path="theta", dataset=["one"], output_dir="out")
    assert "--stage sft" in built.fire("cmd_preview_btn", "click")["train.output_box"]
    assert built.fire("training_stage", "change") == {"train.dataset": [], "train.packing": False}


def test_doctor_warns_of_it(missed: status.SeamStatus) -> None:
    (finding,) = doctor.seam_findings([vars(missed)])
    assert (finding.level, "`a.Runner` (Start), is missing: there is no `Runner`" in finding.text) == ("warning", True)


def test_training_hears_nothing_of_it(missed: status.SeamStatus, caplog: pytest.LogCaptureFixture) -> None:
    status._said.clear()
    status.require_seams()
    assert "board_runner" not in caplog.text
    assert status.missing_message() is None


def test_stage_that_cannot_be_trained_has_no_tab(monkeypatch: pytest.MonkeyPatch) -> None:
    seam = status.SeamStatus("dispatch", "a.b", "starts it", True, "missing", "it moved")
    monkeypatch.setitem(status.RECORD, "dispatch", seam)
    assert "it moved" in board.missing_board()


def test_every_seam_of_the_board_says_that_it_is_one() -> None:
    ours = {seam.name for seam in seams.SEAMS if seam.target.startswith("llamafactory.webui.")}
    assert {seam.name for seam in seams.SEAMS if seam.board} == ours
