# SPDX-License-Identifier: Apache-2.0
"""The client against a scripted server: what is tried again, what fails, what ends the run, and how it all stops."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from llamafactory_tpaw.errors import EnvironmentProblem, GenerationError
from llamafactory_tpaw.generation import server as server_module
from llamafactory_tpaw.generation.base import Failure
from llamafactory_tpaw.generation.client import Call, ClientSettings, complete
from tests.servers.faulty import FAULTS, FaultyServer, answer_ids, text_of


KEY = "sk-secret"


def settings_of(*servers: FaultyServer | str, **changes: Any) -> ClientSettings:
    urls = tuple(server if isinstance(server, str) else server.url for server in servers)
    return dataclasses.replace(
        ClientSettings(urls, concurrency=8, timeout_s=5.0, retries=3, wait_s=20.0, api_key=KEY),
        **{"backoff_s": 0.002, "longest_backoff_s": 0.01, "longest_probe_s": 0.01, "flush_s": 0.02} | changes,
    )


def calls_of(prompts: Sequence[str]) -> Iterator[Call]:
    for index, prompt in enumerate(prompts):
        yield Call(index, {"model": "tiny", "prompt": prompt, "seed": index, "max_tokens": 16})


def text(call: Call, answer: dict[str, Any]) -> str:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        raise ValueError("it has not one choice")
    return choices[0]["text"]


def right(prompts: Sequence[str]) -> dict[int, str]:
    return {index: text_of(answer_ids(prompt, index, 16)) for index, prompt in enumerate(prompts)}


def run(prompts: Sequence[str], settings: ClientSettings, **others: Any) -> dict[int, Any]:
    pairs = [pair for part in complete(calls_of(prompts), settings, text, **others) for pair in part]
    assert max(Counter(index for index, _ in pairs).values(), default=1) == 1
    return dict(pairs)


def ends(thread_name: str = "tpaw-client") -> bool:
    return not any(thread.name == thread_name for thread in threading.enumerate())


NAMES = [f"p{number}" for number in range(40)]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_got_over(fault: str) -> None:
    script = {name: [fault] * (1 if fault == "death" else 2) for name in NAMES[::9]}
    with FaultyServer(script) as server:
        rows = run(NAMES, settings_of(server, retries=2, concurrency=4))
    expected = right(NAMES)
    if fault == "empty text":
        expected |= {NAMES.index(name): "" for name in script}
    assert rows == expected
    assert server.faults[fault] > 0
    assert server.key == f"Bearer {KEY}"


def test_retries_end_but_overloads_cost_none() -> None:
    with FaultyServer({"p3": ["500"] * 3, "p4": ["429"] * 9, "p5": ["other shape"] * 2}) as server:
        rows = run(NAMES, settings_of(server, retries=2))
    assert rows.pop(3) == Failure(f"3 attempts failed, the last one because {server.url} answered 500: scripted 500")
    assert rows == {index: row for index, row in right(NAMES).items() if index != 3}


def test_an_overload_that_does_not_end_fails() -> None:
    with FaultyServer() as server:
        server.always = "503"
        rows = run(NAMES[:2], settings_of(server, wait_s=0.05))
    assert all("no server took it within 0.05 s" in row.reason for row in rows.values())


def test_a_request_that_never_ends_is_cut_off() -> None:
    with FaultyServer({"p1": ["never"]}) as server:
        assert run(NAMES, settings_of(server, timeout_s=0.3)) == right(NAMES)


@pytest.mark.parametrize("fault", ["401", "404", "307"])
def test_a_denied_request_ends_the_run(fault: str) -> None:
    with FaultyServer({"p5": [fault]}) as server, pytest.raises(GenerationError) as caught:
        run(NAMES, settings_of(server))
    assert f"{server.url} answered {fault}: scripted {fault}" in str(caught.value)
    assert "TPAW_ENGINE_API_KEY" in str(caught.value)
    assert KEY not in str(caught.value)
    assert ends()


def test_a_refused_request_fails_alone_and_at_once() -> None:
    with FaultyServer({"p5": ["400"] * 9}) as server:
        rows = run(NAMES, settings_of(server))
    assert rows[5] == Failure(f"{server.url} answered 400: scripted 400")
    assert server.faults["400"] == 1
    assert sum(isinstance(row, Failure) for row in rows.values()) == 1


def test_refusing_all_ends_the_run() -> None:
    with FaultyServer() as server:
        server.always = "400"
        with pytest.raises(GenerationError, match="first 20 requests were all refused"):
            run(NAMES, settings_of(server))
    assert server.requests < len(NAMES)


class Missed(logging.Handler):
    """Has a dead server rise when the client says that it is down; keeps the lines about servers."""

    def __init__(self, server: FaultyServer) -> None:
        super().__init__(logging.INFO)
        self.server = server
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.levelname)
        if record.levelno == logging.WARNING:
            self.server.rise()

    def __enter__(self) -> Missed:
        self.log = logging.getLogger(server_module.logger.name)
        self.level = self.log.level
        self.log.addHandler(self)
        self.log.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        self.log.removeHandler(self)
        self.log.setLevel(self.level)


def test_a_lost_server_is_waited_for_and_costs_no_retry() -> None:
    with FaultyServer({"p20": ["death"]}, down_s=None) as server, Missed(server) as missed:
        assert run(NAMES, settings_of(server, retries=0, concurrency=2)) == right(NAMES)
    assert missed.said == ["WARNING", "INFO"]


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_nobody_left_says_what_is_kept() -> None:
    with FaultyServer({"p20": ["death"]}, down_s=None) as server, pytest.raises(GenerationError) as caught:
        run(NAMES, settings_of(server, wait_s=0.05, concurrency=1))
    assert "20 answers of this run came before that and are kept" in str(caught.value)
    assert "run the same command" in str(caught.value)


def test_others_go_on_without_a_server_that_is_gone() -> None:
    with FaultyServer({name: ["death"] for name in NAMES}, down_s=None) as gone, FaultyServer() as other:
        assert run(NAMES, settings_of(gone, other, wait_s=0.05)) == right(NAMES)


def test_a_managed_server_is_restarted_under_another_url() -> None:
    asked: list[tuple[str, bool]] = []
    with FaultyServer({"p9": ["death"]}, down_s=None) as first, FaultyServer() as second:

        def revive(url: str, hangs: bool) -> str:
            asked.append((url, hangs))
            return second.url

        assert run(NAMES, settings_of(first, retries=0), revive=revive) == right(NAMES)
    assert asked == [(first.url, False)]
    assert second.valid > 0


def test_a_managed_server_that_lives_and_answers_nothing_is_restarted() -> None:
    asked: list[tuple[str, bool]] = []
    with FaultyServer() as first, FaultyServer() as second:
        first.always = "never"

        def revive(url: str, hangs: bool) -> str:
            asked.append((url, hangs))
            return second.url

        assert run(NAMES, settings_of(first, timeout_s=0.2), revive=revive) == right(NAMES)
    assert asked == [(first.url, True)]


def test_one_that_answers_between_requests_that_never_end_is_left_alone() -> None:
    with FaultyServer({"p0": ["never"] * 9}, delay_s=0.03) as server:
        rows = run(NAMES, settings_of(server, timeout_s=0.2, retries=1, concurrency=2), revive=pytest.fail)
    assert [index for index, row in rows.items() if isinstance(row, Failure)] == [0]


@pytest.mark.parametrize("managed", [False, True])
def test_a_server_that_stays_silent_is_given_up(managed: bool) -> None:
    revive = (lambda url, _: url) if managed else None
    with FaultyServer() as server:
        server.always = "never"
        with pytest.raises(GenerationError, match=r"No server .*, nor any other of \d+ requests in"):
            run(NAMES, settings_of(server, timeout_s=0.1, retries=1, wait_s=0.15), revive=revive)
    assert ends()


def test_a_request_that_never_ends_restarts_a_server_once() -> None:
    asked: list[tuple[str, bool]] = []

    def revive(url: str, hangs: bool) -> str:
        asked.append((url, hangs))
        return url

    with FaultyServer({"p39": ["never"] * 9}) as server:
        rows = run(NAMES, settings_of(server, timeout_s=0.1), revive=revive)
        assert asked == [(server.url, True)]
    assert "4 attempts failed" in rows[39].reason


def test_a_restart_that_fails_ends_the_run() -> None:
    def revive(url: str, hangs: bool) -> str:
        raise GenerationError("vllm did not start again")

    with FaultyServer({"p9": ["death"]}, down_s=None) as server, pytest.raises(GenerationError, match="did not start"):
        run(NAMES, settings_of(server), revive=revive)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_request_that_kills_the_server_each_time_fails_in_the_end(concurrency: int) -> None:
    with FaultyServer({"p9": ["death"] * 99}, down_s=None) as server, Missed(server):
        rows = run(NAMES, settings_of(server, retries=0, concurrency=concurrency))
    assert "while it worked on this request" in rows.pop(9).reason
    assert rows == {index: row for index, row in right(NAMES).items() if index != 9}
    assert server.faults["death"] <= 4


def test_errors_of_calls_and_of_parse_come_out() -> None:
    def calls() -> Iterator[Call]:
        yield from itertools.islice(calls_of(NAMES), 5)
        raise KeyError("calls")

    def parse(call: Call, answer: dict[str, Any]) -> Any:
        raise TypeError("parse")

    with FaultyServer() as server:
        with pytest.raises(KeyError, match="calls"):
            list(complete(calls(), settings_of(server), text))
        with pytest.raises(TypeError, match="parse"):
            list(complete(calls_of(NAMES), settings_of(server), parse))
    assert ends()


def test_a_slow_consumer_holds_the_calls_back() -> None:
    pulled = itertools.count()

    def calls() -> Iterator[Call]:
        for call in calls_of([f"p{number}" for number in range(400)]):
            next(pulled)
            yield call

    with FaultyServer() as server:
        settings = settings_of(server, flush_rows=8)
        rows = complete(calls(), settings, text)
        first = next(rows)
        wait_until(lambda: server.valid >= settings.concurrency + 4 * settings.flush_rows)
        assert next(pulled) == settings.concurrency + 4 * settings.flush_rows
        assert len(first) + sum(map(len, rows)) == 400


def test_closing_cancels_what_is_in_flight() -> None:
    with FaultyServer({name: ["never"] for name in NAMES[10:]}) as server:
        rows = complete(calls_of(NAMES), settings_of(server, timeout_s=600.0), text)
        next(rows)
        wait_until(lambda: server.at_work > 0)
        rows.close()
        assert ends()
        wait_until(lambda: not server.connections)


def test_closing_does_not_wait_for_a_restart() -> None:
    entered, leave = threading.Event(), threading.Event()

    def revive(url: str, hangs: bool) -> str:
        entered.set()
        leave.wait(60)
        return url

    with FaultyServer({"p5": ["death"]}, down_s=None) as server:
        rows = complete(calls_of(NAMES), settings_of(server, concurrency=1), text, revive)
        next(rows)
        assert entered.wait(60)
        rows.close()
        assert ends()
        leave.set()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(EnvironmentProblem, match=r'pip install "llamafactory-tpaw\[openai\]"'):
        next(complete(iter([]), settings_of("http://127.0.0.1:9/v1"), text))


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with FaultyServer() as server:
        assert run(NAMES, settings_of(server, retries=0, wait_s=0.1)) == right(NAMES)


def test_a_slow_server_gets_less() -> None:
    names = [f"p{number}" for number in range(300)]
    with (
        FaultyServer() as slow,
        FaultyServer(on_answer=lambda count: slow.release() if count == 250 else None) as fast,
    ):
        slow.always = "held"
        assert run(names, settings_of(slow, fast)) == right(names)
    assert 0 < slow.valid <= 50
    assert slow.valid + fast.valid == 300


def test_answers_of_nothing() -> None:
    with FaultyServer() as server:
        assert run([], settings_of(server)) == {}
