# SPDX-License-Identifier: Apache-2.0
"""Answers in any order, from engines that fail, forget and double: one row a prompt and sample, or a clear error."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.triplets import TripletMeta, read_meta, read_triplets
from llamafactory_tpaw.errors import GenerationError
from llamafactory_tpaw.generation import workflow
from llamafactory_tpaw.generation.base import Failure, Request, Response
from llamafactory_tpaw.generation.workflow import Job, run_job


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamafactory_tpaw.generation.base import Answers, PromptRequests


class Interrupted(Exception):
    pass


class Shuffled:
    """Answers by the request alone, in an order of its own and lists of several sizes."""

    name = "fake"

    def __init__(self, job: Job, *, order: int = 0, lists: int = 10**6, failing: tuple[int, ...] = ()) -> None:
        self.job = job
        self.order = order
        self.lists = lists
        self.failing = failing
        self.asked: list[int] = []
        self.version = ""
        self.events: list[str] = []

    def answer(self, requests: Any, left: np.ndarray, finished: Callable[[int], object]) -> Iterator[Answers]:
        self.asked = left.tolist()
        self.version = "server 7"
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
            return Failure(f"Nobody answers {index}.")
        number = request.seed(self.job.settings.seed) % 1000
        ids = self.job.encoder.tokenizer.encode(f"Ä {number}\n")
        stop = self.job.encoder.end_of_turn[:1]
        return Response([*ids, *stop], "stop") if number % 3 else Response(ids[: request.max_new_tokens], "length")

    def close(self) -> None:
        self.events.append("closed")


@pytest.fixture
def job(common_job: Job, tmp_path: Path) -> Job:
    return at(common_job, tmp_path)


def at(job: Job, folder: Path, **changes: Any) -> Job:
    """The same job with its file elsewhere."""
    return replace(job, round=Round(1, replace(job.round.entry, path=folder / "d1.jsonl")), **changes)


def play(job: Job, engine: type[Shuffled] = Shuffled, **options: Any) -> tuple[Shuffled, TripletMeta]:
    made = engine(job, **options)
    return made, run_job(job, lambda: made)


def content_of(job: Job, folder: Path) -> bytes:
    other = at(job, folder)
    play(other)
    return other.round.path.read_bytes()


@pytest.mark.parametrize("samples", [1, 3])
def test_order_does_not_matter(job: Job, tmp_path: Path, samples: int) -> None:
    job = replace(job, samples=samples)
    content = content_of(job, tmp_path / "other")
    for order in range(1, 6):
        again = at(job, tmp_path / str(order))
        play(again, order=order)
        assert again.round.path.read_bytes() == content


@pytest.mark.parametrize("samples", [1, 3])
def test_interrupted_at_every_list(job: Job, tmp_path: Path, samples: int) -> None:
    job = replace(job, samples=samples)
    content = content_of(job, tmp_path / "other")
    count = 0
    while not job.round.complete:
        engine = Shuffled(job, order=count, lists=1)
        try:
            run_job(job, lambda made=engine: made)
        except Interrupted:
            count += 1
        assert engine.events == ["answered", "closed"]
    assert count > 5 * samples
    assert job.round.path.read_bytes() == content


def test_samples_are_numbered_rows_of_their_prompt(job: Job) -> None:
    job = replace(job, samples=3)
    _, meta = play(job)
    rows = list(read_triplets(job.round.path, meta))
    expected = [(prompt.id, sample) for prompt in job.prompts.prompts for sample in range(3)]
    assert [(row.id, row.sample) for row in rows] == expected
    assert len({row.generated for row in rows}) > 40
    assert (meta.samples, meta.prompts, meta.rows, meta.failed) == (3, 17, 51, [])
    assert sum(meta.counts[reason] for reason in ("stop", "length")) == 51
    first = [json.loads(line) for line in job.round.path.read_text().splitlines()]
    assert [row["sample"] for row in first[:3]] == [0, 1, 2]


def test_one_sample_needs_no_number(job: Job) -> None:
    _, meta = play(job)
    assert all("sample" not in json.loads(line) for line in job.round.path.read_text().splitlines())
    assert (meta.samples, meta.ids_digest) == (1, "")


class Doubled(Shuffled):
    def spoil(self, lists: Iterator[Answers]) -> Iterator[Answers]:
        given: list[Any] = []
        for answers in lists:
            given += answers
            yield answers + (given[:1] if len(given) > 8 else [])


class Unknown(Shuffled):
    number = 17

    def spoil(self, lists: Iterator[Answers]) -> Iterator[Answers]:
        yield next(lists)
        yield [(self.number, Response([1], "stop"))]


class Negative(Unknown):
    number = -1


class Forgetful(Shuffled):
    def spoil(self, lists: Iterator[Answers]) -> Iterator[Answers]:
        for answers in lists:
            yield [(index, answer) for index, answer in answers if index not in (3, 9)]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Doubled, r"The engine `fake` answered request \d+ of 17 a second time, or without being asked\."),
        (Unknown, r"The engine `fake` answered request 17 of 17 a second time, or without being asked\."),
        (Negative, r"The engine `fake` answered request -1 of 17"),
        (Forgetful, r"The engine `fake` ended without an answer to 2 of 17 requests, the first of them \w+-0#0\."),
    ],
)
def test_an_engine_that_does_not_answer_as_agreed(
    job: Job, tmp_path: Path, engine: type[Shuffled], message: str
) -> None:
    content = content_of(job, tmp_path / "other")
    with pytest.raises(GenerationError, match=message):
        play(job, engine)
    assert not job.round.path.exists()
    after, _ = play(job, order=1)
    assert len(after.asked) < 17
    assert job.round.path.read_bytes() == content


def test_failed_requests_are_listed_and_tried_again(job: Job, tmp_path: Path) -> None:
    content = content_of(job, tmp_path / "other")
    failing = (1, 4, 5, 11)
    ids = [prompt.id for prompt in job.prompts.prompts]
    with pytest.raises(GenerationError) as caught:
        play(replace(job, max_failed=3), failing=failing)
    (problem,) = caught.value.problems
    assert problem.startswith(
        f"4 of 17 responses of {job.round.path} could not be had, but `tpaw_max_failed: 3` allows 3. First: "
    )
    assert problem.count("#0 (Nobody answers ") == 3
    assert f"{job.failed_path} lists all. The others are kept: the same command tries only these again." in problem
    listed = [json.loads(line) for line in job.failed_path.read_text().splitlines()]
    assert sorted((row["id"], row["sample"], row["reason"]) for row in listed) == sorted(
        (ids[index], 0, f"Nobody answers {index}.") for index in failing
    )
    with pytest.raises(GenerationError, match="1 of 17 responses"):
        play(job, failing=(4,))
    assert len(job.failed_path.read_text().splitlines()) == 1
    engine, meta = play(job)
    assert engine.asked == [4]
    assert job.round.path.read_bytes() == content
    assert (meta.failed, meta.ids_digest) == ([], "")
    assert sorted(path.name for path in tmp_path.glob("d1*")) == ["d1.jsonl", "d1.meta.json"]


def test_failures_without_an_end_end_the_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "HOPELESS", 5)
    engine = Shuffled(job, failing=tuple(range(17)))
    with pytest.raises(GenerationError, match=r"failed one after another, so no more are sent. First: .*#0 \(Nobody"):
        run_job(replace(job, max_failed=2), lambda: engine)
    assert 7 <= len(job.failed_path.read_text().splitlines()) < 7 + 4
    assert engine.events == ["answered", "closed"]
    _, meta = play(replace(job, max_failed=16), failing=tuple(range(16)))
    assert meta.rows == 1, "what is allowed is no end"


@pytest.mark.parametrize("samples", [1, 2])
def test_a_round_may_do_without_some_responses(job: Job, samples: int) -> None:
    job = replace(job, samples=samples, max_failed=2)
    _, meta = play(job, failing=(0, 5))
    keys = [f"{prompt.id}#{sample}" for prompt in job.prompts.prompts for sample in range(samples)]
    assert meta.failed == [keys[0], keys[5]]
    assert meta == read_meta(job.round.path)
    assert (meta.rows, meta.prompts) == (17 * samples - 2, 17)
    rows = list(read_triplets(job.round.path, meta))
    assert [row.key for row in rows] == [key for key in keys if key not in meta.failed]
    assert meta.counts["generated_tokens"] == sum(len(row.generated_ids) for row in rows)
    assert len(job.failed_path.read_text().splitlines()) == 2


def test_texts_without_ids_are_counted_and_compared_by_their_tokens(job: Job) -> None:
    target = job.prompts.prompts[2].target["content"]

    class Texts(Shuffled):
        def respond(self, index: int, _: Request) -> Response:
            return Response(None, "stop", target) if index == 2 else Response(None, "length", f"Ä {index}")

    _, meta = play(job, Texts)
    rows = list(read_triplets(job.round.path, meta))
    assert {tuple(row.generated_ids) for row in rows} == {()}
    assert [row.generated for row in rows[1:4]] == ["Ä 1", target, "Ä 3"]
    encoded = [job.encoder.encode_text(row.generated, row.finish_reason) for row in rows]
    assert meta.counts["generated_tokens"] == sum(map(len, encoded))
    assert (meta.counts["stop"], meta.counts["length"]) == (1, 16)
    assert meta.counts["equal"] == sum(prompt.target["content"] == target for prompt in job.prompts.prompts)


def test_the_version_is_that_which_the_engine_says_in_the_end(job: Job, tmp_path: Path) -> None:
    job = replace(job, engine={"name": "fake", "version": "", "dtype": "float32"})
    _, meta = play(at(job, tmp_path / "other"))
    assert meta.engine == {"name": "fake", "version": "server 7", "dtype": "float32"}
    with pytest.raises(Interrupted):
        play(job, lists=2)
    assert json.loads(job.partial_path.read_text().splitlines()[-1])["version"] == "server 7"


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
