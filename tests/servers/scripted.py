# SPDX-License-Identifier: Apache-2.0
"""A server on loopback whose answers a test writes as a function, in threads of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


Answer = Callable[[str, str, Any], tuple[int, Any]]


class ScriptedServer:
    """Answers what `answer(method, path, body)` says, a status and a JSON value; `seen` has all requests and keys."""

    def __init__(self, answer: Answer) -> None:
        self.seen: list[tuple[str, str, Any, str | None]] = []
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply("GET", None)

            def do_POST(self) -> None:
                self._reply("POST", json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _reply(self, method: str, body: Any) -> None:
                seen.append((method, self.path, body, self.headers.get("authorization")))
                status, content = answer(method, self.path, body)
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                if status == 302:
                    self.send_header("location", content)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def bodies(self, path: str) -> list[Any]:
        """Bodies of what was posted to a path."""
        return [body for method, where, body, _ in self.seen if method == "POST" and where == path]

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
