# SPDX-License-Identifier: Apache-2.0
"""Triplets that are missing, changed, or of another checkpoint, prompt set, template or sampling."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .rows import Row
from .spoiling import (
    OTHER,
    change_json,
    change_rows,
    cut,
    fewer_merges,
    meta_of,
    other_model,
    remove_key,
    remove_triplets,
    triplets_of,
    write,
)


ZEROS = "0" * 64
ONES = "1" * 64
AS_TSPIN = {"tpaw_objective": "tspin", "dataset": "play_iter1", "tpaw_proto": "play_iter0"}


def edited(number: int, **values: Any) -> Callable[[list[str]], list[str]]:
    """Change columns of one row."""

    def edit(lines: list[str]) -> list[str]:
        row = json.loads(lines[number - 1]) | values
        return [*lines[: number - 1], json.dumps(row) + "\n", *lines[number:]]

    return edit


def without_column(lines: list[str]) -> list[str]:
    return [*lines[:4], lines[4].replace('"rejected"', '"refused"'), *lines[5:]]


def last_is_cut(lines: list[str]) -> list[str]:
    return [*lines[:-1], lines[-1][:40]]


ROUNDS = [
    Row("an older round that is not there", spoil=lambda: remove_triplets(0), iteration=1),
    Row("rounds in the wrong order", iteration=1, given={"dataset": "play_iter1,play_iter0"}),
    Row("too few rounds", iteration=2, given={"dataset": "play_iter1,play_iter2"}),
    Row("too many rounds", iteration=1, given={"dataset": "play_iter0,play_iter1,play_iter2"}),
    Row("a round named twice", iteration=1, given={"dataset": "play_iter0,play_iter0"}),
    Row("an SFT set as `dataset`", given={"dataset": "additions"}),
    Row("triplets that are not there, and no `tpaw_prompts`", generating=True, given={"tpaw_prompts": None}),
    Row("T-SPIN without y_0", iteration=1, given=AS_TSPIN | {"tpaw_proto": None}),
    Row("T-SPIN with an SFT set as y_0", iteration=1, given=AS_TSPIN | {"tpaw_proto": "additions"}),
    Row("T-SPIN with y_0 of another run", iteration=1, given=AS_TSPIN,
        spoil=lambda: change_json("saves/play_iter0/tpaw.json", triplets=[])),
]  # fmt: skip
ORIGINS = [
    Row("triplets of another checkpoint", spoil=other_model,
        given={"model_name_or_path": OTHER, "tpaw_players": None}),
    Row("a meta file with another generator", spoil=lambda: change_json(meta_of(0), generator=ZEROS)),
    Row("rounds that answer different prompts", iteration=1,
        spoil=lambda: change_json(meta_of(0), prompts_digest=ZEROS)),
    Row("an older round of another run, seen before sampling", iteration=1, generating=True,
        spoil=lambda: change_json(meta_of(0), prompts_digest=ZEROS, generator=ONES)),
    Row("triplets of another template", given={"template": "qwen3_nothink"}),
    Row("triplets of another tokenizer", spoil=lambda: fewer_merges("saves/sft")),
    Row("triplets of fewer prompts", given={"tpaw_max_prompts": 4}),
    Row("triplets sampled otherwise", given={"temperature": 0.7, "max_new_tokens": 32}),
    Row("triplets of another `seed`", given={"seed": 1}),
    Row("half-done triplets of other settings", generating=True,
        spoil=lambda: write(f"{triplets_of(0)}.partial", '{"iteration": 0, "generator": "x"}\n{"commit": []}\n')),
    Row("half-done triplets with a broken row", generating=True,
        spoil=lambda: write(f"{triplets_of(0)}.partial", '{"iteration": 0, "gener\n{}\n')),
]  # fmt: skip
METAS = [
    Row("a meta file that is gone", spoil=lambda: meta_of(0).unlink()),
    Row("two meta files that are gone", spoil=lambda: (meta_of(0).unlink(), meta_of(1).unlink()), iteration=1),
    Row("a meta file that is cut", spoil=lambda: cut(meta_of(0))),
    Row("a meta file of another version", spoil=lambda: change_json(meta_of(0), schema=99)),
    Row("a meta file that lacks a key", spoil=lambda: remove_key(meta_of(0), "rows_digest")),
    Row("a meta file with a key too many", spoil=lambda: change_json(meta_of(0), colour="red")),
    Row("a meta file with another number of rows", spoil=lambda: change_json(meta_of(0), rows=15)),
]
CONTENTS = [
    Row("triplets without one row", spoil=lambda: change_rows(lambda lines: lines[:7] + lines[8:])),
    Row("triplets with a row twice", spoil=lambda: change_rows(lambda lines: [*lines[:8], lines[2], *lines[8:]])),
    Row("triplets with a row twice and another missing",
        spoil=lambda: change_rows(lambda lines: [*lines[:7], lines[2], *lines[8:]])),
    Row("triplets with a foreign id", spoil=lambda: change_rows(edited(3, id="0123456789abcdef-0"))),
    Row("triplets with a response altered",
        spoil=lambda: change_rows(edited(3, rejected={"from": "gpt", "value": "No"}))),
    Row("triplets in another order", spoil=lambda: change_rows(lambda lines: lines[::-1])),
    Row("triplets whose last row is cut", spoil=lambda: change_rows(last_is_cut)),
    Row("triplets with a row that lacks a column", spoil=lambda: change_rows(without_column)),
    Row("triplets with a `finish_reason` that does not exist",
        spoil=lambda: change_rows(edited(3, finish_reason="eos"), meta_agrees=True)),
    Row("triplets that are not UTF-8",
        spoil=lambda: triplets_of(0).write_bytes(triplets_of(0).read_bytes().replace(b"Tom", b"Zo\xeb", 1))),
    Row("an empty triplet file", spoil=lambda: triplets_of(0).write_bytes(b"")),
    Row("triplets without one row, the meta file changed to fit",
        spoil=lambda: change_rows(lambda lines: lines[:7] + lines[8:], meta_agrees=True)),
    Row("triplets with a row twice, the meta file changed to fit",
        spoil=lambda: change_rows(lambda lines: [*lines[:8], lines[2], *lines[8:]], meta_agrees=True)),
    Row("triplets with a foreign id, the meta file changed to fit",
        spoil=lambda: change_rows(edited(3, id="0123456789abcdef-0"), meta_agrees=True)),
    Row("triplets with a prompt altered, the meta file changed to fit", spoil=lambda: change_rows(
        edited(3, conversations=[{"from": "human", "value": "Why?"}]), meta_agrees=True)),
]  # fmt: skip
ROWS = [*ROUNDS, *ORIGINS, *METAS, *CONTENTS]
