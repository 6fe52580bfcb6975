# SPDX-License-Identifier: Apache-2.0
r"""Send many requests to servers that speak OpenAI's API, and hand their answers out as they come.

`complete` is a plain generator. The requests run in an event loop in a thread of its own, so that the servers go on
while what is handed out is written to the disk.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentProblem
from .base import Failure


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NO_KEY = "none"


@dataclass(frozen=True)
class Call:
    """One request of a server: the JSON `body` of `POST <url><path>`; `index` comes back with its answer."""

    index: int
    body: dict[str, Any]
    path: str = "/completions"


@dataclass(frozen=True)
class ClientSettings:
    r"""Where requests go and what they may cost.

    Attributes:
        urls: Base URLs, with `/v1` where the server has it.
        concurrency: Most requests in flight at one server.
        timeout_s: Bound of one attempt, in seconds.
        retries: Further attempts of a request after an error of the server.
        wait_s: How long a lost or overloaded server is waited for, in seconds.
        api_key: Bearer token; None where none is needed. It appears in no message.
    """

    urls: tuple[str, ...]
    concurrency: int
    timeout_s: float
    retries: int
    wait_s: float
    api_key: str | None


def complete(
    calls: Iterable[Call],
    settings: ClientSettings,
    parse: Callable[[Call, dict[str, Any]], Any],
    revive: Callable[[str], str] | None = None,
) -> Iterator[list[tuple[int, Any | Failure]]]:
    r"""Answer requests, in any order, each once.

    Args:
        calls: The requests. They are pulled lazily, in the client's thread, and only as many as servers and consumer
            keep up with.
        settings: Servers and bounds.
        parse: Makes a call's result of the answer's JSON object; raises ValueError for what is no answer, which is
            tried again. Runs in the client's thread.
        revive: Called in a thread when a server is down; returns the URL under which it is back.

    Yields:
        Lists of index and result, or index and why it failed for good.

    Raises:
        GenerationError: If a server refuses the run as a whole, or none is left.
        EnvironmentProblem: If `openai` is absent.
    """
    try:
        import openai
    except ImportError:
        raise EnvironmentProblem(
            "Servers are asked through the package openai, which is not installed. "
            'Run: pip install "llamafactory-tpaw[openai]"'
        ) from None
    results: queue.Queue[Any] = queue.Queue(maxsize=4 * settings.concurrency)
    stop = threading.Event()
    iterator = iter(calls)

    async def attempt(client: Any, call: Call) -> Any:
        error: Exception | None = None
        for _ in range(settings.retries + 1):
            try:
                text = await client.post(call.path, body=call.body, cast_to=str)
                return parse(call, json.loads(text))
            except (openai.APIError, ValueError) as caught:
                error = caught
        return Failure(str(error))

    async def worker(client: Any) -> None:
        for call in iterator:
            result = (call.index, await attempt(client, call))
            while not stop.is_set():
                try:
                    results.put_nowait([result])
                    break
                except queue.Full:
                    await asyncio.sleep(0.01)
            if stop.is_set():
                return

    async def run() -> None:
        key = settings.api_key or NO_KEY
        clients = [
            openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=settings.timeout_s)
            for url in settings.urls
        ]
        await asyncio.gather(*(worker(client) for client in clients for _ in range(settings.concurrency)))

    def main() -> None:
        try:
            asyncio.run(run())
            results.put(None)
        except BaseException as error:
            results.put(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    try:
        while (item := results.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
