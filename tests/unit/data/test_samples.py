# SPDX-License-Identifier: Apache-2.0
"""Several responses a prompt: how they are read, which of them failed, and what still counts prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llamafactory_tpaw.data.collator import GroupSampler, TripletCollator, TripletDataset
from llamafactory_tpaw.data.opponents import (
    Limits,
    Triplet,
    count_repeated,
    first_prompts,
    load_triplets,
    split_by_prompt,
    with_proto,
)
from llamafactory_tpaw.errors import DataError
from tests.unit.data.writing import make_prompt, make_row, make_triplet, write_round


if TYPE_CHECKING:
    from llamafactory_tpaw.data.encoding import TurnEncoder
    from llamafactory_tpaw.data.triplets import TripletRow
    from tests.runs import Project

LIMITS = Limits(cutoff_len=256, min_response=1, max_bad_rows=0)


def rows_of(encoder: TurnEncoder, samples: int, prompts: int = 2) -> list[TripletRow]:
    """Rows as generation writes them: one prompt after another; all prompts have one content."""
    return [
        make_row(encoder, make_prompt(encoder, number=number), f"{number}{sample}", sample=sample)
        for number in range(prompts)
        for sample in range(samples)
    ]


def named(triplets: list[Triplet]) -> list[tuple[str, int]]:
    return [(triplet.id[-2:], triplet.sample) for triplet in triplets]


def test_each_response_is_a_triplet_of_its_prompt(project: Project, encoder: TurnEncoder) -> None:
    rows = rows_of(encoder, 3)
    entry, meta = write_round(project, encoder, rows, samples=3)
    triplets = load_triplets(entry, meta, encoder, LIMITS)
    assert named(triplets) == [("-0", 0), ("-0", 1), ("-0", 2), ("-1", 0), ("-1", 1), ("-1", 2)]
    assert [triplet.id for triplet in triplets] == [row.id for row in rows]
    assert len({triplet.generated_ids.tobytes() for triplet in triplets}) == 6


@pytest.mark.parametrize("what", ["tokenizer", "template"])
def test_samples_of_another_tokenizer_stay_together(project: Project, encoder: TurnEncoder, what: str) -> None:
    rows = [replace(row, id=f"{int(row.id[-1]):016x}-0") for row in rows_of(encoder, 2)]
    entry, meta = write_round(project, encoder, rows, samples=2, **{what: "0" * 64})
    triplets = load_triplets(entry, meta, encoder, LIMITS)
    assert named(triplets) == [("-0", 0), ("-0", 1), ("-1", 0), ("-1", 1)]
    assert triplets[0].id == make_prompt(encoder).id


def test_failed_responses_are_known(project: Project, encoder: TurnEncoder) -> None:
    """Also where all of one prompt's failed: a second prompt of that content keeps its number."""
    rows = rows_of(encoder, 2, prompts=3)
    failed = [rows[index].key for index in (0, 1, 3)]
    entry, meta = write_round(project, encoder, [rows[2], rows[4], rows[5]], samples=2, failed=failed)
    assert meta.prompts == 3
    triplets = load_triplets(entry, meta, encoder, LIMITS)
    assert named(triplets) == [("-1", 0), ("-2", 0), ("-2", 1)]
    entry, meta = write_round(project, encoder, [rows[0], rows[4]], "d1", failed=[rows[2].key])
    assert named(load_triplets(entry, meta, encoder, LIMITS)) == [("-0", 0), ("-2", 0)]


@pytest.mark.parametrize("change", [{"sample": 0}, {"id": "0" * 16 + "-0"}])
def test_doubled_and_foreign_rows_are_refused(
    project: Project, encoder: TurnEncoder, change: dict[str, object]
) -> None:
    """Also where file and meta file agree with each other."""
    rows = rows_of(encoder, 2, prompts=1)
    entry, meta = write_round(project, encoder, [rows[0], replace(rows[1], **change)], samples=2)
    with pytest.raises(DataError, match=r"d0\.jsonl, row 2: its prompt and target encode to id .*: it is doubled"):
        load_triplets(entry, meta, encoder, LIMITS)


def test_a_sample_of_another_prompt_under_the_same_id(project: Project, encoder: TurnEncoder) -> None:
    first, second = make_prompt(encoder, "a"), make_prompt(encoder, "b")
    rows = [make_row(encoder, first, "1"), replace(make_row(encoder, second, "2", sample=1), id=first.id)]
    entry, meta = write_round(project, encoder, rows, samples=2)
    with pytest.raises(DataError, match=rf"row 2: its prompt and target encode to id {second.id}, but the row says"):
        load_triplets(entry, meta, encoder, LIMITS)


def play(name: str, sample: int, iteration: int = 0, generated: int = 4) -> Triplet:
    return replace(make_triplet(name, iteration, generated=generated), sample=sample)


def test_y0_is_the_response_of_the_same_number() -> None:
    proto = [play("a-0", 0, generated=5), play("a-0", 1, generated=6), play("b-0", 1, generated=7)]
    joined, dropped = with_proto(
        [play(name, sample, 1) for name in ("a-0", "b-0") for sample in range(3)], proto, "d0"
    )
    assert dropped == 0
    assert [len(triplet.proto_ids) for triplet in joined] == [5, 6, 5, 7, 7, 7]


def test_prompts_that_failed_in_d0_have_no_y0() -> None:
    rounds = [play(name, sample, 1) for name in ("a-0", "b-0", "c-0") for sample in range(2)]
    proto = [play("a-0", 0)]
    failed = ["b-0#0", "b-0#1", "c-0#0"]
    joined, dropped = with_proto(rounds, proto, "d0", failed)
    assert (named(joined), dropped) == ([("-0", 0), ("-0", 1)], 2)
    with pytest.raises(DataError, match="`tpaw_proto: d0` lacks 1 of 3 prompts, the first with id c-0"):
        with_proto(rounds, proto, "d0", failed[:2])


def test_prompts_are_counted_not_responses() -> None:
    triplets = [
        play(f"{number:016x}-0", sample, round_) for round_ in (0, 1) for number in range(10) for sample in range(3)
    ]
    assert list(Counter(triplet.id for triplet in first_prompts(triplets, 4)).values()) == [6] * 4
    train, held_out = split_by_prompt(triplets, 0.3)
    assert list(Counter(triplet.id for triplet in held_out).values()) == [6] * 3
    assert not {triplet.id for triplet in train} & {triplet.id for triplet in held_out}


def test_repeated_triplets_are_counted() -> None:
    triplets = [play("a-0", 0), play("a-0", 1), play("a-0", 2, generated=5), play("a-0", 0, 1)]
    assert count_repeated(triplets) == 2


def test_groups_larger_than_a_batch() -> None:
    """A group is continued in the next batch, which brings the target once more; every triplet is there once."""
    triplets = [play(name, sample, round_) for round_ in (0, 1) for name in ("a-0", "b-0") for sample in range(3)]
    triplets = [
        replace(triplet, prompt_ids=triplet.prompt_ids + ord(triplet.id[0]), generated_ids=np.asarray([index, 9]))
        for index, triplet in enumerate(triplets)
    ]
    dataset = TripletDataset(triplets)
    assert [len(group) for group in dataset.groups()] == [6, 6]
    order = list(GroupSampler(dataset, 4))
    assert sorted(order) == list(range(12))
    collate = TripletCollator(99)
    counts = []
    for start in range(0, 12, 4):
        batch = collate([dataset[index] for index in order[start : start + 4]])
        assert len(batch["target_index"]) == 4
        counts.append(len(batch["response_counts"]))
    # 4 responses and a target each; in the middle the rest of one group and the beginning of the other.
    assert counts == [5, 6, 5]
