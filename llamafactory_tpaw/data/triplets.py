# SPDX-License-Identifier: Apache-2.0
"""Triplet files: the responses generated for each prompt, with the ids that were sampled, and what they came from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import DataError
from .encoding import digest_of_ids
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
            sample=sample,
        )

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
        if parsed.sample < 0:
            raise DataError(f"{where}: `sample` is {parsed.sample}, but must be 0 or more. {ANEW}")
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
        engine: Name and version of the engine, and the dtype it computed in; of servers also the model's name there,
            whether they say that they loaded this checkpoint, and how prompts went and responses came.
        rows: Number of rows.
        rows_digest: SHA-256 of the file's bytes.
        counts: How many rows stopped, ran into the limit, equal their target; bad rows; tokens.
        seconds: Time spent on sampling.
        created: When the file was finished, UTC.
        template_name: Name of the template.
        hardware: Device and processor that sampled.
        versions: Versions of the packages that matter.
        samples: Responses a prompt, numbered from 0.
        failed: `<id>#<sample>` of the responses that no attempt got and that were allowed to fail, in the order of the
            file: there is no row for them.
        ids_digest: `digest_of_ids` over the rows' keys, `<id>#<sample>`, in order; empty where every prompt has its
            one row, so that `prompts_digest` says it all.
        opponent: What the user named as `tpaw_opponent_model`, a path from the file's folder; empty where theta of
            this iteration itself generated. With an opponent `generator` is the fingerprint of its weights where
            they are here, else `served:` and a digest of the name under which a server has it; `generator_path` is
            the same as `opponent`. `tokenizer` and `template` are always those of the run, with which the prompts
            were encoded: where the opponent has other tokens, rows have no `generated_ids`.
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
    meta = TripletMeta(**content)
    problem = _count_problem(meta)
    if problem:
        raise DataError(f"{where} is damaged: {problem}. {advice}")
    return meta


def _count_problem(meta: TripletMeta) -> str:
    """Say what is wrong with the numbers of rows, of responses a prompt and of those that failed."""
    if not isinstance(meta.samples, int) or meta.samples < 1:
        return f"`samples` is {meta.samples!r}, but must be 1 or more"
    if (meta.rows + len(meta.failed)) % meta.samples:
        return (
            f"{meta.rows} rows and {len(meta.failed)} responses that failed are not {meta.samples} (`samples`) for "
            "each of its prompts"
        )
    if bool(meta.ids_digest) != (meta.samples > 1 or bool(meta.failed)):
        return (
            f"`ids_digest` is {'there' if meta.ids_digest else 'missing'}, which does not fit `samples` and `failed`"
        )
    return ""


def generator_place(path: Path, meta: TripletMeta) -> str:
    """Where the generator of the triplet file `path` is, as seen from the working folder; a hub's name stays one."""
    return _place(path, meta.generator_path)


def opponent_place(path: Path, meta: TripletMeta) -> str:
    """Where the opponent that generated `path` is, likewise; a served name stays one; empty where θ generated it."""
    return _place(path, meta.opponent) if meta.opponent else ""


def _place(path: Path, recorded: str) -> str:
    if os.path.isabs(recorded):
        return recorded
    beside = Path(os.path.normpath(path.parent / recorded))
    return str(beside) if beside.exists() else recorded


def read_triplets(path: Path, meta: TripletMeta | None = None) -> Iterator[TripletRow]:
    r"""Read a triplet file row by row.

    Args:
        path: The file.
        meta: Its meta, to check the file against before the first row.

    Raises:
        DataError: If the file is not the one the meta describes, or a row cannot be read.
    """
    if meta is not None and digest_file(path) != meta.rows_digest:
        raise DataError(
            f"{path} is not the file that {meta_path(path)} describes: {_what_changed(path, meta)}. {ANEW}"
        )
    with path.open("rb") as stream:
        if meta is None:
            yield from _parsed(path, stream)
            return
        count, digest = 0, hashlib.sha256()
        for row in _parsed(path, stream):
            count += 1
            digest.update(f"{row.key if meta.ids_digest else row.id}\n".encode())
            yield row
    if (count, digest.hexdigest()) != (meta.rows, meta.ids_digest or meta.prompts_digest):
        each = "one" if meta.samples == 1 else f"{meta.samples}"
        but = f", {len(meta.failed)} that failed aside" if meta.failed else ""
        raise DataError(
            f"{path} holds {count} triplets, but not {each} for each of the {meta.prompts} prompts that "
            f"{meta_path(path)} speaks of{but}: rows are missing, doubled or of another set. {ANEW}"
        )


def _parsed(path: Path, stream: BinaryIO) -> Iterator[TripletRow]:
    for number, line in enumerate(stream, start=1):
        where = f"{path}, row {number}"
        yield TripletRow.from_json(parse_json(line, where, ANEW), where)


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
            first = seen.setdefault(row.key if meta.ids_digest else row.id, count)
            if first != count and not doubled:
                same = f"id {row.id}" + (f" and sample {row.sample}" if meta.ids_digest else "")
                doubled = f"rows {first} and {count} have the same {same}"
    rows = f"it has {count} rows, not {meta.rows}" if count != meta.rows else ""
    fits = digest_of_ids(seen) == (meta.ids_digest or meta.prompts_digest)
    foreign = "" if fits else _foreign_ids(list(seen), meta)
    found = [part for part in (rows, broken, doubled or (not broken and foreign)) if part]
    return "; ".join(found) or "a response or the meta file was changed"


def _foreign_ids(keys: list[str], meta: TripletMeta) -> str:
    """Say how ids and numbers of rows differ from those that the meta file counted."""
    if meta.samples > 1:
        there, failed = set(keys), set(meta.failed)
        for name in dict.fromkeys(key.rpartition("#")[0] for key in keys):
            for sample in range(meta.samples):
                key = row_key(name, sample)
                if key not in there and key not in failed:
                    return f"it lacks sample {sample} of prompt {name}"
    of = (
        "prompts, in their order" if meta.samples == 1 else f"prompts and their {meta.samples} samples, in their order"
    )
    return f"its ids are not those of its {of}"


def _to_tag(message: Message) -> dict[str, str]:
    return {"from": ROLE_TO_TAG[message["role"]], "value": message["content"]}


def _from_tag(message: dict[str, str]) -> Message:
    tag, text = message["from"], message["value"]
    if tag not in TAG_TO_ROLE:
        raise ValueError(f"`from` is {tag!r}, but must be one of {', '.join(TAG_TO_ROLE)}")
    return {"role": TAG_TO_ROLE[tag], "content": text}
