# SPDX-License-Identifier: Apache-2.0
"""One server behind `openai.AsyncOpenAI`: send a request, and name what went wrong by what is to be done about it."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import importlib
import json
import logging
import secrets
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import EnvironmentProblem, GenerationError
from .served import error_message, on_loopback, one_line


if TYPE_CHECKING:
    from .client import Call, ClientSettings

# Sent where no key is given: the package insists on one, and servers that need none take any.
NO_KEY = "none"
CONNECT_S = 10.0
PROBE_S = 10.0
# The connection that a question goes through may be one that broke.
PROBES = 2
# Shorter than the five seconds after which common servers close an idle connection, so that none is used as it closes.
KEEPALIVE_S = 3.0
OVERLOADED = {429, 503, 529}
GATEWAY = {502, 504}
DENIED = {401: "the key", 403: "the key's rights", 404: "the URL and the model's name"}
WORTH_ANOTHER = {408, 409, 425}
REQUEST_ID = "x-request-id"
# Headers that another request has otherwise.
OF_ONE_REQUEST = {REQUEST_ID, "content-length", "idempotency-key", "x-stainless-retry-count"}
# Errors of aiohttp and of httpcore while they connect.
NOT_CONNECTED = {"ClientConnectorError", "ConnectError"}


class Trouble(Exception):
    """A request that was not answered, and why, in words for the user."""


class Broken(Trouble):
    """An error of the server or no valid answer: tried again a bounded number of times."""


class TooSlow(Broken):
    """No answer in time, or none to a gateway: tried again, with fewer requests at once."""


class Overloaded(Trouble):
    """Too much for the server now; `retry_after` is in seconds, where it says."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Cut(Trouble):
    """No connection, or one that broke; `reached` says that the server may have worked on the request."""

    def __init__(self, reason: str, reached: bool) -> None:
        super().__init__(reason)
        self.reached = reached


class Refused(Trouble):
    """The server does not take this request, now or later."""


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


def _quiet(name: str) -> None:
    """Keep the HTTP library from a line of its own for each request, unless somebody asked for it."""
    log = logging.getLogger(name)
    if log.level == logging.NOTSET:
        log.setLevel(logging.WARNING)


def shown(url: str) -> str:
    """A URL as it may be shown: without a name, a password or a query, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Endpoint:
    r"""A server's address and its connections. Made and used in one event loop.

    Args:
        url: Base URL.
        settings: Bounds and key.
    """

    def __init__(self, url: str, settings: ClientSettings) -> None:
        self.url = url
        self.name = shown(url)
        self.openai = load_openai()
        self.key = settings.api_key or NO_KEY
        self.timeout_s = settings.timeout_s
        # The package's HTTP library: httpx, or its successor.
        self.http = importlib.import_module(self.openai.DefaultAsyncHttpxClient.__base__.__module__.partition(".")[0])
        _quiet(self.http.__name__)
        connections = settings.concurrency + 2
        self.http_options = {
            "limits": self.http.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEPALIVE_S
            ),
            "verify": self.http.create_ssl_context(),  # made once: it takes longer than many requests
            "timeout": self.http.Timeout(None, connect=min(CONNECT_S, self.timeout_s)),
            "follow_redirects": False,  # they would take the prompts elsewhere
            "trust_env": not on_loopback(url),
        }
        self.former: list[Any] = []
        self._connect()
        # Path to URL and headers, as the package wrote them.
        self.written: dict[str, tuple[Any, dict[str, str]]] = {}
        self.run_id, self.sent = f"tpaw-{secrets.token_hex(6)}-", 0

    def _connect(self) -> None:
        """Make connections of aiohttp, whose cost does not grow with their number, or httpx's without it."""
        try:
            self.connections = self.openai.DefaultAioHttpClient(**self.http_options)
        except (AttributeError, RuntimeError):
            self.connections = self.openai.DefaultAsyncHttpxClient(**self.http_options)
        self.client = self.openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self.key,
            max_retries=0,
            timeout=self.http_options["timeout"],
            http_client=self.connections,
        )

    async def close(self) -> None:
        """Close all connections."""
        for client in [self.client, *self.former]:
            await client.close()

    async def send(self, call: Call) -> dict[str, Any]:
        r"""Send a request once.

        Returns:
            The answer's JSON object.

        Raises:
            Trouble: Of the kind that says what to do.
            GenerationError: If no request can be answered, by what the server says.
        """
        client = self.client
        self.sent += 1
        request_id = f"{self.run_id}{self.sent:09d}"
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await self._post(call, request_id)
        except TimeoutError:
            raise TooSlow(
                f"{self.name} did not answer within `tpaw_engine_timeout: {self.timeout_s:g}` seconds"
            ) from None
        except (self.openai.APIConnectionError, self.http.RequestError) as error:
            raise self._cut(error) from None
        except Exception as error:
            # What the HTTP library could not read, under whatever name.
            raise Broken(f"{self.name} sent what is no HTTP answer ({self._head(repr(error))})") from None
        if not response.is_success:
            raise self._status(response, call)
        try:
            answer = json.loads(response.content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Broken(
                f"{self.name} sent what is no JSON object: {self._head(response.content.decode(errors='replace'))}"
            )
        if self._of_another(request_id, answer, response.headers):
            self._reconnect(client)
            raise Broken(f"{self.name} sent the answer to another request")
        return answer

    async def _post(self, call: Call, request_id: str) -> Any:
        """Send a request and return the response, whatever its status.

        The package writes the first request to a path. Writing one takes it as long as all else together, and only
        body and id differ, so the others are written after that one and go through the package's connections.
        """
        written = self.written.get(call.path)
        if written is not None:
            url, headers = written
            content = json.dumps(call.body, separators=(",", ":")).encode()
            extensions = {"timeout": self.http_options["timeout"].as_dict()}
            request = self.http.Request(
                "POST", url, headers=headers | {REQUEST_ID: request_id}, content=content, extensions=extensions
            )
            return await self.connections.send(request)
        options = {"headers": {REQUEST_ID: request_id}}
        try:
            response = await self.client.post(call.path, body=call.body, cast_to=self.http.Response, options=options)
        except self.openai.APIStatusError as error:
            return error.response
        url, headers = response.request.url, dict(response.request.headers)
        self.written[call.path] = url, {name: value for name, value in headers.items() if name not in OF_ONE_REQUEST}
        return response

    def _of_another(self, request_id: str, answer: dict[str, Any], headers: Any) -> bool:
        """Whether the answer names a request of ours that is not this one; many servers repeat a request's id."""
        names = f"{headers.get(REQUEST_ID)} {answer.get('id')}"
        return self.run_id in names and request_id not in names

    def _reconnect(self, client: Any) -> None:
        """Use other connections from now on: one of the client's has an answer too many, and will again."""
        if client is self.client:
            self.former.append(client)
            self._connect()

    async def answers(self) -> bool:
        """Whether the server can be reached and does not say that it is down."""
        for _ in range(PROBES):
            try:
                async with asyncio.timeout(PROBE_S):
                    await self.client.get("/models", cast_to=self.http.Response)
            except self.openai.APIStatusError as error:
                return error.status_code < 500
            except self.openai.APIConnectionError as error:
                cut = self._cut(error)
                if isinstance(cut, Cut) and not cut.reached:
                    return False
            except Exception:
                continue
            else:
                return True
        return False

    def _cut(self, error: Exception) -> Cut | GenerationError:
        """Look for the reason in the chain of errors: which of them names it depends on the HTTP library."""
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        names = {kind.__name__ for each in chain for kind in type(each).__mro__}
        if "UnsupportedProtocol" in names:
            return GenerationError(f"`tpaw_engine_url` names {self.name}, but must begin with http:// or https://.")
        if any(isinstance(each, ConnectionRefusedError) for each in chain):
            return Cut(f"{self.name} refuses connections", reached=False)
        words = self._head(next((str(each) for each in reversed(chain[1:]) if str(each)), ""))
        # The only bound that the HTTP library has is that of connecting.
        outside = any(isinstance(each, (TimeoutError, socket.gaierror)) for each in chain)
        if outside or names & NOT_CONNECTED:
            return Cut(f"{self.name} cannot be reached ({words})", reached=False)
        return Cut(f"{self.name} cut the connection ({words})", reached=True)

    def _status(self, response: Any, call: Call) -> Exception:
        """Say what a status other than 2xx means."""
        status, (code, message) = response.status_code, _error_of(response.content)
        words = self._head(message)
        said = f"{self.name} answered {status}" + (f": {words}" if words else "")
        if code == "insufficient_quota":
            return GenerationError(f"{said}. Raise the account's quota, then run the same command: it continues.")
        if status in OVERLOADED:
            return Overloaded(said, _retry_after(response.headers))
        if status in GATEWAY:
            return TooSlow(said)
        if status in DENIED or status < 400:
            check = DENIED.get(status, "the URL, which leads elsewhere")
            return GenerationError(
                f"{said} (POST {call.path}). Check {check}: `tpaw_engine_url`, `tpaw_engine_model` and the "
                "environment variable TPAW_ENGINE_API_KEY. What is generated is kept; the same command continues."
            )
        if status >= 500 or status in WORTH_ANOTHER:
            return Broken(said)
        return Refused(said)

    def _head(self, text: str) -> str:
        """The beginning of a server's words, in one line, without the key."""
        return one_line(text if self.key == NO_KEY else text.replace(self.key, "…"))


def _error_of(content: bytes) -> tuple[Any, str]:
    """Code and message of an error's body."""
    try:
        body = json.loads(content)
    except ValueError:
        return None, content.decode(errors="replace")
    inner = body.get("error") if isinstance(body, dict) else None
    outer = body if isinstance(body, dict) else {}
    return (inner if isinstance(inner, dict) else outer).get("code"), error_message(body)


def _retry_after(headers: Any) -> float | None:
    """Seconds of `Retry-After`, which is a number or a date; None where it says nothing."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until - datetime.datetime.now(until.tzinfo or datetime.UTC)).total_seconds())
