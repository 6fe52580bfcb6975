# SPDX-License-Identifier: Apache-2.0
"""Triplet files: rows, meta files, and that LlamaFactory's own stages read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from llamafactory.data import get_dataset

from llamafactory_tpaw.data.opponents import Limits, load_triplets
from llamafactory_tpaw.data.triplets import (
    TripletRow,
)
from tests import encoders
from tests.unit.data.writing import make_prompt, make_row, write_round


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
