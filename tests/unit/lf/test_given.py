# SPDX-License-Identifier: Apache-2.0
"""Reading what the user gave: dict, run file with overrides, flags; and naming unknown keys."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.hook.dispatch import read_if_ours
from llamafactory_tpaw.lf import given


@pytest.fixture
def run_file(elsewhere: Path) -> Path:
    path = elsewhere / "run.yaml"
    path.write_text("stage: tpaw\nlearning_rate: 5.0e-7\ntpaw_players:\n- a\n- b\nlr: 1e-3\n", encoding="utf-8")
    return path


def test_flags_hold_only_what_was_given() -> None:
    args = ["--stage", "tpaw", "--tpaw_eta=3", "--bf16", "--tpaw_gama", "4", "--last", "--x=y"]
    known = {"stage": "tpaw", "tpaw_eta": 3.0, "bf16": True}
    assert given.read_given(args) == known | dict.fromkeys(["tpaw_gama", "last", "x"], True)
    assert given.read_given(["stage=tpaw"]) == {"stage": True}
    with pytest.raises(ConfigError, match=r"--tpaw_eta.*'much'"):
        given.read_given(["--tpaw_eta", "much"])


@pytest.mark.parametrize(
    ("args", "ours"),
    [
        ([], False),
        ({"stage": "tpaw"}, True),
        (["--stage", "tpaw"], True),
        (["--stage=sft", "--stage=tpaw"], True),
        (["absent.yaml"], False),
        (["run.yaml"], True),
        (["run.yaml", "stage=dpo"], False),
        (["sft.yaml"], False),
        (["sft.yaml", "stage=tpaw"], True),
        (["broken_sft.yaml"], False),
    ],
)
def test_what_is_ours(args: object, ours: bool, run_file: Path) -> None:
    Path("sft.yaml").write_text("stage: sft\n# stage: tpaw\n")
    Path("broken_sft.yaml").write_text("stage: sft\nlist: [\n")
    settings = read_if_ours(args)
    assert (settings is not None) == ours
    assert not ours or settings["stage"] == "tpaw"


@pytest.mark.parametrize("words", [["absent.yaml", "stage=tpaw"], ["broken.yaml"], ["twice.yaml"]])
def test_what_cannot_be_read_but_asks_for_us_is_told(words: list[str], run_file: Path) -> None:
    Path("broken.yaml").write_text("### method\nstage: 'tpaw'  # ours\nbroken: [\n")
    Path("twice.yaml").write_text("stage: tpaw\nstage: tpaw\n")
    with pytest.raises(ConfigError, match=words[0]):
        read_if_ours(words)


def test_a_handed_file_is_read_as_a_run_file_by_us_and_by_llamafactory(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.hparams.parser import read_args

    settings = {"stage": "tpaw", "learning_rate": 1.0e-07, "tpaw_players": ["a", "b"], "x": None, "y": "1e-3"}
    with given.handed_file(settings, planned=True, run_file="x") as file:
        found, handed = given.take_handed(given.read_given([file]))
        assert found == settings
        assert (handed["planned"], handed["run_file"], handed["cwd"]) == (True, "x", str(Path.cwd()))
        assert stat.S_IMODE(Path(file).parent.stat().st_mode) == 0o700
        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", file])
        assert given.take_handed(read_args()) == (settings, handed)
    assert not Path(file).exists()
    with given.handed_file(settings) as file:
        assert given.read_given([file]) == settings


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_train_epochs", [1], "`num_train_epochs: [1]` is wrong: invalid float value: '[1]'. Correct it."),
        ("max_steps", 1.5, "`max_steps: 1.5` is wrong: invalid int value: '1.5'. Correct it."),
        ("save_steps", True, "`save_steps: True` is wrong: invalid float value: 'True'. Correct it."),
    ],
)
def test_values_of_llamafactorys_keys_have_their_type(key: str, value: object, message: str) -> None:
    (problem,) = given.value_problems({key: value})
    assert problem.startswith(message)


def test_values_that_are_not_judged() -> None:
    fine = {"learning_rate": 1, "bf16": True, "use_cpu": 0, "report_to": "none", "save_steps": 0.1, "optim": "sgd"}
    fine |= {"eval_strategy": False, "deepspeed": {"a": 1}, "warmup_ratio": None, "default_system": r"\u0000"}
    elsewhere = {"tpaw_eta": "x", "learning_rat": "x", "stage": "x", "finetuning_type": "x"}
    assert given.value_problems(fine | elsewhere) == []
