# SPDX-License-Identifier: Apache-2.0
"""Triplet files: rows, meta files, and that LlamaFactory's own stages read them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from llamafactory.data import get_dataset

from llamafactory_tpaw.data.files import digest_file
from llamafactory_tpaw.data.opponents import Limits, load_triplets
from llamafactory_tpaw.data.triplets import (
    TripletRow,
    meta_path,
    read_meta,
    read_triplets,
    row_key,
    write_meta,
)
from llamafactory_tpaw.errors import DataError
from tests import encoders
from tests.unit.data.writing import make_meta, make_prompt, make_row, write_round


if TYPE_CHECKING:
    from llamafactory_tpaw.data.encoding import TurnEncoder
    from tests.runs import Project

TOOLS = json.dumps([{"name": "add", "description": "", "parameters": {"type": "object", "properties": {}}}])
CALL = {"role": "function", "content": '{"name": "add", "arguments": {"a": 1}}'}
HISTORY = [
    {"role": "user", "content": "q1\u2028\n"},
    CALL,
    {"role": "observation", "content": "2"},
    {"role": "assistant", "content": "It is 2 — “so”."},
    {"role": "user", "content": "And?"},
]


def rows_of(encoder: TurnEncoder) -> list[TripletRow]:
    plain = make_prompt(encoder, "1 + 1?", "2")
    rich = make_prompt(encoder, HISTORY, "3\n", system="Be brief.", tools=TOOLS)
    return [
        make_row(encoder, plain, "2"),
        make_row(encoder, rich, " x\ny <|im_start|>", "length"),
        make_row(encoder, make_prompt(encoder, "?", "!"), ""),
    ]


def test_rows_round_trip(project: Project, encoder: TurnEncoder) -> None:
    rows = rows_of(encoder)
    entry, meta = write_round(project, encoder, rows)
    assert list(read_triplets(entry.path, meta)) == rows
    assert read_meta(entry.path) == meta
    assert meta_path(entry.path).name == "d0.meta.json"
    assert json.loads(rows[1].to_json())["conversations"][1] == {"from": "function_call", "value": CALL["content"]}


@pytest.mark.parametrize("template", encoders.TEMPLATES)
def test_llamafactorys_pairs_have_the_same_tokens(project: Project, template: str) -> None:
    """The `dpo` stage's loader makes of the text what training makes of the ids, where a response ended."""
    run = encoders.parse(project, template=template, enable_thinking=False, dataset="d0")
    encoder = encoders.build_encoder(run)
    rows = [row for row in rows_of(encoder) if row.finish_reason == "stop"]
    rich = make_prompt(encoder, HISTORY, "3\n", system="Be brief.", tools=TOOLS)
    entry, meta = write_round(project, encoder, [*rows, make_row(encoder, rich, "4 “z”")])
    triplets = load_triplets(entry, meta, encoder, Limits(2048, 1, 0))
    run.data.cutoff_len = 2048
    pairs = get_dataset(encoder.template, run.model, run.data, run.training, "rm", encoder.tokenizer)["train_dataset"]
    assert len(pairs) == len(triplets) == 3
    for pair, triplet in zip(pairs, triplets, strict=True):
        assert pair["chosen_input_ids"] == [*triplet.prompt_ids, *triplet.target_ids]
        assert pair["rejected_input_ids"] == [*triplet.prompt_ids, *triplet.generated_ids]
        assert [label for label in pair["rejected_labels"] if label != -100] == triplet.generated_ids.tolist()


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([0, 1], "it has 2 rows, not 3"),
        ([0, 1, 2, 0], "it has 4 rows, not 3"),
        ([1, 0, 2], "a row or the meta file was changed"),
    ],
)
def test_a_changed_file_is_refused(project: Project, encoder: TurnEncoder, lines: list[int], what: str) -> None:
    entry, meta = write_round(project, encoder, rows_of(encoder))
    content = entry.path.read_bytes().splitlines(keepends=True)
    entry.path.write_bytes(b"".join(content[line] for line in lines))
    with pytest.raises(DataError, match=rf"d0\.jsonl is not the file that .*d0\.meta\.json describes: {what}\."):
        list(read_triplets(entry.path, meta))
    assert len(list(read_triplets(entry.path))) == len(lines)
    altered = replace(meta, rows_digest=digest_file(entry.path))
    with pytest.raises(
        DataError, match=rf"holds {len(lines)} triplets, but not those of the 3 prompts that .*d0\.meta"
    ):
        list(read_triplets(entry.path, altered))
    entry.path.write_bytes(b"".join(content)[:-9])
    with pytest.raises(DataError, match=r"d0\.jsonl, row 3 is not valid JSON: .* or delete it"):
        list(read_triplets(entry.path, meta))


def two_samples(encoder: TurnEncoder) -> list[TripletRow]:
    """Two prompts with two responses each, of which the last one failed."""
    first, second = make_prompt(encoder, "1 + 1?", "2"), make_prompt(encoder, "1 + 2?", "3")
    return [
        make_row(encoder, first, "2"),
        make_row(encoder, first, "4", sample=1),
        make_row(encoder, second, "!"),
    ]


def test_one_row_a_prompt_and_sample(project: Project, encoder: TurnEncoder) -> None:
    rows = two_samples(encoder)
    failed = [row_key(rows[2].id, 1)]
    entry, meta = write_round(project, encoder, rows, samples=2, failed=failed)
    assert list(read_triplets(entry.path, read_meta(entry.path))) == rows
    assert (meta.prompts, meta.rows) == (2, 3)
    assert [json.loads(line)["sample"] for line in entry.path.read_text().splitlines()] == [0, 1, 0]
    assert meta.ids_digest != meta.prompts_digest


def test_a_file_of_one_response_a_prompt_has_no_new_keys(project: Project, encoder: TurnEncoder) -> None:
    """What earlier versions wrote and read stays as it was, byte by byte."""
    entry, meta = write_round(project, encoder, rows_of(encoder))
    assert "sample" not in json.loads(entry.path.read_text().splitlines()[0])
    new = {"samples", "failed", "ids_digest", "opponent"}
    assert not new & json.loads(meta_path(entry.path).read_text()).keys()
    assert (meta.samples, meta.failed, meta.ids_digest, meta.opponent) == (1, [], "", "")


def test_meta_files_that_cannot_be_used(encoder: TurnEncoder, tmp_path: Path) -> None:
    path = tmp_path / "d0.jsonl"
    with pytest.raises(DataError, match=r"d0\.jsonl is a triplet file, but .*d0\.meta\.json is missing"):
        read_meta(path)
    write_meta(path, make_meta(encoder, [], b""))
    content = json.loads(meta_path(path).read_text())
    for wrong, message in [
        (content | {"schema": 2, "new": 1}, r"d0\.meta\.json has schema 2, but this version reads 1"),
        ({key: content[key] for key in content if key != "schema"}, "has schema None"),
        ([content], "it holds no JSON object"),
        (content | {"colour": "red"}, r"d0\.meta\.json is damaged: it has `colour`"),
        ({key: content[key] for key in content if key != "rows"}, "is damaged: it lacks `rows`"),
    ]:
        meta_path(path).write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=message):
            read_meta(path)
    meta_path(path).write_text("{")
    with pytest.raises(DataError, match=r"d0\.meta\.json is not valid JSON"):
        read_meta(path)
