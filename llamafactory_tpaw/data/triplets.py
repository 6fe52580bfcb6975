# SPDX-License-Identifier: Apache-2.0
"""Triplet files: the responses generated for each prompt, with the ids that were sampled, and what they came from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .files import digest_file, key_problems, parse_json, read_json, write_json_atomic


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .encoding import Message
    from .prompts import Prompt

META_SCHEMA = 1
ANEW = "Restore the file, or delete it and its meta file to generate it anew."
FINISH_REASONS = ("stop", "length")
# How the identity of a model begins that only a server has.
SERVED = "served:"

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
        generated_ids: The ids as sampled, stop token included; empty where a server gave text only.
        sample: Which of the prompt's responses this is, from 0 (`tpaw_samples_per_prompt`).
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
    sample: int = 0

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
        r"""One line of the file: a sharegpt ranking row that LlamaFactory's other stages read as well.

        Args:
            samples: Responses a prompt has in the file; `sample` is written where there are several.
        """
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
                sample=int(row.get("sample") or 0),
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
        generator: SHA-256 fingerprint of the generator's weights; of an opponent that only a server has, `served:` and
            a digest of its name there.
        generator_path: Where it was, from the file's folder (older files: from the folder of the command). For
            messages and `lineage`; identity is the fingerprint.
        tokenizer: Digest of the tokenizer of the run, with which the prompts were encoded.
        template: Digest of its template.
        prompts_entry: Entry of the prompts.
        prompts_digest: SHA-256 over the prompts' ids in order.
        selection: The keys that settled which rows are prompts.
        sampling: Sampling settings, `seed` included.
        cutoff_len: `cutoff_len` under which it was sampled.
        engine: Name and version of the engine, its dtype, and what else it says of itself.
        rows: Number of rows.
        rows_digest: SHA-256 of the file's bytes.
        counts: How many rows stopped, ran into the limit, equal their target; bad rows; tokens.
        seconds: Time spent on sampling.
        created: When the file was finished, UTC.
        template_name: Name of the template.
        hardware: Device and processor that sampled.
        versions: Versions of the packages that matter.
        samples: Responses a prompt, numbered from 0.
        failed: Keys of the responses that were allowed to fail, in the order of the file: there is no row for them.
        ids_digest: SHA-256 over the rows' keys in order; empty where every prompt has its one row, so that
            `prompts_digest` says it all.
        opponent: `tpaw_opponent_model`, a path from the file's folder; empty where θ of this iteration generated.
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
    engine: dict[str, Any]
    rows: int
    rows_digest: str
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = ""
    template_name: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    samples: int = 1
    failed: list[str] = field(default_factory=list)
    ids_digest: str = ""
    opponent: str = ""
    schema: int = META_SCHEMA

    @property
    def prompts(self) -> int:
        """Number of prompts, those included whose responses all failed."""
        return (self.rows + len(self.failed)) // self.samples


# Left out of a meta file that has no use for them.
OPTIONAL = {"samples": 1, "failed": [], "ids_digest": "", "opponent": ""}


def row_key(prompt_id: str, sample: int) -> str:
    """Name a response among those of a file: `<id>#<sample>`."""
    return f"{prompt_id}#{sample}"


def meta_path(path: Path) -> Path:
    """`data/tpaw/name.jsonl` → `data/tpaw/name.meta.json`."""
    return path.with_suffix(".meta.json")


def write_meta(path: Path, meta: TripletMeta) -> None:
    """Write the meta file of the triplet file `path`; its presence says that the file is whole."""
    content = asdict(meta)
    for key, default in OPTIONAL.items():
        if content[key] == default:
            del content[key]
    write_json_atomic(meta_path(path), content)


def read_meta(path: Path) -> TripletMeta:
    r"""Read the meta file of the triplet file `path`.

    Raises:
        DataError: If it is missing, unreadable or of another schema.
    """
    where = meta_path(path)
    if not where.is_file():
        raise DataError(
            f"{path} is a triplet file, but {where} is missing, which says what generated it. Restore it, or generate "
            "the round anew: delete the file and run the iteration that generates it."
        )
    both = f"delete {path} and it to generate both anew."
    try:
        content = read_json(where)
    except DataError as error:
        raise DataError(f"{error} Or {both}") from error
    if isinstance(content, dict) and content.get("schema") != META_SCHEMA:
        raise DataError(
            f"{where} has schema {content.get('schema')}, but this version reads {META_SCHEMA}. Use the version of "
            f"llamafactory-tpaw that wrote it, or {both}"
        )
    problems = key_problems(TripletMeta, content) if isinstance(content, dict) else ["it holds no JSON object"]
    if problems:
        raise DataError(f"{where} is damaged: {', '.join(problems)}. Restore it, or {both}")
    meta = TripletMeta(**content)
    if meta.samples < 1 or (meta.rows + len(meta.failed)) % meta.samples:
        raise DataError(
            f"{where} is damaged: {meta.rows} rows and {len(meta.failed)} responses that failed are not "
            f"{meta.samples} (`samples`) for each of its prompts. Restore it, or {both}"
        )
    return meta


def generator_place(path: Path, meta: TripletMeta) -> str:
    """Where the generator of the triplet file `path` is, as seen from the working folder; a hub's name stays one."""
    recorded = meta.opponent or meta.generator_path
    beside = Path(os.path.normpath(path.parent / recorded))
    return str(beside) if beside.exists() else recorded


def opponent_place(path: Path, meta: TripletMeta) -> str:
    """Where the opponent that generated `path` is, likewise; empty where θ generated it."""
    return generator_place(path, meta) if meta.opponent else ""


def read_triplets(path: Path, meta: TripletMeta | None = None) -> Iterator[TripletRow]:
    r"""Read a triplet file row by row.

    Args:
        path: The file.
        meta: Its meta, to check the file against before the first row.

    Raises:
        DataError: If the file is not the one the meta describes, or a row cannot be read.
    """
    if meta is not None and digest_file(path) != meta.rows_digest:
        rows = sum(1 for _ in read_triplets(path))  # a row that is broken is named
        changed = f"it has {rows} rows, not {meta.rows}" if rows != meta.rows else "a row or the meta file was changed"
        raise DataError(f"{path} is not the file that {meta_path(path)} describes: {changed}. {ANEW}")
    count, digest = 0, hashlib.sha256()
    with path.open("rb") as stream:
        for count, line in enumerate(stream, start=1):
            where = f"{path}, row {count}"
            row = TripletRow.from_json(parse_json(line, where, ANEW), where)
            digest.update(f"{row.key if meta and meta.ids_digest else row.id}\n".encode())
            yield row
    if meta and (count, digest.hexdigest()) != (meta.rows, meta.ids_digest or meta.prompts_digest):
        raise DataError(
            f"{path} holds {count} triplets, but not those of the {meta.prompts} prompts that {meta_path(path)} "
            f"describes: rows are missing, doubled or of another set. {ANEW}"
        )


def _to_tag(message: Message) -> dict[str, str]:
    return {"from": ROLE_TO_TAG[message["role"]], "value": message["content"]}


def _from_tag(message: dict[str, str]) -> Message:
    tag, text = message["from"], message["value"]
    if tag not in TAG_TO_ROLE:
        raise ValueError(f"`from` is {tag!r}, but must be one of {', '.join(TAG_TO_ROLE)}")
    return {"role": TAG_TO_ROLE[tag], "content": text}
