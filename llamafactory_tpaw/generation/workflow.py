# SPDX-License-Identifier: Apache-2.0
"""From prompts to a triplet file: exactly one row a prompt, whatever interrupts it."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..data.encoding import cut_response
from ..data.files import read_jsonl_prefix, sha256_hex, write_atomic
from ..data.locks import locked
from ..data.progress import Progress
from ..data.triplets import TripletMeta, TripletRow, read_meta, write_meta
from ..errors import DataError
from ..team.machine import now, versions
from ..team.manifest import relative_path
from .base import Request, SamplingSettings, plan_units


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..data.encoding import TurnEncoder
    from ..data.prompts import Prompt, PromptSet
    from ..data.rounds import Round
    from .base import Engine, Response


@dataclass(frozen=True)
class Job:
    """What is to be generated, by whom and how; all that the resulting meta file says beforehand.

    Attributes:
        round: The round and its file.
        prompts: The prompts.
        selection: The keys that settled which rows are prompts.
        encoder: Tokenizer and template.
        generator: Fingerprint of θ_t.
        generator_path: Where it is.
        settings: Sampling settings.
        engine: Name and version of the engine, and the dtype it computes in.
        batch_tokens: `tpaw_generate_batch_tokens`.
        cutoff_len: `cutoff_len`.
        template_name: `template`.
        hardware: What it is sampled on.
    """

    round: Round
    prompts: PromptSet
    selection: dict[str, Any]
    encoder: TurnEncoder
    generator: str
    generator_path: str
    settings: SamplingSettings
    engine: dict[str, str]
    batch_tokens: int
    cutoff_len: int
    template_name: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)

    @property
    def partial_path(self) -> Path:
        """Where finished rows are kept until the file is whole."""
        return self.round.path.with_name(self.round.path.name + ".partial")

    def identity(self) -> dict[str, Any]:
        """What a half-done file must agree in to be continued."""
        return {
            "iteration": self.round.iteration,
            "generator": self.generator,
            "tokenizer": self.encoder.tokenizer_digest,
            "template": self.encoder.template_digest,
            "prompts": self.prompts.digest,
            "sampling": self.settings.as_dict(),
            "cutoff_len": self.cutoff_len,
            "dtype": self.engine["dtype"],
        }

    def requests(self) -> list[Request]:
        """One request a prompt, each bounded by what the prompt leaves of `cutoff_len`."""
        return [
            Request(
                prompt.id,
                prompt.prompt_ids,
                min(self.settings.max_new_tokens, self.cutoff_len - len(prompt.prompt_ids)),
                self.round.iteration,
            )
            for prompt in self.prompts.prompts
        ]


def run_job(job: Job, make_engine: Callable[[], Engine]) -> TripletMeta:
    r"""Generate what is missing of a round and write its files.

    Args:
        job: What to generate.
        make_engine: Loads θ_t; called only if a row is missing.

    Returns:
        The meta of the finished file.

    Raises:
        DataError: If a half-done file was begun with other settings.
        InUseError: If another process generates it.
        GenerationError: If the engine fails.
    """
    with locked(job.round.path, f"The triplet file {job.round.path}"):
        return _run_locked(job, make_engine)


def _run_locked(job: Job, make_engine: Callable[[], Engine]) -> TripletMeta:
    if job.round.complete:  # by another process while this one was starting, or by one killed at its very end
        job.partial_path.unlink(missing_ok=True)
        return read_meta(job.round.path)
    done, seconds = _read_partial(job)
    requests = job.requests()
    # The plan covers all prompts, so that after an interruption the units that are left are the same ones.
    units = [
        [index for index in unit if requests[index].id not in done] for unit in plan_units(requests, job.batch_tokens)
    ]
    units = [unit for unit in units if unit]
    if units:
        engine = make_engine()
        with (
            job.partial_path.open("ab") as stream,
            Progress(f"D_{job.round.iteration}", len(requests), "prompt", done=len(done)) as progress,
        ):
            for unit in units:
                started = time.monotonic()
                responses = engine.generate([requests[index] for index in unit], progress.update)
                rows = [_row(job, index, response) for index, response in zip(unit, responses, strict=True)]
                elapsed = time.monotonic() - started
                _append(stream, {"seconds": elapsed, "rows": [row.to_json() for row in rows]})
                done.update({row.id: row for row in rows})
                seconds += elapsed
                progress.update(len(done) - progress.n)
    meta = _finish(job, done, seconds)
    job.partial_path.unlink()
    return meta


def _read_partial(job: Job) -> tuple[dict[str, TripletRow], float]:
    """Open the half-done file, or begin it, and return its rows by id and the seconds spent on them."""
    path = job.partial_path
    prefix = read_jsonl_prefix(path)
    if not prefix.rows:
        write_atomic(path, json.dumps(job.identity()) + "\n")
        return {}, 0.0
    begun, now = prefix.rows[0], job.identity()
    different = sorted(key for key in now if begun.get(key) != now[key])
    if different:
        raise DataError(
            f"{path} was begun with another {', '.join(different)} than now. Restore the settings or the checkpoint "
            "to continue it, or delete it to begin anew."
        )
    os.truncate(path, prefix.end)
    rows = [
        TripletRow.from_json(json.loads(text), f"{path}, line {number}")
        for number, batch in enumerate(prefix.rows[1:], start=2)
        for text in batch["rows"]
    ]
    return {row.id: row for row in rows}, sum(batch["seconds"] for batch in prefix.rows[1:])


def _append(stream: BinaryIO, batch: dict[str, Any]) -> None:
    """One line a unit: after a crash a unit is there whole or not at all."""
    stream.write(json.dumps(batch, ensure_ascii=False).encode() + b"\n")
    stream.flush()
    os.fsync(stream.fileno())


def _row(job: Job, index: int, response: Response) -> TripletRow:
    text = job.encoder.text_of(response.ids, response.finish_reason)
    return TripletRow.of(job.prompts.prompts[index], job.round.iteration, text, response.finish_reason, response.ids)


def _equal(job: Job, prompt: Prompt, row: TripletRow) -> bool:
    """Whether the generated response is the target, token by token, as in training."""
    target_ids = cut_response(prompt.target_ids, len(prompt.prompt_ids), job.cutoff_len)
    return np.array_equal(job.encoder.finish(row.generated_ids, row.finish_reason), target_ids)


def _finish(job: Job, rows: dict[str, TripletRow], seconds: float) -> TripletMeta:
    """Write the triplets in the order of the prompts, then the meta file, which says that they are whole."""
    ordered = [rows[prompt.id] for prompt in job.prompts.prompts]
    content = "".join(row.to_json() + "\n" for row in ordered).encode()
    reasons = Counter(row.finish_reason for row in ordered)
    identity = job.identity()
    meta = TripletMeta(
        iteration=job.round.iteration,
        generator=job.generator,
        generator_path=relative_path(job.generator_path, job.round.path.parent),
        tokenizer=identity["tokenizer"],
        template=identity["template"],
        prompts_entry=job.prompts.entry.name,
        prompts_digest=job.prompts.digest,
        selection=job.selection,
        sampling=identity["sampling"],
        cutoff_len=job.cutoff_len,
        engine=job.engine,
        rows=len(ordered),
        rows_digest=sha256_hex(content),
        counts={
            "stop": reasons["stop"],
            "length": reasons["length"],
            "equal": sum(_equal(job, *pair) for pair in zip(job.prompts.prompts, ordered, strict=True)),
            "bad_rows": len(job.prompts.bad_rows),
            "generated_tokens": sum(len(row.generated_ids) for row in ordered),
        },
        seconds=round(seconds, 3),
        created=now(),
        template_name=job.template_name,
        hardware=job.hardware,
        versions=versions(),
    )
    write_atomic(job.round.path, content)
    write_meta(job.round.path, meta)
    return meta
