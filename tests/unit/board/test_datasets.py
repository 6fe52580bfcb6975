# SPDX-License-Identifier: Apache-2.0
"""The sets of `dataset_info.json`: SFT sets as prompts, ranking sets with what is known of their triplets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.board.datasets import OpponentSet, opponent_sets, prompt_sets
from llamafactory_tpaw.board.places import Places
from llamafactory_tpaw.data.source import triplet_entry
from llamafactory_tpaw.data.triplets import TripletMeta, write_meta


COUNTS = {"stop": 1, "length": 2, "equal": 0}
ROW = '{"id": "a", "iteration": 1, "finish_reason": "stop"}\n'


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.chdir(tmp_path)
    Path("data/tpaw").mkdir(parents=True)
    return Places()


def save(info: Any) -> None:
    Path("data/dataset_info.json").write_text(json.dumps(info))


def file(name: str, text: str = ROW) -> Path:
    path = Path(f"data/tpaw/{name}.jsonl")
    path.write_text(text)
    return path


def meta(path: Path) -> None:
    texts = dict.fromkeys(
        ("generator", "generator_path", "tokenizer", "template", "prompts_entry", "prompts_digest", "rows_digest"), ""
    )
    write_meta(
        path,
        TripletMeta(
            iteration=1, selection={}, sampling={}, cutoff_len=8, engine={}, rows=3, counts=COUNTS, **texts
        ),
    )  # fmt: skip


def test_prompts_are_sets_without_pairs(places: Places) -> None:
    save(
        {
            "local": {"file_name": "a.jsonl"},
            "hub": {"hf_hub_url": "org/set"},
            "pairs": {"file_name": "b.jsonl", "ranking": True},
            "nowhere": {"columns": {}},
            "broken": "a.jsonl",
        }
    )
    assert prompt_sets(places) == ["local", "hub"]


def test_ranking_sets_say_what_they_are(places: Places) -> None:
    names = ("whole", "partial", "begun", "later", "damaged", "lost")
    save(
        {name: triplet_entry(name) for name in names}
        | {"pairs": {"file_name": "pairs.json", "ranking": True}, "hub": {"hf_hub_url": "org/set", "ranking": True}}
        | {"sft": {"file_name": "sft.jsonl"}}
    )
    meta(file("whole"))
    Path("data/tpaw/partial.jsonl.partial").write_text("")
    file("begun")
    Path("data/tpaw/begun.jsonl.partial").write_text("")
    file("damaged")
    Path("data/tpaw/damaged.meta.json").write_text("{")
    file("lost")
    Path("data/pairs.json").write_text("[]")
    found = {each.name: each for each in opponent_sets(places)}
    assert [(each.name, each.state) for each in found.values()] == [
        ("whole", "whole"),
        ("partial", "partial"),
        ("begun", "partial"),
        ("later", "missing"),
        ("damaged", "damaged"),
        ("lost", "damaged"),
        ("pairs", "foreign"),
        ("hub", "foreign"),
    ]
    path = Path("data/tpaw/whole.jsonl")
    assert found["whole"] == OpponentSet("whole", path, "whole", iteration=1, rows=3, counts=COUNTS)
    assert found["damaged"].problem.startswith("data/tpaw/damaged.meta.json is not valid JSON")
    assert "data/tpaw/lost.meta.json is missing" in found["lost"].problem
    assert found["hub"].path is None


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_a_damaged_list_has_no_sets(places: Places, text: str) -> None:
    Path("data/dataset_info.json").write_text(text)
    assert prompt_sets(places) == opponent_sets(places) == []
