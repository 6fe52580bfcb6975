# SPDX-License-Identifier: Apache-2.0
"""Generation against a server that misbehaves, and killed again and again: each row once, and each row right."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafactory_tpaw.data.triplets import read_meta, read_triplets
from llamafactory_tpaw.generation.endpoint import load_openai
from llamafactory_tpaw.generation.workflow import Job, run_job
from tests.servers.faulty import FAULTS, FaultyServer, key_of, random_faults
from tests.servers.rounds import STOP, make_engine, make_job, right_ids


TIMES = 200  # of each fault
# Seeds, with prompts and responses to each.
CAMPAIGNS = {0: (5000, 1), 1: (2500, 2), 2: (5000, 1)}
KILLS = 30
HANG_S = 900.0


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """End the whole test run, rather than wait for ever, if a test of this file hangs."""
    watchdog = threading.Timer(HANG_S, os.kill, (os.getpid(), signal.SIGINT))
    watchdog.daemon = True
    watchdog.start()
    yield
    watchdog.cancel()


def check_rows(job: Job, empty: set[str]) -> None:
    """Every prompt and sample number once, in order, with the one right response, or an empty one where scripted."""
    meta = read_meta(job.round.path)
    requests = job.requests()
    rows = list(read_triplets(job.round.path, meta))
    assert [(row.id, row.sample) for row in rows] == [(request.id, request.sample) for request in requests]
    assert meta.rows == len(rows) == len(requests)
    assert meta.failed == []
    for index, row in enumerate(rows):
        emptied = row.generated_ids == [STOP] and key_of(requests[index].prompt_ids.tolist()) in empty
        assert row.generated_ids == right_ids(job, index) or emptied


@pytest.mark.integration
@pytest.mark.parametrize("seed", CAMPAIGNS)
def test_each_row_once_whatever_the_server_does(seed: int, tmp_path: Path) -> None:
    count, samples = CAMPAIGNS[seed]
    job = make_job(tmp_path / "d0.jsonl", count, samples)
    prompts = [job.prompts.prompts.prompt_ids(index).tolist() for index in range(count)]
    script = random_faults(prompts, seed, TIMES)
    with FaultyServer(script, owner="vllm") as server:
        run_job(job, lambda: make_engine(job, server.url))
    check_rows(job, {key for key, faults in script.items() if "empty text" in faults})
    assert server.faults["death"] == TIMES
    # A death takes some others' faults with it, before they are seen.
    assert all(server.faults[fault] > 0.8 * TIMES for fault in FAULTS)


def start(job: Job, url: str) -> int:
    """Generate in a process of its own, which shares nothing with this one but the files, and return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run_job(job, lambda: make_engine(job, url, concurrency=8, flush_s=0.01))
        code = 0
    finally:
        os._exit(code)


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_each_row_once_whenever_it_is_killed(tmp_path: Path) -> None:
    load_openai()  # once, here: each child has it then
    job = make_job(tmp_path / "d0.jsonl", 800, samples=2)
    chosen = random.Random(0)
    victim: list[int] = []
    moment = {"answers": 0, "bytes": 0}

    def look(answers: int) -> None:
        """Kill when so many answers were given, or when the partial file has grown so far."""
        size = job.partial_path.stat().st_size if moment["bytes"] else 0
        if victim and (answers >= moment["answers"] if moment["answers"] else size >= moment["bytes"]):
            os.kill(victim.pop(), signal.SIGKILL)

    sizes = []
    with FaultyServer(owner="vllm", on_answer=look) as server:
        for number in range(KILLS):
            size = job.partial_path.stat().st_size if job.partial_path.exists() else 0
            sizes.append(size)
            # One is the question before the run; the rows of one answer have about 200 bytes.
            moment["answers"] = 0 if number % 2 else server.valid + chosen.randint(2, 60)
            moment["bytes"] = size + chosen.randint(1, 8000)
            child = start(job, server.url)
            victim.append(child)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert os.waitstatus_to_exitcode(os.waitpid(start(job, server.url), 0)[1]) == 0
    assert len(set(sizes)) > KILLS // 2  # most of them had kept something new
    check_rows(job, set())
    assert server.valid < 1.5 * len(job.requests())
