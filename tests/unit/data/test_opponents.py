# SPDX-License-Identifier: Apache-2.0
"""Triplets as training sees them: exact ids, cuts, y_0, and the split by prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llamafactory_tpaw.data.opponents import (
    FOREIGN,
    Limits,
    Triplet,
    first_prompts,
    load_foreign,
    load_triplets,
    split_by_prompt,
    with_proto,
)
from llamafactory_tpaw.data.source import find_entry, triplet_entry
from llamafactory_tpaw.errors import DataError
from tests import encoders, tiny
from tests.unit.data.writing import make_prompt, make_row, make_triplet, write_round


if TYPE_CHECKING:
    from llamafactory_tpaw.arguments.parsed import RunArguments
    from llamafactory_tpaw.data.encoding import TurnEncoder
    from tests.runs import Project

LIMITS = Limits(cutoff_len=256, min_response=1, max_bad_rows=0)


def odd_row(encoder: TurnEncoder) -> Any:
    """A response sampled as characters, as no encoder would write it."""
    prompt = make_prompt(encoder)
    ids = [token for char in "She earns" for token in encoder.tokenizer.encode(char)]
    assert ids != encoder.tokenizer.encode("She earns")
    return replace(make_row(encoder, prompt, "She earns"), generated_ids=[*ids, encoder.end_of_turn[0]])


def test_exact_ids_are_used(project: Project, encoder: TurnEncoder) -> None:
    row = odd_row(encoder)
    entry, meta = write_round(project, encoder, [row])
    (triplet,) = load_triplets(entry, meta, encoder, LIMITS)
    prompt = make_prompt(encoder)
    assert triplet.id == row.id == prompt.id
    assert triplet.prompt_ids.tolist() == prompt.prompt_ids.tolist()
    assert triplet.target_ids.tolist() == prompt.target_ids.tolist()
    assert triplet.generated_ids.tolist() == [*row.generated_ids, *encoder.end_of_turn[1:]]
    assert triplet.generated_ids.dtype == np.int32
    assert (triplet.iteration, triplet.truncated, triplet.equal) == (0, False, False)
    assert [ids.tolist() for ids in triplet.responses] == [triplet.target_ids.tolist(), triplet.generated_ids.tolist()]


@pytest.mark.parametrize("what", ["tokenizer", "template", "ids"])
def test_text_is_encoded_where_the_ids_do_not_fit(project: Project, encoder: TurnEncoder, what: str) -> None:
    row = odd_row(encoder)
    if what == "ids":
        entry, meta = write_round(project, encoder, [replace(row, generated_ids=[])])
    else:
        entry, meta = write_round(project, encoder, [replace(row, id="0" * 16 + "-0")], **{what: "0" * 64})
    (triplet,) = load_triplets(entry, meta, encoder, LIMITS)
    expected = encoder.encode([{"role": "user", "content": "?"}], {"role": "assistant", "content": "She earns"})[1]
    assert triplet.generated_ids.tolist() == expected.tolist()
    assert triplet.id == make_prompt(encoder).id


def test_another_tokenizer_reads_the_text(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    row = odd_row(encoder)
    entry, meta = write_round(project, encoder, [row])
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens(["She earns"])
    other = encoders.build_encoder(run, tokenizer)
    (triplet,) = load_triplets(entry, meta, other, LIMITS)
    assert triplet.generated_ids.tolist() == [tokenizer.convert_tokens_to_ids("She earns"), *other.end_of_turn]


def test_other_prompt_tokens_are_refused(project: Project, encoder: TurnEncoder) -> None:
    rows = [make_row(encoder, make_prompt(encoder, question), "3") for question in ("a", "b")]
    entry, meta = write_round(project, encoder, [rows[0], replace(rows[1], id=rows[0].id)])
    with pytest.raises(DataError, match=r"d0\.jsonl, row 2: its prompt and target encode to id .*, but the row says"):
        load_triplets(entry, meta, encoder, LIMITS)


def test_a_changed_file_is_refused(project: Project, encoder: TurnEncoder) -> None:
    entry, meta = write_round(project, encoder, [make_row(encoder, make_prompt(encoder), "3")], rows_digest="0" * 64)
    with pytest.raises(DataError, match=r"d0\.jsonl is not the file that .*d0\.meta\.json describes"):
        load_triplets(entry, meta, encoder, LIMITS)


def test_duplicates_have_their_own_ids(project: Project, encoder: TurnEncoder) -> None:
    prompts = [make_prompt(encoder, number=number) for number in range(3)]
    entry, meta = write_round(project, encoder, [make_row(encoder, prompt, "3") for prompt in prompts])
    assert [triplet.id[-2:] for triplet in load_triplets(entry, meta, encoder, LIMITS)] == ["-0", "-1", "-2"]


def test_each_response_is_cut_by_itself(project: Project, encoder: TurnEncoder) -> None:
    prompt = make_prompt(encoder, answer="1 2 3 4 5 6")
    again = make_prompt(encoder, answer="1 2 3 4 5 6", number=1)
    rows = [make_row(encoder, prompt, "7"), make_row(encoder, again, "1 2 3 4 5 6 7 8 9")]
    entry, meta = write_round(project, encoder, rows)
    whole = load_triplets(entry, meta, encoder, LIMITS)[0]
    room = len(whole.target_ids) - len(encoder.end_of_turn)
    cut, other = load_triplets(entry, meta, encoder, Limits(len(prompt.prompt_ids) + room, 1, 0))
    assert cut.prompt_ids.tolist() == whole.prompt_ids.tolist()
    assert encoder.tokenizer.decode(cut.target_ids) == "1 2 3 4 5 6"
    assert cut.generated_ids.tolist() == whole.generated_ids.tolist()
    assert not cut.truncated
    assert encoder.tokenizer.decode(other.generated_ids) == "1 2 3 4 5 6"
    assert other.truncated


def test_truncated_and_equal(project: Project, encoder: TurnEncoder) -> None:
    prompts = [make_prompt(encoder, number=number) for number in range(3)]
    rows = [
        make_row(encoder, prompts[0], "2"),
        make_row(encoder, prompts[1], "2", "length"),
        make_row(encoder, prompts[2], "3"),
    ]
    entry, meta = write_round(project, encoder, rows)
    triplets = load_triplets(entry, meta, encoder, LIMITS)
    assert [triplet.equal for triplet in triplets] == [True, False, False]
    assert [triplet.truncated for triplet in triplets] == [False, True, False]


def test_prompts_that_leave_no_room(project: Project, encoder: TurnEncoder) -> None:
    prompts = [make_prompt(encoder, "x" * length) for length in (1, 5)]
    entry, meta = write_round(project, encoder, [make_row(encoder, prompt, "3") for prompt in prompts])
    cutoff_len = len(prompts[1].prompt_ids) + 1
    assert len(load_triplets(entry, meta, encoder, Limits(cutoff_len, 1, 0))) == 2
    with pytest.raises(DataError, match=r"`dataset: d0` \(.*\) has 1 bad row,.*First: row 2, because its prompt has"):
        load_triplets(entry, meta, encoder, Limits(cutoff_len, 2, 0))
    assert len(load_triplets(entry, meta, encoder, Limits(cutoff_len, 2, 1))) == 1


def load_pairs(project: Project, run: RunArguments, encoder: TurnEncoder, rows: list[Any], bad: int = 0) -> Any:
    columns = {"prompt": "q", "chosen": "better", "rejected": "worse", "tools": "tools"}
    project.add_dataset("pairs", rows, ranking=True, columns=columns)
    entry = find_entry("pairs", run.data.dataset_dir)
    return load_foreign(entry, encoder, replace(LIMITS, max_bad_rows=bad), run.model, run.data, run.training)


def test_other_ranking_data(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    pair = {"q": "1 + 1?", "better": "2", "worse": "3", "tools": ""}
    run.data.max_samples = 1  # limits prompts elsewhere, never triplets
    first, again = load_pairs(project, run, encoder, [pair, pair])
    assert (first.id, again.id) == (make_prompt(encoder).id, make_prompt(encoder, number=1).id)
    assert first.iteration == FOREIGN
    assert encoder.tokenizer.decode(first.generated_ids) == "3<|im_end|>\n"
    assert run.data.max_samples == 1


def test_triplets_in_another_form_are_not_other_ranking_data(
    project: Project, run: RunArguments, encoder: TurnEncoder
) -> None:
    """As a JSON array their meta and the ends of their responses would be lost."""
    row = json.loads(make_row(encoder, make_prompt(encoder), "3").to_json())
    project.add_entry("array", triplet_entry("array") | {"file_name": "array.json"})
    (project.root / "data" / "array.json").write_text(json.dumps([row]))
    entry = find_entry("array", run.data.dataset_dir)
    with pytest.raises(
        DataError, match=r"`dataset: array` \(.*array.json\) holds triplets, but not as the JSON lines"
    ):
        load_foreign(entry, encoder, LIMITS, run.model, run.data, run.training)


def test_bad_rows_of_other_ranking_data(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    pair = {"q": "1 + 1?", "better": "2", "worse": "3", "tools": ""}
    rows = [pair, pair | {"worse": None}, pair | {"tools": "{"}, pair]
    with pytest.raises(
        DataError, match=r"`dataset: pairs` has 2 bad rows.*First: row 2, because it is not one prompt"
    ):
        load_pairs(project, run, encoder, rows)
    with pytest.raises(DataError, match=r"First: row 1, because the template cannot encode it: .*Invalid JSON"):
        load_pairs(project, run, encoder, rows[2:])
    assert len(load_pairs(project, run, encoder, rows, bad=2)) == 2


def test_an_sft_set_is_no_opponent(run: RunArguments, encoder: TurnEncoder) -> None:
    entry = find_entry("additions", run.data.dataset_dir)
    with pytest.raises(DataError, match=r"`dataset: additions` is not a ranking set .*`tpaw_prompts`"):
        load_foreign(entry, encoder, LIMITS, run.model, run.data, run.training)


def test_with_proto() -> None:
    rounds = [make_triplet("a-0", 1), make_triplet("b-0", 1)]
    proto = [make_triplet("b-0", generated=7), make_triplet("a-0", generated=6), make_triplet("c-0")]
    joined, dropped = with_proto(rounds, proto, "d0")
    assert dropped == 0
    assert [len(triplet.proto_ids) for triplet in joined] == [6, 7]
    assert [len(ids) for ids in joined[0].responses] == [2, 4, 6]
    assert rounds[0].proto_ids is None
    with pytest.raises(DataError, match="`tpaw_proto: d0` lacks 1 of 2 prompts, the first with id b-0"):
        with_proto(rounds, proto[1:], "d0")


def test_first_prompts() -> None:
    triplets = [make_triplet(name, iteration) for iteration in (0, 1) for name in ("b-0", "a-0", "a-1")]
    assert first_prompts(triplets, None) == triplets
    assert [(kept.id, kept.iteration) for kept in first_prompts(triplets, 2)] == [
        ("b-0", 0),
        ("a-0", 0),
        ("b-0", 1),
        ("a-0", 1),
    ]
    assert first_prompts(triplets, 9) == triplets


def rounds_of(*iterations: int, prompts: int = 40) -> list[Triplet]:
    """Rounds over the same prompts, every fourth of which occurs twice."""
    names = [f"{number:016x}-{copy}" for number in range(prompts) for copy in range(1 + (number % 4 == 0))]
    return [make_triplet(name, iteration) for iteration in iterations for name in names]


def contents(triplets: list[Triplet]) -> set[str]:
    return {triplet.id[:16] for triplet in triplets}


@pytest.mark.parametrize(("val_size", "count"), [(0.25, 10), (0.1, 4), (7, 7), (1, 1), (0, 0), (0.0, 0)])
def test_split_by_prompt(val_size: float, count: int) -> None:
    triplets = rounds_of(0, 1, 2)
    train, held_out = split_by_prompt(triplets, val_size)
    assert len(contents(held_out)) == count
    assert not contents(train) & contents(held_out)
    assert sorted(train + held_out, key=triplets.index) == triplets
    assert [triplet for triplet in triplets if triplet in train] == train


def test_the_split_is_the_same_in_every_iteration() -> None:
    held_out = contents(split_by_prompt(rounds_of(0), 0.25)[1])
    assert contents(split_by_prompt(rounds_of(1, 2, 3), 0.25)[1]) == held_out
    assert contents(split_by_prompt(rounds_of(0)[::-1], 0.25)[1]) == held_out
    assert held_out != contents(rounds_of(0)[: len(held_out)])  # not merely the first rows


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(DataError, match=r"`val_size` is 40, which holds out all 40 prompts\. Lower it"):
        split_by_prompt(rounds_of(0), 40)
