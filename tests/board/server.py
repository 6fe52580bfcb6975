# SPDX-License-Identifier: Apache-2.0
"""LlamaBoard as a server in a project's folder, bound to loopback. Linux only: it reads /proc."""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.request
import uuid
from pathlib import Path

from tests.processes import Started, is_running
from tests.runs import Project


END_TIMEOUT_S = 30
MARK = "TPAW_BOARD_TEST"
ENVIRONMENT = {
    "BROWSER": "true",  # what the page is opened with at start
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SERVER_NAME": "127.0.0.1",
    "DISABLE_VERSION_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    "no_proxy": "127.0.0.1,localhost",
}


class Server(Started):
    """`llamafactory-cli webui` in a folder; all its descendants carry a mark in their environment."""

    def __init__(self, project: Project) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}/"
        self.mark = uuid.uuid4().hex
        own = {"GRADIO_SERVER_PORT": port, "GRADIO_TEMP_DIR": str(project.root / "gradio"), MARK: self.mark}
        super().__init__(project, "llamafactory-cli", "webui", **ENVIRONMENT, **own)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def descendants(self) -> set[int]:
        """Living processes that the server started, whatever session they are in, without itself."""
        pids = {int(path.name) for path in Path("/proc").glob("[0-9]*")} - {self.process.pid}
        return {pid for pid in pids if self._is_marked(pid) and is_running(pid)}

    def _is_marked(self, pid: int) -> bool:
        try:
            return f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def leaves_nothing(self) -> bool:
        """Whether the last descendant ends within a moment."""
        end = time.monotonic() + END_TIMEOUT_S
        while self.descendants():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def stop(self) -> None:
        """Kill the server, and every process of it that is left."""
        self.process.kill()
        self.process.wait(END_TIMEOUT_S)
        for pid in self.descendants():
            os.kill(pid, signal.SIGKILL)
        assert self.leaves_nothing()
