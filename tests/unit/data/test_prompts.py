# SPDX-License-Identifier: Apache-2.0
"""Which rows of an SFT set are prompts, and which cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llamafactory_tpaw.data import source
from llamafactory_tpaw.data.encoding import digest_of_ids
from llamafactory_tpaw.data.prompts import PromptSet, load_prompts
from llamafactory_tpaw.errors import ConfigError, DataError
from tests import encoders
from tests.unit.data import many_prompts


if TYPE_CHECKING:
    from llamafactory_tpaw.arguments.parsed import RunArguments
    from llamafactory_tpaw.data.encoding import TurnEncoder
    from tests.runs import Project

COLUMNS = {"prompt": "question", "response": "answer"}
TALK = {"formatting": "sharegpt", "columns": {"messages": "talk", "tools": "tools"}}


def load(run: RunArguments, encoder: TurnEncoder, name: str = "sft", **keys: Any) -> PromptSet:
    run.finetuning.tpaw_prompts = name
    for key, value in keys.items():
        setattr(run.finetuning, key, value)
    return load_prompts(encoder, run.model, run.data, run.training, run.finetuning)


def talk(*turns: tuple[str, str | None], tools: str = "") -> dict[str, Any]:
    return {"talk": [{"from": role, "value": content} for role, content in turns], "tools": tools}


def answers(prompts: PromptSet) -> list[str]:
    return [prompt.target["content"] for prompt in prompts.prompts]


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
        assert (found.prompt_tokens[place], prompts.target_tokens[place]) == (len(prompt_ids), len(target_ids))
        assert prompt.id == prompts.id(place) == f"{prompt.id[:16]}-{place // 3}"
    assert found.digest == digest_of_ids(prompt.id for prompt in listed)
    order = np.random.default_rng(0).permutation(15)
    for taken, places in (
        ([prompts[place] for place in order], order),
        (prompts.take(order), order),
        (prompts[1:8:2], range(15)[1:8:2]),
    ):
        texts = [(prompt.id, prompt.messages, prompt.system, prompt.tools, prompt.target) for prompt in taken]
        expected = [listed[place] for place in places]
        assert texts == [(one.id, one.messages, one.system, one.tools, one.target) for one in expected]
    with pytest.raises(IndexError):
        prompts[15]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_prompts(tmp_path: Path) -> None:
    """Each prompt's text has 1,000 characters: in memory, 198,000 more prompts would take 500 MiB and more."""
    command = [sys.executable, many_prompts.__file__, str(tmp_path), "2000", "200000"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = map(float, result.stdout.split())
    assert 0 < many < few + 50


def test_the_choice_does_not_follow_the_seed(project: Project, encoder: TurnEncoder) -> None:
    one, two = (load(encoders.parse(project, seed=seed), encoder, "additions", tpaw_max_prompts=5) for seed in (1, 2))
    assert one.digest == two.digest
    assert len(one.prompts) == 5


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (talk(("human", "q"), ("human", "q")), "it has no response, or its turns do not alternate"),
        (talk(("human", "q"), ("gpt", None)), "its response is empty"),
        (talk(("human", None), ("gpt", "a")), "the template cannot encode it: .*Expected a string, got None"),
        (
            talk(("human", "q"), ("gpt", "a"), tools="{"),
            "the template cannot encode it: .*Invalid JSON format in tool",
        ),
        (talk(("human", "q"), ("function_call", '{"x": 1}')), "the template cannot encode it: KeyError"),
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


def test_media_and_absent_responses(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    rows = [{"question": "a", "answer": "b", "image": []}, {"question": "a", "answer": "b", "image": ["x.png"]}]
    project.add_dataset("sft", rows, columns=COLUMNS | {"images": "image"})
    with pytest.raises(DataError, match="row 2, because it has images, videos or audio"):
        load(run, encoder)
    project.add_dataset("sft", [{"question": "a", "answer": "b"}, {"question": "c"}], columns=COLUMNS)
    with pytest.raises(DataError, match=r"has 1 bad row,.*First: row 2, because it has no response"):
        load(run, encoder)


def test_prompts_beyond_the_cutoff(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    rows = [{"question": "x" * length, "answer": "y"} for length in (3, 6, 9)]
    project.add_dataset("sft", rows, columns=COLUMNS)
    lengths = [len(prompt.prompt_ids) for prompt in load(run, encoder).prompts]
    assert lengths[0] < lengths[1] < lengths[2]
    run.data.cutoff_len = lengths[1] + 1
    kept = load(run, encoder, tpaw_max_bad_rows=3)
    assert [len(prompt.prompt_ids) for prompt in kept.prompts] == lengths[:2]
    assert [row.row for row in kept.bad_rows] == [3]
    assert kept.bad_rows[0].reason == (
        f"its prompt has {lengths[2]} tokens, which leaves fewer than 1 (`tpaw_min_response`) under "
        f"`cutoff_len: {lengths[1] + 1}`"
    )
    assert len(load(run, encoder, tpaw_max_bad_rows=3, tpaw_min_response=2).prompts) == 1
    with pytest.raises(
        DataError, match=r"`tpaw_prompts: sft` .* has no usable row\. Row 1 is none, because its prompt"
    ):
        load(run, encoder, tpaw_min_response=200)


def test_refused_entries(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    row = [{"question": "a", "answer": "b", "worse": "c"}]
    project.add_dataset("sft", row, ranking=True, num_samples=3, columns=COLUMNS)
    with pytest.raises(ConfigError) as error:
        load(run, encoder)
    ranking, num_samples = error.value.problems
    assert ranking.startswith("`tpaw_prompts: sft` is a ranking set, but prompts come from an SFT set.")
    assert num_samples.startswith("`tpaw_prompts: sft` has `num_samples`, which would choose other rows")
    with pytest.raises(ConfigError, match="`tpaw_prompts: nowhere` is not an entry"):
        load(run, encoder, "nowhere")
