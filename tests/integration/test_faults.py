# SPDX-License-Identifier: Apache-2.0
"""Generation against servers that misbehave and die: each row once, and each row right."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory_tpaw.data.triplets import read_meta, read_triplets
from llamafactory_tpaw.generation.workflow import Job, run_job
from tests.servers.faulty import FAULTS, FaultyServer, random_faults
from tests.servers.rounds import make_engine, make_job, right_ids, short_waits


__all__ = ["short_waits"]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("short_waits")]

TIMES = 60  # of each fault


def check_rows(job: Job) -> None:
    """Every prompt and sample number once, in order, with the one right response."""
    meta = read_meta(job.round.path)
    requests = job.requests()
    rows = list(read_triplets(job.round.path, meta))
    wanted = [requests[index] for index in range(len(requests))]
    assert [(row.id, row.sample) for row in rows] == [(request.id, request.sample) for request in wanted]
    assert (meta.rows, meta.failed) == (len(requests), [])
    assert [row.generated_ids for row in rows] == [right_ids(job, index) for index in range(len(requests))]


@pytest.mark.parametrize(("seed", "count", "samples"), [(0, 1500, 1), (1, 750, 2)])
def test_each_row_once_whatever_the_server_does(seed: int, count: int, samples: int, tmp_path: Path) -> None:
    job = make_job(tmp_path / "d0.jsonl", count, samples)
    prompts = [job.prompts.prompts.prompt_ids(index).tolist() for index in range(count)]
    with FaultyServer(random_faults(prompts, seed, TIMES)) as server:
        run_job(job, lambda: make_engine(job, server.url))
    check_rows(job)
    # A death takes some others' faults with it, before they are seen.
    assert all(server.faults[fault] > 0.8 * TIMES for fault in FAULTS)


def test_each_row_once_though_two_of_three_servers_die(tmp_path: Path) -> None:
    job = make_job(tmp_path / "d0.jsonl", 5000, 1)
    with FaultyServer() as kept, FaultyServer(down_s=None) as first, FaultyServer(down_s=None) as second:
        for server, answers in ((first, 300), (second, 1200)):
            server.on_answer = lambda valid, server=server, most=answers: valid == most and server.fall()
        run_job(job, lambda: make_engine(job, kept.url, first.url, second.url, engine_startup=1.0))
        # What was being answered when a server fell may still have come through.
        assert 300 <= first.valid < 900 <= 1200 <= second.valid < 2000
        assert kept.valid >= 2500
    check_rows(job)
