# SPDX-License-Identifier: Apache-2.0
"""What is extended and how, on LlamaFactory as installed and on modules that are not as expected."""

from __future__ import annotations

import inspect
import logging
import pickle
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.hook import arguments, dispatch, seams, stages
from llamafactory_tpaw.lf import facade, status
from llamafactory_tpaw.lf.status import SeamMissing


@pytest.fixture
def finetuning_arguments() -> type:
    return next(kind for kind in facade.TRAIN_ARGS if kind.__name__ == "FinetuningArguments")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings that LlamaFactory's checks accept; no model is loaded before the stage starts."""
    return {
        "stage": "tpaw",
        "do_train": True,
        "model_name_or_path": "anything",
        "dataset": "anything",
        "template": "qwen",
        "finetuning_type": "full",
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "report_to": "none",
        "tpaw_eta": "2.5",
    }


@pytest.fixture
def tuner() -> ModuleType:
    status.require_seams()
    return sys.modules["llamafactory.train.tuner"]


@pytest.fixture
def all_applied() -> None:
    status.require_seams()


def test_every_seam_is_applied(tuner: ModuleType) -> None:
    assert {seam.name: seam.state for seam in seams.seam_status() if not seam.board} == dict.fromkeys(
        ["arguments", "dispatch", "launch", "launch_v1", "stages"], "applied"
    )


def test_training_does_not_import_llamaboard() -> None:
    code = (
        "import sys; from llamafactory_tpaw.hook import seams; from llamafactory_tpaw.lf import status; "
        "status.require_seams(); "
        "print({seam.name: seam.state for seam in seams.seam_status() if seam.board}, 'gradio' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = ("board_words", "board_runner", "board_train")
    assert answer.endswith(f"{dict.fromkeys(names, 'waiting')} False\n")


# -- arguments


def test_class_looks_like_llamafactorys_own(finetuning_arguments: type) -> None:
    assert finetuning_arguments.__module__ == "llamafactory.hparams.finetuning_args"
    assert inspect.getsource(sys.modules[finetuning_arguments.__module__]).count("class FinetuningArguments") == 1
    assert "tpaw" in typing.get_args(typing.get_type_hints(finetuning_arguments)["stage"])
    value = finetuning_arguments(stage="tpaw", finetuning_type="full", tpaw_eta="2.5")
    assert pickle.loads(pickle.dumps(value)) == value
    assert value.to_dict()["tpaw_eta"] == 2.5


def test_both_post_inits_run(finetuning_arguments: type) -> None:
    value = finetuning_arguments(stage="tpaw", finetuning_type="full", lora_target="a, b", tpaw_players="c, d")
    assert value.lora_target == ["a", "b"]
    assert value.tpaw_players == ["c", "d"]
    assert value.use_ref_model is False


def test_other_stages_are_not_checked_by_us(finetuning_arguments: type) -> None:
    assert finetuning_arguments(stage="sft", tpaw_eta="nonsense", use_mca=True).tpaw_eta == "nonsense"


def test_backends_and_ranges_are_refused_together(finetuning_arguments: type) -> None:
    with pytest.raises(ConfigError) as caught:
        finetuning_arguments(stage="tpaw", use_mca=True, use_hyper_parallel=True, tpaw_eta=0)
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "`use_hyper_parallel`",
        "`use_mca`",
        "`tpaw_eta`",
    ]


def _fake(**names: Any) -> ModuleType:
    module = ModuleType("llamafactory.fake")
    vars(module).update(names)
    return module


@pytest.mark.parametrize("value", [None, object(), int])
def test_arguments_that_are_no_dataclass(value: object) -> None:
    module = _fake(FinetuningArguments=value)
    with pytest.raises(SeamMissing, match="no dataclass `FinetuningArguments`"):
        arguments.extend_arguments(module)
    assert module.FinetuningArguments is value


def test_name_clash_is_refused(finetuning_arguments: type) -> None:
    with pytest.raises(SeamMissing, match="already"):
        arguments.extend_arguments(_fake(FinetuningArguments=finetuning_arguments))


# -- stages


def test_stage_is_listed_last_and_with_ranking_data(all_applied: None) -> None:
    constants = sys.modules[stages.MODULE]
    assert list(constants.TRAINING_STAGES.items())[-1] == ("TPAW", "tpaw")
    assert next(iter(constants.TRAINING_STAGES.values())) == "sft"
    assert "tpaw" in constants.STAGES_USE_PAIR_DATA


def test_stages_of_another_shape_are_left_alone() -> None:
    with pytest.raises(SeamMissing, match="TRAINING_STAGES"):
        stages.extend_stages(_fake(TRAINING_STAGES=["sft"], STAGES_USE_PAIR_DATA={"dpo"}))
    names = {"Supervised": "sft"}
    with pytest.raises(SeamMissing, match="STAGES_USE_PAIR_DATA"):
        stages.extend_stages(_fake(TRAINING_STAGES=names, STAGES_USE_PAIR_DATA=["dpo"]))
    assert names == {"Supervised": "sft"}


# -- dispatch


def test_run_exp_runs_our_workflow(tuner: ModuleType, settings: dict[str, Any], calls: Any) -> None:
    tuner.run_exp(dict(settings))
    assert calls.before_training == [(settings, None)]
    ((model_args, data_args, training_args, finetuning_args, generating_args, callbacks),) = calls.run_tpaw
    assert (finetuning_args.stage, finetuning_args.tpaw_eta) == ("tpaw", 2.5)
    assert not hasattr(finetuning_args, dispatch.MARK)
    assert finetuning_args.tpaw_given == settings
    assert "tpaw_given" not in finetuning_args.to_dict()
    assert (model_args.model_name_or_path, data_args.dataset) == ("anything", ["anything"])
    assert (training_args.output_dir, generating_args.do_sample) == (settings["output_dir"], True)
    assert "LogCallback" in [type(callback).__name__ for callback in callbacks]


def test_changed_settings_are_what_is_trained(
    tuner: ModuleType, settings: dict[str, Any], calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = sys.modules["llamafactory_tpaw.runs.launcher"]
    monkeypatch.setattr(launcher, "before_training", lambda given, handed: given | {"tpaw_eta": 7})
    tuner.run_exp(dict(settings))
    assert calls.run_tpaw[0][3].tpaw_eta == 7.0


def test_finished_run_exits_before_the_parse(
    tuner: ModuleType, settings: dict[str, Any], calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finished(given: dict[str, Any], handed: None) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(sys.modules["llamafactory_tpaw.runs.launcher"], "before_training", finished)
    with pytest.raises(SystemExit) as caught:
        tuner.run_exp(settings | {"dataset": None})
    assert caught.value.code == 0
    assert calls.run_tpaw == []


def test_other_stages_pass_untouched(tuner: ModuleType, settings: dict[str, Any], calls: Any) -> None:
    parsed = tuner.get_train_args(settings | {"stage": "dpo"})
    assert parsed[3].stage == "dpo"
    assert calls.before_training == []
    assert facade.get_train_args(settings)[3].stage == "tpaw"


def test_real_ppo_goes_to_llamafactory(calls: Any) -> None:
    seen = []
    run_ppo = dispatch._wrap_run_ppo(lambda *args, **named: seen.append((args, named)))
    real = type("Args", (), {"stage": "ppo"})()
    run_ppo(1, 2, 3, real, 5, 6)
    run_ppo(1, 2, 3, finetuning_args=real)
    assert seen == [((1, 2, 3, real, 5, 6), {}), ((1, 2, 3), {"finetuning_args": real})]
    assert calls.run_tpaw == []


def test_abbreviated_stage_flag_is_refused(tuner: ModuleType, settings: dict[str, Any], calls: Any) -> None:
    flags = [f"--{key}={value}" for key, value in settings.items() if key != "stage"]
    with pytest.raises(ConfigError, match="Write `--stage tpaw` in full"):
        tuner.get_train_args([*flags, "--sta", "tpaw"])


def test_megatron_switch_is_refused(
    tuner: ModuleType, settings: dict[str, Any], calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USE_MCA", "1")
    with pytest.raises(ConfigError, match="Unset USE_MCA"):
        tuner.get_train_args(settings)


def _training_function(config):
    return get_train_args, run_ppo  # noqa: F821


def _run_exp(args=None, callbacks=None):
    return _training_function


def _run_ppo(model_args, data_args, training_args, finetuning_args, generating_args, callbacks=None): ...


def _get_train_args(args=None): ...


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ({"_training_function": None}, "no function `_training_function`"),
        ({"_training_function": lambda config: None}, "no longer refers to `get_train_args` and `run_ppo`"),
        ({"run_ppo": lambda model_args, data_args: None}, "`run_ppo` takes \\(model_args, data_args\\)"),
        ({"get_train_args": lambda: None}, "`get_train_args` takes \\(\\)"),
        ({"run_exp": 3}, "no function `run_exp`"),
    ],
)
def test_moved_dispatch_changes_nothing(names: dict[str, Any], problem: str) -> None:
    fitting = {
        "_training_function": _training_function,
        "run_exp": _run_exp,
        "run_ppo": _run_ppo,
        "get_train_args": _get_train_args,
    }
    module = _fake(**fitting)
    dispatch.extend_tuner(module)
    assert module.run_ppo is not _run_ppo
    module = _fake(**fitting | names)
    before = dict(vars(module))
    with pytest.raises(SeamMissing, match=problem):
        dispatch.extend_tuner(module)
    assert vars(module) == before


# -- launch


@pytest.fixture
def launch(all_applied: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the extended `launch` of a module like LlamaFactory's, and what that started."""
    started: list[list[str]] = []

    def run(
        argv: list[str], failure: Exception | None = None, extend: Any = dispatch.extend_launcher
    ) -> list[list[str]]:
        def original() -> None:
            started.append(list(sys.argv[1:]))
            if failure is not None:
                raise failure

        monkeypatch.setattr(dispatch, "check_function", lambda *_, **__: original)
        module = _fake(launch=original)
        extend(module)
        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", *argv])
        module.launch()
        return started

    return run


def _write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_launch_prepares_stage_tpaw_only(launch: Any, calls: Any, tmp_path: Path) -> None:
    ours = _write(tmp_path / "ours.yaml", "stage: tpaw\n")
    commands = [
        ["train", ours, "seed=1"],
        ["train", ours, "stage=sft"],
        ["train", ours, "-h"],
        ["version"],
        ["train"],
        ["train", "--stage", "tpaw"],
    ]
    for argv in commands:
        started = launch(argv)
    prepared = ["train", "plan.yaml"]
    assert started == [prepared, *commands[1:5], prepared]
    given = {"stage": "tpaw"}
    assert calls.prepared == [(given | {"seed": 1}, ours), (given, "")]


def test_launch_prints_errors_without_traceback(
    launch: Any, calls: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMAFACTORY_VERBOSITY", raising=False)
    with pytest.raises(SystemExit) as caught:
        launch(["train", "--stage", "tpaw"], ConfigError(["one is wrong.", "two is wrong."]))
    assert caught.value.code == ConfigError.exit_code
    assert capsys.readouterr().err == (
        "llamafactory-tpaw: error: one is wrong.\nllamafactory-tpaw: error: two is wrong.\n"
    )
    monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "DEBUG")
    with pytest.raises(SystemExit):
        launch(["train", "--stage", "tpaw"], ConfigError("one is wrong."))
    assert "Traceback" in capsys.readouterr().err


def test_use_v1_is_refused_for_stage_tpaw_only(
    launch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMAFACTORY_VERBOSITY", raising=False)
    ours = _write(tmp_path / "ours.yaml", "stage: tpaw\n")
    for argv in (["train", ours, "stage=sft"], ["train", ours, "-h"], ["sft", ours], ["help"], []):
        assert launch(argv, extend=dispatch.extend_v1_launcher)[-1] == argv
    with pytest.raises(SystemExit) as caught:
        launch(["train", ours], extend=dispatch.extend_v1_launcher)
    assert caught.value.code == 2
    message = "USE_V1 is set, but its trainers do not know stage `tpaw`. Unset USE_V1."
    assert capsys.readouterr().err == f"llamafactory-tpaw: error: {message}\n"


@pytest.mark.parametrize(
    ("extend", "lacks"),
    [(dispatch.extend_launcher, "`argv` and `run_exp`"), (dispatch.extend_v1_launcher, "`argv`")],
)
def test_launch_of_another_shape_is_missed(extend: Any, lacks: str) -> None:
    with pytest.raises(SeamMissing, match=f"no longer refers to {lacks}"):
        extend(_fake(launch=lambda: None))


# -- what is said when a seam is missing


def test_optional_seam_is_a_notice(
    all_applied: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(status, "_said", set())
    monkeypatch.setattr(status, "installed_version", lambda: "0.10.0")
    monkeypatch.setitem(
        status.RECORD,
        "stages",
        status.SeamStatus("stages", "a.b", "the list", False, state="missing", reason="it moved"),
    )
    logger = logging.getLogger("llamafactory.tpaw")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    for _ in range(2):
        status.require_seams()
    logger.removeHandler(caplog.handler)
    moved, untested = caplog.messages
    assert "it moved" in moved
    assert "0.10.0 was not tested" in untested


def test_required_seam_is_an_error(all_applied: None, monkeypatch: pytest.MonkeyPatch) -> None:
    missed = status.SeamStatus("dispatch", "a.b", "starts it", True, state="missing", reason="there is no `b`")
    monkeypatch.setitem(status.RECORD, "dispatch", missed)
    with pytest.raises(ConfigError, match=r"needs LlamaFactory >=0\.9\.5,<0\.9\.6.*seam `dispatch`.*no `b`"):
        status.require_seams()
