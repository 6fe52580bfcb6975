# SPDX-License-Identifier: Apache-2.0
"""`init` for a model and data as a user has them: what it finds out, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from llamafactory_tpaw import cli
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.runs.init import choose_template
from llamafactory_tpaw.runs.plan import make_plan
from tests import tiny
from tests.runs import ADDITIONS


pytestmark = pytest.mark.integration
QWEN_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
QWEN_TURNS += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(autouse=True)
def _quiet_and_away(logs_as_before: None, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "ERROR")


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "additions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ADDITIONS))
    return path.name


def run_file(run: str) -> dict[str, Any]:
    return yaml.safe_load(Path(f"yaml/{run}.yaml").read_text(encoding="utf-8"))


def init(*arguments: object) -> int:
    return cli.main(["init", "--name", "mine", "--template", "qwen", *map(str, arguments)])


def test_a_run_for_gsm8k(gsm8k: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files pass the stage's own checks and LlamaFactory's parser."""
    from llamafactory_tpaw.arguments.parsed import parse_single_process

    arguments = ["--model", tiny_model, "--data", gsm8k / "train.jsonl", "--iterations", "3"]
    changes = ("--ablate", "trw,mpw,team", "--objective", "tpaw,spin,tspin", "tpaw_reward_scale=1", "tpaw_eta=4")
    assert init(*arguments, *changes) == 0
    printed = capsys.readouterr().out
    assert "7473 rows; prompt = `question`, response = `answer`" in printed
    assert "llamafactory-tpaw run yaml/mine_tpaw_iter0.yaml yaml/mine_tpaw_iter1.yaml" in printed
    families = ("tpaw", "spin", "tspin", "no_trw_tpaw", "no_mpw_tpaw", "no_team_tpaw")
    runs = {f"mine_{name}_iter{t}" for name in families for t in range(3)}
    assert {path.stem for path in Path("yaml").iterdir()} == runs
    for run in sorted(runs):
        given = run_file(run)
        expected = [Path(given["output_dir"]).with_name(run.rpartition("iter")[0] + f"iter{t}") for t in range(2)]
        triplets = [Path(f"data/tpaw/{name}.jsonl").resolve() for name in runs]
        plan = make_plan(given, {*(path.resolve() for path in expected), *triplets})
        assert plan.players[0].path == str(tiny_model)
    parsed = parse_single_process(given)
    assert parsed.data.cutoff_len == given["cutoff_len"] <= 2048
    assert (given["use_cpu"], given["logging_steps"], given["tpaw_prompts"]) == (True, 10, "train")
    assert given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] == 64
    assert run_file("mine_no_trw_tpaw_iter1")["dataset"] == "mine_tpaw_iter0,mine_no_trw_tpaw_iter1"
    keys = ("tpaw_reward_scale", "tpaw_eta", "tpaw_gamma", "tpaw_team_size")
    settings = {name: tuple(map(run_file(f"mine_{name}_iter1").get, keys)) for name in families}
    expected = (
        (1, 4, 0.5, 3),
        (1, 1.0, 0.0, 1),
        (None, None, None, 1),
        (1, 1.0, 0.5, 3),
        (1, 4, 0.0, 3),
        (1, 4, 0.5, 1),
    )
    assert settings == dict(zip(families, expected, strict=True))


def test_a_base_model_gets_its_sft_file(data: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_model, "base")
    changes = ("sft.num_train_epochs=7", "seed=5", "num_train_epochs=1")
    adapters = ("finetuning_type=lora", "lora_rank=4")
    assert init("--model", "base", "--data", data, "--sft", "--iterations", 2, *changes, *adapters) == 0
    sft, first, second = map(run_file, ("mine_sft", "mine_tpaw_iter0", "mine_tpaw_iter1"))
    assert (sft["model_name_or_path"], sft["stage"], sft["do_train"]) == ("base", "sft", True)
    assert sft["dataset"] == "additions"
    theta_0 = "saves/Custom/full/mine_sft"
    assert first["model_name_or_path"] == first["tpaw_players"] == sft["output_dir"] == theta_0
    assert (sft["num_train_epochs"], first["num_train_epochs"], sft["finetuning_type"]) == (7, 1, "full")
    assert sft["seed"] == first["seed"] == 5
    assert first["logging_steps"] == 1
    assert all(run["per_device_train_batch_size"] * run["gradient_accumulation_steps"] == 8 for run in (sft, first))
    assert not [key for key in sft if key.startswith(("tpaw_", "lora_"))]
    assert "llamafactory-cli train yaml/mine_sft.yaml" in capsys.readouterr().out
    assert (second["lora_rank"], second["adapter_name_or_path"]) == (4, "saves/Custom/lora/mine_tpaw_iter0")
    assert second["tpaw_players"] == f"{theta_0},{theta_0}+saves/Custom/lora/mine_tpaw_iter0"


def test_few_steps_are_logged_and_learn(data: str, tiny_model: Path) -> None:
    arguments = ("--model", tiny_model, "--data", data, "--iterations", 1, "--batch-size", 8)
    for epochs, steps, points, warm_up in ((1, 1, 1, 0.0), (3, 6, 6, 0.1), (25, 50, 25, 0.1)):
        assert init(*arguments, "--epochs", epochs, "--max-prompts", 5 if steps == 1 else 16, "--force") == 0
        run = run_file("mine_tpaw_iter0")
        assert (steps // run["logging_steps"], run["warmup_ratio"]) == (points, warm_up)


def test_a_family_is_kept_continued_and_replaced(
    data: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text('{"mine": {"file_name": "a.json"}}')
    arguments = ("--model", tiny_model, "--data", data)
    assert init(*arguments, "--iterations", 1) == 0
    assert init(*arguments, "--iterations", 3) == 0
    assert "mine_tpaw_iter0.yaml (as it was)" in capsys.readouterr().out
    before = {path: path.read_text() for path in Path("yaml").iterdir()}
    assert init(*arguments, "--iterations", 2, "--learning-rate", "1e-6") == 2
    assert "mine_tpaw_iter0.yaml, yaml/mine_tpaw_iter1.yaml would be overwritten" in capsys.readouterr().err
    assert {path: path.read_text() for path in Path("yaml").iterdir()} == before
    Path("yaml/mine_b_tpaw_iter2.yaml").write_text("another family's")
    assert init(*arguments, "--iterations", 2, "--learning-rate", "1e-6", "--force") == 0
    assert "yaml/mine_tpaw_iter2.yaml (removed" in capsys.readouterr().out
    assert run_file("mine_tpaw_iter0")["learning_rate"] == 1e-6
    assert len(list(Path("yaml").iterdir())) == 3
    assert json.loads(Path("data/dataset_info.json").read_text())["mine"] == {"file_name": "a.json"}
    like = ["--like", "yaml/mine_tpaw_iter1.yaml", "--name", "b", "--iterations", 2, "tpaw_eta=2"]
    assert init(*like) == 0
    other = run_file("b_tpaw_iter1")
    assert (other.pop("tpaw_eta"), other["learning_rate"]) == (2, 1e-6)
    text = Path("yaml/mine_tpaw_iter1.yaml").read_text().replace("mine_tpaw", "b_tpaw")
    assert other == {key: value for key, value in yaml.safe_load(text).items() if key != "tpaw_eta"}


def test_formats_folders_and_engines(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import Dataset

    Path("array.json").write_text(json.dumps(ADDITIONS))
    Dataset.from_list([*ADDITIONS[:5], {"question": "empty", "answer": "None"}, *ADDITIONS[5:]]).to_csv("sums.csv")
    Dataset.from_list(ADDITIONS).to_parquet("table.parquet")
    shutil.copytree(tiny_model, "new/place/sft")
    for file in ("array.json", "sums.csv", "table.parquet"):
        name, folder = Path(file).stem, ("--model", "new/place/sft", "--folder", "new/place", "--iterations", 1)
        assert init(*folder, "--name", name, "--data", file) == 0
    printed = capsys.readouterr().out
    assert "cd new/place" in printed
    assert "1 of 17 rows cannot be used, the first is row 6 with an empty cell, which in CSV None, NA," in printed
    runs = [yaml.safe_load(Path(f"new/place/yaml/{name}_tpaw_iter0.yaml").read_text()) for name in ("array", "sums")]
    assert [run["model_name_or_path"] for run in runs] == ["sft", "sft"]
    assert [run.get("tpaw_max_bad_rows") for run in runs] == [None, 1]
    info = json.loads(Path("new/place/data/dataset_info.json").read_text())
    assert Path(info["sums"]["file_name"]) == Path("sums.csv").resolve()
    servers = ("--engine", "openai", "--engine-url", "http://a:8000/v1")
    assert init("--model", tiny_model, "--data", "array.json", "--iterations", 1, *servers) == 0
    assert f"iter0.yaml  # while the servers have {tiny_model}" in capsys.readouterr().out
    assert run_file("mine_tpaw_iter0")["tpaw_engine_url"] == "http://a:8000/v1"


def test_what_is_refused(data: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its exit code and a message to act on, and nothing written."""
    Path("torn.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"pro')
    Path("silent.jsonl").write_text('{"prompt": "a", "response": ""}\n')
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    shutil.copytree(tiny_model, "untokened", ignore=shutil.ignore_patterns("token*"))
    model = ["--model", tiny_model]
    cases: list[tuple[list[Any], int, str]] = [
        ([*model, "--data", "torn.jsonl"], 3, "torn.jsonl, row 2 is not valid JSON"),
        ([*model, "--data", "silent.jsonl"], 3, "1 of 1 rows of silent cannot be used, the first is row 1:"),
        ([*model, "--data", "gsm8k"], 2, "`--data gsm8k` is neither a file nor an entry of data/dataset_info.json"),
        (["--model", "absent/model/here", "--data", "torn.jsonl"], 3, "absent/model/here does not exist."),
        (["--model", "adapter", "--data", data], 3, "adapter is an adapter"),
        (["--model", "untokened", "--data", data], 3, "untokened holds no tokenizer."),
        (["--model", "no-one/no-model", "--data", data], 3, "the tokenizer in no-one/no-model cannot be loaded"),
        ([*model, "--data", data, "--template", "qwn"], 2, "Did you mean `qwen`?"),
        ([*model, "--data", data, "cutoff_len=4096"], 2, "the model has 2048 positions"),
        ([*model, "--data", data, "--cutoff-len", 64, "--max-new-tokens", 64], 2, "`cutoff_len: 64` and `max_new_tok"),
        ([*model, "--data", data, "packing=true"], 2, "`packing: True` does not go with stage `tpaw`"),
        ([*model, "--data", data, "output_dir=a", "tpaw_etta=1"], 2, "`output_dir=a` is written by `init` itself"),
        ([*model, "--data", data, "--ablate", "all", "--name", "a b"], 2, "`--ablate all` takes trw, mpw, team"),
        ([*model, "--data", data, "sft.num_train_epochs=3"], 2, "Add `--sft`, or leave the prefix out"),
    ]
    for arguments, code, message in cases:
        assert init(*arguments) == code, arguments
        assert message in capsys.readouterr().err, arguments
    assert not Path("yaml").exists()
    assert not Path("data").exists()
    assert init("--data", data, "--objective", "dpo", "--iterations", 0) == 2
    assert len(capsys.readouterr().err.splitlines()) >= 3


def test_templates_are_listed_or_read_from_the_chat_template() -> None:
    tokenizer: PreTrainedTokenizerFast = tiny.build_tokenizer()
    assert choose_template("qwen", tokenizer, None) == ("qwen", "as given")
    for known, name in (("Qwen2.5-1.5B", "qwen"), ("Llama-3.1-8B-Instruct", "llama3"), ("Qwen3-1.7B-Base", "qwen3")):
        assert choose_template(None, tokenizer, known) == (name, f"LlamaFactory lists it for {known}")
    with pytest.raises(ConfigError, match="The template cannot be told"):
        choose_template(None, tokenizer, None)
    with pytest.raises(ConfigError, match="needs the tokens"):
        choose_template("gemma", tokenizer, None)
    tokenizer.chat_template = QWEN_TURNS
    assert choose_template(None, tokenizer, None)[1] == "it writes turns as the tokenizer's chat template does"
