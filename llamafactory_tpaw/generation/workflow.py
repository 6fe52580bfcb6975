# SPDX-License-Identifier: Apache-2.0
"""From prompts to a triplet file: exactly one row a prompt and sample number, whatever interrupts it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.encoding import TurnEncoder, cut_response
from ..data.files import locked, write_parts_atomic
from ..data.progress import Progress
from ..data.prompts import Prompt, PromptSet
from ..data.rounds import Round
from ..data.triplets import TripletMeta, TripletRow, read_meta, row_key, write_meta
from ..errors import DataError, GenerationError
from ..team.manifest import now, relative_path, versions
from .base import Answers, Engine, Failure, PromptRequests, Response, SamplingSettings
from .partial import AGAIN, NewRow, PartialFile


# Failures in a row, beyond those that are allowed, after which the cause is taken to be no single request.
HOPELESS = 100
SHOWN = 3


@dataclass(frozen=True)
class Job:
    """What is to be generated, by whom and how; all that the resulting meta file says beforehand."""

    round: Round
    prompts: PromptSet
    selection: dict[str, Any]  # the keys that settled which rows are prompts
    encoder: TurnEncoder
    generator: str  # fingerprint of θ_t, or of the model in its place
    generator_path: str
    settings: SamplingSettings
    engine: dict[str, str]  # name, version and dtype; a version that only a server knows is filled in later
    cutoff_len: int
    template_name: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)  # what it is sampled on
    samples: int = 1  # responses a prompt
    opponent: str = ""  # `tpaw_opponent_model`; empty where θ_t generates
    max_failed: int = 0  # how many responses may be missing in the end

    @property
    def partial_path(self) -> Path:
        """Where finished rows are kept until the file is whole."""
        return self.round.path.with_name(self.round.path.name + ".partial")

    @property
    def failed_path(self) -> Path:
        """Where the requests of the last run that no attempt answered are listed."""
        return self.round.path.with_name(self.round.path.name + ".failed.jsonl")

    def identity(self) -> dict[str, Any]:
        """What a half-done file must agree in to be continued."""
        return {
            "iteration": self.round.iteration,
            "generator": self.generator,
            "opponent": bool(self.opponent),
            "tokenizer": self.encoder.tokenizer_digest,
            "template": self.encoder.template_digest,
            "prompts": self.prompts.digest,
            "samples": self.samples,
            "sampling": self.settings.as_dict(),
            "cutoff_len": self.cutoff_len,
            "engine": self.engine["name"],
            "dtype": self.engine["dtype"],
        }

    def requests(self) -> PromptRequests:
        """One request a prompt and sample, each bounded by what the prompt leaves of `cutoff_len`."""
        return PromptRequests(
            self.prompts, self.round.iteration, self.samples, self.settings.max_new_tokens, self.cutoff_len
        )


def run_job(job: Job, make_engine: Callable[[], Engine]) -> TripletMeta:
    r"""Generate what is missing of a round and write its files.

    What is answered is on the disk before more is asked for, and memory holds a few numbers a request: neither rows
    nor requests.

    Args:
        job: What to generate.
        make_engine: Makes what answers; called only if a row is missing.

    Returns:
        The meta of the finished file.

    Raises:
        DataError: If a half-done file was begun with other settings, or is damaged.
        InUseError: If another process generates it.
        GenerationError: If the engine fails, more than `max_failed` requests stay without an answer, or so many
            fail in a row that the others would, too.
    """
    with locked(job.round.path, f"The triplet file {job.round.path}"):
        if job.round.complete:  # by another process while this one was starting, or by one killed at its very end
            job.partial_path.unlink(missing_ok=True)
            return read_meta(job.round.path)
        requests = job.requests()
        with PartialFile(job.partial_path, job.identity(), len(requests)) as partial:
            if partial.done < len(requests):
                _fill(job, requests, partial, make_engine)
            meta = _finish(job, requests, partial)
            partial.remove()
        return meta


def _fill(job: Job, requests: PromptRequests, partial: PartialFile, make_engine: Callable[[], Engine]) -> None:
    """Ask for what is left until each request is answered or has failed; those of an earlier run are tried again."""
    job.failed_path.unlink(missing_ok=True)
    open_ = np.zeros(len(requests), dtype=bool)
    open_[partial.left] = True
    failed: list[str] = []
    in_vain = 0
    with contextlib.ExitStack() as stack:
        engine = make_engine()
        if hasattr(engine, "close"):
            stack.callback(engine.close)
        unit = "prompt" if job.samples == 1 else "response"
        progress = stack.enter_context(Progress(f"D_{job.round.iteration}", len(requests), unit, partial.done))
        answers = stack.enter_context(contextlib.closing(engine.answer(requests, partial.left, progress.update)))
        started = time.monotonic()
        for batch in answers:
            for index, _ in batch:
                if not (0 <= index < len(open_) and open_[index]):
                    raise _broken(engine, f"answered request {index} a second time, or without being asked")
                open_[index] = False
            rows = _new_rows(job, batch)
            if rows:
                elapsed = time.monotonic() - started
                started += elapsed
                partial.append(rows, elapsed, engine.version, getattr(engine, "facts", None))
            if len(rows) < len(batch):
                failed += _list_failed(job, requests, batch)
            progress.update(partial.done + len(failed) - progress.n)
            in_vain = 0 if rows else in_vain + len(batch)
            if in_vain >= HOPELESS + job.max_failed:
                raise GenerationError(
                    f"The last {in_vain} requests for {job.round.path} failed one after another, so no more are sent. "
                    f"First: {', '.join(failed[:SHOWN])}. {job.failed_path} lists all: correct the cause, then the "
                    "same command continues."
                )
    if open_.any():
        raise _broken(engine, f"ended without an answer to {open_.sum()} of {len(requests)} requests")
    if len(failed) > job.max_failed:
        raise GenerationError(
            f"{len(failed)} of {len(requests)} responses of {job.round.path} could not be had, but "
            f"`tpaw_max_failed: {job.max_failed}` allows {job.max_failed}. First: {', '.join(failed[:SHOWN])}. "
            f"{job.failed_path} lists all. The others are kept: the same command tries only these again. Or raise "
            "`tpaw_max_failed` to do without them."
        )


def _broken(engine: Engine, what: str) -> GenerationError:
    return GenerationError(
        f"The engine `{engine.name}` {what}: this is a bug of the engine, please report it. What is answered is kept: "
        "the same command asks for the rest."
    )


def _list_failed(job: Job, requests: PromptRequests, batch: Answers) -> list[str]:
    """Write a line for each request without an answer, and return them as a message names them."""
    failed = [(requests[index], answer.reason) for index, answer in batch if isinstance(answer, Failure)]
    try:
        with job.failed_path.open("a", encoding="utf-8", errors="replace") as stream:
            for request, reason in failed:
                row = {"id": request.id, "sample": request.sample, "reason": reason}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        error.filename = str(job.failed_path)
        raise
    return [f"{row_key(request.id, request.sample)} ({reason.rstrip('.')})" for request, reason in failed]


def _new_rows(job: Job, batch: Answers) -> list[NewRow]:
    answers = [(index, answer) for index, answer in batch if isinstance(answer, Response)]
    prompts = job.prompts.prompts.take([index // job.samples for index, _ in answers])
    return [_new_row(job, *answer, prompt) for answer, prompt in zip(answers, prompts, strict=True)]


def _new_row(job: Job, index: int, response: Response, prompt: Prompt) -> NewRow:
    """Join a response with its prompt, and count it."""
    ids, reason, encoder = response.ids, response.finish_reason, job.encoder
    if ids is None:
        text = response.text or ""
        counted = finished = encoder.encode_text(text, reason)
    else:
        text = encoder.text_of(ids, reason)
        counted, finished = ids, encoder.finish(ids, reason)
    target_ids = cut_response(prompt.target_ids, len(prompt.prompt_ids), job.cutoff_len)
    row = TripletRow.of(prompt, job.round.iteration, text, reason, ids or [], index % job.samples)
    # Equal is compared token by token, as in training.
    counts = {reason: 1, "equal": int(np.array_equal(finished, target_ids)), "generated_tokens": len(counted)}
    return NewRow(index, row.to_json(job.samples), counts)


def _finish(job: Job, requests: PromptRequests, partial: PartialFile) -> TripletMeta:
    """Write the triplets in the order of the requests, then the meta file, which says that they are whole."""
    failed = [requests[index] for index in partial.left.tolist()]
    keyed = job.samples > 1 or bool(failed)
    ids = hashlib.sha256()
    rows_digest = write_parts_atomic(job.round.path, _digested(job, partial, ids, keyed))
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
        engine=job.engine | ({"version": partial.version} if partial.version else {}) | partial.facts,
        rows=partial.done,
        rows_digest=rows_digest,
        counts={name: partial.counts[name] for name in ("stop", "length", "equal")}
        | {"bad_rows": len(job.prompts.bad_rows), "generated_tokens": partial.counts["generated_tokens"]},
        seconds=round(partial.seconds, 3),
        created=now(),
        template_name=job.template_name,
        hardware=job.hardware,
        versions=versions(),
        samples=job.samples,
        failed=[row_key(request.id, request.sample) for request in failed],
        ids_digest=ids.hexdigest() if keyed else "",
        opponent=relative_path(job.opponent, job.round.path.parent) if job.opponent else "",
    )
    write_meta(job.round.path, meta)
    return meta


def _digested(job: Job, partial: PartialFile, ids: Any, keyed: bool) -> Iterator[bytes]:
    """Pass on the rows in order and digest their ids; with every row there, the prompts' ids must come out."""
    start = len(b'{"id": "')
    prompts = hashlib.sha256()
    for index, line in partial.rows():
        name = line[start : line.index(b'"', start)].decode()
        sample = index % job.samples
        ids.update(f"{row_key(name, sample) if keyed else name}\n".encode())
        if sample == 0:
            prompts.update(f"{name}\n".encode())
        yield line
    if partial.done == len(partial.offsets) and prompts.hexdigest() != job.prompts.digest:
        raise DataError(f"{partial.path} holds rows of other prompts than it says. {AGAIN}")
