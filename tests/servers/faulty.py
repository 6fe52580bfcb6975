# SPDX-License-Identifier: Apache-2.0
r"""A completion server on loopback that misbehaves as a script says, in a thread of its own.

What it answers is a function of prompt and seed alone, so a test knows every right row. Faults belong to prompts: each
arrival of a prompt takes the next fault of its list, and when the list is empty the prompt is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any


FAULTS = ("slow", "429", "429 with a time", "500", "503", "half a body", "wrong JSON", "other shape", "reset", "death")
STATUS = {status: (int(status), "") for status in ("400", "401", "404", "429", "500", "503")} | {
    "429 with a time": (429, "retry-after: 0.01\r\n"),
    "307": (307, "location: http://127.0.0.1:9/v1/completions\r\n"),
}


def key_of(prompt: Any) -> str:
    """A prompt, text or token ids, as text."""
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def answer_ids(prompt: Any, seed: int | None, limit: int) -> list[int]:
    """The right answer: at most `limit` token ids of printable ASCII."""
    digest = hashlib.sha256(f"{seed}:{key_of(prompt)}".encode()).digest()
    return [97 + byte % 26 for byte in digest[: 3 + digest[0] % 20]][:limit]


def random_faults(prompts: Sequence[Any], seed: int, times: int) -> dict[str, list[str]]:
    """Give each fault to so many prompts at random."""
    script: dict[str, list[str]] = {}
    chosen = random.Random(seed)
    for fault in FAULTS:
        for prompt in chosen.sample(prompts, times):
            script.setdefault(key_of(prompt), []).append(fault)
    return script


def bind(port: int) -> socket.socket:
    """A socket of this machine that others may share."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made


class FaultyServer:
    """Serves `/v1/completions` and `/v1/models` as vLLM does; a request of one token asks beforehand, without a fault.

    `script` has each prompt's faults in order; a dead server is gone for `down_s` seconds, or until `rise`, and
    `on_answer` is told the number of valid answers after each.
    """

    def __init__(self, script: Mapping[str, Sequence[str]] | None = None, down_s: float | None = 0.01) -> None:
        self.script = {key: deque(faults) for key, faults in (script or {}).items()}
        self.down_s = down_s
        self.on_answer: Callable[[int], object] = lambda _: None
        self.faults: Counter[str] = Counter()  # how often each was played
        self.valid = 0
        self.always: str | None = None  # a fault that every request meets
        self.connections: set[asyncio.StreamWriter] = set()
        self.listener: asyncio.Server | None = None
        self.loop = asyncio.new_event_loop()
        # A bound socket that does not listen keeps the port while the server is dead.
        self.holder = bind(0)
        self.port: int = self.holder.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> FaultyServer:
        self.thread.start()
        self.rise()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._die(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.holder.close()

    def rise(self) -> None:
        """Listen (again)."""
        asyncio.run_coroutine_threadsafe(self._rise(), self.loop).result()

    async def _rise(self) -> None:
        if self.listener is None:
            self.listener = await asyncio.start_server(self.serve, sock=bind(self.port))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a connection of HTTP/1.1 with keep-alive, whose client waits for an answer before it asks again."""
        self.connections.add(writer)
        with contextlib.suppress(OSError, EOFError):
            while self.listener is not None:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path = lines[0].split()[:2]
                self.handle(writer, method, path, json.loads(content or "null"), headers.get("authorization"))
        self.connections.discard(writer)
        reset(writer) if self.listener is None else writer.close()

    async def _die(self) -> None:
        """Reset all connections and listen no more."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.close()
        for connection in list(self.connections):
            reset(connection)
        for _ in range(3):
            await asyncio.sleep(0)  # until the connections' tasks have seen it

    def fall(self) -> None:
        """Die, and come back after a while."""
        self.loop.create_task(self._die())
        if self.down_s is not None:
            self.loop.call_later(self.down_s, lambda: self.loop.create_task(self._rise()))

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """A valid answer; ids where it was asked in ids, as by vLLM."""
        limit = body.get("max_tokens", 16)
        ids = answer_ids(body["prompt"], body.get("seed"), limit)
        text = bytes(ids).decode()
        ids = [*ids, *body.get("stop_token_ids", [])[:1]][:limit]
        choice = {"index": 0, "text": text, "finish_reason": "stop" if len(ids) < limit else "length"}
        if not isinstance(body["prompt"], str):
            choice |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
        return {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage}

    def handle(self, writer: asyncio.StreamWriter, method: str, path: str, body: Any, key: str | None) -> None:
        """Answer a request, now or later."""
        if path == "/v1/models":
            return send(writer, 200, {"data": [{"id": "tiny", "object": "model", "owned_by": "vllm"}]})
        if path != "/v1/completions":
            return send(writer, 404, {"detail": "Not Found"})
        fault, faults = None, self.script.get(key_of(body["prompt"]))
        if body.get("max_tokens", 16) > 1 and (fault := self.always or (faults.popleft() if faults else None)):
            self.faults[fault] += 1
        if fault != "never":
            self.loop.call_later(0.02 if fault == "slow" else 0, self.respond, writer, fault, body)
        return None

    def respond(self, writer: asyncio.StreamWriter, fault: str | None, body: dict[str, Any]) -> None:
        """Answer as the fault says."""
        if writer.is_closing():
            return None
        if fault == "death":
            return self.fall()
        if fault == "reset":
            return reset(writer)
        if fault in STATUS:
            status, header = STATUS[fault]
            return send(writer, status, {"error": {"message": f"scripted {status}", "code": None}}, header)
        if fault == "wrong JSON":
            return send(writer, 200, b'{"choices": [{"text": "tru')
        if fault == "other shape":
            return send(writer, 200, {"object": "list", "data": []})
        answer = self.answer(body)
        if fault == "half a body":
            content = json.dumps(answer).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content))
            writer.write(content[: len(content) // 2])
            return writer.close()
        self.valid += 1
        send(writer, 200, answer)
        return self.on_answer(self.valid)


def send(writer: asyncio.StreamWriter, status: int, content: Any, header: str = "") -> None:
    """Write an answer."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"HTTP/1.1 {status} -\r\n{header}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)


def reset(writer: asyncio.StreamWriter) -> None:
    """End with RST rather than FIN."""
    with contextlib.suppress(OSError):
        made = writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()


class ScriptedServer(FaultyServer):
    """Answers what `say(method, path, body)` says: a status, 0 for no answer, and a JSON value; `seen` has all."""

    def __init__(self, say: Callable[[str, str, Any], tuple[int, Any]]) -> None:
        super().__init__()
        self.say = say
        self.seen: list[tuple[str, str, Any, str | None]] = []

    def handle(self, writer: asyncio.StreamWriter, method: str, path: str, body: Any, key: str | None) -> None:
        """Answer a request."""
        self.seen.append((method, path, body, key))
        status, content = self.say(method, path, body)
        if status:
            send(writer, status, content, f"location: {content}\r\n" if status == 302 else "")

    def bodies(self, path: str) -> list[Any]:
        """Bodies of what was posted to a path."""
        return [body for method, where, body, _ in self.seen if method == "POST" and where == path]
