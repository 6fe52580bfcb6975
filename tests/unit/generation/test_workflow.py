# SPDX-License-Identifier: Apache-2.0
"""Exactly one row a prompt, whatever interrupts generation, and the same rows as without interruption."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llamafactory_tpaw.data.encoding import TurnEncoder
from llamafactory_tpaw.data.files import sha256_hex
from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.triplets import TripletMeta, meta_path, read_meta, read_triplets
from llamafactory_tpaw.errors import DataError, InUseError
from llamafactory_tpaw.generation import workflow
from llamafactory_tpaw.generation.base import Request, Response, answer_units, ignore
from llamafactory_tpaw.generation.hf import HfEngine
from llamafactory_tpaw.generation.workflow import Job, run_job
from tests.unit.generation.conftest import CUTOFF


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from transformers import PreTrainedModel

    from llamafactory_tpaw.generation.base import Answers, PromptRequests


class Interrupted(Exception):
    pass


class FakeEngine:
    """Answers by the prompt's id alone: some end, some do not, one is its target; stops working after `batches`."""

    name, version = "fake", "1"

    def __init__(self, job: Job, batches: int = 10**6, batch_tokens: int = 16) -> None:
        self.job = job
        self.batches = batches
        self.batch_tokens = batch_tokens
        self.asked: list[list[str]] = []

    def answer(
        self, requests: PromptRequests, left: np.ndarray, finished: Callable[[int], object] = ignore
    ) -> Iterator[Answers]:
        return answer_units(self.generate, requests, left, self.batch_tokens, finished)

    def generate(self, requests: Sequence[Request], finished: Callable[[int], object] = ignore) -> list[Response]:
        if len(self.asked) == self.batches:
            raise Interrupted
        self.asked.append([request.id for request in requests])
        return [self.respond(request) for request in requests]

    def respond(self, request: Request) -> Response:
        stop = self.job.encoder.end_of_turn[0]
        targets = {prompt.id: prompt.target_ids.tolist() for prompt in self.job.prompts.prompts[:1]}
        if request.id in targets:
            return Response(targets[request.id][: targets[request.id].index(stop) + 1], "stop")
        number = request.seed(self.job.settings.seed) % 1000
        ids = self.job.encoder.tokenizer.encode(f"Ä {number}\n")
        return Response([*ids, stop], "stop") if number % 3 else Response(ids[: request.max_new_tokens], "length")


def at(job: Job, folder: Path) -> Job:
    """The same job with its file elsewhere."""
    return replace(job, round=Round(1, replace(job.round.entry, path=folder / "d1.jsonl")))


def play(job: Job, batches: int = 10**6, batch_tokens: int = 16) -> FakeEngine:
    engine = FakeEngine(job, batches, batch_tokens)
    run_job(job, lambda: engine)
    return engine


def interrupt(job: Job, batches: int) -> FakeEngine:
    engine = FakeEngine(job, batches)
    with pytest.raises(Interrupted):
        run_job(job, lambda: engine)
    return engine


def undisturbed(job: Job, folder: Path) -> tuple[bytes, TripletMeta]:
    other = at(job, folder)
    play(other)
    return other.round.path.read_bytes(), read_meta(other.round.path)


def no_engine() -> Any:
    raise AssertionError("the model must not be loaded: nothing is missing")


def test_one_row_a_prompt_in_order(job: Job) -> None:
    engine = play(job)
    meta = read_meta(job.round.path)
    rows = list(read_triplets(job.round.path, meta))
    prompts = job.prompts.prompts
    assert [row.id for row in rows] == [prompt.id for prompt in prompts]
    assert len({row.id for row in rows}) == len(rows) == 17
    assert [(row.messages, row.target) for row in rows] == [(prompt.messages, prompt.target) for prompt in prompts]
    assert {row.iteration for row in rows} == {1}
    assert sorted(name for batch in engine.asked for name in batch) == sorted(prompt.id for prompt in prompts)
    assert len(engine.asked) > 3
    for row, request in zip(rows, job.requests(), strict=True):
        response = engine.respond(request)
        assert (row.generated_ids, row.finish_reason) == (response.ids, response.finish_reason)
        assert row.generated == job.encoder.text_of(response.ids, response.finish_reason)


def test_meta_says_where_the_rows_come_from(job: Job) -> None:
    play(job)
    meta = read_meta(job.round.path)
    rows = list(read_triplets(job.round.path, meta))
    stopped = sum(row.finish_reason == "stop" for row in rows)
    assert 0 < stopped < 17
    assert meta.counts == {
        "stop": stopped,
        "length": 17 - stopped,
        "equal": 1,
        "bad_rows": 1,
        "generated_tokens": sum(len(row.generated_ids) for row in rows),
    }
    assert (meta.iteration, meta.generator, meta.generator_path, meta.rows) == (1, "a" * 64, "saves/theta_1", 17)
    assert (meta.prompts_entry, meta.prompts_digest) == ("sft", job.prompts.digest)
    assert (meta.sampling, meta.cutoff_len, meta.engine) == (job.settings.as_dict(), CUTOFF, job.engine)
    assert meta.rows_digest == sha256_hex(job.round.path.read_bytes())
    names = sorted(path.name for path in job.round.path.parent.iterdir() if not path.name.startswith("."))
    assert names == ["d1.jsonl", "d1.meta.json"]


def test_each_iteration_has_its_own_random_numbers(job: Job) -> None:
    other = replace(job, round=Round(2, job.round.entry))
    assert not {each.seed(0) for each in job.requests()} & {each.seed(0) for each in other.requests()}


def test_requests_leave_room_under_the_cutoff(job: Job) -> None:
    limits = [request.max_new_tokens for request in job.requests()]
    room = [CUTOFF - len(prompt.prompt_ids) for prompt in job.prompts.prompts]
    assert limits == [min(20, left) for left in room]
    assert [request.max_new_tokens for request in replace(job, cutoff_len=500).requests()] == [20] * 17


@pytest.mark.parametrize("batches", range(5))
def test_an_interrupted_run_ends_as_an_undisturbed_one(job: Job, tmp_path: Path, batches: int) -> None:
    content, meta = undisturbed(job, tmp_path / "other")
    first = interrupt(job, batches)
    assert not job.round.complete
    assert not job.round.path.exists()
    second = play(job)
    asked = [*first.asked, *second.asked]
    assert len(first.asked) == batches
    assert sorted(name for batch in asked for name in batch) == sorted(prompt.id for prompt in job.prompts.prompts)
    assert asked == play(at(job, tmp_path / "again")).asked  # the very same batches, so also the same rounding
    assert job.round.path.read_bytes() == content
    assert replace(read_meta(job.round.path), seconds=0, created="") == replace(meta, seconds=0, created="")


def test_interrupted_at_every_batch(job: Job, tmp_path: Path) -> None:
    content, _ = undisturbed(job, tmp_path / "other")
    count = 0
    while not job.round.complete:
        with contextlib.suppress(Interrupted):
            play(job, 1)
        count += 1
    assert count > 3
    assert job.round.path.read_bytes() == content


def test_torn_at_many_bytes_of_the_last_line(job: Job, tmp_path: Path) -> None:
    """Whatever is left of a line is cut off before more is written, so that a second interruption finds no mixture."""
    content, _ = undisturbed(job, tmp_path / "other")
    batches = len(play(at(job, tmp_path / "again")).asked)
    interrupt(job, 2)
    partial = job.partial_path.read_bytes()
    start = partial[:-1].rfind(b"\n") + 1
    for size in [0, 5, start - 1, start, *range(start + 1, len(partial), 37), len(partial) - 1, len(partial)]:
        job.partial_path.write_bytes(partial[:size])
        interrupt(job, 1)
        kept = sum(line.startswith(b'{"commit"') for line in partial[:size].split(b"\n")[:-1])
        assert len(play(job).asked) == batches - kept - 1
        assert job.round.path.read_bytes() == content
        meta_path(job.round.path).unlink()


def test_other_batches_continue_and_give_the_same_rows(job: Job, tmp_path: Path) -> None:
    content, _ = undisturbed(job, tmp_path / "other")
    first = interrupt(job, 2)
    second = play(job, batch_tokens=1)
    assert not {name for batch in first.asked for name in batch} & {name for batch in second.asked for name in batch}
    assert {len(batch) for batch in second.asked} == {1}
    assert job.round.path.read_bytes() == content


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
    interrupt(job, 2)
    partial = job.partial_path.read_bytes()
    with pytest.raises(DataError, match=rf"d1\.jsonl\.partial was begun otherwise: {named}\. Restore .* delete"):
        run_job(change(job), no_engine)
    assert job.partial_path.read_bytes() == partial
    play(replace(job, generator_path="moved/theta_1", engine=job.engine | {"version": "2"}, max_failed=1))


def test_another_template_or_tokenizer_does_not_continue_it(job: Job) -> None:
    interrupt(job, 2)
    job.encoder.template.default_system = "Be brief."
    job.encoder.tokenizer.add_tokens(["Natalia"])
    restarted = replace(job, encoder=TurnEncoder(job.encoder.tokenizer, job.encoder.template))
    with pytest.raises(DataError, match="begun otherwise: another template; another tokenizer"):
        run_job(restarted, no_engine)


def test_killed_between_the_rows_and_their_meta_file(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, meta = undisturbed(job, tmp_path / "other")

    def kill(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "write_meta", kill)
        with pytest.raises(Interrupted):
            play(job)
    assert job.round.path.read_bytes() == content
    assert not job.round.complete
    run_job(job, no_engine)
    assert job.round.complete
    assert job.round.path.read_bytes() == content
    assert replace(read_meta(job.round.path), seconds=0, created="") == replace(meta, seconds=0, created="")
    assert not job.partial_path.exists()


def test_what_another_process_finished_is_not_done_again(job: Job) -> None:
    play(job)
    changed = job.round.path.stat().st_mtime_ns
    assert run_job(job, no_engine) == read_meta(job.round.path)
    assert job.round.path.stat().st_mtime_ns == changed


def test_a_second_process_is_refused_while_the_first_works(job: Job) -> None:
    lock = job.round.path.with_name(f".{job.round.path.name}.lock")
    lock.parent.mkdir(parents=True)
    script = (
        "import sys, time, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InUseError, match=r"The triplet file .*d1\.jsonl is in use: another process .* Wait"):
            run_job(job, no_engine)
        assert not job.partial_path.exists()
        other.kill()
    play(job)
    assert job.round.complete


def test_the_lock_is_held_while_the_engine_works_and_given_back_when_it_fails(job: Job) -> None:
    class Nested(FakeEngine):
        def generate(self, requests: Sequence[Request], finished: Callable[[int], object] = ignore) -> list[Response]:
            run_job(self.job, no_engine)
            raise AssertionError("two processes at once")

    with pytest.raises(InUseError, match="is in use: another process"):
        run_job(job, lambda: Nested(job))
    play(job)


def test_an_engine_that_answers_too_little_for_a_unit(job: Job) -> None:
    class Short(FakeEngine):
        def generate(self, requests: Sequence[Request], finished: Callable[[int], object] = ignore) -> list[Response]:
            return super().generate(requests)[1:]

    with pytest.raises(ValueError):
        run_job(job, lambda: Short(job))
    assert not job.round.path.exists()


def test_the_transformers_engine_continues_to_the_same_bytes(job: Job, model: PreTrainedModel, tmp_path: Path) -> None:
    arguments = (model, job.settings, job.encoder.stop_token_ids(), job.encoder.tokenizer.pad_token_id, 50)
    engine = HfEngine(*arguments)
    other = at(job, tmp_path / "other")
    run_job(other, lambda: engine)
    content = other.round.path.read_bytes()

    class Failing(HfEngine):
        batches = 2

        def generate(self, requests: Sequence[Request], finished: Callable[[int], object] = ignore) -> list[Response]:
            self.batches -= 1
            if self.batches < 0:
                raise Interrupted
            return super().generate(requests, finished)

    with pytest.raises(Interrupted):
        run_job(job, lambda: Failing(*arguments))
    run_job(job, lambda: engine)
    assert job.round.path.read_bytes() == content
    texts = [row.generated for row in read_triplets(job.round.path)]
    assert len(set(texts)) > 10
