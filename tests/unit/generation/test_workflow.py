# SPDX-License-Identifier: Apache-2.0
"""Exactly one row a prompt and sample, whatever interrupts or misbehaves, and the same bytes as without it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.data.files import sha256_hex
from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.triplets import TripletMeta, read_meta, read_triplets
from llamafactory_tpaw.errors import DataError, GenerationError
from llamafactory_tpaw.generation import workflow
from llamafactory_tpaw.generation.base import Answers, Failure, PromptRequests, Request, Response
from llamafactory_tpaw.generation.workflow import Job, run_job
from tests.unit.generation.conftest import CUTOFF


class Interrupted(Exception):
    pass


class Shuffled:
    """Answers by the request alone, in a seeded order and lists of several sizes; interrupted after `lists`."""

    name = "fake"

    def __init__(self, job: Job, *, order: int = 0, lists: int = 10**6, failing: tuple[int, ...] = ()) -> None:
        self.job, self.order, self.lists, self.failing = job, order, lists, failing
        self.asked: list[int] = []
        self.version = ""
        self.events: list[str] = []

    def answer(self, requests: PromptRequests, left: Any, finished: Callable[[int], object]) -> Iterator[Answers]:
        self.asked, self.version = left.tolist(), "server 7"
        try:
            for answers in self.answers(requests):
                if self.lists == 0:
                    raise Interrupted
                self.lists -= 1
                finished(len(answers) // 2)
                yield answers
        finally:
            self.events.append("answered")

    def answers(self, requests: PromptRequests) -> Iterator[Answers]:
        draw = random.Random(self.order)
        order = draw.sample(self.asked, len(self.asked))
        while order:
            size = draw.randint(0, 4)
            part, order = order[:size], order[size:]
            yield [(index, self.respond(index, requests[index])) for index in part]

    def respond(self, index: int, request: Request) -> Response | Failure:
        if index in self.failing:
            return Failure(f"No server answers {index}.")
        stop = self.job.encoder.end_of_turn[0]
        if index == 0:
            ids = self.job.prompts.prompts.take([0])[0].target_ids.tolist()
            return Response(ids[: ids.index(stop) + 1], "stop")
        number = request.seed(self.job.settings.seed) % 1000
        ids = self.job.encoder.tokenizer.encode(f"Ä {number}\n")
        return Response([*ids, stop], "stop") if number % 3 else Response(ids[: request.max_new_tokens], "length")

    def close(self) -> None:
        self.events.append("closed")


@pytest.fixture
def job(common_job: Job, tmp_path: Path) -> Job:
    return at(common_job, tmp_path)


def at(job: Job, folder: Path) -> Job:
    """The same job with its file elsewhere."""
    return replace(job, round=Round(1, replace(job.round.entry, path=folder / "d1.jsonl")))


def play(job: Job, engine: type[Shuffled] = Shuffled, **options: Any) -> tuple[Shuffled, TripletMeta]:
    made = engine(job, **options)
    return made, run_job(job, lambda: made)


def undisturbed(job: Job, folder: Path) -> tuple[bytes, TripletMeta]:
    other = at(job, folder / "other")
    _, meta = play(other)
    return other.round.path.read_bytes(), meta


def no_engine() -> Any:
    raise AssertionError("the model must not be loaded: nothing is missing")


def test_one_row_a_prompt_in_order_and_what_the_meta_file_says(job: Job) -> None:
    engine, meta = play(job)
    assert meta == read_meta(job.round.path)
    rows = list(read_triplets(job.round.path, meta))
    prompts = job.prompts.prompts
    assert [row.id for row in rows] == [prompt.id for prompt in prompts]
    assert [(row.messages, row.target) for row in rows] == [(prompt.messages, prompt.target) for prompt in prompts]
    for index, (row, request) in enumerate(zip(rows, job.requests(), strict=True)):
        response = engine.respond(index, request)
        assert (row.generated_ids, row.finish_reason) == (response.ids, response.finish_reason)
        assert row.generated == job.encoder.text_of(response.ids, response.finish_reason)
        assert request.max_new_tokens == min(20, CUTOFF - len(request.prompt_ids))
    stopped = sum(row.finish_reason == "stop" for row in rows)
    assert 0 < stopped < 17
    tokens = sum(len(row.generated_ids) for row in rows)
    counts = {"stop": stopped, "length": 17 - stopped, "equal": 1, "bad_rows": 1, "generated_tokens": tokens}
    assert meta.counts == counts
    assert (meta.iteration, meta.generator, meta.generator_path, meta.rows) == (1, "a" * 64, "saves/theta_1", 17)
    assert (meta.prompts_entry, meta.prompts_digest) == ("sft", job.prompts.digest)
    assert (meta.sampling, meta.cutoff_len) == (asdict(job.settings), CUTOFF)
    assert (meta.engine, meta.samples, meta.ids_digest) == (job.engine | {"version": "server 7"}, 1, "")
    assert meta.rows_digest == sha256_hex(job.round.path.read_bytes())
    names = sorted(path.name for path in job.round.path.parent.iterdir() if not path.name.startswith("."))
    assert names == ["d1.jsonl", "d1.meta.json"]
    assert run_job(job, no_engine) == meta


@pytest.mark.parametrize("samples", [1, 3])
def test_interrupted_at_every_list_in_any_order(job: Job, tmp_path: Path, samples: int) -> None:
    job = replace(job, samples=samples)
    content, meta = undisturbed(job, tmp_path)
    count = 0
    while not job.round.complete:
        assert not job.round.path.exists()
        engine = Shuffled(job, order=count, lists=1)
        try:
            run_job(job, lambda made=engine: made)
        except Interrupted:
            count += 1
        assert engine.events == ["answered", "closed"]
    assert count > 5 * samples
    assert job.round.path.read_bytes() == content
    assert replace(read_meta(job.round.path), seconds=0, created="") == replace(meta, seconds=0, created="")
    rows = list(read_triplets(job.round.path, meta))
    assert [(row.id, row.sample) for row in rows] == [
        (prompt.id, sample) for prompt in job.prompts.prompts for sample in range(samples)
    ]
    assert len({row.generated for row in rows}) > 13 * samples
    assert (meta.samples, meta.prompts, meta.rows) == (samples, 17, 17 * samples)


def with_template(job: Job, digest: str) -> Job:
    encoder = copy.copy(job.encoder)
    vars(encoder)["template_digest"] = digest
    return replace(job, encoder=encoder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda job: replace(job, generator="b" * 64), "another generator"),
        (
            lambda job: replace(job, settings=replace(job.settings, temperature=0.5), cutoff_len=59),
            r"`cutoff_len` was \d+ and is 59 now; `temperature` was 1.0 and is 0.5 now",
        ),
        (lambda job: replace(job, samples=2), "`tpaw_samples_per_prompt` was 1 and is 2 now"),
        (lambda job: replace(job, opponent="other", generator="served:x"), "another generator; another opponent"),
        (lambda job: with_template(job, "x"), "another template"),
    ],
)
def test_another_run_does_not_continue_it(job: Job, change: Callable[[Job], Job], named: str) -> None:
    with pytest.raises(Interrupted):
        play(job, lists=3)
    partial = job.round.partial.read_bytes()
    with pytest.raises(DataError, match=rf"d1\.jsonl\.partial was begun otherwise: {named}\. Restore .* delete"):
        run_job(change(job), no_engine)
    assert job.round.partial.read_bytes() == partial
    play(replace(job, generator_path="moved/theta_1", engine=job.engine | {"version": "2"}, max_failed=1))


def test_killed_between_the_rows_and_their_meta_file(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, _ = undisturbed(job, tmp_path)

    def kill(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "write_meta", kill)
        with pytest.raises(Interrupted):
            play(job)
    assert not job.round.complete
    run_job(job, no_engine)
    assert job.round.complete
    assert job.round.path.read_bytes() == content
    assert not job.round.partial.exists()


def test_failed_requests_are_listed_and_tried_again(job: Job, tmp_path: Path) -> None:
    content, _ = undisturbed(job, tmp_path)
    failing = (1, 4, 5, 11)
    with pytest.raises(GenerationError, match=r"4 of 17 .* are missing.*`tpaw_max_failed: 3` allows 3; failed:"):
        play(replace(job, max_failed=3), failing=failing)
    listed = [json.loads(line) for line in job.failed_path.read_text().splitlines()]
    ids = [prompt.id for prompt in job.prompts.prompts]
    assert sorted((row["id"], row["sample"], row["reason"]) for row in listed) == sorted(
        (ids[index], 0, f"No server answers {index}.") for index in failing
    )
    with pytest.raises(GenerationError, match="1 of 17 responses"):
        play(job, failing=(4,))
    engine, meta = play(job)
    assert engine.asked == [4]
    assert (job.round.path.read_bytes(), meta.failed, job.failed_path.exists()) == (content, [], False)


def test_failures_without_an_end_end_the_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "HOPELESS", 5)
    with pytest.raises(GenerationError, match=r"17 of 17 responses .* are missing.*failed: .*#0 \(No server answers"):
        play(job, failing=tuple(range(17)))
    assert len(job.failed_path.read_text().splitlines()) < 10


@pytest.mark.parametrize("samples", [1, 2])
def test_a_round_may_do_without_some_responses(job: Job, samples: int) -> None:
    job = replace(job, samples=samples, max_failed=2)
    _, meta = play(job, failing=(0, 5))
    keys = [f"{prompt.id}#{sample}" for prompt in job.prompts.prompts for sample in range(samples)]
    assert meta.failed == [keys[0], keys[5]]
    assert (meta.rows, meta.prompts) == (17 * samples - 2, 17)
    assert [row.key for row in read_triplets(job.round.path, meta)] == [key for key in keys if key not in meta.failed]


def test_texts_without_ids_are_counted_and_compared_by_their_tokens(job: Job) -> None:
    target = job.prompts.prompts.take([2])[0].target["content"]

    class Texts(Shuffled):
        def respond(self, index: int, _: Request) -> Response:
            return Response(None, "stop", target) if index == 2 else Response(None, "length", f"Ä {index}")

    _, meta = play(job, Texts)
    rows = list(read_triplets(job.round.path, meta))
    assert {tuple(row.generated_ids) for row in rows} == {()}
    encoded = [job.encoder.encode_text(row.generated, row.finish_reason) for row in rows]
    assert meta.counts["generated_tokens"] == sum(map(len, encoded))
    assert meta.counts["equal"] == sum(prompt.target["content"] == target for prompt in job.prompts.prompts)
