# SPDX-License-Identifier: Apache-2.0
r"""Send many requests to servers that speak OpenAI's API, and hand their answers out as they come.

`openai.AsyncOpenAI` repeats a request after connection errors, 408, 409, 429 and 5xx. What is left here is to keep as
many in flight as each server may have, and to tell a request that fails from a server that is gone: the requests of
that one go to the others, or wait until it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..arguments.fields import TpawArguments
from ..errors import EnvironmentProblem, GenerationError
from ..lf.logs import get_logger
from .base import Answers, Failure, Request
from .served import BUSY, error_words, on_loopback


CONNECT_S = 10.0
# Shorter than the five seconds after which common servers close an idle connection, so that none is used as it closes.
KEEPALIVE_S = 3.0
# Between two looks at a server that is gone or busy, and how long a look may take.
LOOK_EVERY_S, LOOK_S = 5.0, 10.0
# Answers are handed out when so many are there, or after so long.
MOST_AT_ONCE, FLUSH_S = 256, 0.5

logger = get_logger(__name__)


@dataclass(eq=False)
class Call:
    """A request of a server: `body` goes to `path`, and `index` comes back with the answer."""

    index: int
    request: Request
    path: str
    body: dict[str, Any]
    tries: int = 0  # without an answer
    busy_since: float | None = None  # since when servers have had too much to do for it


def load_openai() -> Any:
    """Import the package.

    Raises:
        EnvironmentProblem: If it is absent.
    """
    try:
        return importlib.import_module("openai")
    except ImportError:
        raise EnvironmentProblem(
            "Servers are asked through the package openai, which cannot be imported. "
            'Run: pip install "llamafactory-tpaw[openai]"'
        ) from None


class _Server:
    """A server's connections, and whether it is there."""

    def __init__(self, url: str, keys: TpawArguments, api_key: str | None) -> None:
        self.openai, self.key, parts = load_openai(), api_key, urlsplit(url)
        # A user or a query may be secret.
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.up, self.looking, self.given_up = asyncio.Event(), asyncio.Lock(), False
        self.up.set()
        seconds, most = keys.tpaw_engine_timeout, keys.tpaw_engine_concurrency + 2
        options = {
            "limits": type(self.openai.DEFAULT_CONNECTION_LIMITS)(
                max_connections=most, max_keepalive_connections=most, keepalive_expiry=KEEPALIVE_S
            ),
            "timeout": self.openai.Timeout(seconds, connect=min(CONNECT_S, seconds)),
            "follow_redirects": False,  # they would take the prompts elsewhere
            "trust_env": not on_loopback(url),
        }
        try:  # aiohttp's connections, whose cost does not grow with their number, or httpx's without it
            connections = self.openai.DefaultAioHttpClient(**options)
        except (AttributeError, RuntimeError):
            connections = self.openai.DefaultAsyncHttpxClient(**options)
        self.client = self.openai.AsyncOpenAI(
            base_url=url,
            api_key=api_key or "none",  # the package insists on one, and servers that need none take any
            max_retries=keys.tpaw_engine_retries,
            timeout=options["timeout"],
            http_client=connections,
        )

    async def answers(self) -> bool:
        """Whether the server can be reached and does not say that it is down."""
        try:
            # Once more, since the first connection may be one that broke.
            await self.client.with_options(max_retries=1, timeout=LOOK_S).get("/models", cast_to=object)
        except self.openai.APIStatusError as error:
            return error.status_code not in BUSY
        except self.openai.APIConnectionError:
            return False
        except ValueError:
            return True  # no JSON, but an answer
        return True

    def hide(self, text: str) -> str:
        """A server's words without the key."""
        return text.replace(self.key, "...") if self.key else text


class Exchange:
    r"""Has calls answered, in any order, each once.

    Args:
        calls: The requests, pulled as they are wanted; or an index and why it cannot be sent.
        urls: Base addresses of the servers.
        keys: `tpaw_engine_*`.
        api_key: Bearer token; None where none is needed. It appears in no message.
        read: Makes a result of an answer's JSON; ValueError is no answer, and the request is sent again.
        advice: What to check where a server refuses all requests.
        check: Raises GenerationError where a server that is gone will not come back.
    """

    def __init__(
        self,
        calls: Iterator[Call | tuple[int, Failure]],
        urls: tuple[str, ...],
        keys: TpawArguments,
        api_key: str | None,
        read: Callable[[Call, Any], Any],
        advice: str,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.calls, self.keys, self.read, self.advice, self.check = calls, keys, read, advice, check
        self.openai = load_openai()
        self.servers = [_Server(url, keys, api_key) for url in urls]
        self.returned: deque[Call] = deque()
        self.more, self.enough = asyncio.Event(), asyncio.Event()
        self.open, self.answered, self.exhausted = 0, 0, False
        self.results: Answers = []
        self.error: Exception | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    async def next(self) -> Answers:
        r"""What was answered since the last call; nothing at the end. The exchange stands still between two calls.

        Raises:
            GenerationError: If a server refuses the run as a whole, or none is left.
        """
        if not self.tasks:
            for _ in range(self.keys.tpaw_engine_concurrency):
                for server in self.servers:
                    self._start(self._work(server))
        while not (self.results or self.error or (self.exhausted and not self.open)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self.enough.wait()
            self.enough.clear()
        results, self.results = self.results, []
        if self.error and not results:
            raise self.error
        return results

    async def close(self) -> None:
        """Leave nothing in flight, and close all connections."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(*(server.client.close() for server in self.servers), return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # of the calls, of `read`, or what ends the run
                self.error = self.error or error
                self.enough.set()

        self.tasks.add(asyncio.create_task(guarded()))

    async def _work(self, server: _Server) -> None:
        """One of a server's places: send a call after another."""
        while True:
            await server.up.wait()
            call = self._next()
            if call is not None:
                await self._send(server, call)
            elif self.exhausted and not self.open:
                return self.enough.set()
            else:
                self.more.clear()
                await self.more.wait()

    def _next(self) -> Call | None:
        if self.returned:
            return self.returned.popleft()
        for call in self.calls:
            if isinstance(call, Call):
                self.open += 1
                return call
            self.results.append(call)
        self.exhausted = True
        return None

    async def _send(self, server: _Server, call: Call) -> None:
        try:
            answer = await server.client.post(call.path, body=call.body, cast_to=object)
            result = self.read(call, answer)
        except self.openai.APIStatusError as error:
            await self._take_status(server, call, error)
        except self.openai.APIConnectionError as error:
            await self._take_silence(server, call, error)
        except ValueError as error:
            self._again(call, f"{server.name} sent no valid answer: {error}")
        else:
            self.answered += 1
            self._settle(call, result)

    def _settle(self, call: Call, result: Any) -> None:
        self.open -= 1
        self.results.append((call.index, result))
        if len(self.results) >= MOST_AT_ONCE:
            self.enough.set()

    def _return(self, call: Call) -> None:
        self.returned.append(call)
        self.more.set()

    def _again(self, call: Call, reason: str) -> None:
        call.tries += 1
        if call.tries > self.keys.tpaw_engine_retries:
            self._settle(call, Failure(f"{call.tries} attempts failed, the last one because {reason}"))
        else:
            self._return(call)

    async def _take_status(self, server: _Server, call: Call, error: Any) -> None:
        """Say what a status other than 2xx means, which `openai` did not repeat or repeated in vain."""
        status, wait_s = error.status_code, self.keys.tpaw_engine_startup
        said = f"{server.name} answered {status}: {server.hide(error_words(error.body))}"
        if error.code == "insufficient_quota" or status in (401, 403, 404) or status < 400:
            raise GenerationError(f"{said} (POST {call.path}). {self.advice}")
        if status not in BUSY:
            return self._settle(call, Failure(said))
        now = asyncio.get_running_loop().time()
        call.busy_since = now if call.busy_since is None else call.busy_since
        if now - call.busy_since > wait_s:
            return self._settle(call, Failure(f"no server took it within {wait_s:g} s: {said}"))
        await asyncio.sleep(min(LOOK_EVERY_S, wait_s))
        return self._return(call)

    async def _take_silence(self, server: _Server, call: Call, error: Any) -> None:
        """Find out whether a request failed or its server is gone; one look serves all requests that wait for it."""
        cause = error.__cause__ or error
        reason = f"{server.name} gave no answer ({server.hide(str(cause)) or type(cause).__name__})"
        if isinstance(error, self.openai.APITimeoutError):
            reason = f"{server.name} did not answer within `tpaw_engine_timeout: {self.keys.tpaw_engine_timeout:g}` s"
        async with server.looking:
            if server.up.is_set() and not await server.answers():
                server.up.clear()
                self._start(self._wait_for(server, reason))
        if server.up.is_set():
            # `openai` has repeated it; once more, since the server may have been away for just that time.
            call.tries += max(1, self.keys.tpaw_engine_retries // 2)
        self._again(call, reason)

    async def _wait_for(self, server: _Server, reason: str) -> None:
        """Look until a server is back; after `tpaw_engine_startup` it is given up, which others may outlive."""
        clock, wait_s = asyncio.get_running_loop().time, self.keys.tpaw_engine_startup
        begun = clock()
        self.check()
        logger.warning_rank0(f"{reason}: the server is down and is waited for, up to {wait_s:g} s.")
        while not await server.answers():
            self.check()
            if clock() - begun > wait_s:
                server.given_up = True
                if not all(each.given_up for each in self.servers):
                    return logger.warning_rank0(f"{server.name} is not back. The run goes on with the others.")
                raise GenerationError(
                    f"No server is left to generate: {reason}, and it did not come back within {wait_s:g} s. "
                    f"{self.answered} answers of this run are kept: start the servers, then run the same command."
                )
            await asyncio.sleep(min(LOOK_EVERY_S, wait_s / 10))
        logger.info_rank0(f"{server.name} is back after {clock() - begun:.0f} s.")
        return server.up.set()
