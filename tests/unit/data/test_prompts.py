# SPDX-License-Identifier: Apache-2.0
"""Which rows of an SFT set are prompts, and which cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llamafactory_tpaw.data.encoding import digest_of_ids
from llamafactory_tpaw.data.prompts import PromptSet, choose_rows, load_prompts
from llamafactory_tpaw.errors import ConfigError, DataError
from tests import encoders


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


def test_every_row_in_order(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    prompts = load(run, encoder, "additions")
    assert len(prompts.prompts) == 16
    assert not prompts.bad_rows
    assert answers(prompts)[:2] == ["0 + 0 = 0.", "0 + 1 = 1."]
    assert prompts.digest == digest_of_ids(prompt.id for prompt in prompts.prompts)
    first = prompts.prompts[0]
    assert first.messages == [{"role": "user", "content": "Tom has 0 apples and buys 0. Total?"}]
    expected = encoder.encode(first.messages, first.target)
    assert first.prompt_ids.tolist() == expected[0].tolist()
    assert first.target_ids.tolist() == expected[1].tolist()


def test_choose_rows() -> None:
    assert choose_rows(4, None, 0) == choose_rows(4, 4, 0) == choose_rows(4, 9, 0) == range(4)
    chosen = choose_rows(1000, 10, 0).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 10
    assert chosen == choose_rows(1000, 10, 0).tolist()
    assert chosen != choose_rows(1000, 10, 1).tolist()
    assert chosen[-1] > 100  # not merely the first rows


def test_the_choice_does_not_follow_the_seed(project: Project, encoder: TurnEncoder) -> None:
    keys = {"tpaw_max_prompts": 5}
    one = load(encoders.parse(project, seed=1), encoder, "additions", **keys)
    two = load(encoders.parse(project, seed=2), encoder, "additions", **keys)
    assert one.digest == two.digest
    assert answers(one) != answers(load(encoders.parse(project), encoder, "additions"))[:5]
    assert len(one.prompts) == 5
    assert load(encoders.parse(project), encoder, "additions", tpaw_prompts_seed=1, **keys).digest != one.digest


def test_duplicates_are_kept_and_numbered(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    rows = [{"question": "a", "answer": "b"}, {"question": "a", "answer": "c"}, {"question": "a", "answer": "b"}]
    project.add_dataset("sft", rows, columns=COLUMNS)
    ids = [prompt.id for prompt in load(run, encoder).prompts]
    assert ids[2] == ids[0].replace("-0", "-1")
    assert ids[1] != ids[0]


def test_turn(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    turns = [("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")]
    project.add_dataset("sft", [talk(*turns), talk(("human", "q3"), ("gpt", "a3"))], **TALK)
    last, only = load(run, encoder, tpaw_turn="last").prompts
    assert [message["content"] for message in last.messages] == ["q1", "a1", "q2"]
    assert last.target == {"role": "assistant", "content": "a2"}
    first, same = load(run, encoder, tpaw_turn="first").prompts
    assert first.messages == [{"role": "user", "content": "q1"}]
    assert first.target == {"role": "assistant", "content": "a1"}
    assert same.id == only.id


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (talk(("human", "q"), ("human", "q")), "it has no response, or its turns do not alternate"),
        (talk(("human", "q")), "it has no response"),
        (talk(), "it has no response"),
        (talk(("human", "q"), ("gpt", "")), "its response is empty"),
        (talk(("human", "q"), ("gpt", None)), "its response is empty"),
        (talk(("human", None), ("gpt", "a")), "the template cannot encode it: .*Expected a string, got None"),
        (
            talk(("human", "q"), ("gpt", "a"), tools="{"),
            "the template cannot encode it: .*Invalid JSON format in tool",
        ),
        (talk(("human", "q"), ("gpt", "a"), tools='{"x": 1}'), "the template cannot encode it: AttributeError"),
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


def test_absent_responses(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    project.add_dataset("sft", [{"question": "a", "answer": "b"}, {"question": "c"}], columns=COLUMNS)
    with pytest.raises(DataError, match=r"has 1 bad row,.*First: row 2, because it has no response"):
        load(run, encoder)


def test_media_are_refused(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    rows = [{"question": "a", "answer": "b", "image": []}, {"question": "a", "answer": "b", "image": ["x.png"]}]
    project.add_dataset("sft", rows, columns=COLUMNS | {"images": "image"})
    with pytest.raises(DataError, match="row 2, because it has images, videos or audio"):
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
    with pytest.raises(DataError, match=r"`tpaw_prompts: sft` has no usable row\. First: row 1, because its prompt"):
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


def test_an_empty_set(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    project.add_dataset("sft", [], columns=COLUMNS)
    with pytest.raises(DataError, match=r"`sft`: .*sft\.jsonl is empty"):
        load(run, encoder)
