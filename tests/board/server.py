# SPDX-License-Identifier: Apache-2.0
"""LlamaBoard as a server in a project's folder, bound to loopback."""

from __future__ import annotations

import socket
import urllib.request

import psutil

from tests.processes import Started
from tests.runs import Project


ENVIRONMENT = {
    "BROWSER": "true",  # what the page is opened with at start
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SERVER_NAME": "127.0.0.1",
    "DISABLE_VERSION_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    "no_proxy": "127.0.0.1,localhost",
}


class Server(Started):
    """`llamafactory-cli webui` in a folder, and all processes that it was seen to start."""

    def __init__(self, project: Project) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}/"
        own = {"GRADIO_SERVER_PORT": port, "GRADIO_TEMP_DIR": str(project.root / "gradio")}
        super().__init__(project, "llamafactory-cli", "webui", **ENVIRONMENT, **own)
        self.known: set[psutil.Process] = set()

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def descendants(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.known |= {*found}
        return found

    def leaves_nothing(self) -> bool:
        """Whether the last process that it started ends within a moment."""
        return not psutil.wait_procs(self.known, timeout=30)[1]

    def stop(self) -> None:
        """Kill the server, and every process of it that is left."""
        if self.process.poll() is None:
            self.descendants()
        self.process.kill()
        self.process.wait()
        for each in psutil.wait_procs(self.known, timeout=1)[1]:
            each.kill()
