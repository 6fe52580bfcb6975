# SPDX-License-Identifier: Apache-2.0
"""Exactly one row a prompt and sample, whatever interrupts or misbehaves, and the same bytes as without it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.data.encoding import TurnEncoder
from llamafactory_tpaw.data.files import sha256_hex
from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.triplets import TripletMeta, meta_path, read_meta, read_triplets
from llamafactory_tpaw.errors import DataError, GenerationError, InUseError
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
            for answers in self.spoil(self.answers(requests)):
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

    def spoil(self, lists: Iterator[Answers]) -> Iterator[Answers]:
        return lists

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
    assert len({row.id for row in rows}) == len(rows) == 17
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
    assert (meta.sampling, meta.cutoff_len) == (job.settings.as_dict(), CUTOFF)
    assert (meta.engine, meta.samples, meta.ids_digest) == (job.engine | {"version": "server 7"}, 1, "")
    assert meta.rows_digest == sha256_hex(job.round.path.read_bytes())
    names = sorted(path.name for path in job.round.path.parent.iterdir() if not path.name.startswith("."))
    assert names == ["d1.jsonl", "d1.meta.json"]
    changed = job.round.path.stat().st_mtime_ns
    assert run_job(job, no_engine) == meta
    assert job.round.path.stat().st_mtime_ns == changed


def test_samples_are_numbered_rows_of_their_prompt(job: Job) -> None:
    job = replace(job, samples=3)
    _, meta = play(job)
    rows = list(read_triplets(job.round.path, meta))
    assert [(row.id, row.sample) for row in rows] == [
        (p.id, sample) for p in job.prompts.prompts for sample in (0, 1, 2)
    ]
    assert len({row.generated for row in rows}) > 40
    assert (meta.samples, meta.prompts, meta.rows, meta.failed) == (3, 17, 51, [])
    assert [json.loads(line)["sample"] for line in job.round.path.read_text().splitlines()[:3]] == [0, 1, 2]


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


def test_torn_at_many_bytes_of_the_last_line(job: Job, tmp_path: Path) -> None:
    """What is left of a line is cut off before more is written, so that a second interruption finds no mixture."""
    content, _ = undisturbed(job, tmp_path)
    with pytest.raises(Interrupted):
        play(job, lists=4)
    partial = job.partial_path.read_bytes()
    start = partial[:-1].rfind(b"\n") + 1
    for size in [0, 5, start - 1, start, *range(start + 1, len(partial), 61), len(partial) - 1, len(partial)]:
        job.partial_path.write_bytes(partial[:size])
        with pytest.raises(Interrupted):
            play(job, lists=1, order=1)
        play(job, order=2)
        assert job.round.path.read_bytes() == content
        meta_path(job.round.path).unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda job: replace(job, generator="b" * 64), "another generator"),
        (lambda job: replace(job, settings=replace(job.settings, seed=9)), r"`seed` was \d+ and is 9 now"),
        (
            lambda job: replace(job, settings=replace(job.settings, temperature=0.5), cutoff_len=59),
            r"`cutoff_len` was \d+ and is 59 now; `temperature` was 1.0 and is 0.5 now",
        ),
        (lambda job: replace(job, prompts=replace(job.prompts, digest="x")), "another prompts"),
        (lambda job: replace(job, round=Round(2, job.round.entry)), "`tpaw_iteration` was 1 and is 2 now"),
        (lambda job: replace(job, engine=job.engine | {"name": "vllm"}), r"`tpaw_engine` was \w+ and is vllm now"),
        (lambda job: replace(job, samples=2), "`tpaw_samples_per_prompt` was 1 and is 2 now"),
        (lambda job: replace(job, opponent="other", generator="served:x"), "another generator; another opponent"),
    ],
)
def test_another_run_does_not_continue_it(job: Job, change: Callable[[Job], Job], named: str) -> None:
    with pytest.raises(Interrupted):
        play(job, lists=3)
    partial = job.partial_path.read_bytes()
    with pytest.raises(DataError, match=rf"d1\.jsonl\.partial was begun otherwise: {named}\. Restore .* delete"):
        run_job(change(job), no_engine)
    assert job.partial_path.read_bytes() == partial
    play(replace(job, generator_path="moved/theta_1", engine=job.engine | {"version": "2"}, max_failed=1))


def test_another_template_or_tokenizer_does_not_continue_it(own_job: Job) -> None:
    with pytest.raises(Interrupted):
        play(own_job, lists=3)
    own_job.encoder.template.default_system = "Be brief."
    own_job.encoder.tokenizer.add_tokens(["Natalia"])
    restarted = replace(own_job, encoder=TurnEncoder(own_job.encoder.tokenizer, own_job.encoder.template))
    with pytest.raises(DataError, match="begun otherwise: another template; another tokenizer"):
        run_job(restarted, no_engine)


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
    assert not job.partial_path.exists()


def test_a_second_process_is_refused_while_the_first_works(job: Job) -> None:
    class Nested(Shuffled):
        def respond(self, index: int, request: Request) -> Response | Failure:
            run_job(self.job, no_engine)
            raise AssertionError("two processes at once")

    with pytest.raises(InUseError, match=r"The triplet file .*d1\.jsonl"):
        play(job, Nested)
    play(job)


class Doubled(Shuffled):
    def spoil(self, lists: Iterator[Answers]) -> Iterator[Answers]:
        given: list[Any] = []
        for answers in lists:
            given += answers
            yield answers + (given[:1] if len(given) > 8 else [])


class Unknown(Shuffled):
    def spoil(self, lists: Iterator[Answers]) -> Iterator[Answers]:
        yield next(lists)
        yield [(17, Response([1], "stop"))]


class Forgetful(Shuffled):
    def spoil(self, lists: Iterator[Answers]) -> Iterator[Answers]:
        for answers in lists:
            yield [(index, answer) for index, answer in answers if index not in (3, 9)]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Doubled, r"answered request \d+ a second time"),
        (Unknown, "answered request 17 a second time, or without being asked"),
        (Forgetful, "ended without an answer to 2 of 17 requests"),
    ],
)
def test_an_engine_that_does_not_answer_as_agreed(
    job: Job, tmp_path: Path, engine: type[Shuffled], message: str
) -> None:
    content, _ = undisturbed(job, tmp_path)
    with pytest.raises(GenerationError, match=f"The engine `fake` {message}"):
        play(job, engine)
    assert not job.round.path.exists()
    after, _ = play(job, order=1)
    assert len(after.asked) < 17
    assert job.round.path.read_bytes() == content


def test_failed_requests_are_listed_and_tried_again(job: Job, tmp_path: Path) -> None:
    content, _ = undisturbed(job, tmp_path)
    failing = (1, 4, 5, 11)
    ids = [prompt.id for prompt in job.prompts.prompts]
    with pytest.raises(GenerationError) as caught:
        play(replace(job, max_failed=3), failing=failing)
    (problem,) = caught.value.problems
    assert "4 of 17 responses of " in problem
    assert problem.count("#0 (No server answers ") == 3
    assert f"{job.failed_path} lists all. The others are kept: the same command tries only these again." in problem
    listed = [json.loads(line) for line in job.failed_path.read_text().splitlines()]
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
    engine = Shuffled(job, failing=tuple(range(17)))
    with pytest.raises(GenerationError, match=r"failed one after another, so no more are sent. First: .*#0 \(No serv"):
        run_job(replace(job, max_failed=2), lambda: engine)
    assert engine.events == ["answered", "closed"]
    _, meta = play(replace(job, max_failed=16), failing=tuple(range(16)))
    assert meta.rows == 1, "what is allowed is no end"


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


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Beyond the offsets, 8 bytes a row, less than 3 MB for 98,000 further rows, which are 174 MB in the file."""
    script = Path(__file__).with_name("many_requests.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "2000", "100000"],
        env={"PYTHONPATH": str(script.parents[3]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split())
    assert many - few < 8 * 98_000 + 3_000_000
