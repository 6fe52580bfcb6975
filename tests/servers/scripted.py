# SPDX-License-Identifier: Apache-2.0
"""A server on loopback whose answers a test writes as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.servers.faulty import Connection, FaultyServer


class ScriptedServer(FaultyServer):
    """Answers what `say(method, path, body)` says: a status, 0 for no answer, and a JSON value; `seen` has all."""

    def __init__(self, say: Callable[[str, str, Any], tuple[int, Any]]) -> None:
        super().__init__()
        self.say = say
        self.seen: list[tuple[str, str, Any, str | None]] = []

    def handle(self, connection: Connection, method: str, path: str, body: Any, key: str | None) -> None:
        """Answer a request."""
        self.seen.append((method, path, body, key))
        status, content = self.say(method, path, body)
        if status:
            connection.send(status, content, f"location: {content}\r\n" if status == 302 else "")

    def bodies(self, path: str) -> list[Any]:
        """Bodies of what was posted to a path."""
        return [body for method, where, body, _ in self.seen if method == "POST" and where == path]
