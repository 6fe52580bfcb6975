# SPDX-License-Identifier: Apache-2.0
"""The committed run files: they are what the code writes, LlamaFactory reads them, and they fit together."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.lf.given import read_given
from llamafactory_tpaw.runs import families
from llamafactory_tpaw.runs.run_files import (
    Family,
    Training,
    iteration_text,
    next_settings,
    own_round,
    run_files,
    split_numbered,
    write_project,
    yaml_line,
)


ROOT = Path(__file__).resolve().parents[3]
PATHS = sorted((ROOT / "yaml").glob("*.yaml"))
ITERATION_KEYS = {
    "model_name_or_path",
    "adapter_name_or_path",
    "tpaw_iteration",
    "tpaw_players",
    "tpaw_proto",
    "dataset",
    "output_dir",
}
SELF_PLAY = [(family, method) for family in families.FAMILIES for method in family.self_play]
SELF_PLAY_IDS = [f"{family.name}-{method}" for family, method in SELF_PLAY]

# Reads every run file as LlamaFactory does, up to the point where its checks would refuse a CPU. A process of its own,
# so that the stage is there whatever was imported before.
READ_ALL = """
import json, sys
from llamafactory_tpaw.hook import start
start.install()
from llamafactory.data.parser import get_dataset_list
from llamafactory.hparams.parser import _TRAIN_ARGS
from llamafactory_tpaw.arguments.start import Start
from llamafactory_tpaw.data.rounds import list_opponents
from llamafactory_tpaw.runs.plan import key_problems
from llamafactory_tpaw.team.players import list_players
from omegaconf import OmegaConf
from transformers import HfArgumentParser

results = {}
for path in sys.argv[1:]:
    keys = OmegaConf.to_container(OmegaConf.load(path))
    keys.pop("deepspeed", None)
    model, data, training, finetuning, generating = HfArgumentParser(_TRAIN_ARGS).parse_dict(
        keys | {"bf16": False, "use_cpu": True}
    )
    problems = []
    if finetuning.stage == "tpaw":
        problems = key_problems(keys)
        players = list_players(finetuning, Start.of(keys))
        opponents = list_opponents(finetuning, data.dataset, "data")
        assert [player.theta for player in players] == list(range(finetuning.tpaw_iteration + 1)), path
        assert opponents.rounds[-1].iteration == finetuning.tpaw_iteration and not opponents.ignored, path
    names = [*data.dataset, *filter(None, [getattr(finetuning, "tpaw_prompts", None)])]
    results[path] = {
        "keys": keys,
        "problems": problems,
        "stage": finetuning.stage,
        "learning_rate": training.learning_rate,
        "players": getattr(finetuning, "tpaw_players", None),
        "max_new_tokens": generating.max_new_tokens,
        "template": data.template,
        "datasets": {attr_name: vars(attr) for attr_name, attr in zip(names, get_dataset_list(names, "data"))},
    }
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def read_by_llamafactory() -> dict[str, dict[str, Any]]:
    """What LlamaFactory makes of every run file, by file name."""
    command = [sys.executable, "-c", READ_ALL, *map(str, PATHS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {Path(path).name: result for path, result in json.loads(done.stdout.splitlines()[-1]).items()}


def load(family: Family, run: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / family.path(run)).read_text(encoding="utf-8"))


def test_committed_files_are_what_the_code_writes() -> None:
    expected = families.committed_files()
    for name, text in expected.items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name} is stale: make run-files"
    assert {path.relative_to(ROOT).as_posix() for path in PATHS} == {
        name for name in expected if name.endswith("yaml")
    }


def test_the_promised_runs_exist() -> None:
    runs = {
        "qwen": ["sft", "dpo", *_rounds("tpaw", 5), *_rounds("spin", 4), *_rounds("tspin", 4)],
        "qwen_lora": _rounds("tpaw", 5),
        "qwen_gsm8k": ["sft", *_rounds("tpaw", 5), *_rounds("spin", 4), *_rounds("tspin", 4)],
        "llama": ["sft", "dpo", *_rounds("tpaw", 5)],
        "tiny": ["sft", "sft_more", *_rounds("tpaw", 3), *_rounds("spin", 3)],
    }
    names = {f"{family}_{run}.yaml" for family, family_runs in runs.items() for run in family_runs}
    assert {path.name for path in PATHS} == names


def _rounds(method: str, count: int) -> list[str]:
    return [f"{method}_iter{t}" for t in range(count)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_llamafactory_reads_the_file(path: Path, read_by_llamafactory: dict[str, dict[str, Any]]) -> None:
    read = read_by_llamafactory[path.name]
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    keys.pop("deepspeed", None)
    assert read["keys"] == keys, "OmegaConf and PyYAML read different types"
    assert read["problems"] == []
    assert read["stage"] == keys["stage"]
    assert read["learning_rate"] == keys["learning_rate"] > 0
    assert read["template"] == keys["template"]
    if keys["stage"] == "tpaw":
        assert read["players"] == keys["tpaw_players"].split(",")
        assert read["max_new_tokens"] == keys["max_new_tokens"] < keys["cutoff_len"]


def test_llamafactory_reads_the_datasets(read_by_llamafactory: dict[str, dict[str, Any]]) -> None:
    chat = read_by_llamafactory["qwen_sft.yaml"]["datasets"]["ultrachat_200k"]
    assert (chat["load_from"], chat["dataset_name"]) == ("hf_hub", "HuggingFaceH4/ultrachat_200k")
    assert (chat["split"], chat["formatting"], chat["messages"]) == ("train_sft", "sharegpt", "messages")
    assert (chat["role_tag"], chat["content_tag"], chat["assistant_tag"]) == ("role", "content", "assistant")
    maths = read_by_llamafactory["qwen_gsm8k_sft.yaml"]["datasets"]["gsm8k"]
    assert (maths["dataset_name"], maths["subset"], maths["split"]) == ("openai/gsm8k", "main", "train")
    assert (maths["prompt"], maths["response"], maths["query"]) == ("question", "answer", None)
    feedback = read_by_llamafactory["qwen_dpo.yaml"]["datasets"]["ultrafeedback"]
    assert feedback["dataset_name"] == "llamafactory/ultrafeedback_binarized"
    assert feedback["ranking"] is True
    assert (feedback["prompt"], feedback["chosen"], feedback["rejected"]) == ("instruction", "chosen", "rejected")
    triplets = read_by_llamafactory["qwen_tpaw_iter1.yaml"]["datasets"]["qwen_tpaw_iter1"]
    assert (triplets["load_from"], triplets["dataset_name"]) == ("file", "tpaw/qwen_tpaw_iter1.jsonl")
    assert triplets["ranking"] is True
    assert (triplets["messages"], triplets["system"], triplets["tools"]) == ("conversations", "system", "tools")
    assert (triplets["role_tag"], triplets["user_tag"], triplets["assistant_tag"]) == ("from", "human", "gpt")


@pytest.mark.parametrize(("family", "method"), SELF_PLAY, ids=SELF_PLAY_IDS)
def test_iterations_differ_only_in_what_an_iteration_changes(family: Family, method: str) -> None:
    runs = [load(family, f"{method}_iter{t}") for t in range(family.iterations[method])]
    fixed = [{key: value for key, value in run.items() if key not in ITERATION_KEYS} for run in runs]
    assert all(settings == fixed[0] for settings in fixed)


@pytest.mark.parametrize(("family", "method"), SELF_PLAY, ids=SELF_PLAY_IDS)
def test_iterations_follow_each_other(family: Family, method: str) -> None:
    players, outputs = [family.theta(method, 0)], []
    for t in range(family.iterations[method]):
        run = load(family, f"{method}_iter{t}")
        rounds = range(max(0, t + 1 - run["tpaw_team_size"]), t + 1)
        assert run["tpaw_iteration"] == t
        assert run["model_name_or_path"] == (players[0] if family.lora else players[-1])
        assert run.get("adapter_name_or_path") == (outputs[-1] if family.lora and t else None)
        assert run["tpaw_players"].split(",") == players
        assert run["dataset"].split(",") == [f"{family.name}_{method}_iter{r}" for r in rounds]
        assert run.get("tpaw_proto") == (f"{family.name}_tspin_iter0" if method == "tspin" and t > 0 else None)
        outputs.append(run["output_dir"])
        players.append(f"{players[0]}+{outputs[-1]}" if family.lora else outputs[-1])
    assert len(set(players)) == len(players)


def test_each_iteration_may_begin_an_adapter_upon_those_before() -> None:
    family = dataclasses.replace(families.QWEN_LORA, new_adapters=True)
    run = yaml.safe_load(iteration_text(family, "tpaw", 2))
    first, second = (f"saves/Qwen2.5-1.5B/lora/tpaw_iter{index}" for index in range(2))
    base = "saves/Qwen2.5-1.5B/full/sft"
    assert (run["model_name_or_path"], run["adapter_name_or_path"]) == (base, f"{first},{second}")
    assert run["tpaw_players"] == f"{base},{base}+{first},{base}+{first}+{second}"
    assert run["create_new_adapter"] is True


def test_no_two_runs_share_an_output_folder() -> None:
    folders = [yaml.safe_load(path.read_text(encoding="utf-8"))["output_dir"] for path in PATHS]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_file_it_names_is_there(path: Path) -> None:
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = json.loads((ROOT / "data" / "dataset_info.json").read_text(encoding="utf-8"))
    names = [*keys["dataset"].split(","), *(keys[key] for key in ("tpaw_prompts", "tpaw_proto") if key in keys)]
    assert set(names) <= set(known)
    if "deepspeed" in keys:
        settings = json.loads((ROOT / keys["deepspeed"]).read_text(encoding="utf-8"))
        assert settings["zero_optimization"]["stage"] == 3
        assert "FORCE_TORCHRUN=1 llamafactory-cli train" in path.read_text(encoding="utf-8").split("\n\n")[0]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_precision_and_device(path: Path) -> None:
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name.startswith("tiny_"):
        assert keys["use_cpu"] is True
        assert keys["default_system"] == ""
        assert "bf16" not in keys
    else:
        assert keys["bf16"] is True
        assert keys["flash_attn"] == "fa2"
        assert "use_cpu" not in keys


@pytest.mark.parametrize("path", [path for path in PATHS if "iter" in path.stem], ids=lambda path: path.stem)
def test_sampling_is_spelled_out(path: Path) -> None:
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (keys["temperature"], keys["top_p"], keys["top_k"]) == (1.0, 1.0, 0)
    theta_0 = keys["tpaw_players"].split(",")[0]
    (sft,) = (run for run in map(_read, PATHS) if run["output_dir"] == theta_0)
    assert keys["tpaw_prompts"] == sft["dataset"]
    assert "spin" not in path.stem or keys["tpaw_team_size"] == 1
    if "_spin_" in path.stem:
        assert (keys["tpaw_objective"], keys["tpaw_eta"], keys["tpaw_gamma"]) == ("tpaw", 1.0, 0.0)


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


VALUES = {
    "small": 5e-7,
    "exact": 1.23456789012e-5,
    "negative": -1.5e-3,
    "zero": 0.0,
    "large": 1e16,
    "huge": 180000000,
    "plain": 0.1,
    "word": "cosine",
    "path": "saves/Qwen2.5-1.5B/full/sft,./a/b",
    "switch": True,
    "empty": "",
    "number as text": "1e-3",
    "point": ".5",
    "infinite": ".inf",
    "switch in words": "on",
    "spaces": " a b ",
    "comment": "a # b: c",
    "lines": "first\nsecond\ttab",
    "quotes": "\"'\\{}[]&*!|>%@`",
    "emoji": "😀 é 数据",
    "invisible": "a\x7fb\x85c\u2028d\ufeffe",
    "interpolation": "${oc.env:HOME}",
    "list": ["a", 1, 2.5],
    "mapping": {"a": {"b": [True, None]}},
}


def test_values_come_back_from_both_readers(tmp_path: Path) -> None:
    text = "".join(f"{yaml_line(key, value)}\n" for key, value in VALUES.items())
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    assert read_given([str(tmp_path / "run.yaml")]) == VALUES == yaml.safe_load(text)
    numbers = {1e-3: "1.0e-3", 5e-07: "5.0e-7", 0.05: "0.05", 1e20: "1.0e+20", 6.0: "6.0"}
    assert [yaml_line("key", value) for value in numbers] == [f"key: {text}" for text in numbers.values()]
    assert yaml_line("key", "on", "why") == 'key: "on"  # why'


def test_a_family_of_ones_own() -> None:
    family = _small_family(team_size=2, eta=4.0, engine="hf")
    files = run_files(family)
    assert sorted(files) == [f"yaml/mine_{run}.yaml" for run in ("sft", "tpaw_iter0", "tpaw_iter1", "tpaw_iter2")]
    last = yaml.safe_load(files["yaml/mine_tpaw_iter2.yaml"])
    assert last["dataset"] == "mine_tpaw_iter1,mine_tpaw_iter2"
    assert last["tpaw_players"] == "out/sft,out/tpaw_iter0,out/tpaw_iter1"
    assert (last["tpaw_team_size"], last["tpaw_eta"]) == (2, 4.0)
    assert "# theta_0, theta_1, theta_2; the newest 2 play" in files["yaml/mine_tpaw_iter2.yaml"]


def test_keys_of_the_engine_stand_behind_it() -> None:
    keys = {"tpaw_engine_url": "http://a:8000/v1,http://b:8000/v1", "tpaw_engine_model": "mine"}
    text = iteration_text(_small_family(engine="openai", engine_keys=keys), "tpaw", 0)
    lines = text.splitlines()
    start = lines.index("tpaw_engine: openai")
    url = 'tpaw_engine_url: "http://a:8000/v1,http://b:8000/v1"'
    assert lines[start + 1] == f"{url}  # where theta_0 is served"
    assert lines[start + 2 : start + 4] == ["tpaw_engine_model: mine", "temperature: 1.0"]
    assert "tpaw_engine_url" not in iteration_text(_small_family(), "tpaw", 0)
    keys["tpaw_opponent_model"] = "other"
    assert f"{url}\n" in iteration_text(_small_family(engine="openai", engine_keys=keys), "tpaw", 0)


def _small_family(**settings: Any) -> Family:
    training = Training(1e-5, 1.0, 4)
    fixed = {"name": "mine", "model": "my/model", "template": "qwen", "sft_data": "my_set", "saves": "out"}
    runs = {"sft": training, "self_play": {"tpaw": training}, "iterations": {"tpaw": 3}}
    return Family(**fixed, **runs, **settings)


ABLATION = dataclasses.replace(
    families.TINY,
    name="tiny_no_trw",
    run_prefix="tiny_no_trw_",
    theta_0="saves/Tiny/full/sft",
    first_triplets="tiny_tpaw_iter0",
    eta=1.0,
)


def settings_of(family: Family, method: str, iteration: int) -> dict[str, Any]:
    return yaml.safe_load(iteration_text(family, method, iteration))


@pytest.mark.parametrize(
    ("family", "method"), [*SELF_PLAY, (ABLATION, "tpaw")], ids=[*SELF_PLAY_IDS, "tiny_no_trw-tpaw"]
)
def test_every_iteration_follows_from_the_first(family: Family, method: str) -> None:
    settings = settings_of(family, method, 0)
    for iteration in range(1, family.iterations[method]):
        settings = next_settings(settings)
        assert settings == settings_of(family, method, iteration)
    assert iteration > 0


def test_other_sets_stay_and_old_rounds_go() -> None:
    settings = settings_of(families.TINY, "tpaw", 2) | {
        "dataset": ["other", "tiny_tpaw_iter0", "tiny_tpaw_iter1", "tiny_tpaw_iter2", "more"],
        "resume_from_checkpoint": "saves/Tiny/full/tpaw_iter2/checkpoint-10",
    }
    following = next_settings(settings)
    assert following["dataset"] == "other,tiny_tpaw_iter1,tiny_tpaw_iter2,tiny_tpaw_iter3,more"
    assert "resume_from_checkpoint" not in following
    first = settings_of(families.TINY, "tpaw", 0) | {"dataset": "sampled"}
    assert (own_round(first), next_settings(first)["dataset"]) == ("sampled", "sampled,tpaw_iter1")
    del first["tpaw_players"]
    assert next_settings(first)["tpaw_players"] == "saves/Tiny/full/sft,saves/Tiny/full/tpaw_iter0"


def test_what_cannot_be_counted_on_is_refused() -> None:
    settings = settings_of(families.TINY, "tpaw", 1)
    for change, message in (
        ({"output_dir": "saves/mine"}, "`output_dir: saves/mine` does not end with `_iter1`"),
        ({"dataset": ""}, "`dataset` is missing"),
        ({"tpaw_team_size": "many"}, "`tpaw_team_size`"),
    ):
        with pytest.raises(ConfigError, match=message):
            next_settings(settings | change)
    parts = {"tpaw_iter2": ("tpaw", 2), "a_iter1_iter10": ("a_iter1", 10), "_iter1": None, "x": None}
    assert {name: split_numbered(name) for name in parts} == parts


def test_writing_keeps_what_is_there(tmp_path: Path) -> None:
    """What is there keeps every byte, also the layout of entries; other content needs `force`."""
    (tmp_path / "data").mkdir()
    info = tmp_path / "data" / "dataset_info.json"
    info.write_text('{"mine":   {"file_name": "a.json"}}\n')
    first = {"yaml/a_tpaw_iter0.yaml": "x: 1\n", "yaml/a_tpaw_iter1.yaml": "x: 2\n"}
    written = write_project(tmp_path, "data", first, {"new": {"file_name": "b.json"}})
    assert (written.new, written.entries) == (list(first), ["new"])
    assert info.read_text().startswith('{"mine":   {"file_name": "a.json"},')
    assert list(json.loads(info.read_text())) == ["mine", "new"]
    assert write_project(tmp_path, "data", first, {}).same == list(first)
    (tmp_path / "yaml" / "a_b_tpaw_iter0.yaml").write_text("another family")
    changed = {"yaml/a_tpaw_iter0.yaml": "x: 3\n"}
    with pytest.raises(ConfigError, match=r"a_tpaw_iter0\.yaml, entry `new` of .* would be overwritten"):
        write_project(tmp_path, "data", changed, {"new": {}})
    assert (tmp_path / "yaml" / "a_tpaw_iter0.yaml").read_text() == "x: 1\n"
    written = write_project(tmp_path, "data", changed, {}, force=True, family="a")
    assert (written.replaced, written.removed) == (list(changed), ["yaml/a_tpaw_iter1.yaml"])
    assert {path.name for path in (tmp_path / "yaml").iterdir()} == {"a_tpaw_iter0.yaml", "a_b_tpaw_iter0.yaml"}
