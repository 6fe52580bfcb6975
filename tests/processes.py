# SPDX-License-Identifier: Apache-2.0
"""Commands that are stopped while they work, and what becomes of their processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.runs import TIMEOUT_S, Project


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Started:
    """A command in a session of its own, with its output in a file so that a full pipe never holds it up."""

    def __init__(self, project: Project, *command: str, **environment: str) -> None:
        self.log = project.root / f"log{len(list(project.root.glob('log*')))}.txt"
        binaries = Path(sys.executable).parent
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=project.root,
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
                | environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for a moment at which the command is still at work."""
        end = time.monotonic() + TIMEOUT_S
        while not happened():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                pytest.fail(f"it ended, or waited, before that:\n{self.output[-4000:]}")
            time.sleep(0.002)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.kill()

    def interrupt(self, number: int) -> int:
        """Send all of its processes a signal, as Ctrl-C does, and wait for the end of all."""
        os.killpg(self.process.pid, number)
        code = self.wait()
        assert self.leaves_nothing()
        return code

    def leaves_nothing(self) -> bool:
        """Whether its last process ends within a moment."""
        end = time.monotonic() + 10
        while members_of(self.process.pid):
            if time.monotonic() > end:
                os.killpg(self.process.pid, signal.SIGKILL)
                return False
            time.sleep(0.01)
        return True

    def kill(self) -> None:
        """Kill all of its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.wait(TIMEOUT_S) == -signal.SIGKILL, "it had ended already"


def ends_soon(pid: int) -> bool:
    """Whether a process that was told to end does so within a moment."""
    end = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def members_of(session: int) -> list[int]:
    """Ids of the processes of a session that still run."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            found += [pid] * (os.getsid(pid) == session and is_running(pid))
    return found
