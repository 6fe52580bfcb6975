# SPDX-License-Identifier: Apache-2.0
"""Which rows of an SFT set are prompts, and which cannot be."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llamafactory_tpaw.data import source
from llamafactory_tpaw.data.encoding import digest_of_ids, prompt_id
from llamafactory_tpaw.data.prompts import Prompt, PromptSet, load_prompts
from llamafactory_tpaw.data.source import find_entry, load_rows, read_rows
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


@pytest.mark.parametrize("turn", ["last", "first"])
@pytest.mark.parametrize("keys", [{}, {"tpaw_max_prompts": 9}, {"tpaw_max_prompts": 3, "tpaw_prompts_seed": 2}])
def test_prompts_are_those_of_reading_all_rows(
    project: Project,
    run: RunArguments,
    encoder: TurnEncoder,
    monkeypatch: pytest.MonkeyPatch,
    turn: str,
    keys: dict[str, int],
) -> None:
    monkeypatch.setattr(source, "BLOCK_ROWS", 4)
    run.data.cutoff_len = 1000
    rows = [
        talk(("system", "Be brief."), ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")),
        talk(("human", "q1"), ("gpt", "a1"), tools='[{"name": "f", "description": "", "parameters": {}}]'),
        talk(("human", "q3"), ("gpt", "a1")),
        talk(("human", "q")),
        talk(("human", None), ("gpt", "a")),
    ]
    project.add_dataset("sft", [rows[place % 7 % 5] for place in range(19)], **TALK)
    found = load(run, encoder, tpaw_turn=turn, tpaw_max_bad_rows=19, **keys)
    expected, prompts = reference(run, encoder), found.prompts
    assert len(prompts) == len(expected) > 0
    order = np.random.default_rng(0).permutation(len(expected))
    for taken, places in (
        (list(prompts), range(len(expected))),
        ([prompts[place] for place in order], order),
        (prompts.take(order), order),
        (prompts[1:8:2], range(len(expected))[1:8:2]),
    ):
        assert len(taken) == len(places)
        assert all(same(prompt, expected[place]) for prompt, place in zip(taken, places, strict=True))
    assert prompts.prompt_ids(1).tolist() == expected[1].prompt_ids.tolist()
    assert found.prompt_tokens.tolist() == [len(prompt.prompt_ids) for prompt in expected]
    assert prompts.target_tokens.tolist() == [len(prompt.target_ids) for prompt in expected]
    assert prompts.ids == [prompts.id(place) for place in range(len(expected))] == [prompt.id for prompt in expected]
    assert found.digest == digest_of_ids(prompts.ids)
    with pytest.raises(IndexError):
        prompts[len(expected)]


def reference(run: RunArguments, encoder: TurnEncoder) -> list[Prompt]:
    """The prompts of `sft` as lists and dicts in memory."""
    keys = run.finetuning
    dataset = load_rows(find_entry("sft", run.data.dataset_dir), run.model, run.data, run.training)
    rows = list(read_rows(dataset, range(len(dataset))))
    places = range(len(rows))
    if keys.tpaw_max_prompts is not None:
        places = sorted(random.Random(keys.tpaw_prompts_seed).sample(places, keys.tpaw_max_prompts))
    prompts, seen = [], {}
    for place in places:
        row = rows[place]
        if not row.responses or row.prompt[0]["content"] is None:
            continue
        messages, target = row.prompt, row.responses[0]
        if keys.tpaw_turn == "first" and len(messages) > 1:
            messages, target = messages[:1], messages[1]
        both = encoder.encode(messages, target, row.system, row.tools)
        prompts.append(Prompt(prompt_id(*both, seen), messages, row.system, row.tools, target, *both))
    return prompts


def same(one: Prompt, other: Prompt) -> bool:
    """Whether two prompts are equal, token ids and their type included."""
    first, second = vars(one), vars(other)
    return all(
        np.array_equal(value, second[name]) and value.dtype == second[name].dtype
        if isinstance(value, np.ndarray)
        else value == second[name]
        for name, value in first.items()
    )


@pytest.mark.parametrize(
    ("keys", "digest"),
    [
        ({}, "5b44cc5f56df413ac92474c44c36fbd0cd3ba8f9a9ea081e7340027a2f0ae099"),
        ({"tpaw_max_prompts": 5}, "95481ffb9f0cfeeb8c07a03d1b5dfcd457252b7cd645ba306df568d8787c1afa"),
        (
            {"tpaw_max_prompts": 5, "tpaw_prompts_seed": 1},
            "65c5e2411cfa086cdcd85723995c49da7fa1abdc5f5dec21ced02aa3e70d433e",
        ),
    ],
)
def test_fixed_digests(
    project: Project, run: RunArguments, encoder: TurnEncoder, keys: dict[str, int], digest: str
) -> None:
    """Another digest would make the triplet files that users have those of other prompts."""
    assert load(run, encoder, "additions", **keys).digest == digest


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
