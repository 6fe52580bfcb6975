# SPDX-License-Identifier: Apache-2.0
"""The committed run files follow from one another and LlamaFactory reads them; what is written is read as it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import HfArgumentParser

from llamafactory_tpaw.arguments.start import Start
from llamafactory_tpaw.data.rounds import list_opponents
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.lf import facade
from llamafactory_tpaw.lf.given import read_given
from llamafactory_tpaw.runs.plan import key_problems
from llamafactory_tpaw.runs.run_files import next_settings, own_round, path_of, render, split_numbered
from llamafactory_tpaw.team.players import list_players


ROOT = Path(__file__).resolve().parents[3]
PATHS = sorted((ROOT / "yaml").glob("*.yaml"))
FILES = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in PATHS}
ITERATIONS = {name: split_numbered(name) for name in FILES if split_numbered(name)[1] is not None}
TINY = [FILES[f"tiny_tpaw_iter{t}"] for t in range(3)]


@pytest.mark.parametrize("name", FILES)
def test_llamafactory_reads_the_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the point where its checks would refuse a CPU."""
    monkeypatch.chdir(ROOT)
    keys = read_given([f"yaml/{name}.yaml"])
    assert keys == FILES[name], "OmegaConf and PyYAML read different values"
    here = {key: value for key, value in keys.items() if key != "deepspeed"} | {"bf16": False, "use_cpu": True}
    _, data, training, finetuning, _ = HfArgumentParser(facade.TRAIN_ARGS).parse_dict(here)
    assert training.learning_rate == keys["learning_rate"] > 0
    names = [*data.dataset, *filter(None, [finetuning.tpaw_prompts, finetuning.tpaw_proto])]
    assert len(facade.get_dataset_list(names, "data")) == len(names)
    if finetuning.stage == "tpaw":
        assert key_problems(keys) == []
        opponents = list_opponents(finetuning, data.dataset, "data")
        assert (opponents.rounds[-1].iteration, opponents.ignored) == (finetuning.tpaw_iteration, [])
        thetas = [player.theta for player in list_players(finetuning, Start.of(keys))]
        assert thetas == [*range(finetuning.tpaw_iteration + 1)]


@pytest.mark.parametrize("name", ITERATIONS)
def test_each_iteration_follows_from_the_one_before(name: str) -> None:
    (run, t), settings = ITERATIONS[name], FILES[name]
    text = (ROOT / "yaml" / f"{name}.yaml").read_text(encoding="utf-8")
    assert re.search(rf"iteration {t}: theta_{t} plays, theta_{t + 1} comes out. Samples D_{t} first", text)
    if t:
        assert settings == next_settings(FILES[f"{run}_iter{t - 1}"])


VALUES = {
    "numbers": [5e-7, 1.23456789012e-5, -1.5e-3, 0.0, 1e16, 180000000, 0.1],
    "small": 5e-7,
    "texts of numbers": ["1e-3", ".5", ".inf"],
    "number as text": "1e-3",
    "switches": [True, "on", ""],
    "path": "saves/Qwen2.5-1.5B/full/sft,./a/b",
    "long": "word " * 40 + "end",
    "comment": " a # b: c ",
    "lines": "first\nsecond\ttab",
    "quotes": "\"'\\{}[]&*!|>%@`",
    "unusual": "😀 é 数据 a\x7fb\x85c\u2028d\ufeffe",
    "interpolation": "${oc.env:HOME}",
    "mapping": {"a": {"b": [True, None]}},
}


def test_values_come_back_from_both_readers(tmp_path: Path) -> None:
    settings = {"stage": "tpaw", **VALUES, "output_dir": "saves/a_iter0", "deepspeed": "ds.json", "val_size": 0.1}
    text = render(settings, "A title.")
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    assert read_given([str(tmp_path / "run.yaml")]) == settings == yaml.safe_load(text)
    assert text.startswith("# A title.\n# FORCE_TORCHRUN=1 llamafactory-cli train yaml/a_iter0.yaml\n")
    assert re.findall("### (.*)", text) == ["method", "output", "train", "eval"]
    assert path_of(settings) == "yaml/a_iter0.yaml"


def test_adapters_and_other_sets_stay_and_old_rounds_go() -> None:
    first = FILES["qwen_lora_tpaw_iter0"] | {"create_new_adapter": True}
    run, base = next_settings(next_settings(first)), first["model_name_or_path"]
    below, above = (f"saves/Qwen2.5-1.5B/lora/tpaw_iter{index}" for index in range(2))
    assert (run["model_name_or_path"], run["adapter_name_or_path"]) == (base, f"{below},{above}")
    assert run["tpaw_players"] == f"{base},{base}+{below},{base}+{below}+{above}"
    settings = TINY[2] | {
        "dataset": ["other", "tiny_tpaw_iter0", "tiny_tpaw_iter1", "tiny_tpaw_iter2", "more"],
        "resume_from_checkpoint": "saves/Tiny/full/tpaw_iter2/checkpoint-10",
    }
    following = next_settings(settings)
    assert following["dataset"] == "other,tiny_tpaw_iter1,tiny_tpaw_iter2,tiny_tpaw_iter3,more"
    assert "resume_from_checkpoint" not in following
    first = TINY[0] | {"dataset": "sampled"}
    assert (own_round(first), next_settings(first)["dataset"]) == ("sampled", "sampled,tpaw_iter1")
    del first["tpaw_players"]
    assert next_settings(first)["tpaw_players"] == "saves/Tiny/full/sft,saves/Tiny/full/tpaw_iter0"
    # An ablation shares D_0.
    ablation = TINY[0] | {"output_dir": "saves/Tiny/full/tiny_no_trw_tpaw_iter0"}
    assert next_settings(ablation)["dataset"] == "tiny_tpaw_iter0,tiny_no_trw_tpaw_iter1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_dir": "saves/mine"}, "`output_dir: saves/mine` does not end with `_iter1`"),
        ({"output_dir": "saves/_iter1"}, "`output_dir: saves/_iter1` does not end with `_iter1`"),
        ({"dataset": ""}, "`dataset` is missing"),
        ({"tpaw_team_size": "many"}, "`tpaw_team_size`"),
    ],
)
def test_what_cannot_be_counted_on_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        next_settings(TINY[1] | change)
