# SPDX-License-Identifier: Apache-2.0
"""Servers that are ours: started, waited for, restarted where they die, and ended for certain."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ..errors import GenerationError
from . import warden


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

HOST = "127.0.0.1"
# How often one server is started again before it is given up, counted anew by one that lasted; and how often another
# port is tried.
RESTARTS, LASTING_S = 10, 600.0
PORTS = 4
TAIL_LINES, TAIL_BYTES, LINE_CHARACTERS = 15, 1 << 16, 300
POLL_S = 0.1
# What a server has for going by itself.
TERMINATION_S = 10.0
ANSWER_S = 10.0
# A server that lives but answers nobody has so long to come back.
SILENCE_S = 60.0
SAY_EVERY_S = 30.0
PORT_TAKEN = re.compile(r"address already in use|EADDRINUSE|\[Errno (98|48)\]", re.IGNORECASE)
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class ServerCommand:
    r"""How one server is started.

    Attributes:
        name: What messages call it, `vLLM` for example.
        arguments: From the port to the program and its arguments.
        environment: The whole environment of the process.
        log: File that takes what it writes; begun anew.
        advice: What to do where it does not start, for the end of a message.
    """

    name: str
    arguments: Callable[[int], Sequence[str]]
    environment: Mapping[str, str]
    log: Path
    advice: str = ""


class ManagedServers:
    r"""Servers on ports of this machine that no other machine reaches; a context manager.

    They are processes of `warden.py`, which ends them when this process is gone, whatever ended it.

    Args:
        commands: One a server.
        startup_s: Seconds that a server may take until it answers; `tpaw_engine_startup`.
        api_key: What requests must show to the servers, or None.
        model: The name under which they serve the model; kept for whoever sends requests.
        say: Is told now and then how a long start goes on.

    Attributes:
        api_key: As given.
        model: As given.
    """

    def __init__(
        self,
        commands: Sequence[ServerCommand],
        startup_s: float,
        api_key: str | None = None,
        model: str | None = None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.api_key, self.model = api_key, model
        self._closing = threading.Event()
        self._servers = [_Server(command, startup_s, api_key, self._closing, say) for command in commands]

    def start(self) -> ManagedServers:
        r"""Start all of them and wait until all answer.

        Raises:
            GenerationError: If one does not; then none is left.
        """
        try:
            for server in self._servers:
                server.start()
            starting = self._servers
            while starting := [server for server in starting if not server.is_ready()]:
                time.sleep(POLL_S)
        except BaseException:
            self.close()
            raise
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """Where each server takes requests: `http://127.0.0.1:PORT/v1`."""
        return tuple(server.url for server in self._servers)

    def revive(self, url: str, hangs: bool = False) -> str:
        r"""Start a server again that does not answer any more; may be called from any thread.

        Args:
            url: Where it was.
            hangs: Whether it says that it is well and still answers no request, so that it is not asked.

        Returns:
            Where it is now: the same where it answers after all, or where somebody else started it again.

        Raises:
            GenerationError: If it was started again too often, does not come up, or all are being ended.
        """
        for server in self._servers:
            if url in server.urls:
                return server.revive(url, hangs)
        raise GenerationError(f"{url} is none of the servers that this run started: {', '.join(self.urls)}.")

    def close(self) -> None:
        r"""End all servers and what they started, and wait until nothing of it is left.

        Raises:
            GenerationError: If a process cannot be ended.
        """
        self._closing.set()
        for server in self._servers:
            server.ask_to_end()
        left = [process for server in self._servers for process in server.end()]
        if left:
            numbers = ", ".join(str(process.pid) for process in left)
            raise GenerationError(
                f"The processes {numbers} of a server cannot be ended; the memory of its device may not be free. Look "
                "at them with `ps`, end them, and start again: finished rows are kept."
            )

    def __enter__(self) -> ManagedServers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


class _Server:
    """One server, of which one process at a time lives."""

    def __init__(
        self,
        command: ServerCommand,
        startup_s: float,
        api_key: str | None,
        closing: threading.Event,
        say: Callable[[str], object],
    ) -> None:
        self.command, self.startup_s, self.api_key = command, startup_s, api_key
        self.urls: list[str] = []
        self._closing, self._say = closing, say
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._known: set[psutil.Process] = set()
        self._port = self._log_start = self._restarts = 0
        self._since = 0.0  # when it began to start; then, since when it answers
        command.log.write_bytes(b"")

    @property
    def url(self) -> str:
        return self.urls[-1]

    def start(self) -> None:
        """Start a process on a free port; `is_ready` tells when it answers."""
        self._since, self._said, self._ports = time.monotonic(), 0.0, 1
        self._launch()

    def _launch(self) -> None:
        self._port = _free_port()
        self.urls.append(f"http://{HOST}:{self._port}/v1")
        self._log_start = self.command.log.stat().st_size
        words = [sys.executable, "-P", warden.__file__, str(os.getpid()), str(TERMINATION_S)]
        words += self.command.arguments(self._port)
        with self.command.log.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(self.command.environment),
                start_new_session=True,
            )
        line = self._process.stdout.readline()
        self._pid = int(line) if line else None

    def is_ready(self) -> bool:
        """Whether it answers, one that was just started; tries other ports where a program was faster on this one."""
        if self._answers():
            self._remember()
            self._since = time.monotonic()
            return True
        code = self._process.poll()
        if code is not None:
            if self._ports == PORTS or not PORT_TAKEN.search(self._written()):
                raise self._failed(f"ended with exit code {code} before it answered")
            self._end_completely()
            self._ports += 1
            self._launch()
        waited = time.monotonic() - self._since
        if waited > self.startup_s:
            raise self._failed(f"did not answer within `tpaw_engine_startup: {self.startup_s:g}` seconds")
        if waited > self._said + SAY_EVERY_S:
            self._said = waited
            last = (self._tail() or ["nothing yet"])[-1]
            self._say(f"{self.command.name} at {self.url} is starting for {waited:.0f} s; it says: {last}")
        return False

    def revive(self, url: str, hangs: bool) -> str:
        with self._lock:
            if url != self.url:
                return self.url
            self._refuse_closing()
            if not hangs and self._comes_back():
                return self.url
            how = self._how_it_ended(hangs)
            self._end_completely()
            self._restarts = 0 if time.monotonic() - self._since > LASTING_S else self._restarts
            if self._restarts == RESTARTS:
                raise self._failed(f"{how}, and was started again {RESTARTS} times already")
            self._refuse_closing()
            self._restarts += 1
            self._say(f"{self.command.name} at {self.url} {how}: it is started again. Its log is {self.command.log}.")
            self.start()
            while not self.is_ready():
                self._closing.wait(POLL_S)
                self._refuse_closing()
            return self.url

    def _refuse_closing(self) -> None:
        if self._closing.is_set():
            raise GenerationError(f"{self.command.name} at {self.url} is being ended.")

    def _comes_back(self) -> bool:
        """Give one that lives time to answer: a connection may break while a server is well."""
        end = time.monotonic() + SILENCE_S
        while self._process.poll() is None and time.monotonic() < end and not self._closing.is_set():
            if self._answers():
                return True
            self._closing.wait(POLL_S)
        return False

    def _how_it_ended(self, hangs: bool) -> str:
        code = self._process.poll()
        if code is not None:
            return f"ended with exit code {code}"
        return "answered no request in time" if hangs else f"did not answer for {SILENCE_S:g} s"

    def ask_to_end(self) -> None:
        """Let the warden begin to end it."""
        if self._process is not None:
            self._remember()
            with contextlib.suppress(OSError, ValueError):  # it is gone, or was asked before
                self._process.stdin.write(b"\n")
                self._process.stdin.flush()

    def end(self) -> list[psutil.Process]:
        """Wait until nothing is left, and return what cannot be ended."""
        with self._lock:  # somebody may be starting it again
            self.ask_to_end()
            return self._end_completely(refuse=False)

    def _end_completely(self, refuse: bool = True) -> list[psutil.Process]:
        if self._process is None:
            return []
        self.ask_to_end()
        try:
            self._process.wait(TERMINATION_S + warden.KILL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was written last may have had no reader
                stream.close()
        # The warden leaves nothing behind, unless it was killed itself.
        left = warden.end_processes(lambda: self._known | _in_session(self._pid), 0.0)
        if left and refuse:
            raise self._failed("cannot be ended, so it is not started again")
        self._known = set()
        return left

    def _remember(self) -> None:
        """Keep the processes of the server, for the case that the warden is killed before it can end them."""
        with contextlib.suppress(psutil.Error):
            self._known |= set(psutil.Process(self._process.pid).children(recursive=True))

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            return False
        status = _get(self._port, "/health", self.api_key)
        if status is not None and status != 200 and status < 500:
            status = _get(self._port, "/v1/models", self.api_key)
        return status == 200

    def _written(self) -> str:
        """What this start wrote to the log, its end at least."""
        with self.command.log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(self._log_start, size - TAIL_BYTES))
            text = ESCAPES.sub("", stream.read().decode(errors="replace"))
        return text.replace(self.api_key, "***") if self.api_key else text

    def _tail(self) -> list[str]:
        lines = [line.rstrip()[:LINE_CHARACTERS] for line in self._written().splitlines() if line.strip()]
        return lines[-TAIL_LINES:]

    def _failed(self, what: str) -> GenerationError:
        tail = self._tail()
        said = "ends:\n" + "".join(f"    {line}\n" for line in tail) if tail else "is empty. "
        return GenerationError(
            f"{self.command.name} at {self.url} {what}. Its log {self.command.log} {said}"
            f"{self.command.advice} Finished rows are kept: the same command continues."
        )


def _free_port() -> int:
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        return holder.getsockname()[1]


def _get(port: int, path: str, api_key: str | None) -> int | None:
    """Ask a server on this machine, by no proxy; None where it does not answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_S)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _in_session(leader: int | None) -> set[psutil.Process]:
    """The processes of a server's session."""
    return {process for process in psutil.process_iter() if leader is not None and _session(process.pid) == leader}


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None
