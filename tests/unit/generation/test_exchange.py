# SPDX-License-Identifier: Apache-2.0
"""Requests to a scripted server: what is tried again, what fails, what ends the run, and what is left behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from llamafactory_tpaw.errors import EnvironmentProblem, GenerationError
from llamafactory_tpaw.generation import exchange
from llamafactory_tpaw.generation.base import Failure
from llamafactory_tpaw.generation.exchange import Call, Exchange
from tests.servers.faulty import FAULTS, FaultyServer, answer_ids
from tests.servers.rounds import keys_of, short_waits


KEY = "sk-secret"
NAMES = [f"p{number}" for number in range(40)]
RIGHT = {index: bytes(answer_ids(name, index, 16)).decode() for index, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with short_waits():
        yield


def calls_of(prompts: Sequence[str]) -> Iterator[Any]:
    for index, prompt in enumerate(prompts):
        body = {"model": "tiny", "prompt": prompt, "seed": index, "max_tokens": 16}
        yield Call(index, None, "/completions", body)


def text(call: Call, answer: dict[str, Any]) -> str:
    if len(answer.get("choices", [])) != 1:
        raise ValueError("it has not one choice")
    return answer["choices"][0]["text"]


def run(*servers: FaultyServer, calls: Any = None, read: Any = text, check: Any = lambda: None, **keys: Any) -> dict:
    keys = keys_of(**({"engine_concurrency": 8, "engine_retries": 3, "engine_startup": 20.0} | keys))
    calls = calls_of(NAMES) if calls is None else calls
    urls = tuple(server.url for server in servers)
    pairs: list[Any] = []

    async def ask() -> None:
        made = Exchange(calls, urls, keys, KEY, read, "Check the key.", check)
        try:
            while results := await made.next():
                pairs.extend(results)
        finally:
            await made.close()
        assert not [task for task in made.tasks if not task.done()]

    asyncio.run(ask())
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_got_over(fault: str) -> None:
    script = {name: [fault] * (1 if fault == "death" else 2) for name in NAMES[::9]}
    with FaultyServer(script) as server:
        assert run(server, engine_concurrency=4) == RIGHT
    assert server.faults[fault] > 0
    assert server.key == f"Bearer {KEY}"


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
    assert rows.pop(2).reason.endswith("did not answer within `tpaw_engine_timeout: 0.3` s")
    assert rows == {index: row for index, row in RIGHT.items() if index != 2}


@pytest.mark.parametrize("fault", ["401", "404", "307"])
def test_a_denied_request_ends_the_run(fault: str) -> None:
    with FaultyServer({"p5": [fault]}) as server, pytest.raises(GenerationError) as caught:
        run(server)
    assert f"{server.url} answered {fault}: scripted {fault}" in str(caught.value)
    assert str(caught.value).endswith("(POST /completions). Check the key.")


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


def test_without_a_server_it_says_what_is_kept() -> None:
    with FaultyServer({"p20": ["death"]}, down_s=None) as server, pytest.raises(GenerationError) as caught:
        run(server, engine_startup=0.05, engine_concurrency=1)
    assert "did not come back within 0.05 s. 20 answers of this run are kept" in str(caught.value)
    assert "run the same command" in str(caught.value)


def test_a_server_that_will_not_come_back_is_not_waited_for() -> None:
    def check() -> None:
        raise GenerationError("ended with exit code 9")

    with FaultyServer({"p9": ["death"]}, down_s=None) as server, pytest.raises(GenerationError, match="exit code 9"):
        run(server, check=check)


def test_others_go_on_without_a_server_that_is_gone() -> None:
    with FaultyServer({name: ["death"] for name in NAMES}, down_s=None) as gone, FaultyServer() as other:
        assert run(gone, other, engine_startup=0.05) == RIGHT


def test_errors_of_calls_and_of_reading_come_out() -> None:
    def calls() -> Iterator[Any]:
        yield from calls_of(NAMES[:5])
        raise KeyError("calls")

    def read(call: Call, answer: dict[str, Any]) -> Any:
        raise TypeError("read")

    with FaultyServer() as server:
        with pytest.raises(KeyError, match="calls"):
            run(server, calls=calls())
        with pytest.raises(TypeError, match="read"):
            run(server, read=read)
        assert run(server, calls=iter([(7, Failure("unsendable"))])) == {7: Failure("unsendable")}
        assert run(server, calls=iter([])) == {}


def test_no_more_calls_are_made_than_are_wanted() -> None:
    pulled: list[int] = []

    def calls() -> Iterator[Any]:
        for call in calls_of([f"p{number}" for number in range(2000)]):
            pulled.append(call.index)
            yield call

    async def first(url: str) -> list[Any]:
        made = Exchange(calls(), (url,), keys_of(engine_concurrency=8), None, text, "")
        results = await made.next()
        await made.close()
        return results

    with FaultyServer() as server:
        results = asyncio.run(first(server.url))
    assert 0 < len(results) <= len(pulled) <= len(results) + 8 + exchange.MOST_AT_ONCE


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with FaultyServer() as server:
        assert run(server, engine_retries=0, engine_startup=0.1) == RIGHT


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EnvironmentProblem, match=r'pip install "llamafactory-tpaw\[openai\]"'):
        exchange.load_openai()
