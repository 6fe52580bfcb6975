# SPDX-License-Identifier: Apache-2.0
"""`init` for a model and data as a user has them: what it finds out, writes and refuses."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_tpaw import cli
from llamafactory_tpaw.runs.plan import make_plan
from llamafactory_tpaw.runs.scaffold import machine
from llamafactory_tpaw.runs.scaffold.machine import Machine
from tests.runs import ADDITIONS


pytestmark = pytest.mark.integration
GPU = Machine(2, "Some GPU", 80 * 1024**3, True, True)


@pytest.fixture(autouse=True)
def _quiet_and_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import datasets
    import transformers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "ERROR")
    level = logging.getLogger("llamafactory").level
    yield
    logging.getLogger("llamafactory").setLevel(level)
    transformers.utils.logging.set_verbosity_warning()
    datasets.enable_progress_bars()


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "additions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ADDITIONS))
    return path.name


def run_file(run: str) -> dict[str, Any]:
    return yaml.safe_load(Path(f"yaml/{run}.yaml").read_text(encoding="utf-8"))


def init(*arguments: object) -> int:
    return cli.main(["init", *map(str, arguments)])


def test_a_run_for_gsm8k(gsm8k: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Model and data are all that is given; the files pass the stage's own checks and LlamaFactory's parser."""
    from llamafactory_tpaw.arguments.parsed import parse_single_process

    arguments = ["--model", tiny_model, "--data", gsm8k / "train.jsonl", "--name", "mine", "--iterations", "3"]
    assert init(*arguments, "--ablate", "trw,mpw,team", "--objective", "tpaw,tspin") == 0
    printed = capsys.readouterr().out
    assert "qwen: by model type qwen2 and the special tokens" in printed
    assert "7473 rows; prompt = `question`, response = `answer`" in printed
    assert "llamafactory-tpaw run yaml/mine_tpaw_iter{0..2}.yaml" in printed
    families = ("mine_tpaw", "mine_tspin", "mine_no_trw_tpaw", "mine_no_mpw_tpaw", "mine_no_team_tpaw")
    runs = {f"{name}_iter{t}" for name in families for t in range(3)}
    assert {path.stem for path in Path("yaml").iterdir()} == runs
    for run in sorted(runs):
        given = run_file(run)
        expected = [Path(given["output_dir"]).with_name(run.rpartition("iter")[0] + f"iter{t}") for t in range(2)]
        triplets = [Path(f"data/tpaw/{name}.jsonl").resolve() for name in runs]
        plan = make_plan(given, {*(path.resolve() for path in expected), *triplets})
        assert plan.players[0].path == str(tiny_model)
        parsed = parse_single_process(given)
        assert parsed.finetuning.stage == "tpaw"
        assert parsed.data.cutoff_len == given["cutoff_len"] == 1024
        assert given["use_cpu"] is True
    rounds = {name: run_file(f"{name}_iter1")["dataset"] for name in families}
    assert rounds["mine_no_trw_tpaw"] == "mine_tpaw_iter0,mine_no_trw_tpaw_iter1"
    assert rounds["mine_no_team_tpaw"] == "mine_no_team_tpaw_iter1"
    settings = {part: run_file(f"mine_no_{part}_tpaw_iter1") for part in ("trw", "mpw", "team")}
    changed = {part: (run["tpaw_eta"], run["tpaw_gamma"], run["tpaw_team_size"]) for part, run in settings.items()}
    assert changed == {"trw": (1.0, 0.5, 3), "mpw": (6.0, 0.0, 3), "team": (6.0, 0.5, 1)}
    assert init(*arguments) == 0
    assert "everything is there already" in capsys.readouterr().out


def test_an_engine_of_ones_own(data: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", tiny_model, "--data", data, "--name", "mine", "--iterations", "1", "--engine", "openai"]
    assert init(*arguments) == 2
    assert "`tpaw_engine: openai` needs `tpaw_engine_url`" in capsys.readouterr().err
    assert not Path("yaml").exists()
    assert init(*arguments, "--engine-url", "http://a:8000/v1", "tpaw_engine_concurrency=32") == 0
    assert f"iter0.yaml  # while the servers have {tiny_model}" in capsys.readouterr().out
    given = run_file("mine_tpaw_iter0")
    chosen = {key: value for key, value in given.items() if key.startswith("tpaw_engine")}
    url = {"tpaw_engine": "openai", "tpaw_engine_url": "http://a:8000/v1", "tpaw_engine_concurrency": 32}
    assert chosen == url


def test_a_base_model_gets_its_sft_file(data: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_model, "base")
    changes = ("sft.num_train_epochs=7", "seed=5", "tpaw_eta=4", "logging_steps=1", "num_train_epochs=1")
    assert init("--model", "base", "--data", data, "--sft", "--name", "mine", "--iterations", 1, *changes) == 0
    sft, first = run_file("mine_sft"), run_file("mine_tpaw_iter0")
    assert (sft["model_name_or_path"], sft["stage"], sft["dataset"]) == ("base", "sft", "additions")
    assert first["model_name_or_path"] == first["tpaw_players"] == sft["output_dir"] == "saves/Custom/full/mine_sft"
    assert (sft["num_train_epochs"], first["num_train_epochs"]) == (7, 1)
    assert sft["seed"] == first["seed"] == 5
    assert sft["logging_steps"] == first["logging_steps"] == 1
    assert first["tpaw_eta"] == 4.0
    assert not [key for key in sft if key.startswith("tpaw_")]
    assert "llamafactory-cli train yaml/mine_sft.yaml" in capsys.readouterr().out


def test_on_a_machine_with_accelerators(
    data: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llamafactory_tpaw.runs.scaffold import project

    monkeypatch.setattr(project, "look_at_machine", lambda: GPU)
    assert init("--model", tiny_model, "--data", data, "--name", "mine", "--iterations", 2) == 0
    run = run_file("mine_tpaw_iter1")
    assert (run["bf16"], run["flash_attn"]) == (True, "fa2")
    assert "use_cpu" not in run
    printed = capsys.readouterr().out
    assert "llamafactory-tpaw run yaml/mine_tpaw_iter{0..1}.yaml" in printed
    assert "CUDA_VISIBLE_DEVICES" not in printed
    assert init("--model", tiny_model, "--data", data, "--name", "other", "--iterations", 1, "use_cpu=true") == 0
    assert "bf16" not in run_file("other_tpaw_iter0")


@pytest.mark.parametrize("ending", [".json", ".csv", ".parquet"])
def test_files_of_other_formats(ending: str, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / f"sums{ending}"
    if ending == ".json":
        path.write_text(json.dumps(ADDITIONS))
    elif ending == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["question", "answer"])
            writer.writeheader()
            writer.writerows(ADDITIONS)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ADDITIONS), path)
    assert init("--model", tiny_model, "--data", path, "--name", "mine", "--iterations", 1) == 0
    info = json.loads(Path("data/dataset_info.json").read_text())
    assert info["sums"] == {"file_name": f"../sums{ending}", "columns": {"prompt": "question", "response": "answer"}}
    assert run_file("mine_tpaw_iter0")["tpaw_prompts"] == "sums"


def test_settings_of_another_run(data: str, tiny_model: Path) -> None:
    assert init("--model", tiny_model, "--data", data, "--name", "a", "--iterations", 2, "optim=sgd") == 0
    like = ["--like", "yaml/a_tpaw_iter1.yaml", "--name", "b", "--iterations", 2]
    assert init(*like, "tpaw_eta=2") == 0
    first, second = (Path(f"yaml/{name}_tpaw_iter1.yaml").read_text() for name in "ab")
    keys = yaml.safe_load(second)
    assert keys.pop("tpaw_eta") == 2.0
    assert keys == {
        key: value for key, value in yaml.safe_load(first.replace("a_tpaw", "b_tpaw")).items() if key in keys
    }
    assert keys["optim"] == "sgd"


@pytest.mark.parametrize(
    ("given", "limits"),
    [({}, (128, 64)), ({"cutoff_len": 100}, (100, 50)), ({"max_new_tokens": 200}, (256, 200))],
)
def test_a_limit_that_is_given_moves_the_other(
    given: dict[str, int], limits: tuple[int, int], data: str, tiny_model: Path
) -> None:
    words = [f"{key}={value}" for key, value in given.items()]
    assert init("--model", tiny_model, "--data", data, "--name", "mine", "--iterations", 1, *words) == 0
    run = run_file("mine_tpaw_iter0")
    assert (run["cutoff_len"], run["max_new_tokens"]) == limits


def test_a_folder_elsewhere(data: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is given is found from here, and what is written from there."""
    shutil.copytree(tiny_model, "new/place/sft")
    arguments = ("--model", "new/place/sft", "--folder", "new/place", "--name", "mine", "--iterations", 1)
    assert init(*arguments, "--data", data) == 0
    assert "cd new/place" in capsys.readouterr().out
    run = yaml.safe_load(Path("new/place/yaml/mine_tpaw_iter0.yaml").read_text())
    assert run["model_name_or_path"] == "sft"
    info = json.loads(Path("new/place/data/dataset_info.json").read_text())
    assert Path(info["additions"]["file_name"]) == Path(data).resolve()
    assert init(*arguments, "--data", "additions") == 0
    assert "everything is there already" in capsys.readouterr().out


def test_more_iterations_are_added(data: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", tiny_model, "--data", data, "--name", "mine")
    assert init(*arguments, "--iterations", 1) == 0
    assert init(*arguments, "--iterations", 3) == 0
    assert "(1 more there already, with the same content)" in capsys.readouterr().out
    assert len(list(Path("yaml").iterdir())) == 3


def test_bad_rows_are_counted_and_allowed(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ADDITIONS[:5], {"question": "empty", "answer": ""}, *ADDITIONS[5:]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert init("--model", tiny_model, "--data", "a.jsonl", "--name", "mine", "--iterations", 1) == 0
    assert run_file("mine_tpaw_iter0")["tpaw_max_bad_rows"] == 1
    assert "1 of them cannot be used and are dropped. First: row 6, because its response is empty." in (
        capsys.readouterr().out
    )


def test_what_is_refused(data: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its exit code and a message to act on, and nothing written."""
    for name, text in {
        "columns.jsonl": '{"a": "b"}\n',
        "empty.jsonl": "\n",
        "torn.jsonl": '{"prompt": "a", "response": "b"}\n{"pro',
        "list.json": '["a"]',
        "notes.txt": "a",
        "silent.jsonl": '{"prompt": "a", "response": ""}\n',
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "nothing").mkdir()
    shutil.copytree(tiny_model, "untokened", ignore=shutil.ignore_patterns("token*"))
    model = ["--model", tiny_model]
    cases: list[tuple[list[Any], int, str]] = [
        ([*model, "--data", "columns.jsonl"], 3, "columns.jsonl has the columns `a`. init finds its way by"),
        ([*model, "--data", "empty.jsonl"], 3, "empty.jsonl has no rows. Give an SFT set with at least one row."),
        ([*model, "--data", "torn.jsonl"], 3, "torn.jsonl, row 2 is not valid JSON"),
        ([*model, "--data", "list.json"], 3, "list.json, row 1 must be a JSON object in braces, got str"),
        ([*model, "--data", "silent.jsonl"], 3, "`tpaw_prompts: silent` has no usable row."),
        ([*model, "--data", "notes.txt"], 2, "`--data notes.txt` must end in .json, .jsonl, .csv, .parquet"),
        ([*model, "--data", "gsm8k"], 2, "`--data gsm8k` is neither a file nor an entry of data/dataset_info.json"),
        (["--model", "absent/model/here", "--data", data], 3, "absent/model/here does not exist."),
        (["--model", "nothing", "--data", data], 3, "nothing/config.json"),
        (["--model", "adapter", "--data", data], 2, "`--model adapter` is an adapter"),
        (["--model", "untokened", "--data", data], 3, "untokened holds no tokenizer. Save"),
        (["--model", "no-one/no-model", "--data", data], 3, "It is no folder here, so it was looked for on the hub"),
        ([*model, "--data", data, "--template", "qwn"], 2, "Did you mean `qwen`?"),
        ([*model, "--data", data, "cutoff_len=4096"], 2, "is more than the 2048 positions of"),
        ([*model, "--data", data, "--cutoff-len", 64, "--max-new-tokens", 64], 2, "below `cutoff_len: 64`"),
        ([*model, "--data", data, "--cutoff-len", 8], 2, "`cutoff_len: 8` leaves no room for a response in "),
        ([*model, "--data", data, "packing=true"], 2, "`packing: True` does not go with stage `tpaw`"),
    ]
    for arguments, code, message in cases:
        assert init(*arguments) == code, arguments
        assert message in capsys.readouterr().err, arguments
    assert not Path("yaml").exists()
    assert not Path("data").exists()
    assert init("--model", "nothing", "--data", "columns.jsonl") == 3
    assert len(capsys.readouterr().err.splitlines()) >= 2


def test_existing_files_are_kept(data: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", tiny_model, "--data", data, "--name", "mine", "--iterations", 2]
    assert init(*arguments) == 0
    before = {path: path.read_text() for path in Path("yaml").iterdir()}
    assert init(*arguments, "--learning-rate", "1e-6") == 2
    message = capsys.readouterr().err
    assert "2 things would be overwritten" in message
    assert all(str(path) in message for path in before)
    assert {path: path.read_text() for path in Path("yaml").iterdir()} == before
    assert init(*arguments, "--learning-rate", "1e-6", "--force") == 0
    assert run_file("mine_tpaw_iter0")["learning_rate"] == 1e-6


def test_batches_fit_the_machine() -> None:
    class Config:
        num_hidden_layers, hidden_size = 28, 1536

    for tokens, batch in ((512, 16), (2048, 4), (32768, 1)):
        sizes = machine.batch_sizes(GPU, {"cutoff_len": tokens}, Config, 1_500_000_000, 50_000, 2)
        assert sizes == (batch, 64 // GPU.devices // batch)
    assert machine.batch_sizes(GPU, {"cutoff_len": 512}, Config, 1_500_000_000, 500, 2) == (4, 1)
    assert machine.batch_sizes(GPU, {"cutoff_len": 2048}, Config, 4_270_000_000, 50_000, 2) == (1, 32)
