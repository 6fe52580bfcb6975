# SPDX-License-Identifier: Apache-2.0
"""Triplet files: one generated response for each prompt, with the ids that were sampled, and what they came from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .encoding import digest_of_ids
from .files import digest_of_file, key_problems, parse_json, read_json, write_json_atomic


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .encoding import Message
    from .prompts import Prompt

META_SCHEMA = 1
ANEW = "Restore the file, or delete it and its meta file to generate it anew."
FINISH_REASONS = ("stop", "length")

# LlamaFactory's common roles and the tags of its sharegpt format.
ROLE_TO_TAG = {"user": "human", "assistant": "gpt", "observation": "observation", "function": "function_call"}
TAG_TO_ROLE = {tag: role for role, tag in ROLE_TO_TAG.items()}


@dataclass(frozen=True)
class TripletRow:
    """One row of a triplet file.

    Attributes:
        id: The prompt's id.
        iteration: Which θ generated it.
        messages: The prompt's messages, with LlamaFactory's roles.
        system: System text, empty for the template's default.
        tools: Tool descriptions, empty for none.
        target: The SFT response.
        generated: The generated response's text.
        finish_reason: `stop` or `length`.
        generated_ids: The ids as sampled, stop token included.
    """

    id: str
    iteration: int
    messages: list[Message]
    system: str
    tools: str
    target: Message
    generated: str
    finish_reason: str
    generated_ids: list[int]

    @classmethod
    def of(cls, prompt: Prompt, iteration: int, text: str, finish_reason: str, ids: Sequence[int]) -> TripletRow:
        """Join a prompt with what was generated for it."""
        return cls(
            id=prompt.id,
            iteration=iteration,
            messages=prompt.messages,
            system=prompt.system,
            tools=prompt.tools,
            target=prompt.target,
            generated=text,
            finish_reason=finish_reason,
            generated_ids=[int(token) for token in ids],
        )

    def to_json(self) -> str:
        """One line of the file: a sharegpt ranking row that LlamaFactory's other stages read as well."""
        row = {
            "id": self.id,
            "iteration": self.iteration,
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
        r"""Read one line.

        Raises:
            DataError: If a column is missing or has a value it cannot have; `where` names file and row.
        """
        try:
            parsed = cls(
                id=row["id"],
                iteration=int(row["iteration"]),
                messages=[_from_tag(message) for message in row["conversations"]],
                system=row.get("system") or "",
                tools=row.get("tools") or "",
                target=_from_tag(row["chosen"]),
                generated=row["rejected"]["value"],
                finish_reason=row["finish_reason"],
                generated_ids=row.get("generated_ids") or [],
            )
        except KeyError as error:
            raise DataError(f"{where} is not a triplet: it lacks {error}. {ANEW}") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"{where} is not a triplet: a value is wrong ({error}). {ANEW}") from error
        if parsed.finish_reason not in FINISH_REASONS:
            raise DataError(
                f"{where}: `finish_reason` is {parsed.finish_reason!r}, but must be `stop` or `length`. {ANEW}"
            )
        return parsed


@dataclass(frozen=True)
class TripletMeta:
    """What a triplet file came from, kept beside it as `<name>.meta.json`.

    Attributes:
        iteration: Which θ generated it.
        generator: SHA-256 fingerprint of the generator's weights.
        generator_path: Where it was, from the file's folder; for messages and `lineage`, identity is the fingerprint.
            Older files have it from the folder in which the command ran.
        tokenizer: Digest of the tokenizer.
        template: Digest of the template.
        prompts_entry: Entry of the prompts.
        prompts_digest: SHA-256 over the prompts' ids in order.
        selection: The keys that settled which rows are prompts.
        sampling: Sampling settings, `seed` included.
        cutoff_len: `cutoff_len` under which it was sampled.
        engine: Name and version of the engine, and the dtype it computed in.
        rows: Number of rows.
        rows_digest: SHA-256 of the file's bytes.
        counts: How many rows stopped, ran into the limit, equal their target; bad rows; tokens.
        seconds: Time spent on sampling.
        created: When the file was finished, UTC.
        template_name: Name of the template.
        hardware: Device and processor that sampled.
        versions: Versions of the packages that matter.
    """

    iteration: int
    generator: str
    generator_path: str
    tokenizer: str
    template: str
    prompts_entry: str
    prompts_digest: str
    selection: dict[str, Any]
    sampling: dict[str, Any]
    cutoff_len: int
    engine: dict[str, str]
    rows: int
    rows_digest: str
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = ""
    template_name: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = META_SCHEMA


def meta_path(path: Path) -> Path:
    """`data/tpaw/name.jsonl` → `data/tpaw/name.meta.json`."""
    return path.with_suffix(".meta.json")


def write_meta(path: Path, meta: TripletMeta) -> None:
    """Write the meta file of the triplet file `path`; its presence says that the file is whole."""
    write_json_atomic(meta_path(path), asdict(meta))


def read_meta(path: Path) -> TripletMeta:
    r"""Read the meta file of the triplet file `path`.

    Raises:
        DataError: If it is missing, unreadable or of another schema.
    """
    where = meta_path(path)
    if not where.is_file():
        raise DataError(
            f"{path} is a triplet file, but {where} is missing, so nobody knows what generated it. Restore it, or "
            "generate the round anew: delete the file and run the iteration that generates it."
        )
    advice = f"Restore it, or delete {path} and it to generate both anew."
    try:
        content = read_json(where)
    except DataError as error:
        raise DataError(f"{error} Or delete {path} and it to generate both anew.") from error
    if not isinstance(content, dict):
        raise DataError(f"{where} is damaged: it holds no JSON object. {advice}")
    if content.get("schema") != META_SCHEMA:
        raise DataError(
            f"{where} has schema {content.get('schema')}, but this version reads {META_SCHEMA}. Use the version of "
            f"llamafactory-tpaw that wrote it, or delete {path} and it to generate both anew."
        )
    problems = key_problems(TripletMeta, content)
    if problems:
        raise DataError(f"{where} is damaged: {', '.join(problems)}. {advice}")
    return TripletMeta(**content)


def generator_place(path: Path, meta: TripletMeta) -> str:
    """Where the generator of the triplet file `path` is, as seen from the working folder; a hub's name stays one."""
    if os.path.isabs(meta.generator_path):
        return meta.generator_path
    beside = Path(os.path.normpath(path.parent / meta.generator_path))
    return str(beside) if beside.exists() else meta.generator_path


def read_triplets(path: Path, meta: TripletMeta | None = None) -> Iterator[TripletRow]:
    r"""Read a triplet file row by row.

    Args:
        path: The file.
        meta: Its meta, to check the file against before the first row.

    Raises:
        DataError: If the file is not the one the meta describes, or a row cannot be read.
    """
    if meta is not None and digest_of_file(path) != meta.rows_digest:
        raise DataError(
            f"{path} is not the file that {meta_path(path)} describes: {_what_changed(path, meta)}. {ANEW}"
        )
    ids = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path}, row {number}"
            row = TripletRow.from_json(parse_json(line, where, ANEW), where)
            ids.append(row.id)
            yield row
    if meta is not None and (len(ids), digest_of_ids(ids)) != (meta.rows, meta.prompts_digest):
        raise DataError(
            f"{path} holds {len(ids)} triplets, but not one for each of the {meta.rows} prompts that "
            f"{meta_path(path)} speaks of: rows are missing, doubled or of another set. {ANEW}"
        )


def _what_changed(path: Path, meta: TripletMeta) -> str:
    """Say of a file whose digest is another one what can be said: rows, doubled ids, the first row that is broken."""
    seen: dict[str, int] = {}
    doubled, broken, count = "", "", 0
    with path.open("rb") as stream:
        for count, line in enumerate(stream, start=1):
            try:
                row = TripletRow.from_json(parse_json(line, f"row {count}", ""), f"row {count}")
            except DataError as error:
                broken = broken or str(error).removesuffix(ANEW).rstrip(". ")
                continue
            first = seen.setdefault(row.id, count)
            if first != count and not doubled:
                doubled = f"rows {first} and {count} have the same id {row.id}"
    rows = f"it has {count} rows, not {meta.rows}" if count != meta.rows else ""
    foreign = (
        "" if digest_of_ids(seen) == meta.prompts_digest else "its ids are not those of its prompts, in their order"
    )
    found = [part for part in (rows, broken, doubled or (not broken and foreign)) if part]
    return "; ".join(found) or "a response or the meta file was changed"


def _to_tag(message: Message) -> dict[str, str]:
    return {"from": ROLE_TO_TAG[message["role"]], "value": message["content"]}


def _from_tag(message: dict[str, str]) -> Message:
    tag, text = message["from"], message["value"]
    if tag not in TAG_TO_ROLE:
        raise ValueError(f"`from` is {tag!r}, but must be one of {', '.join(TAG_TO_ROLE)}")
    return {"role": TAG_TO_ROLE[tag], "content": text}
