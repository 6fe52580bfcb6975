# SPDX-License-Identifier: Apache-2.0
"""Settings from LlamaBoard's page lead to no folder but those of the runs, and those that the run's files name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board.path_check import check_paths
from llamafactory_tpaw.board.places import Places
from llamafactory_tpaw.board.runs import following, write_run_files
from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.runs.yaml_text import settings_text
from tests.unit.board.projects import committed, copy_project, play


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.chdir(tmp_path)
    copy_project()
    Path("elsewhere").mkdir()
    return Places()


def runs_from(model: str, count: int = 3, **changes: Any) -> list[dict[str, Any]]:
    first = committed("tiny_tpaw_iter0") | {"model_name_or_path": model, "tpaw_players": model}
    return following(Places(), first | {"output_dir": "saves/Tiny/full/mine_iter0"} | changes, count)


def refusal(places: Places, settings_list: list[dict[str, Any]]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_paths(places, settings_list)
    return caught.value.problems


@pytest.mark.parametrize("model", ["saves/Tiny/full/sft", "Qwen/Qwen2.5-1.5B", "/models/base", "elsewhere"])
def test_the_model_is_llamaboards_field(places: Places, model: str) -> None:
    check_paths(places, runs_from(model))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tpaw_players", "/etc,saves/Tiny/full/sft"),
        ("tpaw_players", "saves/../elsewhere,saves/Tiny/full/sft"),
        ("tpaw_players", "saves/Tiny/full/a+/etc,saves/Tiny/full/sft"),
        ("tpaw_cache_dir", "/tmp/cache"),
        ("resume_from_checkpoint", "elsewhere/checkpoint-1"),
        ("adapter_name_or_path", "elsewhere"),
        ("output_dir", "elsewhere/mine_iter0"),
    ],
)
def test_other_fields_stay_inside(places: Places, key: str, value: str) -> None:
    settings_list = runs_from("saves/Tiny/full/sft", 1)
    settings_list[0][key] = value
    (problem,) = refusal(places, settings_list)
    assert problem.startswith(f"`{key}` is '")
    assert "which is not below saves" in problem
    with pytest.raises(ConfigError, match="not below saves"):
        write_run_files(places, settings_list)


def test_all_paths_are_said_at_once(places: Places) -> None:
    settings = runs_from("saves/Tiny/full/sft", 1)[0]
    settings |= {"tpaw_cache_dir": "/tmp/cache", "tpaw_players": "/etc,/usr,saves/Tiny/full/sft"}
    assert len(refusal(places, [settings])) == 3


def test_a_name_of_a_hub_that_is_a_folder_here_is_none(places: Places) -> None:
    settings = runs_from("saves/Tiny/full/sft", 2)[1] | {"tpaw_players": "elsewhere/model,saves/Tiny/full/mine_iter0"}
    check_paths(places, [settings])
    Path("elsewhere/model").mkdir()
    assert "'elsewhere/model'" in refusal(places, [settings])[0]


def test_what_the_runs_files_name_may_be_elsewhere(places: Places) -> None:
    first, second = runs_from("/models/base", 2)
    assert "'/models/base'" in refusal(places, [second])[0]
    play(first)
    check_paths(places, [second])  # its tpaw.json names it
    Path("saves/Tiny/full/mine_iter0/tpaw.json").unlink()
    cached = first | {"tpaw_cache_dir": "/scratch/cache"}
    Path("yaml/mine_iter0.yaml").write_text(settings_text(cached, "Mine."))
    check_paths(places, [cached, second | {"tpaw_cache_dir": "/scratch/cache"}])
    assert "'/scratch/other'" in refusal(places, [second | {"tpaw_cache_dir": "/scratch/other"}])[0]
