# SPDX-License-Identifier: Apache-2.0
r"""Send many requests to servers that speak OpenAI's API, and hand their answers out as they come.

`complete` is a plain generator. The requests run in an event loop in a thread of its own, so that the servers go on
while what is handed out is written to the disk.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .dispatch import Dispatcher
from .endpoint import load_openai


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .base import Failure

    # Restarts the server at a URL and returns where it is; True says that it listens, but answers no request.
    Revive = Callable[[str, bool], str]

# How often a waiting consumer looks up, so that Ctrl-C reaches it on every system, and how long a thread may take to
# end its connections.
LOOK_S, END_S = 1.0, 10.0


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
        backoff_s: Bound of the first random wait before a further attempt; it doubles with each.
        longest_backoff_s: Where that doubling ends.
        longest_probe_s: Most seconds between two looks at a lost server.
        flush_s: Most seconds that an answer waits for others to be handed out with.
        flush_rows: Most answers that are handed out together.
    """

    urls: tuple[str, ...]
    concurrency: int
    timeout_s: float
    retries: int
    wait_s: float
    api_key: str | None
    backoff_s: float = 0.5
    longest_backoff_s: float = 30.0
    longest_probe_s: float = 5.0
    flush_s: float = 0.5
    flush_rows: int = 256


def complete(
    calls: Iterable[Call],
    settings: ClientSettings,
    parse: Callable[[Call, dict[str, Any]], Any],
    revive: Revive | None = None,
) -> Iterator[list[tuple[int, Any | Failure]]]:
    r"""Answer requests, in any order, each once.

    Args:
        calls: The requests. They are pulled lazily, in the client's thread, and only as many as servers and consumer
            keep up with.
        settings: Servers and bounds.
        parse: Makes a call's result of the answer's JSON object; raises ValueError for what is no answer, which is
            tried again. Runs in the client's thread.
        revive: Called in a thread with the URL of a server that is down, and whether it hangs: nothing was answered
            while requests ran out of time. Returns the URL under which it is back, or raises GenerationError.
            Without it a server is waited for.

    Yields:
        Lists of index and result, or index and why it failed for good.

    Raises:
        GenerationError: If a server refuses the run as a whole, or none is left.
        EnvironmentProblem: If `openai` is absent.
        Exception: Whatever `calls` raises, and `parse` beside ValueError.
    """
    load_openai()
    worker = _Worker()
    thread = threading.Thread(
        target=worker.work, args=(calls, settings, parse, revive), name="tpaw-client", daemon=True
    )
    thread.start()
    try:
        while (results := worker.next()) is not None:
            yield results
            worker.call(Dispatcher.taken, len(results))
    finally:
        worker.call(Dispatcher.stop)
        thread.join(END_S)


class _Worker:
    """The client's side and the consumer's side of a queue, which the dispatcher's own bound keeps short."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[list[Any] | BaseException | None] = queue.SimpleQueue()
        self.started = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.dispatcher: Dispatcher | None = None

    def work(self, *arguments: Any) -> None:
        """The thread: answer all, then say that it is the end, or why it is."""
        try:
            asyncio.run(self._answer(*arguments))
            self.queue.put(None)
        except BaseException as error:
            self.queue.put(error)
        finally:
            self.loop = None
            self.started.set()

    async def _answer(self, calls: Iterable[Call], settings: ClientSettings, parse: Any, revive: Any) -> None:
        self.dispatcher = Dispatcher(calls, settings, parse, revive, self.queue.put)
        self.loop = asyncio.get_running_loop()
        self.started.set()
        await self.dispatcher.run()

    def next(self) -> list[Any] | None:
        """What came since; None at the end."""
        while True:
            try:
                results = self.queue.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            if isinstance(results, BaseException):
                raise results
            return results

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have the loop's thread do something, unless it has ended."""
        self.started.wait()
        loop = self.loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(function, self.dispatcher, *arguments)
            except RuntimeError:
                return  # it ended in between
