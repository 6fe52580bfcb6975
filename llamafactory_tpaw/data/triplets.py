# SPDX-License-Identifier: Apache-2.0
"""Triplet files: the responses generated for each prompt, with the ids that were sampled, and what they came from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError
from .files import digest_file, key_problems, parse_json, read_json, write_json_atomic


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .encoding import Message
    from .prompts import Prompt

META_SCHEMA: Literal[1] = 1
RESTORE = "Restore the file, or delete it and its meta file to generate it again."
# How the identity of a model begins that only a server has.
SERVED = "served:"

# LlamaFactory's common roles and the tags of its sharegpt format.
ROLE_TO_TAG = {"user": "human", "assistant": "gpt", "observation": "observation", "function": "function_call"}
TAG_TO_ROLE = {tag: role for role, tag in ROLE_TO_TAG.items()}


@dataclass(frozen=True)
class TripletRow:
    """One row of a triplet file."""

    id: str  # of the prompt
    iteration: int  # which θ generated it
    messages: list[Message]  # the prompt, with LlamaFactory's roles
    system: str  # empty for the template's default
    tools: str  # empty for none
    target: Message  # the SFT response
    generated: str
    finish_reason: str  # `stop` or `length`
    generated_ids: list[int]  # as sampled, stop token included; empty where a server gave text only
    sample: int = 0  # which of the prompt's responses this is (`tpaw_samples_per_prompt`)

    @property
    def key(self) -> str:
        """What no two rows of a file have in common: `<id>#<sample>`."""
        return row_key(self.id, self.sample)

    @classmethod
    def of(
        cls, prompt: Prompt, iteration: int, text: str, finish_reason: str, ids: Sequence[int], sample: int = 0
    ) -> TripletRow:
        """Join a prompt with what was generated for it."""
        given = (prompt.id, iteration, prompt.messages, prompt.system, prompt.tools, prompt.target)
        return cls(*given, text, finish_reason, [int(token) for token in ids], sample)

    def to_json(self, samples: int = 1) -> str:
        """One line of a file with so many responses a prompt: a sharegpt ranking row, as other stages read it."""
        row = {
            "id": self.id,
            "iteration": self.iteration,
            **({"sample": self.sample} if samples > 1 or self.sample else {}),
            "conversations": [_to_tag(message) for message in self.messages],
            "system": self.system,
            "tools": self.tools,
            "chosen": _to_tag(self.target),
            "rejected": {"from": "gpt", "value": self.generated},
            "finish_reason": self.finish_reason,
            "generated_ids": self.generated_ids,
        }
        return json.dumps(row, ensure_ascii=False)

    @classmethod
    def from_json(cls, row: dict[str, Any], where: str) -> TripletRow:
        """Read one line; one that is no triplet is a `DataError` with `where`, which names file and row."""
        try:
            if row["finish_reason"] not in ("stop", "length"):
                raise ValueError(f"`finish_reason` is {row['finish_reason']!r}, but must be `stop` or `length`")
            return cls(
                id=row["id"],
                iteration=int(row["iteration"]),
                messages=[_from_tag(message) for message in row["conversations"]],
                system=row.get("system") or "",
                tools=row.get("tools") or "",
                target=_from_tag(row["chosen"]),
                generated=row["rejected"]["value"],
                finish_reason=row["finish_reason"],
                generated_ids=row.get("generated_ids") or [],
                sample=int(row.get("sample") or 0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where} is not a triplet: {error!r}. {RESTORE}") from error


@dataclass(frozen=True)
class TripletMeta:
    """What a triplet file came from, kept beside it as `<name>.meta.json`."""

    iteration: int  # which θ generated it
    # SHA-256 fingerprint of the generator's weights; `served:` and a digest of its name where only a server has it.
    generator: str
    # Where it was, from the file's folder (older files: from the folder of the command). Identity is the fingerprint.
    generator_path: str
    # Digests of what the prompts were encoded with: those of the run, also where an opponent has other tokens.
    tokenizer: str
    template: str
    prompts_entry: str
    prompts_digest: str  # over the prompts' ids in order
    selection: dict[str, Any]  # the keys that settled which rows are prompts
    sampling: dict[str, Any]  # settings, `seed` included
    cutoff_len: int
    engine: dict[str, Any]  # its name, version and dtype, and what else it says of itself
    rows: int
    rows_digest: str  # SHA-256 of the file's bytes
    counts: dict[str, int] = field(default_factory=dict)  # rows that stopped, ran into the limit, …; bad rows; tokens
    seconds: float = 0.0  # spent on sampling
    created: str = ""  # when the file was finished, UTC
    template_name: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    samples: int = 1  # responses a prompt, numbered from 0
    # Keys of the responses that were allowed to fail, in the order of the file: there is no row for them.
    failed: list[str] = field(default_factory=list)
    # Over the rows' keys in order; empty where every prompt has its one row, so that `prompts_digest` says it all.
    ids_digest: str = ""
    opponent: str = ""  # `tpaw_opponent_model`, a path from the file's folder; empty where θ itself generated
    schema: Literal[1] = META_SCHEMA

    @property
    def prompts(self) -> int:
        """Number of prompts, those included whose responses all failed."""
        return (self.rows + len(self.failed)) // max(self.samples, 1)


def row_key(prompt_id: str, sample: int) -> str:
    """Name a response among those of a file: `<id>#<sample>`."""
    return f"{prompt_id}#{sample}"


def meta_path(path: Path) -> Path:
    """`data/tpaw/name.jsonl` → `data/tpaw/name.meta.json`."""
    return path.with_suffix(".meta.json")


def write_meta(path: Path, meta: TripletMeta) -> None:
    """Write the meta file of the triplet file `path`; its presence says that the file is whole."""
    content = asdict(meta)
    for key, default in {"samples": 1, "failed": [], "ids_digest": "", "opponent": ""}.items():
        if content[key] == default:
            del content[key]
    write_json_atomic(meta_path(path), content, seal=True)


def read_meta(path: Path) -> TripletMeta:
    """Read the meta file of the triplet file `path`; one that is missing, damaged or too new is a `DataError`."""
    where = meta_path(path)
    advice = f"Restore it, or delete {path} and it to generate both again."
    try:
        content = read_json(where)
    except DataError as error:
        raise DataError(f"{str(error).partition('. ')[0]}. {advice}") from error
    if problems := key_problems(TripletMeta, content):
        raise DataError(f"{where} does not fit: {', '.join(problems)}. {advice}")
    return TripletMeta(**content)


def generator_place(path: Path, meta: TripletMeta) -> str:
    """Where the generator of the triplet file `path` is, as seen from the working folder; a hub's name stays one."""
    recorded = meta.opponent or meta.generator_path
    beside = Path(os.path.normpath(path.parent / recorded))
    return str(beside) if beside.exists() else recorded


def read_triplets(path: Path, meta: TripletMeta | None = None) -> Iterator[TripletRow]:
    """Read a triplet file row by row; a DataError where it is not the one that `meta` describes."""
    if meta is not None and digest_file(path) != meta.rows_digest:
        rows = sum(1 for _ in read_triplets(path))  # a row that is broken is named
        changed = f"it has {rows} rows, not {meta.rows}" if rows != meta.rows else "a row or the meta file was changed"
        raise DataError(f"{path} is not the file that {meta_path(path)} describes: {changed}. {RESTORE}")
    count, digest = 0, hashlib.sha256()
    with path.open("rb") as stream:
        for count, line in enumerate(stream, start=1):
            where = f"{path}, row {count}"
            row = TripletRow.from_json(parse_json(line, where, RESTORE), where)
            digest.update(f"{row.key if meta and meta.ids_digest else row.id}\n".encode())
            yield row
    if meta and (count, digest.hexdigest()) != (meta.rows, meta.ids_digest or meta.prompts_digest):
        raise DataError(
            f"{path} holds {count} triplets, but not those of the {meta.prompts} prompts that {meta_path(path)} "
            f"describes: rows are missing, doubled or of another set. {RESTORE}"
        )


def _to_tag(message: Message) -> dict[str, str]:
    return {"from": ROLE_TO_TAG[message["role"]], "value": message["content"]}


def _from_tag(message: dict[str, str]) -> Message:
    tag, text = message["from"], message["value"]
    if tag not in TAG_TO_ROLE:
        raise ValueError(f"`from` is {tag!r}, but must be one of {', '.join(TAG_TO_ROLE)}")
    return {"role": TAG_TO_ROLE[tag], "content": text}
