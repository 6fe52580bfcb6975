# SPDX-License-Identifier: Apache-2.0
"""What is given to `init`: flags, overrides and a run file to take settings from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.runs.scaffold.settings import Settings, read_settings


ROOT = Path(__file__).resolve().parents[4]
GIVEN = {"model": "m", "data": "d"}


def read(*overrides: str, like: str | None = None, **flags: Any) -> Settings:
    return read_settings({**GIVEN, **flags}, overrides, like)


def test_defaults() -> None:
    assert read(name=None) == Settings("m", "d")


def test_an_override_counts_more_than_a_flag_and_a_flag_more_than_the_file() -> None:
    like = str(ROOT / "yaml" / "qwen_tpaw_iter2.yaml")
    assert read(like=like).keys["learning_rate"] == 5e-7
    assert read(like=like, learning_rate=1e-6).keys["learning_rate"] == 1e-6
    settings = read("learning_rate=1.0e-5", "sft.learning_rate=2", like=like, learning_rate=1e-6, sft=True)
    assert settings.keys["learning_rate"] == 1e-5
    assert settings.sft_keys == {"learning_rate": 2}


def test_what_a_run_file_lends() -> None:
    like = str(ROOT / "yaml" / "qwen_tpaw_iter2.yaml")
    settings = read_settings({}, [], like)
    assert (settings.model, settings.data) == ("saves/Qwen2.5-1.5B/full/sft", "ultrachat_200k")
    assert settings.keys["template"] == "qwen"
    assert settings.keys["tpaw_eta"] == 6.0
    assert not {"stage", "dataset", "output_dir", "tpaw_players", "tpaw_iteration"} & set(settings.keys)
    other = read_settings({"model": "m"}, [], like)
    assert "template" not in other.keys
    assert other.like_template == "qwen"


@pytest.mark.parametrize("method", ["spin", "tspin"])
def test_the_objective_of_a_run_file(method: str) -> None:
    settings = read_settings({}, [], str(ROOT / "yaml" / f"qwen_{method}_iter1.yaml"))
    assert settings.objectives == (method,)
    assert not {"tpaw_eta", "tpaw_gamma", "tpaw_team_size"} & set(settings.keys)


def test_null_takes_a_key_of_the_file_away() -> None:
    like = str(ROOT / "yaml" / "qwen_tpaw_iter2.yaml")
    assert "optim" in read(like=like).keys
    assert "optim" not in read("optim=null", like=like).keys


def test_values_are_yaml() -> None:
    keys = read("bf16=true", "optim=sgd", "seed=3", "run_name='3'", "warmup_ratio=0").keys
    assert keys["bf16"] is True
    assert (keys["optim"], keys["seed"], keys["run_name"], keys["warmup_ratio"]) == ("sgd", 3, "3", 0)


PROBLEMS: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    ((), {"model": None}, "`--model` is missing. Give a folder or a hub name"),
    ((), {"data": None}, "`--data` is missing. Give an entry of dataset_info.json or a file"),
    (
        (),
        {"name": "a/b c"},
        "and begin with a letter or digit: it becomes part of file and dataset names. Take `a_b_c`",
    ),
    ((), {"name": "…"}, "Choose another."),
    ((), {"folder": __file__}, "test_settings.py` is a file. Name a folder; one that does not exist is made."),
    ((), {"iterations": 0}, "`--iterations 0` must be at least 1."),
    ((), {"objectives": "dpo,tpaw"}, "`--objective dpo,tpaw` names dpo, but takes tpaw, spin, tspin"),
    ((), {"objectives": ","}, "`--objective` is empty. Choose of tpaw, spin, tspin."),
    ((), {"ablations": "eta"}, "`--ablate eta` names eta, but takes trw, mpw, team"),
    ((), {"ablations": "trw", "objectives": "spin"}, "`--ablate trw` leaves out parts of TPAW, but `--objective` is"),
    ((), {"model": "a,b"}, "`--model a,b` has a `,`, which separates checkpoints"),
    ((), {"model": "a+b"}, "`--model a+b` has a `+`, which separates checkpoints"),
    ((), {"columns": "prompt"}, "`--columns prompt` has 'prompt'. Write `--columns prompt=question"),
    ((), {"columns": "x=y"}, "what a column can be: prompt, query, response"),
    (("learning_rate",), {}, "`learning_rate` is no override. Write `key=value` for a key of the iterations"),
    (("seed=[",), {}, "`seed=[` cannot be read as YAML"),
    (("learning_rat=1",), {}, "`learning_rat` is not a key of `train`. Did you mean `learning_rate`?"),
    (("tpaw_eto=1",), {}, "Did you mean `tpaw_eta`?"),
    (("sft.epochs=1",), {"sft": True}, "`epochs` is not a key of `train`"),
    (("learning_rate=fast",), {}, "`learning_rate=fast`: invalid float value: 'fast'. Correct the value"),
    (("sft.num_train_epochs=a",), {"sft": True}, "`sft.num_train_epochs=a`: invalid float value"),
    (("tpaw_max_prompts=many",), {}, "`tpaw_max_prompts` is 'many'"),
    (("tpaw_eta=0.5",), {}, "`tpaw_eta` is 0.5"),
    (("num_train_epochs=0",), {}, "`num_train_epochs=0` must be above 0. Correct the value."),
    (("sft.seed=1",), {}, "`sft.seed` is for the SFT file, which is written with `--sft` only."),
    (("sft.tpaw_eta=2",), {"sft": True}, "`sft.tpaw_eta`: stage `sft` has no such key."),
    (("output_dir=x",), {}, "`output_dir=x` is not to be set: `init` writes it. Give the folder of the runs"),
    (("hf_hub_token=hf_secret",), {}, "`hf_hub_token` is not written to a file."),
    (("tpaw_players=x",), {}, "They follow from `--model` and `--iterations`."),
    (("adapter_name_or_path=saves/a",), {}, "`--model` is theta_0, a whole model."),
]


@pytest.mark.parametrize(("overrides", "flags", "message"), PROBLEMS)
def test_refused(overrides: tuple[str, ...], flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*overrides, **flags)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1
    assert "hf_secret" not in str(caught.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read("seed", "tpaw_eto=1", name="a b", iterations=0, objectives="x")
    assert len(caught.value.problems) == 5


def test_run_files_that_lend_nothing(tmp_path: Path) -> None:
    for name, text in (("a.txt", ""), ("a.yaml", "stage: sft\n"), ("b.yaml", "a: [\n")):
        (tmp_path / name).write_text(text)
    for name, message in {
        "a.txt": "is no run file, but settings are taken from one of stage `tpaw`",
        "a.yaml": "is a run file of stage sft, but",
        "b.yaml": "cannot be read",
        "c.yaml": "does not exist",
    }.items():
        with pytest.raises(ConfigError, match=message):
            read(like=str(tmp_path / name))
