# SPDX-License-Identifier: Apache-2.0
"""Which rows of an SFT set are prompts, and which cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.arguments.parsed import RunArguments
from llamafactory_tpaw.data import source
from llamafactory_tpaw.data.encoding import TurnEncoder, digest_of_ids
from llamafactory_tpaw.data.prompts import PromptSet, load_prompts
from llamafactory_tpaw.errors import DataError
from tests import encoders
from tests.runs import Project


TALK = {"formatting": "sharegpt", "columns": {"messages": "talk", "tools": "tools", "images": "images"}}


def load(run: RunArguments, encoder: TurnEncoder, name: str = "sft", **keys: Any) -> PromptSet:
    run.finetuning.tpaw_prompts = name
    for key, value in keys.items():
        setattr(run.finetuning, key, value)
    return load_prompts(encoder, run.model, run.data, run.training, run.finetuning)


def talk(*turns: tuple[str, str | None], tools: str = "", image: str | None = None) -> dict[str, Any]:
    images = [image] if image else []
    return {"talk": [{"from": role, "value": content} for role, content in turns], "tools": tools, "images": images}


@pytest.mark.parametrize(("turn", "last"), [("last", "q2"), ("first", "q1")])
def test_prompts_come_back_in_any_order(
    project: Project, run: RunArguments, encoder: TurnEncoder, monkeypatch: pytest.MonkeyPatch, turn: str, last: str
) -> None:
    monkeypatch.setattr(source, "BLOCK_ROWS", 4)
    run.data.cutoff_len = 1000
    rows = [
        talk(("system", "Be brief."), ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")),
        talk(("human", "q1"), ("gpt", "a1"), tools='[{"name": "f", "description": "", "parameters": {}}]'),
        talk(("human", "q3"), ("gpt", "a1")),
        talk(("human", "q")),
    ]
    project.add_dataset("sft", [rows[place % 4] for place in range(20)], **TALK)
    found = load(run, encoder, tpaw_turn=turn, tpaw_max_bad_rows=5)
    prompts, listed = found.prompts, list(found.prompts)
    assert len(prompts) == len(listed) == 15
    assert [prompt.messages[-1]["content"] for prompt in listed[:4]] == [last, "q1", "q3", last]
    for place, prompt in enumerate(listed):
        prompt_ids, target_ids = encoder.encode(prompt.messages, prompt.target, prompt.system, prompt.tools)
        assert prompt.prompt_ids.tolist() == prompts.prompt_ids(place).tolist() == prompt_ids.tolist()
        assert prompt.target_ids.tolist() == target_ids.tolist()
        assert (prompts.prompt_tokens[place], prompts.target_tokens[place]) == (len(prompt_ids), len(target_ids))
        assert prompt.id == prompts.ids[place] == f"{prompt.id[:16]}-{place // 3}"
    assert found.digest == digest_of_ids(prompt.id for prompt in listed)
    order = np.random.default_rng(0).permutation(15)
    for taken, place in zip(prompts.take(order), order, strict=True):
        one = listed[place]
        assert (taken.id, taken.messages, taken.target) == (one.id, one.messages, one.target)


def test_the_choice_does_not_follow_the_seed(project: Project, encoder: TurnEncoder) -> None:
    one, two = (load(encoders.parse(project, seed=seed), encoder, "additions", tpaw_max_prompts=5) for seed in (1, 2))
    assert one.digest == two.digest
    assert len(one.prompts) == 5


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (talk(("human", "q"), ("human", "q")), "it has no response, or its turns do not alternate"),
        (talk(("human", "q"), ("gpt", "a"), image="x.png"), "it has images, videos or audio"),
        (talk(("human", None), ("gpt", "a")), "the template cannot encode it: .*Expected a string, got None"),
        (
            talk(("human", "q"), ("gpt", "a"), tools="{"),
            "the template cannot encode it: .*Invalid JSON format in tool",
        ),
    ],
)
def test_bad_rows_are_named_and_counted(
    project: Project, run: RunArguments, encoder: TurnEncoder, bad: dict[str, Any], reason: str
) -> None:
    good = talk(("human", "q"), ("gpt", "a"))
    project.add_dataset("sft", [good, good, bad, good, bad], **TALK)
    with pytest.raises(
        DataError,
        match=r"`tpaw_prompts: sft` \(.*sft\.jsonl\) has 2 bad rows, but `tpaw_max_bad_rows` allows 1\. First: row 3, "
        rf".*{reason}",
    ):
        load(run, encoder, tpaw_max_bad_rows=1)
    prompts = load(run, encoder, tpaw_max_bad_rows=2)
    assert [row.row for row in prompts.bad_rows] == [3, 5]
    assert len(prompts.prompts) == 3


def test_first_prompts(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    """A look at the first rows chooses none and refuses none."""
    rows = [talk(("human", f"{number}"), *([("gpt", "a")] if number else [])) for number in range(9)]
    project.add_dataset("sft", rows, **TALK)
    run.finetuning.tpaw_prompts, run.finetuning.tpaw_max_prompts = "sft", 2
    found = load_prompts(encoder, run.model, run.data, run.training, run.finetuning, first=6)
    assert [prompt.messages[0]["content"] for prompt in found.prompts] == ["1", "2", "3", "4", "5"]
    assert [row.row for row in found.bad_rows] == [1]
    assert not (project.root / "saves").exists()
