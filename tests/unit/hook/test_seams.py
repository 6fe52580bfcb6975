# SPDX-License-Identifier: Apache-2.0
"""What is extended and how, on LlamaFactory as installed and on modules that are not as expected."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.hook import arguments, board, dispatch, seams
from llamafactory_tpaw.hook.shape import SeamMissing
from llamafactory_tpaw.lf import facade, status
from tests.runs import Project

from .conftest import fake


@pytest.fixture
def finetuning_arguments() -> type:
    return next(kind for kind in facade.TRAIN_ARGS if kind.__name__ == "FinetuningArguments")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings that LlamaFactory's checks accept; no model is loaded before the stage starts."""
    output = str(tmp_path / "out")
    return Project(tmp_path, Path("anything")).settings(0, dataset="anything", output_dir=output, tpaw_eta="2.5")


@pytest.fixture
def tuner() -> ModuleType:
    status.require_seams()
    return sys.modules["llamafactory.train.tuner"]


def test_training_needs_three_seams_and_does_not_import_llamaboard() -> None:
    code = (
        "import sys; from llamafactory_tpaw.hook import seams; from llamafactory_tpaw.lf import status; "
        "status.require_seams(); "
        "print(*(f'{seam.name}={seam.state}' for seam in seams.seam_status()), 'gradio' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    applied = [f"{name}=applied" for name in ("arguments", "dispatch", "launch", "stages")]
    assert answer.split()[-8:] == [
        *applied,
        *(f"board_{name}=waiting" for name in ("words", "runner", "train")),
        "False",
    ]


def test_class_looks_like_llamafactorys_own_and_both_post_inits_run(finetuning_arguments: type) -> None:
    assert finetuning_arguments.__module__ == "llamafactory.hparams.finetuning_args"
    assert inspect.getsource(sys.modules[finetuning_arguments.__module__]).count("class FinetuningArguments") == 1
    assert "tpaw" in typing.get_args(typing.get_type_hints(finetuning_arguments)["stage"])
    given = {"tpaw_eta": "2.5", "lora_target": "a, b", "tpaw_players": "c, d"}
    value = finetuning_arguments(stage="tpaw", finetuning_type="full", **given)
    assert pickle.loads(pickle.dumps(value)) == value
    assert value.to_dict()["tpaw_eta"] == 2.5
    assert (value.lora_target, value.tpaw_players, value.use_ref_model) == (["a", "b"], ["c", "d"], False)
    assert finetuning_arguments(stage="sft", tpaw_eta="nonsense").tpaw_eta == "nonsense"


def test_stage_is_listed_last_and_with_ranking_data(tuner: ModuleType) -> None:
    constants = sys.modules[board.CONSTANTS]
    assert list(constants.TRAINING_STAGES.items())[-1] == ("TPAW", "tpaw")
    assert next(iter(constants.TRAINING_STAGES.values())) == "sft"
    assert "tpaw" in constants.STAGES_USE_PAIR_DATA


# -- dispatch


def test_run_exp_runs_our_workflow(
    tuner: ModuleType, settings: dict[str, Any], calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = sys.modules["llamafactory_tpaw.runs.launcher"]
    before_training = launcher.before_training
    monkeypatch.setattr(launcher, "before_training", lambda *given: before_training(*given) | {"seed": 7})
    tuner.run_exp(dict(settings))
    assert calls.before_training == [(settings, None)]
    ((model_args, data_args, training_args, finetuning_args, generating_args, callbacks),) = calls.run_tpaw
    assert (finetuning_args.stage, finetuning_args.tpaw_eta, training_args.seed) == ("tpaw", 2.5, 7)
    assert finetuning_args.tpaw_given == settings
    assert not {"tpaw_given", "tpaw_handed"} & finetuning_args.to_dict().keys()
    assert (model_args.model_name_or_path, data_args.dataset) == ("anything", ["anything"])
    assert (training_args.output_dir, generating_args.do_sample) == (settings["output_dir"], True)
    assert "LogCallback" in [type(callback).__name__ for callback in callbacks]


# -- targets that are not as expected


def _training_function(config):
    return get_train_args, run_ppo  # noqa: F821


def _run_exp(args=None, callbacks=None):
    return _training_function


def _run_ppo(model_args, data_args, training_args, finetuning_args, generating_args, callbacks=None):
    return finetuning_args


def _get_train_args(args=None): ...


FITTING = {
    "_training_function": _training_function,
    "run_exp": _run_exp,
    "run_ppo": _run_ppo,
    "get_train_args": _get_train_args,
}


def test_real_ppo_goes_to_llamafactory(calls: Any) -> None:
    module = fake(**FITTING)
    dispatch.extend_tuner(module)
    assert module.run_ppo is not _run_ppo
    real = SimpleNamespace(stage="ppo")
    assert module.run_ppo(1, 2, 3, real, 5, 6) is module.run_ppo(1, 2, 3, finetuning_args=real, generating_args=5)
    assert (real.stage, calls.run_tpaw) == ("ppo", [])


def runner(**changed: Any) -> dict[str, Any]:
    """A module like the one of LlamaBoard's `Runner`, as it was before it was extended."""
    kind = pytest.importorskip("llamafactory.webui.runner").Runner
    names = {name: getattr(value, "__wrapped__", value) for name, value in vars(kind).items() if callable(value)}
    return {"Runner": type("Runner", (), {name: value for name, value in (names | changed).items() if value})}


@pytest.mark.parametrize(
    ("extend", "names", "problem"),
    [
        (arguments.extend_arguments, {}, "no dataclass `FinetuningArguments`"),
        (arguments.extend_arguments, {"FinetuningArguments": int}, "no dataclass `FinetuningArguments`"),
        (board.extend_stages, {"TRAINING_STAGES": ["sft"], "STAGES_USE_PAIR_DATA": {"dpo"}}, "TRAINING_STAGES"),
        (board.extend_stages, {"TRAINING_STAGES": {"SFT": "sft"}, "STAGES_USE_PAIR_DATA": []}, "STAGES_USE_PAIR"),
        (dispatch.extend_tuner, FITTING | {"_training_function": None}, "no function `_training_function`"),
        (
            dispatch.extend_tuner,
            FITTING | {"_training_function": lambda config: None},
            "no longer refers to `get_train_args` and `run_ppo`",
        ),
        (
            dispatch.extend_tuner,
            FITTING | {"run_ppo": lambda model_args, data_args: None},
            "`run_ppo` takes \\(model_args, data_args\\)",
        ),
        (dispatch.extend_tuner, FITTING | {"run_exp": 3}, "no function `run_exp`"),
        (dispatch.extend_launcher, {"launch": lambda: None}, "no longer refers to `argv` and `run_exp`"),
        (board.extend_words, {}, "`LOCALES` is not a dict of texts by language"),
        (board.extend_words, {"LOCALES": []}, "`LOCALES` is not a dict of texts by language"),
        (
            board.extend_words,
            {"LOCALES": {"learning_rate": {"en": {}}, "tpaw_eta": {}}},
            "it has texts for tpaw_eta already",
        ),
        (board.extend_train_tab, {}, "no function `create_train_tab`"),
        (board.extend_train_tab, {"create_train_tab": lambda engine: engine}, "no longer refers to"),
        (board.extend_train_tab, {"create_train_tab": lambda page: page}, "takes \\(page\\) instead of \\(engine,"),
        (board.extend_runner, {}, "no class `Runner`"),
        (board.extend_runner, {"__init__": lambda self, manager: None}, "no longer refers to `trainer`"),
        (board.extend_runner, {"monitor": lambda self, other: other}, "`monitor` takes more than \\(self\\)"),
        *((board.extend_runner, {name: None}, f"no function `{name}`") for name in board.METHODS),
        *((board.extend_runner, {name: lambda other: other}, f"`{name}` takes") for name in board.METHODS),
    ],
)
def test_what_moved_is_named_and_nothing_changed(
    extend: Callable[[ModuleType], None], names: dict[str, Any], problem: str
) -> None:
    module = fake(**(runner(**names) if names and extend is board.extend_runner else names))
    kind = vars(module).get("Runner")
    before = dict(vars(module)), dict(vars(kind)) if kind else {}
    with pytest.raises(SeamMissing, match=problem):
        extend(module)
    assert (dict(vars(module)), dict(vars(kind)) if kind else {}) == before


def test_name_clash_is_refused(finetuning_arguments: type) -> None:
    with pytest.raises(SeamMissing, match="already"):
        arguments.extend_arguments(fake(FinetuningArguments=finetuning_arguments))


def test_a_seam_that_raises_is_missing_and_its_import_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: ModuleType) -> None:
        raise RuntimeError("odd")

    monkeypatch.setitem(seams.SEAMS, "stages", (broken, "a.b", "x"))
    seam = status.SeamStatus("stages", "a.b", "x", False)
    seams._apply(seam, fake())
    assert (seam.state, seam.reason) == ("missing", "RuntimeError: odd")


def test_required_seam_is_an_error(tuner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, required in (("dispatch", True), ("stages", False)):
        missed = status.SeamStatus(name, "a.b", "starts it", required, "missing", "there is no `b`")
        monkeypatch.setitem(status.RECORD, name, missed)
    with pytest.raises(ConfigError, match=f"needs LlamaFactory {status.SUPPORTED}.*seam `dispatch`.*no `b`") as caught:
        status.require_seams()
    assert "`stages`" not in str(caught.value)


# -- launch


@pytest.fixture
def launch(tuner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the extended `launch` of a module like LlamaFactory's, and what that started."""
    started: list[list[str]] = []

    def run(argv: list[str], failure: Exception | None = None) -> list[list[str]]:
        def original() -> None:
            started.append(list(sys.argv[1:]))
            if failure is not None:
                raise failure

        monkeypatch.setattr(dispatch, "check_function", lambda *_, **__: original)
        module = fake(launch=original)
        dispatch.extend_launcher(module)
        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", *argv])
        module.launch()
        return started

    return run


def test_launch_prepares_stage_tpaw_only(launch: Any, calls: Any, tmp_path: Path) -> None:
    ours = tmp_path / "ours.yaml"
    ours.write_text("stage: tpaw\n", encoding="utf-8")
    commands = [
        ["train", str(ours), "seed=1"],
        ["train", str(ours), "stage=sft"],
        ["train", str(ours), "-h"],
        ["version"],
        ["train"],
        ["train", "--stage", "tpaw"],
    ]
    for argv in commands:
        started = launch(argv)
    prepared = ["train", "plan.yaml"]
    assert started == [prepared, *commands[1:5], prepared]
    given = {"stage": "tpaw"}
    assert calls.prepared == [(given | {"seed": 1}, str(ours)), (given, "")]


def test_launch_prints_errors(
    launch: Any, calls: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for verbosity, errors in (("INFO", ["one is wrong.", "two is wrong."]), ("DEBUG", "one is wrong.")):
        monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", verbosity)
        with pytest.raises(SystemExit) as caught:
            launch(["train", "--stage", "tpaw"], ConfigError(errors))
        assert caught.value.code == ConfigError.exit_code
        said = capsys.readouterr().err
        assert ("Traceback" in said) == (verbosity == "DEBUG")
        assert said.count("llamafactory-tpaw: error: ") == len(caught.value.__context__.problems)


# -- LlamaBoard


def test_page_opens_without_the_tab_and_says_so(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = pytest.importorskip("tests.unit.board.page")
    status.require_seams()
    seam = status.SeamStatus("board_runner", "a.Runner", "Start", False, "missing", "there is no `Runner`")
    monkeypatch.setitem(status.RECORD, "board_runner", seam)
    status.require_seams()  # training hears nothing of it
    built = page.build_page()
    assert not [name for name in built.manager._id_to_elem if "tpaw" in name]
    shown = [block for block in built.blocks.blocks.values() if block.elem_id == "tpaw_missing"]
    assert "seam `board_runner`, `a.Runner` (Start): there is no `Runner`" in shown[0].value

    built.show(top__lang="en", top__model_name="Custom", top__model_path="theta", dataset=["one"], output_dir="out")
    assert "--stage sft" in built.fire("cmd_preview_btn")
