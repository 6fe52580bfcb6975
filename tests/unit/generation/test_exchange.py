# SPDX-License-Identifier: Apache-2.0
"""Requests to a scripted server: what is tried again, what fails, what ends the run, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.errors import GenerationError
from llamafactory_tpaw.generation import exchange
from llamafactory_tpaw.generation.base import Failure
from llamafactory_tpaw.generation.exchange import Exchange
from llamafactory_tpaw.generation.server import Server
from tests.servers.faulty import FaultyServer, answer_ids
from tests.servers.rounds import keys_of, short_waits


__all__ = ["short_waits"]
pytestmark = pytest.mark.usefixtures("short_waits")
KEY = "sk-secret"
NAMES = [f"p{number}" for number in range(40)]
OWN = SimpleNamespace(check=lambda: None, advice="Look at its log.")
RIGHT = {index: bytes(answer_ids(name, index, 16)).decode() for index, name in enumerate(NAMES)}


def body_of(index: int) -> dict[str, Any]:
    return {"model": "tiny", "prompt": f"p{index}", "seed": index, "max_tokens": 16}


def text(index: int, answer: dict[str, Any]) -> str:
    if len(answer.get("choices", [])) != 1:
        raise ValueError("it has not one choice")
    return answer["choices"][0]["text"]


async def ask(
    servers: Sequence[FaultyServer], indices: Iterator[int], given: dict[str, Any], own: Any = None, **keys: Any
) -> Any:
    """Have requests answered, in lists."""
    keys = keys_of(**({"engine_concurrency": 8, "engine_retries": 3, "engine_startup": 20.0} | keys))
    made = [Server(server.url, KEY, keys, own) for server in servers]
    given = {"body_of": body_of, "read": text} | given
    try:
        async for results in Exchange(indices, "/completions", servers=made, **given).answers():
            yield results
    finally:
        for server in made:
            await server.client.close()


def run(*servers: FaultyServer, count: int = len(NAMES), given: Any = (), **keys: Any) -> dict[int, Any]:
    async def all_pairs() -> list[Any]:
        return [pair async for results in ask(servers, iter(range(count)), dict(given), **keys) for pair in results]

    pairs = asyncio.run(all_pairs())
    assert len(pairs) == len(dict(pairs)) == count
    return dict(pairs)


@pytest.mark.parametrize("fault", ["500", "reset", "half a body", "other shape", "wrong JSON", "400"])
def test_a_request_without_an_answer_fails_and_the_rest_goes_on(fault: str) -> None:
    with FaultyServer({"p3": [fault] * 9}) as server:
        rows = run(server, engine_retries=2)
    failed = rows.pop(3)
    assert isinstance(failed, Failure)
    assert server.url in failed.reason
    assert KEY not in failed.reason
    assert server.faults[fault] == {"400": 1, "reset": 6, "half a body": 6}.get(fault, 3)
    assert rows == {index: row for index, row in RIGHT.items() if index != 3}


def test_a_server_that_is_busy_costs_no_retry_until_it_does_not_end() -> None:
    with FaultyServer({"p4": ["429"] * 9}) as server:
        assert run(server, engine_retries=0) == RIGHT
        server.always = "503"
        rows = run(server, engine_startup=0.05, engine_retries=0)
    assert all("no server took it within 0.05 s" in row.reason for row in rows.values())


def test_a_request_that_never_ends_is_cut_off() -> None:
    with FaultyServer({"p1": ["never"], "p2": ["never"] * 9}) as server:
        rows = run(server, engine_timeout=0.3, engine_retries=1)
    assert "gave no answer within `tpaw_engine_timeout: 0.3` s" in rows.pop(2).reason
    assert rows == {index: row for index, row in RIGHT.items() if index != 2}


@pytest.mark.parametrize("fault", ["401", "404", "307"])
def test_a_denied_request_ends_the_run(fault: str) -> None:
    with FaultyServer({"p5": [fault]}) as server, pytest.raises(GenerationError) as caught:
        run(server, own=OWN)
    assert f"{server.url} answered {fault}: scripted {fault}" in str(caught.value)
    assert str(caught.value).endswith("(POST /completions). Look at its log.")


def test_a_lost_server_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with FaultyServer({"p20": ["death"]}, down_s=None) as server:

        def rise(line: str) -> None:
            said.append(line)
            asyncio.get_running_loop().call_later(0.1, server.rise)

        monkeypatch.setattr(exchange.logger, "warning_rank0", rise, raising=False)
        assert run(server, engine_retries=1, engine_concurrency=2) == RIGHT
    assert ["the server is down and is waited for, up to 20 s" in line for line in said] == [True]


def test_a_request_that_ends_the_server_each_time_fails() -> None:
    with FaultyServer({"p9": ["death"] * 99}, down_s=0.2) as server:
        rows = run(server, engine_retries=1, engine_concurrency=1)
    assert "attempts failed" in rows.pop(9).reason
    assert rows == {index: row for index, row in RIGHT.items() if index != 9}


@pytest.mark.parametrize(
    ("own", "advice"), [(None, "What was answered is kept: start the servers"), (OWN, "Look at its log.")]
)
def test_without_a_server_the_run_ends(own: Any, advice: str) -> None:
    match = f"did not come back within 0.05 s. {advice}"
    with FaultyServer({"p20": ["death"]}, down_s=None) as server, pytest.raises(GenerationError, match=match):
        run(server, own=own, engine_startup=0.05, engine_concurrency=1)


@pytest.mark.parametrize("where", ["check", "body_of", "read"])
def test_other_errors_come_out(where: str) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError(where)  # of `check`: that the server will not come back

    with FaultyServer({"p9": ["death"]}, down_s=None) as server, pytest.raises(KeyError, match=where):
        run(server, **({"own": SimpleNamespace(check=fail)} if where == "check" else {"given": {where: fail}}))
