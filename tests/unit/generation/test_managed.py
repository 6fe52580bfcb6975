# SPDX-License-Identifier: Apache-2.0
"""Servers that are started are there, and servers that are ended leave nothing behind, whatever ends whom."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from llamafactory_tpaw.errors import GenerationError
from llamafactory_tpaw.generation import managed
from llamafactory_tpaw.generation.managed import ManagedServers, ServerCommand


PROGRAM = Path(__file__).with_name("small_server.py")
KEY = "k3y-of-this-test"
GONE_S = 20.0


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., ManagedServers]]:
    """Return a function that makes servers, one for each list of behaviours; they are ended in any case."""
    made = []

    def servers(*behaviours: tuple[str, ...], startup_s: float = 60.0) -> ManagedServers:
        commands = [
            ServerCommand(
                "tiny",
                lambda port, words=words: [sys.executable, "-S", str(PROGRAM), "--port", str(port), *words],
                os.environ | {"VLLM_API_KEY": KEY, "PYTHONPATH": ""},
                tmp_path / f"d.server-{index}.log",
                "Mend it.",
            )
            for index, words in enumerate(behaviours)
        ]
        made.append(ManagedServers(commands, startup_s, KEY))
        return made[-1]

    yield servers
    for each in made:
        each.close()


def family_of(servers: ManagedServers) -> list[psutil.Process]:
    """The wardens and all processes below them."""
    wardens = [psutil.Process(server._process.pid) for server in servers._servers]
    return [*wardens, *(child for warden in wardens for child in warden.children(recursive=True))]


def all_gone(processes: list[psutil.Process]) -> bool:
    def runs(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    _, alive = psutil.wait_procs([process for process in processes if runs(process)], GONE_S)
    return not [process for process in alive if runs(process)]


def get(url: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/v1"), timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read().decode()


def kill_server(url: str) -> None:
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        get(url, "/die")


def test_starts_serves_and_leaves_nothing(make: Callable[..., ManagedServers]) -> None:
    with make(("family",), ("family",)).start() as servers:
        assert len(set(servers.urls)) == 2
        assert [get(url, "/v1/models")[0] for url in servers.urls] == [200, 200]
        family = family_of(servers)
        assert len(family) == 8, "each: warden, server, a child in its session and one in another"
        # A terminal's Ctrl-C goes to the processes of this session.
        assert os.getsid(0) not in {os.getsid(process.pid) for process in family}
    assert all_gone(family)
    assert not any(process.is_running() for process in family), "they were waited for"


def test_one_that_does_not_listen_to_sigterm_is_killed(
    make: Callable[..., ManagedServers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managed, "TERMINATION_S", 0.2)
    servers = make(("deaf",)).start()
    family = family_of(servers)
    servers.close()
    assert all_gone(family)
    servers.close()  # once more does no harm


def test_one_that_ends_while_starting(make: Callable[..., ManagedServers], tmp_path: Path) -> None:
    servers = make((), ("end",))
    with pytest.raises(GenerationError, match=r"tiny at http://127\.0\.0\.1:\d+/v1 ended with exit code 1") as caught:
        servers.start()
    message = str(caught.value)
    assert str(tmp_path / "d.server-1.log") in message
    assert "    the key is ***\n    out of memory\n" in message
    assert "Mend it." in message
    assert all_gone(family_of_closed(servers))


def family_of_closed(servers: ManagedServers) -> list[psutil.Process]:
    return [process for server in servers._servers for process in managed._in_session(server._pid)]


def test_a_program_that_is_not_there(make: Callable[..., ManagedServers], tmp_path: Path) -> None:
    command = ServerCommand("tiny", lambda _: ["/no/such/program"], dict(os.environ), tmp_path / "log")
    with pytest.raises(GenerationError, match=r"exit code 127[^§]*/no/such/program cannot be started: No such file"):
        ManagedServers([command], 60.0).start()


def test_one_that_never_answers(make: Callable[..., ManagedServers], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managed, "SAY_EVERY_S", 0.0)
    servers = make(("silent", "family"), startup_s=1.5)
    said = []
    servers._servers[0]._say = said.append
    with pytest.raises(GenerationError, match=r"did not answer within `tpaw_engine_startup: 1.5` seconds"):
        servers.start()
    assert "is starting for 0 s; it says: nothing yet" in said[0]
    assert family_of_closed(servers) == []


def test_another_port_where_the_first_is_taken(make: Callable[..., ManagedServers], tmp_path: Path) -> None:
    servers = make(("die", str(tmp_path / "seen"))).start()
    assert get(servers.urls[0], "/v1/models")[0] == 200
    assert len(servers._servers[0].urls) == 2


def test_a_dead_one_is_started_again(
    make: Callable[..., ManagedServers], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(managed, "RESTARTS", 2)
    servers = make(("family",), ()).start()
    first, other = servers.urls
    assert servers.revive(first) == first, "it lives"
    family = family_of(servers)[2:]
    kill_server(first)
    second = servers.revive(first)
    assert get(second, "/v1/models")[0] == 200
    assert servers.revive(first) == second, "somebody else had it started already"
    assert servers.urls == (second, other)
    third = servers.revive(second, hangs=True)
    assert third != second, "it answered all the same"
    kill_server(third)
    with pytest.raises(GenerationError, match="ended with exit code 7, and was started again 2 times already"):
        servers.revive(third)
    with pytest.raises(GenerationError, match=r"http://x is none of the servers"):
        servers.revive("http://x")
    servers.close()
    assert all_gone(family)
    with pytest.raises(GenerationError, match="is being ended"):
        servers.revive(other)


def test_closing_while_one_is_being_started_again(make: Callable[..., ManagedServers], tmp_path: Path) -> None:
    servers = make(("family",)).start()
    url = servers.urls[0]
    server = servers._servers[0]
    kill_server(url)
    starting = threading.Event()
    server._say = lambda _: starting.set()
    server.command = ServerCommand("slow", _silent, server.command.environment, server.command.log)
    raised: list[BaseException] = []

    def revive() -> None:
        try:
            servers.revive(url)
        except GenerationError as error:
            raised.append(error)

    thread = threading.Thread(target=revive)
    thread.start()
    assert starting.wait(GONE_S)
    servers.close()
    thread.join(GONE_S)
    assert "is being ended" in str(raised[0])
    assert family_of_closed(servers) == []


def _silent(port: int) -> list[str]:
    return [sys.executable, "-S", str(PROGRAM), "--port", str(port), "silent"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent died")
def test_a_killed_warden_takes_its_server_along(make: Callable[..., ManagedServers]) -> None:
    servers = make(("family",)).start()
    warden, *family = family_of(servers)
    warden.kill()
    assert all_gone(family[:1])
    assert get(servers.revive(servers.urls[0]), "/v1/models")[0] == 200
    assert all_gone(family), "its children, too, before another one is started"


PARENT = """
import os, sys
from pathlib import Path
from llamafactory_tpaw.generation.managed import ManagedServers, ServerCommand

def arguments(port):
    return [sys.executable, "-S", sys.argv[1], "--port", str(port), "family"]

with ManagedServers([ServerCommand("tiny", arguments, dict(os.environ), Path(sys.argv[2]))], 60).start() as servers:
    COPY
    print(servers._servers[0]._process.pid, flush=True)
    HOLD
"""
# A copy of the process holds the pipe to the warden open.
COPY = "os.fork() or (os.setsid(), sys.stdin.read(), os._exit(0))"


@pytest.mark.parametrize(
    ("copy", "hold", "number"),
    [
        ("", "sys.stdin.read()", signal.SIGKILL),
        ("", "sys.stdin.read()", signal.SIGINT),
        (COPY, "sys.stdin.read()", signal.SIGKILL),
        ("", "os.abort()", None),
    ],
    ids=["kill -9", "ctrl-c", "kill -9 with a copy", "crash"],
)
def test_nothing_outlives_the_parent(tmp_path: Path, copy: str, hold: str, number: int | None) -> None:
    program = PARENT.replace("COPY", copy).replace("HOLD", hold)
    words = [sys.executable, "-c", program, str(PROGRAM), str(tmp_path / "log")]
    parent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    warden = psutil.Process(int(parent.stdout.readline()))
    family = [warden, *warden.children(recursive=True)]
    assert len(family) == 4
    if number is not None:
        parent.send_signal(number)
    assert parent.wait(GONE_S) != 0
    assert all_gone(family)
    parent.stdin.close()


def test_the_warden_is_light() -> None:
    code = "import sys; import llamafactory_tpaw.generation.warden; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"torch", "transformers", "numpy", "llamafactory", "psutil", "asyncio"} == set()
