# SPDX-License-Identifier: Apache-2.0
"""From prompts to a triplet file: exactly one row a prompt and sample number, whatever interrupts it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.encoding import TurnEncoder, cut_response, digest_of_ids
from ..data.files import locked, write_parts_atomic
from ..data.progress import Progress
from ..data.prompts import PromptSet
from ..data.rounds import Round
from ..data.triplets import TripletMeta, TripletRow, read_meta, row_key, write_meta
from ..errors import GenerationError
from ..team.manifest import now, relative_path, versions
from .base import Answers, Engine, Failure, PromptRequests, Response, SamplingSettings
from .partial import MISSING, NewRow, PartialFile


# Failures beyond those that are allowed, after which no more is asked for: the same command goes on.
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
            "sampling": asdict(self.settings),
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
    nor requests. `make_engine` is called only if a row is missing.
    """
    with locked(job.round.path, f"The triplet file {job.round.path}"):
        if not job.round.complete:  # else another process made it while this one was starting
            requests = job.requests()
            with contextlib.closing(PartialFile(job.round.partial, job.identity(), len(requests))) as partial:
                if partial.done < len(requests):
                    _fill(job, requests, partial, make_engine)
                _finish(job, partial)
        job.round.partial.unlink(missing_ok=True)
        return read_meta(job.round.path)


def _fill(job: Job, requests: PromptRequests, partial: PartialFile, make_engine: Callable[[], Engine]) -> None:
    """Ask for what is left until each request is answered or has failed; those of an earlier run are tried again."""
    job.failed_path.unlink(missing_ok=True)
    failed: list[str] = []
    with contextlib.ExitStack() as stack:
        engine = make_engine()
        if hasattr(engine, "close"):
            stack.callback(engine.close)
        unit = "prompt" if job.samples == 1 else "response"
        progress = stack.enter_context(Progress(f"D_{job.round.iteration}", len(requests), unit, partial.done))
        answers = stack.enter_context(contextlib.closing(engine.answer(requests, partial.left, progress.update)))
        started = time.monotonic()
        for batch in answers:
            rows = _new_rows(job, batch)
            if rows:
                elapsed = time.monotonic() - started
                started += elapsed
                partial.append(rows, elapsed, engine.version, getattr(engine, "facts", None))
            failed += _list_failed(job, requests, batch)
            progress.update(partial.done + len(failed) - progress.n)
            if len(failed) > job.max_failed + HOPELESS:
                break
    missing = len(requests) - partial.done
    if missing > job.max_failed:
        raise GenerationError(
            f"{missing} of {len(requests)} responses of {job.round.path} are missing, but `tpaw_max_failed: "
            f"{job.max_failed}` allows {job.max_failed}; failed: {', '.join(failed[:SHOWN])}. {job.failed_path} lists "
            "all: correct the cause, and the same command asks for what is missing, or raise `tpaw_max_failed`."
        )


def _list_failed(job: Job, requests: PromptRequests, batch: Answers) -> list[str]:
    """Write a line for each request without an answer, and return them as a message names them."""
    failed = [(requests[index], answer.reason) for index, answer in batch if isinstance(answer, Failure)]
    if failed:
        with job.failed_path.open("a", encoding="utf-8", errors="replace") as stream:
            for request, reason in failed:
                row = {"id": request.id, "sample": request.sample, "reason": reason}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return [f"{row_key(request.id, request.sample)} ({reason.rstrip('.')})" for request, reason in failed]


def _new_rows(job: Job, batch: Answers) -> list[NewRow]:
    """Join responses with their prompts, and count them."""
    answers, encoder, rows = [each for each in batch if isinstance(each[1], Response)], job.encoder, []
    prompts = job.prompts.prompts.take([index // job.samples for index, _ in answers])
    for (index, response), prompt in zip(answers, prompts, strict=True):
        ids, reason = response.ids, response.finish_reason
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
        rows.append(NewRow(index, row.to_json(job.samples), counts))
    return rows


def _finish(job: Job, partial: PartialFile) -> None:
    """Write the triplets in the order of the requests, then the meta file, which says that they are whole."""

    def key(index: int) -> str:
        return row_key(job.prompts.prompts.ids[index // job.samples], index % job.samples)

    left, identity = partial.left.tolist(), job.identity()
    there = np.flatnonzero(partial.offsets != MISSING)
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
        rows_digest=write_parts_atomic(job.round.path, (line for _, line in partial.rows())),
        counts={name: partial.counts[name] for name in ("stop", "length", "equal")}
        | {"bad_rows": len(job.prompts.bad_rows), "generated_tokens": partial.counts["generated_tokens"]},
        seconds=round(partial.seconds, 3),
        created=now(),
        template_name=job.template_name,
        hardware=job.hardware,
        versions=versions(),
        samples=job.samples,
        failed=[key(index) for index in left],
        ids_digest=digest_of_ids(map(key, there.tolist())) if left or job.samples > 1 else "",
        opponent=relative_path(job.opponent, job.round.path.parent) if job.opponent else "",
    )
    write_meta(job.round.path, meta)
