# SPDX-License-Identifier: Apache-2.0
r"""Which request goes to which server when, and what becomes of it: in one event loop, without locks.

A request is waiting, in flight at one server, or settled; it is settled once, so its index comes out once.

A server is up, in doubt (a connection broke, and one question is to show whether the server is there), down (it is
restarted or waited for) or given up. A server that goes down gives its requests back, which costs them no retry. One
of them may be the cause, so what was in flight at two deaths is sent alone, and fails if the server dies of it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import TYPE_CHECKING, Any

from ..errors import GenerationError
from .base import Failure
from .endpoint import Broken, Cut, Overloaded, Refused, TooSlow
from .server import Server


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .client import Call, ClientSettings, Revive

# Requests that a server may refuse before the first answer, until that is a reason to stop.
FIRST_REFUSALS = 20
# Deaths of a server after which a request that was in flight is sent alone, and at how many it must have been alone
# to be the cause.
SUSPECT_DEATHS, POISON_DEATHS, ALONE_DEATHS = 2, 3, 2


class Item:
    """A request on its way: what its attempts have cost so far."""

    __slots__ = ("alone", "call", "deaths", "overloads", "since", "tries")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.tries = 0
        self.overloads = 0
        self.since: float | None = None
        self.deaths = self.alone = 0


class Dispatcher:
    r"""Answer calls.

    Args:
        calls: The requests, pulled one at a time.
        settings: Servers and bounds.
        parse: Makes a result of an answer; ValueError is no answer.
        revive: Restarts a server, if somebody can.
        deliver: Is given lists of index and result.
    """

    def __init__(
        self,
        calls: Iterable[Call],
        settings: ClientSettings,
        parse: Callable[[Call, dict[str, Any]], Any],
        revive: Revive | None,
        deliver: Callable[[list[tuple[int, Any]]], object],
    ) -> None:
        self.calls = iter(calls)
        self.settings = settings
        self.parse = parse
        self.revive = revive
        self.deliver = deliver
        self.loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[None] = self.loop.create_future()
        self.servers = [Server(url, settings, self) for url in settings.urls]
        self.waiting: deque[Item] = deque()
        self.suspects: deque[Item] = deque()
        self.exhausted = False
        # Requests pulled and not yet taken by the consumer; of those, the ones that are settled.
        self.open = self.settled = 0
        self.most_open = len(self.servers) * settings.concurrency + 4 * settings.flush_rows
        self.answered = self.refused = 0
        self.results: list[tuple[int, Any]] = []
        self.timer: asyncio.TimerHandle | None = None
        self.random = random.Random()

    async def run(self) -> None:
        """Answer all; whatever ends it, nothing is left in flight."""
        try:
            self.pump()
            await self.finished
            self._flush()
        except GenerationError:
            self._flush()
            raise
        finally:
            for server in self.servers:
                server.stop()
            await asyncio.gather(*(server.endpoint.close() for server in self.servers), return_exceptions=True)

    def fail(self, error: BaseException) -> None:
        """End the run with an error."""
        if not self.finished.done():
            self.finished.set_exception(error)

    def stop(self) -> None:
        """End the run where nobody takes the answers any more."""
        self.finished.cancel()

    def taken(self, count: int) -> None:
        """Note that the consumer is done with so many results."""
        self.open -= count
        self.settled -= count
        self.pump()

    # --- who goes where

    def pump(self) -> None:
        """Send what can be sent now. Called after whatever may have changed that."""
        while not self.finished.done():
            pair = self._next()
            if pair is None:
                break
            server, item, alone = pair
            server.start(item, alone)
        if self.results and not any(server.in_flight for server in self.servers):
            self._flush()
        if self.exhausted and self.open == self.settled and not self.finished.done():
            self.finished.set_result(None)

    def _next(self) -> tuple[Server, Item, bool] | None:
        """A server with room and the request for it."""
        now = self.loop.time()
        servers = [server for server in self.servers if server.ready(now)]
        if self.suspects and servers:
            server = min(servers, key=lambda each: len(each.in_flight))
            if not server.in_flight:
                return server, self.suspects.popleft(), True
            servers.remove(server)  # it is left to become empty
        servers = [server for server in servers if len(server.in_flight) < server.pressure.limit]
        if not servers:
            return None
        item = self._pull()
        return None if item is None else (min(servers, key=Server.load), item, False)

    def _pull(self) -> Item | None:
        """The next request: first those that were sent before."""
        if self.waiting:
            return self.waiting.popleft()
        if self.exhausted or self.open >= self.most_open:
            return None
        try:
            call = next(self.calls, None)
        except BaseException as error:
            self.fail(error)
            return None
        if call is None:
            self.exhausted = True
            return None
        self.open += 1
        return Item(call)

    # --- what became of it

    def settle(self, server: Server, item: Item, sent: float, full: bool, answer: dict[str, Any] | Exception) -> None:
        """Take an attempt's outcome."""
        now = self.loop.time()
        if not isinstance(answer, Exception):
            try:
                result = self.parse(item.call, answer)
            except ValueError as error:
                answer = Broken(f"{server.endpoint.name} sent no valid answer: {error}")
            except BaseException as error:
                return self.fail(error)
            else:
                server.well(now, full)
                self.answered += 1
                return self._finish(item, result)
        if isinstance(answer, Overloaded):
            server.overloaded(str(answer), sent, now, answer.retry_after)
            self._postpone(item, str(answer), now)
        elif isinstance(answer, Broken):
            if isinstance(answer, TooSlow):
                server.too_slow(str(answer), sent, now)
            self.again(item, str(answer))
        elif isinstance(answer, Cut):
            server.doubt(item, answer)
        elif isinstance(answer, Refused):
            self._refuse(item, str(answer))
        else:
            self.fail(answer)

    def again(self, item: Item, reason: str) -> None:
        """Try a request again after an error, unless it has had its retries."""
        item.tries += 1
        item.since = None
        if item.tries > self.settings.retries:
            tries = f"{item.tries} attempts" if item.tries > 1 else "one attempt"
            self._finish(item, Failure(f"{tries} failed, the last one because {reason}"))
        else:
            self._later(item, item.tries)

    def _postpone(self, item: Item, reason: str, now: float) -> None:
        """Try a request again after an overload, which costs time only."""
        item.since = now if item.since is None else item.since
        item.overloads += 1
        if now - item.since > self.settings.wait_s:
            self._finish(item, Failure(f"no server took it within {self.settings.wait_s:g} s: {reason}"))
        else:
            self._later(item, item.overloads)

    def _later(self, item: Item, times: int) -> None:
        self.loop.call_later(self.jitter(times), self._requeue, item)

    def _requeue(self, item: Item) -> None:
        self.waiting.append(item)
        self.pump()

    def jitter(self, times: int) -> float:
        """A random wait whose bound doubles each time."""
        bound = self.settings.backoff_s * 2.0 ** min(times - 1, 30)
        return self.random.uniform(0.0, min(bound, self.settings.longest_backoff_s))

    def _refuse(self, item: Item, reason: str) -> None:
        self.refused += 1
        if self.answered == 0 and self.refused >= FIRST_REFUSALS:
            self.fail(
                GenerationError(
                    f"The first {self.refused} requests were all refused; the last answer: {reason}. "
                    "Correct what it names; the same command continues."
                )
            )
        else:
            self._finish(item, Failure(reason))

    def _finish(self, item: Item, result: Any) -> None:
        """Settle a request."""
        self.settled += 1
        self.results.append((item.call.index, result))
        if len(self.results) >= self.settings.flush_rows:
            self._flush()
        elif self.timer is None:
            self.timer = self.loop.call_later(self.settings.flush_s, self._flush)

    def _flush(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.results:
            self.deliver(self.results)
            self.results = []

    # --- servers that go

    def give_back(self, server: Server, items: list[tuple[Item, bool]]) -> None:
        """Take requests of a server that went down; with each, whether the server may have worked on it."""
        for item, reached in reversed(items):
            item.deaths += reached
            item.alone += reached and len(items) == 1
            if item.deaths >= POISON_DEATHS and item.alone >= ALONE_DEATHS:
                words = (
                    f"went down {item.deaths} times while it worked on this request, {item.alone} times on it alone"
                )
                self._finish(item, Failure(f"{server.endpoint.name} {words}"))
            elif item.deaths >= SUSPECT_DEATHS:
                self.suspects.append(item)
            else:
                self.waiting.appendleft(item)

    def gave_up(self, reasons: list[str]) -> None:
        """End the run if no server is left."""
        if all(server.given_up for server in self.servers):
            self.fail(
                GenerationError(
                    f"No server is left to generate: {'; '.join(dict.fromkeys(reasons))}. {self.answered} answers of "
                    "this run came before that and are kept. Start the servers, then run the same command: it "
                    "continues."
                )
            )
