# SPDX-License-Identifier: Apache-2.0
"""Triplets as training sees them: exact ids, cuts, several responses a prompt, y_0, and the split by prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.arguments.parsed import RunArguments
from llamafactory_tpaw.data.encoding import TurnEncoder
from llamafactory_tpaw.data.opponents import (
    FOREIGN,
    Limits,
    Triplet,
    count_repeated,
    first_prompts,
    load_foreign,
    load_triplets,
    split_by_prompt,
    with_proto,
    without,
)
from llamafactory_tpaw.data.source import find_entry
from llamafactory_tpaw.data.triplets import TripletRow
from llamafactory_tpaw.errors import DataError
from tests.runs import Project
from tests.unit.data.writing import make_prompt, make_row, make_triplet, write_round


LIMITS = Limits(cutoff_len=256, min_response=1, max_bad_rows=0)


def odd_row(encoder: TurnEncoder) -> TripletRow:
    """A response sampled as characters, as no encoder would write it."""
    ids = [token for char in "She earns" for token in encoder.tokenizer.encode(char)]
    assert ids != encoder.tokenizer.encode("She earns")
    return replace(make_row(encoder, make_prompt(encoder), "She earns"), generated_ids=[*ids, encoder.end_of_turn[0]])


def test_exact_ids_are_used(project: Project, encoder: TurnEncoder, tmp_path: Path) -> None:
    row = odd_row(encoder)
    entry, meta = write_round(project, encoder, [row])
    (triplet,) = load_triplets(entry, meta, encoder, LIMITS, tmp_path / "new" / "tokens")
    prompt = make_prompt(encoder)
    assert triplet.id == row.id == prompt.id
    assert triplet.prompt_ids.tolist() == prompt.prompt_ids.tolist()
    assert triplet.target_ids.tolist() == prompt.target_ids.tolist()
    assert triplet.generated_ids.tolist() == [*row.generated_ids, *encoder.end_of_turn[1:]]
    assert triplet.generated_ids.dtype == np.int32
    assert (triplet.iteration, triplet.truncated, triplet.equal) == (0, False, False)
    assert replace(triplet, generated_ids=triplet.target_ids).equal


@pytest.mark.parametrize("token", [-1, 10_000, 2**40, "a"])
def test_ids_that_the_model_does_not_know_are_of_a_bad_row(project: Project, encoder: TurnEncoder, token: Any) -> None:
    entry, meta = write_round(project, encoder, [replace(odd_row(encoder), generated_ids=[token])])
    with pytest.raises(DataError, match=r"First: row 1, because (the template cannot|`generated_ids` holds an id)"):
        load_triplets(entry, meta, encoder, replace(LIMITS, vocabulary=10_000))


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


def rows_of(encoder: TurnEncoder, samples: int, prompts: int = 2) -> list[TripletRow]:
    """Rows as generation writes them: one prompt after another; all prompts have one content."""
    return [
        make_row(encoder, make_prompt(encoder, number=number), f"{number}{sample}", sample=sample)
        for number in range(prompts)
        for sample in range(samples)
    ]


def named(triplets: list[Triplet]) -> list[tuple[str, int]]:
    return [(triplet.id[-2:], triplet.sample) for triplet in triplets]


@pytest.mark.parametrize("digests", [{}, {"tokenizer": "0" * 64}])
def test_each_response_is_a_triplet_of_its_prompt(
    project: Project, encoder: TurnEncoder, digests: dict[str, str]
) -> None:
    rows = rows_of(encoder, 3)
    entry, meta = write_round(project, encoder, rows, samples=3, **digests)
    triplets = load_triplets(entry, meta, encoder, LIMITS)
    assert [(triplet.id, triplet.sample) for triplet in triplets] == [(row.id, row.sample) for row in rows]
    assert len({triplet.generated_ids.tobytes() for triplet in triplets}) == 6


def test_failed_responses_are_known(project: Project, encoder: TurnEncoder) -> None:
    """Also where all of one prompt's failed: a second prompt of that content keeps its number."""
    rows = rows_of(encoder, 2, prompts=3)
    failed = [rows[index].key for index in (0, 1, 3)]
    entry, meta = write_round(project, encoder, [rows[2], rows[4], rows[5]], samples=2, failed=failed)
    assert meta.prompts == 3
    assert named(load_triplets(entry, meta, encoder, LIMITS)) == [("-1", 0), ("-2", 0), ("-2", 1)]


def load_pairs(project: Project, run: RunArguments, encoder: TurnEncoder, rows: list[Any], bad: int = 0) -> Any:
    columns = {"prompt": "q", "chosen": "better", "rejected": "worse", "tools": "tools"}
    project.add_dataset("pairs", rows, ranking=True, columns=columns)
    entry = find_entry("pairs", run.data.dataset_dir)
    return load_foreign(entry, encoder, replace(LIMITS, max_bad_rows=bad), run.model, run.data, run.training)


PAIR = {"q": "1 + 1?", "better": "2", "worse": "3", "tools": ""}


def test_other_ranking_data(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    run.data.max_samples = 1  # limits prompts elsewhere, never triplets
    first, again = load_pairs(project, run, encoder, [PAIR, PAIR])
    assert (first.id, again.id) == (make_prompt(encoder).id, make_prompt(encoder, number=1).id)
    assert first.iteration == FOREIGN
    assert encoder.tokenizer.decode(first.generated_ids) == "3<|im_end|>\n"
    assert run.data.max_samples == 1


def test_bad_rows_of_other_ranking_data(project: Project, run: RunArguments, encoder: TurnEncoder) -> None:
    rows = [PAIR, PAIR | {"worse": None}, PAIR | {"tools": "{"}, PAIR]
    with pytest.raises(
        DataError, match=r"`dataset: pairs` \(.*\) has 2 bad rows.*First: row 2, because it is not one prompt"
    ):
        load_pairs(project, run, encoder, rows)
    with pytest.raises(DataError, match=r"First: row 1, because the template cannot encode it: .*Invalid JSON"):
        load_pairs(project, run, encoder, rows[2:])
    assert len(load_pairs(project, run, encoder, rows, bad=2)) == 2


def play(name: str, sample: int, iteration: int = 0, generated: int = 4) -> Triplet:
    return replace(make_triplet(name, iteration, generated=generated), sample=sample)


def test_y0_is_the_response_of_the_same_number() -> None:
    proto = [play("a-0", 0, generated=5), play("a-0", 1, generated=6), play("b-0", 1, generated=7)]
    triplets = [play(name, sample, 1) for name in ("a-0", "b-0") for sample in range(3)]
    joined, dropped = with_proto(triplets, proto, "d0")
    assert dropped == 0
    assert [len(triplet.proto_ids) for triplet in joined] == [5, 6, 5, 7, 7, 7]
    assert [len(ids) for ids in joined[0].responses] == [2, 4, 5]
    assert triplets[0].proto_ids is None


def test_prompts_that_failed_in_d0_have_no_y0() -> None:
    rounds = [play(name, sample, 1) for name in ("a-0", "b-0", "c-0") for sample in range(2)]
    failed = ["b-0#0", "b-0#1", "c-0#0"]
    joined, dropped = with_proto(rounds, [play("a-0", 0)], "d0", failed)
    assert (named(joined), dropped) == ([("-0", 0), ("-0", 1)], 2)
    with pytest.raises(DataError, match="`tpaw_proto: d0` lacks 1 of 3 prompts, the first with id c-0"):
        with_proto(rounds, [play("a-0", 0)], "d0", failed[:2])


def test_prompts_are_counted_not_responses() -> None:
    triplets = [
        play(f"{number:016x}-0", sample, round_) for round_ in (0, 1) for number in range(10) for sample in range(3)
    ]
    assert first_prompts(triplets, None) == triplets
    assert first_prompts(triplets, 4) == [triplet for triplet in triplets if int(triplet.id[:16], 16) < 4]
    repeated = [play("a-0", 0), play("a-0", 1), play("a-0", 2, generated=5), play("a-0", 0, 1)]
    assert count_repeated(repeated) == 2


def test_what_the_filter_leaves() -> None:
    """One that is equal and truncated, one truncated, and of 2, 3 and 4 tokens."""
    equal = make_triplet("a-0", generated=2)
    equal = replace(equal, generated_ids=equal.target_ids.copy(), truncated=True)
    triplets = [equal, replace(make_triplet("b-0"), truncated=True), *(play("c-0", n, generated=n) for n in (2, 3, 4))]
    assert without(triplets, ["truncated"]) == triplets[2:]
    assert [triplet.sample for triplet in without(triplets, ["equal", "shorter:3", "truncated"])] == [3, 4]
    with pytest.raises(DataError, match="train on: equal 1, truncated 1, shorter:5 3"):
        without(triplets, ["equal", "truncated", "shorter:5"])


def rounds_of(*iterations: int) -> list[Triplet]:
    """Rounds over the same 40 prompts, every fourth of which occurs twice."""
    names = [f"{number:016x}-{copy}" for number in range(40) for copy in range(1 + (number % 4 == 0))]
    return [make_triplet(name, iteration) for iteration in iterations for name in names]


def contents(triplets: list[Triplet]) -> set[str]:
    return {triplet.id[:16] for triplet in triplets}


@pytest.mark.parametrize(("val_size", "count"), [(0.25, 10), (0.1, 4), (7, 7), (0, 0)])
def test_the_split_is_by_prompt_and_the_same_in_every_iteration(val_size: float, count: int) -> None:
    triplets = rounds_of(0, 1, 2)
    train, held_out = split_by_prompt(triplets, val_size)
    assert len(contents(held_out)) == count
    assert not contents(train) & contents(held_out)
    assert sorted(train + held_out, key=triplets.index) == triplets
    held_out = contents(split_by_prompt(rounds_of(0), 0.25)[1])
    assert contents(split_by_prompt(rounds_of(1, 2, 3), 0.25)[1]) == held_out
    assert contents(split_by_prompt(rounds_of(0)[::-1], 0.25)[1]) == held_out
    assert held_out != contents(rounds_of(0)[: len(held_out)])  # not merely the first rows
    with pytest.raises(DataError, match=r"`val_size` is 40, which holds out all 40 prompts\. Lower it"):
        split_by_prompt(rounds_of(0), 40)
