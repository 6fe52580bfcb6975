# SPDX-License-Identifier: Apache-2.0
"""From what the page shows to run files: LlamaBoard's settings, our keys, and one iteration after the other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamafactory_tpaw.board import runner, settings
from tests.unit.board.conftest import save_iteration
from tests.unit.board.page import DrivenPage


SAVES = "saves/Custom/full"


def played(page: DrivenPage, **shown: Any) -> list[dict[str, Any]]:
    page.show(**shown)
    parse = type(page.engine.runner)._parse_train_args.__wrapped__
    return runner.settings_of(parse, page.engine.runner, page.values)


def test_first_iteration_of_a_new_run(page: DrivenPage) -> None:
    (found,) = played(page, learning_rate="1e-3", tpaw_max_prompts="50", cutoff_len=512)
    expected = {"stage": "tpaw", "do_train": True, "model_name_or_path": "models/sft", "finetuning_type": "full"}
    expected |= {"template": "qwen", "learning_rate": 1e-3, "cutoff_len": 512, "optim": "adamw_torch"}
    expected |= {"dataset": "Custom_play_iter0", "output_dir": f"{SAVES}/play_iter0", "tpaw_iteration": 0}
    expected |= {"tpaw_objective": "tpaw", "tpaw_eta": 6.0, "tpaw_prompts": "sums", "tpaw_max_prompts": "50"}
    expected |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert {key: found.get(key) for key in expected} == expected
    absent = ("trust_remote_code", "max_samples", "preprocessing_num_workers", "tpaw_scale", "tpaw_engine_url")
    assert [key for key in absent if key in found] == []


@pytest.mark.parametrize("output_dir", ["play", "play_iter0", "play_iter7"])
def test_iterations_follow_from_the_first_model_and_the_run(page: DrivenPage, output_dir: str) -> None:
    given = {"tpaw_iteration": 1, "tpaw_iterations": 2, "tpaw_team_size": 2, "dataset": ["pairs"]}
    second, third = played(page, output_dir=output_dir, **given)
    players = ["models/sft", f"{SAVES}/play_iter0", f"{SAVES}/play_iter1"]
    changed = {
        "model_name_or_path": (players[1], players[2]),
        "tpaw_players": (",".join(players[:2]), ",".join(players)),
        "dataset": ("pairs,Custom_play_iter0,Custom_play_iter1", "pairs,Custom_play_iter1,Custom_play_iter2"),
        "output_dir": (f"{SAVES}/play_iter1", f"{SAVES}/play_iter2"),
        "tpaw_iteration": (1, 2),
    }
    assert {key: (second[key], third[key]) for key in second if second[key] != third[key]} == changed


def test_checkpoints_and_adapters_are_llamaboards(page: DrivenPage) -> None:
    (full,) = played(page, top__checkpoint_path="sft")
    assert full["model_name_or_path"] == f"{SAVES}/sft"
    lora = played(page, top__finetuning_type="lora", top__checkpoint_path=["sft"], tpaw_iteration=1, lora_rank=4)[0]
    assert (lora["model_name_or_path"], lora["lora_rank"]) == ("models/sft", 4)
    assert lora["adapter_name_or_path"] == "saves/Custom/lora/play_iter0"
    assert lora["tpaw_players"] == "models/sft+saves/Custom/lora/sft,models/sft+saves/Custom/lora/play_iter0"


def test_tspin_has_its_own_keys_and_extra_arguments_go_before_the_fields(page: DrivenPage) -> None:
    (found,) = played(page, tpaw_objective="tspin", tpaw_iteration=1)
    assert (found["tpaw_scale"], found["tpaw_history_weight"]) == (1.0, 0.1)
    assert found["tpaw_proto"] == "Custom_play_iter0"
    assert not {"tpaw_eta", "tpaw_gamma", "tpaw_team_size"} & set(found)
    (found,) = played(page, tpaw_objective="iris")
    assert (found["tpaw_reward_scale"], found["tpaw_renyi_alpha"]) == (0.1, 0.5)
    assert not {"tpaw_eta", "tpaw_scale", "tpaw_team_size"} & set(found)
    extra = {"tpaw_scale": 2, "tpaw_turn": "first", "trust_remote_code": True, "max_samples": 100000, "dataset": "D"}
    (found,) = played(page, tpaw_iteration=0, extra_args=json.dumps(extra))
    assert {key: found[key] for key in extra} == extra


def test_seed_is_that_of_the_page(page: DrivenPage) -> None:
    """LlamaBoard has a field for it since 0.9.6."""
    args = type(page.engine.runner)._parse_train_args.__wrapped__(page.engine.runner, page.values)
    ids = {page.manager.get_id_by_elem(element): value for element, value in page.values.items()}
    ids |= {"train.train_seed": "7", "train.tpaw_iterations": 2}
    assert [each["seed"] for each in settings.run_settings(args, ids)] == [7, 7]
    (found, _) = settings.run_settings(args, ids | {"train.extra_args": '{"seed": 3}'})
    assert found["seed"] == 3
    with pytest.raises(ValueError, match="1e3"):
        settings.run_settings(args, ids | {"train.train_seed": "1e3"})


def test_next_iteration_is_the_first_that_is_not_finished(page: DrivenPage) -> None:
    for number, status in enumerate(("finished", "finished", "training")):
        folder = save_iteration(number, status)
    assert settings.next_iteration(folder.with_name("other")) == 0
    (folder / "tpaw.json").write_text("{")
    assert settings.next_iteration(folder) == 2
