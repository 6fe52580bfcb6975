# SPDX-License-Identifier: Apache-2.0
"""The state of one server: what is in flight there, how much it is given, and its way back when it is gone."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

from ..errors import GenerationError
from ..lf.status import PACKAGE
from .endpoint import Cut, Endpoint, TooSlow, Trouble
from .pressure import Pressure


if TYPE_CHECKING:
    from collections.abc import Callable

    from .client import ClientSettings, Revive
    from .dispatch import Dispatcher, Item

# Below LlamaFactory's root logger, whose handlers it shares, without an import of LlamaFactory.
logger = logging.getLogger(f"{PACKAGE}.{__name__}")
# A server that is given up is looked for now and then while others work.
RARE_PROBE_S = 30.0
# Restarts without an answer in between; a request that kills the server takes four until it is found.
MOST_RESTARTS = 5
QUIET_S = 60.0
# So many requests may use up their attempts on a server that is silent, before it is the server that hangs.
HANGING_REQUESTS = 2
UP, IN_DOUBT, DOWN = "up", "in doubt", "down"


class Server:
    r"""A server and its requests.

    Args:
        url: Base URL.
        settings: Bounds.
        dispatcher: Who gives it requests and takes the outcomes.
    """

    def __init__(self, url: str, settings: ClientSettings, dispatcher: Dispatcher) -> None:
        self.settings = settings
        self.dispatcher = dispatcher
        self.endpoint = Endpoint(url, settings)
        self.pressure = Pressure(settings.concurrency)
        self.state = UP
        self.given_up: str | None = None
        self.alone = False
        self.in_flight: dict[asyncio.Task[None], Item] = {}
        self.cut: list[tuple[Item, Cut]] = []
        self.paused_until = 0.0
        # When a request ran out of time, with no answer of any kind since.
        self.silent_since: float | None = None
        self.timeouts = 0  # since then, that one among them
        self.restarts = 0
        self.spoke = float("-inf")
        self.task: asyncio.Task[None] | None = None

    def ready(self, now: float) -> bool:
        """Whether it takes requests at all."""
        return self.state == UP and not self.alone and now >= self.paused_until

    def load(self) -> float:
        """About how long a further request would take, of servers that were measured; else how full it is."""
        count = len(self.in_flight) + 1
        return count / self.pressure.rate if self.pressure.rate else count / self.pressure.limit / 1e3

    def start(self, item: Item, alone: bool) -> None:
        """Send a request; `alone` keeps others away until it is back."""
        self.alone = alone
        task = asyncio.create_task(self._attempt(item))
        self.in_flight[task] = item

    async def _attempt(self, item: Item) -> None:
        sent = self.dispatcher.loop.time()
        try:
            answer: dict[str, Any] | Exception = await self.endpoint.send(item.call)
        except (Trouble, GenerationError) as error:
            answer = error
        except Exception as error:
            return self.dispatcher.fail(error)
        full = len(self.in_flight) >= self.pressure.limit
        if self.in_flight.pop(asyncio.current_task(), None) is None:
            return None  # given back to the dispatcher while the answer came
        if not isinstance(answer, (TooSlow, Cut)):
            self.silent_since = None
        self.dispatcher.settle(self, item, sent, full, answer)
        if not self.cut:
            self.alone = False
        self.dispatcher.pump()
        return None

    def stop(self) -> None:
        """Cancel whatever goes on here."""
        for task in [*self.in_flight, *filter(None, [self.task])]:
            task.cancel()

    # --- how it does

    def well(self, now: float, full: bool) -> None:
        """Note an answer."""
        self.restarts = 0
        self.pressure.answered(now, full)

    def too_slow(self, reason: str, sent: float, now: float) -> None:
        """Give it less; restart it, or give it up, where it answers nothing at all any more."""
        self.overloaded(reason, sent, now, None)
        if self.silent_since is None:
            self.silent_since, self.timeouts = now, 0
        self.timeouts += 1
        silence = now - self.silent_since
        if self.state != UP or sent < self.silent_since:
            return
        if self.dispatcher.revive and not self.restarts:
            # Once: where that does not help, the cause may be the request, which has its retries.
            self._lose(reason, "hangs and is restarted")
            self.task = asyncio.create_task(self._guard(self._come_back(reason, hangs=True)))
        elif silence > self.settings.wait_s and self.timeouts > HANGING_REQUESTS * (1 + self.settings.retries):
            self._lose(reason, "hangs and is given up")
            self._give_up(f"{reason}, nor any other of {self.timeouts} requests in {silence:.0f} s")

    def overloaded(self, reason: str, sent: float, now: float, retry_after: float | None) -> None:
        """Give it less, and nothing for a while where it says so or goes on refusing."""
        halved = self.pressure.overloaded(sent, now)
        pause = min(retry_after, self.settings.wait_s) if retry_after is not None else 0.0
        if halved and self.pressure.overloads > 1:
            pause = max(pause, self.dispatcher.jitter(self.pressure.overloads - 1))
        if pause > 0 and now + pause > self.paused_until:
            self.paused_until = now + pause
            self.dispatcher.loop.call_at(self.paused_until, self._resume, self.paused_until)
        if halved and now - self.spoke > QUIET_S:
            self.spoke = now
            logger.warning("%s. It gets at most %d requests at once for now.", reason, self.pressure.limit)

    def _resume(self, until: float) -> None:
        """End a pause, unless it was made longer; a clock may be coarse, so it is not asked again."""
        if self.paused_until == until:
            self.paused_until = 0.0
            self.dispatcher.pump()

    # --- whether it is there

    def doubt(self, item: Item, cut: Cut) -> None:
        """Hold a request whose connection broke until it is known whether the server is there."""
        self.cut.append((item, cut))
        if self.state == UP:
            self.state = IN_DOUBT
            self.task = asyncio.create_task(self._guard(self._examine()))

    async def _guard(self, work: Any) -> None:
        """Let no error of a task of this server be lost."""
        try:
            await work
        except Exception as error:
            self.dispatcher.fail(error)
        self.dispatcher.pump()

    async def _examine(self) -> None:
        if await self.endpoint.answers():
            self.state, self.alone = UP, False
            cut, self.cut = self.cut, []
            for item, why in cut:
                self.dispatcher.again(item, str(why))
            return
        reason = str(self.cut[0][1])
        wait = f"is waited for, up to {self.settings.wait_s:g} s"
        self._lose(reason, f"is down and {'is restarted' if self.dispatcher.revive else wait}")
        await self._come_back(reason)

    def _lose(self, reason: str, what: str) -> None:
        """Give all requests back; `what` says what is about the server and to be done."""
        self.state = DOWN
        items = [(item, True) for item in self.in_flight.values()] + [(item, why.reached) for item, why in self.cut]
        self.alone, self.silent_since = False, None
        for task in self.in_flight:
            task.cancel()
        self.in_flight, self.cut = {}, []
        self.pressure.died(self.dispatcher.loop.time())
        logger.warning("%s: the server %s; its %d requests wait.", reason, what, len(items))
        self.dispatcher.give_back(self, items)
        self.dispatcher.pump()

    async def _come_back(self, reason: str, hangs: bool = False) -> None:
        begun = self.dispatcher.loop.time()
        if self.dispatcher.revive is None:
            await self._wait_for(reason)
        elif not await self._restart(self.dispatcher.revive, reason, hangs):
            return
        self.state, self.given_up = UP, None
        logger.info("%s is back after %.0f s.", self.endpoint.name, self.dispatcher.loop.time() - begun)

    async def _restart(self, revive: Revive, reason: str, hangs: bool) -> bool:
        """Have it restarted; False if that did not work."""
        self.restarts += 1
        if self.restarts > MOST_RESTARTS:
            self._give_up(f"{reason}, and {MOST_RESTARTS} restarts did not help")
            return False
        try:
            url = await in_thread(lambda: revive(self.endpoint.url, hangs))
        except GenerationError as error:
            self._give_up(str(error))
            return False
        if url != self.endpoint.url:
            await self.endpoint.close()
            self.endpoint = Endpoint(url, self.settings)
        return True

    async def _wait_for(self, reason: str) -> None:
        """Ask until it answers; after `wait_s` it is given up, which others may outlive."""
        clock = self.dispatcher.loop.time
        begun, delay = clock(), self.settings.backoff_s
        while not await self.endpoint.answers():
            left = begun + self.settings.wait_s - clock()
            if left <= 0 and self.given_up is None:
                self._give_up(f"{reason} and did not come back within {self.settings.wait_s:g} s")
            delay = min(2 * delay, self.settings.longest_probe_s) if left > 0 else RARE_PROBE_S
            await asyncio.sleep(min(delay, left) if left > 0 else delay)

    def _give_up(self, reason: str) -> None:
        self.given_up = reason
        servers = self.dispatcher.servers
        if not all(server.given_up for server in servers):
            logger.warning("%s. The run goes on with the other servers.", reason)
        self.dispatcher.gave_up([server.given_up for server in servers if server.given_up])


async def in_thread(function: Callable[[], str]) -> str:
    """Run a function that may take long; if nobody waits any more, its thread does not keep the process."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[str] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not outcome.done():
            setter(value)

    def tell(setter: Callable[[Any], None], value: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, setter, value)

    def work() -> None:
        try:
            tell(outcome.set_result, function())
        except BaseException as error:
            tell(outcome.set_exception, error)

    threading.Thread(target=work, name="tpaw-revive", daemon=True).start()
    return await outcome
