# SPDX-License-Identifier: Apache-2.0
"""Triplets that are missing, changed, or of another checkpoint, prompt set, template or sampling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from .rows import Row
from .rows_checkpoints import fewer_merges
from .spoiling import OTHER, change_json, cut, meta_of, other_model, remove_key, remove_triplets, triplets_of, write


Change = Callable[[list[str]], list[str]]
ZEROS, ONES = "0" * 64, "1" * 64
AS_TSPIN = {"tpaw_objective": "tspin", "dataset": "play_iter1", "tpaw_proto": "play_iter0"}


def rows(change: Change, *, meta_agrees: bool = False) -> Callable[[], None]:
    """Return what changes the lines of D_0, and its meta file so that it fits where `meta_agrees`."""

    def spoil() -> None:
        content = "".join(change(triplets_of(0).read_text().splitlines(keepends=True))).encode()
        triplets_of(0).write_bytes(content)
        if meta_agrees:
            digest = hashlib.sha256(content).hexdigest()
            change_json(meta_of(0), rows=content.count(b"\n"), rows_digest=digest)

    return spoil


def edited(**values: Any) -> Change:
    """Change columns of the third row."""
    return lambda lines: [*lines[:2], json.dumps(json.loads(lines[2]) | values) + "\n", *lines[3:]]


def without_a_row(lines: list[str]) -> list[str]:
    return lines[:7] + lines[8:]


def without_a_column(lines: list[str]) -> list[str]:
    return [*lines[:4], lines[4].replace('"rejected"', '"refused"'), *lines[5:]]


ROWS = [
    # Rounds.
    Row("an older round that is not there", lambda: remove_triplets(0), 1),
    Row("rounds in the wrong order", None, 1, {"dataset": "play_iter1,play_iter0"}),
    Row("too few rounds", None, 2, {"dataset": "play_iter1,play_iter2"}),
    Row("too many rounds", None, 1, {"dataset": "play_iter0,play_iter1,play_iter2"}),
    Row("an SFT set as `dataset`", given={"dataset": "additions"}),
    Row("triplets that are not there, and no `tpaw_prompts`", generating=True, given={"tpaw_prompts": None}),
    Row("T-SPIN without y_0", None, 1, AS_TSPIN | {"tpaw_proto": None}),
    Row("T-SPIN with an SFT set as y_0", None, 1, AS_TSPIN | {"tpaw_proto": "additions"}),
    Row("T-SPIN with y_0 of another run", lambda: change_json("saves/play_iter0/tpaw.json", triplets=[]), 1, AS_TSPIN),
    # Where they come from.
    Row("triplets of another checkpoint", other_model, given={"model_name_or_path": OTHER, "tpaw_players": None}),
    Row("a meta file with another generator", lambda: change_json(meta_of(0), generator=ZEROS)),
    Row("rounds that answer different prompts", lambda: change_json(meta_of(0), prompts_digest=ZEROS), 1),
    Row("an older round of another run, seen before sampling",
        lambda: change_json(meta_of(0), prompts_digest=ZEROS, generator=ONES), 1, generating=True),
    Row("triplets of another template", given={"template": "qwen3_nothink"}),
    Row("triplets of another tokenizer", lambda: fewer_merges("saves/sft")),
    Row("triplets of fewer prompts", given={"tpaw_max_prompts": 4}),
    Row("triplets sampled otherwise", given={"temperature": 0.7, "max_new_tokens": 32}),
    Row("half-done triplets of other settings", generating=True,
        spoil=lambda: write(f"{triplets_of(0)}.partial", '{"iteration": 0, "generator": "x"}\n{"commit": []}\n')),
    Row("half-done triplets with a broken row", generating=True,
        spoil=lambda: write(f"{triplets_of(0)}.partial", '{"iteration": 0, "gener\n{}\n')),
    # Meta files.
    Row("two meta files that are gone", lambda: (meta_of(0).unlink(), meta_of(1).unlink()), 1),
    Row("a meta file that is cut", lambda: cut(meta_of(0))),
    Row("a meta file of another version", lambda: change_json(meta_of(0), schema=99)),
    Row("a meta file that lacks a key", lambda: remove_key(meta_of(0), "rows_digest")),
    Row("a meta file with a key too many", lambda: change_json(meta_of(0), colour="red")),
    # What is in them.
    Row("triplets without one row", rows(without_a_row)),
    Row("triplets with a response altered", rows(edited(rejected={"from": "gpt", "value": "No"}))),
    Row("triplets whose last row is cut", rows(lambda lines: [*lines[:-1], lines[-1][:40]])),
    Row("triplets with a row that lacks a column", rows(without_a_column)),
    Row("triplets with a `finish_reason` that does not exist", rows(edited(finish_reason="eos"), meta_agrees=True)),
    Row("triplets that are not UTF-8",
        lambda: triplets_of(0).write_bytes(triplets_of(0).read_bytes().replace(b"Tom", b"Zo\xeb", 1))),
    Row("triplets without one row, the meta file changed to fit", rows(without_a_row, meta_agrees=True)),
    Row("triplets with a prompt altered, the meta file changed to fit",
        rows(edited(conversations=[{"from": "human", "value": "Why?"}]), meta_agrees=True)),
]  # fmt: skip
