# SPDX-License-Identifier: Apache-2.0
r"""Send many requests to servers that speak OpenAI's API, and hand their answers out as they come.

`openai.AsyncOpenAI` repeats a request after connection errors, 408, 409, 429 and 5xx. What is left here is to keep as
many in flight as each server may have, and to tell a request that fails from a server that is gone: the requests of
that one go to the others, or wait until it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..lf.logs import get_logger
from .base import Answers, Failure, Response
from .server import BUSY, NO_QUOTA, Server


# Between two looks at a server that is gone or busy, and between two times that answers are handed out.
LOOK_EVERY_S, FLUSH_S = 5.0, 0.5

logger = get_logger(__name__)


@dataclass(eq=False)
class Exchange:
    """Has requests answered, in any order, each once."""

    indices: Iterator[int]  # of the requests
    path: str  # where they go
    body_of: Callable[[int], dict[str, Any]]  # called as they are wanted; ValueError says why it cannot be sent
    read: Callable[[int, Any], Response | Failure]  # of an answer's JSON; ValueError is none: it is asked again
    servers: Sequence[Server]

    def __post_init__(self) -> None:
        """Nothing is sent yet."""
        self.openai, self.keys = self.servers[0].openai, self.servers[0].keys
        # A server is in here once for each request that it may have more, so that they go round those that are free.
        self.places: asyncio.Queue[Server] = asyncio.Queue()
        for server in self.keys.tpaw_engine_concurrency * list(self.servers):
            self.places.put_nowait(server)
        self.waiting: list[asyncio.Task[None]] = []  # for servers that are gone
        self.results: Answers = []

    async def answers(self) -> AsyncIterator[Answers]:
        """Give what was answered since the last time, until nothing is left; what ends the run is raised."""
        workers = [asyncio.create_task(self._work()) for _ in range(self.places.qsize())]
        try:
            while True:
                tasks = [*workers, *self.waiting]
                done, _ = await asyncio.wait(tasks, timeout=FLUSH_S, return_when=asyncio.FIRST_EXCEPTION)
                results, self.results = self.results, []
                if results:
                    yield results
                    continue
                for task in done:
                    task.result()
                if all(worker.done() for worker in workers):
                    return
        finally:
            for task in (*workers, *self.waiting):
                task.cancel()
            await asyncio.gather(*workers, *self.waiting, return_exceptions=True)

    async def _work(self) -> None:
        """Have a request after another answered."""
        for index in self.indices:
            try:
                body = self.body_of(index)
            except ValueError as error:
                answer: Response | Failure = Failure(f"it cannot be sent: {error}")
            else:
                answer = await self._answer(index, body)
            self.results.append((index, answer))

    async def _answer(self, index: int, body: dict[str, Any]) -> Response | Failure:
        """Send a request until it is answered or has failed."""
        tries, retries, wait_s = 0, self.keys.tpaw_engine_retries, self.keys.tpaw_engine_startup
        clock, busy_since = asyncio.get_running_loop().time, None
        while tries <= retries:
            while not (server := await self.places.get()).up:
                server.parked += 1  # until it is back
            try:
                return self.read(index, await server.client.post(self.path, body=body, cast_to=object))
            except self.openai.APIStatusError as error:
                # `openai` did not repeat it, or repeated it in vain.
                status = error.status_code
                said = f"{server.name} answered {status}: {server.words(error)}"
                if error.code == NO_QUOTA or status in (401, 403, 404) or status < 400:
                    raise server.failed(f"{said} (POST {self.path}).") from None
                if status not in BUSY:
                    return Failure(said)
                busy_since = busy_since or clock()
                if clock() - busy_since > wait_s:
                    return Failure(f"no server took it within {wait_s:g} s: {said}")
                await asyncio.sleep(min(LOOK_EVERY_S, wait_s))
            except self.openai.APIConnectionError as error:
                within = f"`tpaw_engine_timeout: {self.keys.tpaw_engine_timeout:g}` s"
                reason = f"{server.name} gave no answer within {within} ({server.words(error)})"
                # `openai` has repeated it; once more, since the server may have been away for just that time.
                tries += 1 if await self._is_gone(server, reason) else 1 + retries // 2
            except ValueError as error:
                reason = f"{server.name} sent no valid answer: {error}"
                tries += 1
            finally:
                self.places.put_nowait(server)
        return Failure(f"{tries} attempts failed, the last one because {reason}")

    async def _is_gone(self, server: Server, reason: str) -> bool:
        """Find out whether a request failed or its server is gone; one look serves all requests that wait for it."""
        async with server.looking:
            if server.up and not await server.is_there():
                server.up = False
                self.waiting.append(asyncio.create_task(self._wait_for(server, reason)))
        return not server.up

    async def _wait_for(self, server: Server, reason: str) -> None:
        """Look until a server is back; after `tpaw_engine_startup` it is given up, which others may outlive."""
        clock, wait_s = asyncio.get_running_loop().time, self.keys.tpaw_engine_startup
        begun = clock()
        server.check()
        logger.warning_rank0(f"{reason}: the server is down and is waited for, up to {wait_s:g} s.")
        while not await server.is_there():
            server.check()
            if clock() - begun > wait_s:
                server.given_up = True
                if all(each.given_up for each in self.servers):
                    raise server.failed(
                        f"No server is left to generate: {reason}, and it did not come back within {wait_s:g} s.",
                        "What was answered is kept: start the servers, then run the same command.",
                    )
                logger.warning_rank0(f"{server.url} is not back. The run goes on with the others.")
                return
            await asyncio.sleep(min(LOOK_EVERY_S, wait_s / 10))
        logger.info_rank0(f"{server.url} is back after {clock() - begun:.0f} s.")
        server.up = True
        for _ in range(server.parked):
            self.places.put_nowait(server)
        server.parked = 0
