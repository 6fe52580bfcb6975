# SPDX-License-Identifier: Apache-2.0
"""The settings of an iteration follow from those of the one before, as the committed run files have them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.runs import families
from llamafactory_tpaw.runs.run_files import Family, Method, iteration_text
from llamafactory_tpaw.runs.succession import next_settings, own_round, split_numbered


SELF_PLAY = [(family, method) for family in families.FAMILIES for method in family.self_play]
ABLATION = dataclasses.replace(
    families.TINY,
    name="tiny_no_trw",
    run_prefix="tiny_no_trw_",
    theta_0="saves/Tiny/full/sft",
    first_triplets="tiny_tpaw_iter0",
    eta=1.0,
)
PLAYERS = "tpaw_players"
LORA = {
    "stage": "tpaw",
    "finetuning_type": "lora",
    "model_name_or_path": "base",
    "adapter_name_or_path": "saves/a",
    "tpaw_players": "base+saves/a",
    "tpaw_iteration": 0,
    "dataset": "play_iter0",
    "output_dir": "saves/play_iter0",
}


def settings_of(family: Family, method: Method, iteration: int) -> dict[str, Any]:
    return yaml.safe_load(iteration_text(family, method, iteration))


@pytest.mark.parametrize(
    ("family", "method"), [*SELF_PLAY, (ABLATION, "tpaw")], ids=lambda value: getattr(value, "name", value)
)
def test_every_iteration_follows_from_the_first(family: Family, method: Method) -> None:
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
    assert settings["dataset"][0] == "other"
    assert settings["tpaw_iteration"] == 2


def test_a_round_without_a_number_is_followed_by_one_of_the_run() -> None:
    settings = settings_of(families.TINY, "tpaw", 0) | {"dataset": "sampled"}
    assert own_round(settings) == "sampled"
    assert next_settings(settings)["dataset"] == "sampled,tpaw_iter1"


def test_players_default_to_the_model() -> None:
    settings = settings_of(families.TINY, "tpaw", 0)
    del settings["tpaw_players"]
    assert next_settings(settings)["tpaw_players"] == "saves/Tiny/full/sft,saves/Tiny/full/tpaw_iter0"


def test_adapters_play_on_the_base_model() -> None:
    following = next_settings(LORA)
    assert following["model_name_or_path"] == "base"
    assert following["adapter_name_or_path"] == "saves/play_iter0"
    assert following["tpaw_players"] == "base+saves/a,base+saves/play_iter0"
    later = next_settings({**following, "create_new_adapter": True})
    assert later["adapter_name_or_path"] == "saves/play_iter0,saves/play_iter1"
    assert later["tpaw_players"].endswith(",base+saves/play_iter0+saves/play_iter1")
    fresh = next_settings({key: value for key, value in LORA.items() if key not in ("adapter_name_or_path", PLAYERS)})
    assert fresh["adapter_name_or_path"] == "saves/play_iter0"
    assert fresh["tpaw_players"] == "base,base+saves/play_iter0"


def test_what_cannot_be_counted_on_is_refused() -> None:
    settings = settings_of(families.TINY, "tpaw", 1)
    with pytest.raises(ConfigError, match="`output_dir: saves/mine` does not end with `_iter1`"):
        next_settings({**settings, "output_dir": "saves/mine"})
    with pytest.raises(ConfigError, match="`dataset` is missing"):
        next_settings({**settings, "dataset": ""})
    with pytest.raises(ConfigError, match="`tpaw_team_size`"):
        next_settings({**settings, "tpaw_team_size": "many"})


@pytest.mark.parametrize(
    ("name", "parts"),
    [("tpaw_iter2", ("tpaw", 2)), ("a_iter1_iter10", ("a_iter1", 10)), ("_iter1", None), ("x", None)],
)
def test_names_are_split_at_their_number(name: str, parts: tuple[str, int] | None) -> None:
    assert split_numbered(name) == parts
