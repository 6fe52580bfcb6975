# SPDX-License-Identifier: Apache-2.0
"""Triplet files as generation writes them, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llamafactory_tpaw.data.encoding import Message, TurnEncoder, digest_of_ids, prompt_id, tokenizer_digest
from llamafactory_tpaw.data.files import sha256_hex, write_atomic
from llamafactory_tpaw.data.opponents import Triplet
from llamafactory_tpaw.data.prompts import Prompt
from llamafactory_tpaw.data.source import Entry, find_entry, triplet_entry
from llamafactory_tpaw.data.triplets import TripletMeta, TripletRow, write_meta
from tests.runs import Project


def make_prompt(
    encoder: TurnEncoder,
    question: str | list[Message] = "1 + 1?",
    answer: str = "2",
    *,
    system: str = "",
    tools: str = "",
    number: int = 0,
) -> Prompt:
    """A prompt with the id that its content has; `number` is its occurrence."""
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    target = {"role": "assistant", "content": answer}
    prompt_ids, target_ids = encoder.encode(messages, target, system, tools)
    seen: dict[str, int] = {}
    for _ in range(number + 1):
        identity = prompt_id(prompt_ids, target_ids, seen)
    return Prompt(identity, messages, system, tools, target, prompt_ids, target_ids)


def make_row(
    encoder: TurnEncoder, prompt: Prompt, text: str, reason: str = "stop", iteration: int = 0, sample: int = 0
) -> TripletRow:
    """A row as if the model had sampled the text's own tokens and, for `stop`, the first stop token."""
    ids = encoder.encode_text(text, "length").tolist()
    if reason == "stop":
        ids.append(next(token for token in encoder.end_of_turn if token in encoder.stop_token_ids()))
    return TripletRow.of(prompt, iteration, text, reason, ids, sample)


def make_meta(encoder: TurnEncoder, rows: Sequence[TripletRow], content: bytes, **changes: Any) -> TripletMeta:
    """The meta of these rows; of several a prompt, or of some that failed, where `changes` says so."""
    numbered = changes.get("samples", 1) > 1 or bool(changes.get("failed"))
    keys = [*(row.key for row in rows), *changes.get("failed", [])]
    fields: dict[str, Any] = {
        "iteration": rows[0].iteration if rows else 0,
        "generator": "f" * 64,
        "generator_path": "saves/theta_0",
        "tokenizer": tokenizer_digest(encoder.tokenizer),
        "template": encoder.template_digest,
        "prompts_entry": "additions",
        "prompts_digest": digest_of_ids(dict.fromkeys(key.rpartition("#")[0] for key in keys)),
        "ids_digest": digest_of_ids(row.key for row in rows) if numbered else "",
        "selection": {"tpaw_max_prompts": None},
        "sampling": {"temperature": 1.0, "seed": 0},
        "cutoff_len": 256,
        "engine": {"name": "hf", "version": "0"},
        "rows": len(rows),
        "rows_digest": sha256_hex(content),
    }
    return TripletMeta(**(fields | changes))


def write_round(
    project: Project, encoder: TurnEncoder, rows: Sequence[TripletRow], name: str = "d0", **changes: Any
) -> tuple[Entry, TripletMeta]:
    """Write rows, their meta file (`changes` replaces fields of it) and their entry."""
    project.add_entry(name, triplet_entry(name))
    entry = find_entry(name, str(project.root / "data"))
    content = "".join(row.to_json(changes.get("samples", 1)) + "\n" for row in rows).encode()
    meta = make_meta(encoder, rows, content, **changes)
    write_atomic(entry.path, content)
    write_meta(entry.path, meta)
    return entry, meta


def make_triplet(name: str, iteration: int = 0, *, prompt: int = 3, target: int = 2, generated: int = 4) -> Triplet:
    """A triplet of running numbers with so many tokens; `name` is its id."""
    ids = np.arange(1, 1 + prompt + target + generated, dtype=np.int32)
    parts = np.split(ids, [prompt, prompt + target])
    return Triplet(name, iteration, *parts, truncated=False)
