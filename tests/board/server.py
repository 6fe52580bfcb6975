# SPDX-License-Identifier: Apache-2.0
"""LlamaBoard as a server of its own in a project's folder, bound to loopback. Linux only: it reads /proc."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.processes import is_running


START_TIMEOUT_S = 180
END_TIMEOUT_S = 30
MARK = "TPAW_BOARD_TEST"
ENVIRONMENT = {
    "BROWSER": "true",  # what the page is opened with at start
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SERVER_NAME": "127.0.0.1",
    "DISABLE_VERSION_CHECK": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "no_proxy": "127.0.0.1,localhost",
}


class Server:
    """`llamafactory-cli webui` in a folder; all its descendants carry a mark in their environment."""

    def __init__(self, root: Path, **env: str) -> None:
        self.root, self.env = root, env
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = root / f"board{self.port}.log"
        self.mark = uuid.uuid4().hex
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        binaries = Path(sys.executable).parent
        paths = {
            "GRADIO_SERVER_PORT": str(self.port),
            "GRADIO_TEMP_DIR": str(self.root / "gradio"),
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            MARK: self.mark,
        }
        with self.log.open("ab") as stream:
            return subprocess.Popen(
                [str(binaries / "llamafactory-cli"), "webui"],
                cwd=self.root,
                env=os.environ | ENVIRONMENT | paths | self.env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until_it_answers(self) -> None:
        """Wait for the first page.

        Raises:
            RuntimeError: If the server ends, or does not answer in time; it is ended then.
        """
        try:
            self.wait_until(self._answers, "an answer")
        except RuntimeError:
            self.stop()
            raise

    def wait_until(self, happened: Callable[[], bool], what: str) -> None:
        """Wait for something while the server works.

        Raises:
            RuntimeError: If the server ends before it, or it takes too long.
        """
        end = time.monotonic() + START_TIMEOUT_S
        while not happened():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the board ended before {what}, or it took too long:\n{self.output[-4000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def descendants(self) -> set[int]:
        """Living processes that the server started, whatever session they are in, without itself."""
        marked = {pid for pid in _all_processes() if self._is_marked(pid) and is_running(pid)}
        return marked - {self.process.pid}

    def _is_marked(self, pid: int) -> bool:
        try:
            return f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def leaves_nothing(self, timeout_s: float = END_TIMEOUT_S) -> bool:
        """Whether the last descendant ends within a moment."""
        end = time.monotonic() + timeout_s
        while self.descendants():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def kill(self) -> None:
        """Kill the server alone, as the system does where memory runs out."""
        self.process.kill()
        self.process.wait(END_TIMEOUT_S)

    def stop(self) -> None:
        """End the server and every process that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.descendants() | {self.process.pid}:
                _signal(pid, number)
            if self.leaves_nothing(5) and self._has_ended(5):
                return
        raise RuntimeError(f"processes of the board are left: {self.descendants() or self.process.pid}")

    def _has_ended(self, timeout_s: float) -> bool:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def listening(self) -> set[str]:
        """Addresses at which the server itself listens, as hexadecimal in /proc/net/tcp and tcp6."""
        inodes = {os.readlink(link) for link in Path(f"/proc/{self.process.pid}/fd").iterdir() if link.is_symlink()}
        lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").open()]
        listening = [fields for fields in lines if fields[3] == "0A"]
        return {fields[1].partition(":")[0] for fields in listening if f"socket:[{fields[9]}]" in inodes}


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
