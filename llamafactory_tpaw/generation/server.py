# SPDX-License-Identifier: Apache-2.0
"""One server of OpenAI's API: its connections, what it is and serves, and whether it is there."""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies, select_proxy

from ..arguments.checks import ADDRESS, KEY_VARIABLES
from ..arguments.fields import TpawArguments
from ..errors import ConfigError, EnvironmentProblem, GenerationError
from ..lf.logs import get_logger
from .process import ServerProcess
from .protocol import OTHER, TRANSFORMERS, VLLM, field_of


CONNECT_S = 10.0
# Shorter than the five seconds after which common servers close an idle connection, so that none is used as it closes.
KEEPALIVE_S = 3.0
# What a server is asked beside requests, and after how many seconds without an answer again while
# `tpaw_engine_startup` lasts: each of them for its models, vLLM for its version, and others for their description,
# which they may write only then. A request has `tpaw_engine_timeout`, also the one that asks how prompts are read.
QUESTIONS = {"models": 10.0, "version": 10.0, "openapi.json": 60.0}
AGAIN_S = 10.0
# What is no answer yet, and what looks like it but stays.
BUSY, NO_QUOTA = {408, 425, 429, 502, 503, 504, 529}, "insufficient_quota"
LISTED, WORDS = 5, 300
logger = get_logger(__name__)
ADVICE = (
    f"Start it, or check `tpaw_engine_url`, `tpaw_engine_model` and the environment variable {KEY_VARIABLES[0]}: what "
    "is generated is kept, and the same command continues."
)


@dataclass(frozen=True)
class Served:
    """What is known of a server."""

    url: str
    title: str  # kind and version, as the meta file of triplets names them
    kind: str  # `VLLM`, `TRANSFORMERS` or `OTHER`
    model: str  # the name to ask for
    verified: bool  # whether the server says that it loaded this very path; a name says nothing about weights
    max_tokens: Any = None  # most tokens of prompt and response together, where it says so


def load_openai() -> Any:
    """Import the package openai, or say how to install it."""
    try:
        return importlib.import_module("openai")
    except ImportError:
        raise EnvironmentProblem(
            "Servers are asked through the package openai, which cannot be imported. "
            'Run: pip install "llamafactory-tpaw[openai]"'
        ) from None


def api_key() -> str | None:
    """The servers' key, from the environment; one that no header can carry is refused and not shown."""
    key = next(filter(None, (os.environ.get(name, "").strip() for name in KEY_VARIABLES)), None)
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"The environment variable {' or '.join(KEY_VARIABLES)} holds blanks or characters outside of ASCII, but "
            "a server's key is one plain word. Set it again."
        )
    return key


def names_of(given: str | None, *paths: str) -> list[str]:
    """Names under which servers may have a model: `given` alone, or what the run calls the checkpoint, best first."""
    if given:
        return [given]
    whole = [name for path in paths for name in ((os.path.realpath(path), path) if os.path.isdir(path) else (path,))]
    return list(dict.fromkeys([*whole, *(os.path.basename(os.path.normpath(path)) for path in paths)]))


def proxy_of(url: str) -> tuple[str | None, str]:
    """The proxy of the environment before an address, if there is one, and which variable names it."""
    address = urlsplit(url)
    host = address.hostname or ""
    # None stands before an address of this machine alone.
    local = host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")
    proxy = None if local else select_proxy(url, get_environ_proxies(url))
    if not proxy:
        return None, ""
    names = [name for kind in (address.scheme, "all") for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY")]
    variable = next((name for name in names if os.environ.get(name) == proxy), names[0])
    scheme, _, place = proxy.rpartition("://")
    if not ADDRESS.fullmatch(f"{scheme or 'http'}://{place.rpartition('@')[2]}"):
        raise ConfigError(
            f"The environment variable `{variable}` puts a proxy before {url} that is not of the form "
            f"`http://host:port`, and no other kind is supported. Correct or unset it, or add {host} to `NO_PROXY`."
        )
    return f"{scheme or 'http'}://{place}", variable


async def examine(url: str, names: Sequence[str], key: str | None, keys: TpawArguments) -> Served:
    """Ask a server once what it is and whether it serves a model; see `Server.examine`."""
    server = Server(url, key, keys)
    server.end = 0.0
    async with server.client:
        return await server.examine(names)


@dataclass(eq=False)
class Server:
    """A server's connections."""

    url: str
    key: str | None  # bearer token; it appears in no message
    keys: TpawArguments
    own: ServerProcess | None = None  # where the run started it

    def __post_init__(self) -> None:
        """Make the client; nothing is connected yet."""
        self.end = time.monotonic() + self.keys.tpaw_engine_startup  # until when questions are put again
        proxy, self.variable = proxy_of(self.url)
        self.name = f"{self.url} (through the proxy in `{self.variable}`)" if proxy else self.url  # in messages
        # For the exchange: whether it is there, whether it is given up, and how many of its places are put aside.
        self.up, self.given_up, self.parked, self.looking = True, False, 0, asyncio.Lock()
        self.openai, most = load_openai(), self.keys.tpaw_engine_concurrency + 2
        options = {
            "limits": type(self.openai.DEFAULT_CONNECTION_LIMITS)(max_connections=most, keepalive_expiry=KEEPALIVE_S),
            "timeout": self.openai.Timeout(self.keys.tpaw_engine_timeout, connect=CONNECT_S),
            "follow_redirects": False,  # they would take the prompts and the key elsewhere
            # The client itself would look at each proxy of the environment, and fail at one that is not even used.
            "trust_env": False,
            "proxy": proxy,
            "verify": ssl.create_default_context() if {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys() else True,
        }
        try:  # aiohttp's connections, whose cost does not grow with their number, or httpx's without it
            connections = self.openai.DefaultAioHttpClient(**options)
        except (AttributeError, RuntimeError):
            connections = self.openai.DefaultAsyncHttpxClient(**options)
        self.client = self.openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self.key or "none",  # the package insists on one, and servers that need none take any
            max_retries=self.keys.tpaw_engine_retries,
            timeout=options["timeout"],
            http_client=connections,
        )

    def check(self) -> None:
        """Raise GenerationError where it is the run's own and has ended."""
        if self.own is not None:
            self.own.check()

    def failed(self, what: str, advice: str = ADVICE) -> GenerationError:
        """What to raise after a failure: its own end, or what happened and what to do about it."""
        self.check()
        return GenerationError(f"{what} {self.own.advice if self.own else advice}")

    async def ask(self, path: str, body: Mapping[str, Any] | None = None, patient: bool = True) -> tuple[int, Any]:
        r"""Put one question, a GET or with a body a POST, and return the status and what it says.

        Where the server is late or busy and the run is `patient`, the question is put again while there is time.
        """
        seconds = min(self.keys.tpaw_engine_timeout, QUESTIONS.get(path.rpartition("/")[2], math.inf))
        # Once more, since the first connection may be one that broke.
        client = self.client.with_options(max_retries=1, timeout=seconds)
        while True:
            began = time.monotonic()
            may_repeat = patient and began + AGAIN_S < self.end
            try:
                asked = client.post(path, body=body, cast_to=object) if body else client.get(path, cast_to=object)
                return 200, await asked
            except self.openai.APIStatusError as error:
                if error.status_code not in BUSY or error.code == NO_QUOTA or not may_repeat:
                    return error.status_code, self.words(error)
            except self.openai.APIConnectionError as error:
                # To aiohttp's connections one that is refused, which takes no time, is a timeout, too.
                late = time.monotonic() - began >= min(seconds, CONNECT_S)
                if not (may_repeat and late and isinstance(error, self.openai.APITimeoutError)):
                    advice = f"Correct `{self.variable}`, or add the host to `NO_PROXY`." if self.variable else ADVICE
                    raise self.failed(f"No server answers at {self.name}: {self.words(error)}.", advice) from None
            except ValueError:
                return 200, None  # what it sent is no JSON
            logger.warning_rank0(f"{self.name} is late or busy, so it is asked for {path} again in {AGAIN_S:g} s.")
            await asyncio.sleep(AGAIN_S)

    async def is_there(self) -> bool:
        """Whether the server can be reached and does not say that it is down."""
        try:
            status, _ = await self.ask("/models", patient=False)
        except GenerationError:
            return False
        return status not in BUSY

    async def examine(self, names: Sequence[str]) -> Served:
        """Find out what the server is, and by which of the names, best first, it serves the model."""
        root = self.url.rstrip("/").removesuffix("/v1")
        status, listed = await self.ask("/models")
        data = field_of(listed, "data")
        entries = [each for each in data if isinstance(field_of(each, "id"), str)] if isinstance(data, list) else []
        is_vllm = any(each.get("owned_by") == "vllm" for each in entries)
        if not is_vllm:
            _, schema = await self.ask(f"{root}/openapi.json")
            paths = field_of(schema, "paths")
            # `transformers serve` lists the hub's cache instead of what it serves, and takes the very path that it was
            # started with: most likely the run's, before links are followed.
            if None not in (field_of(paths, "/load_model"), field_of(paths, "/v1/completions")):
                name = next(filter(os.path.isabs, reversed(names)), names[0])
                return Served(self.url, TRANSFORMERS, TRANSFORMERS, name, os.path.isabs(name))
        if not isinstance(data, list):
            raise self.failed(
                f"The server at {self.name} does not list its models: /models answered {status}"
                f"{f' ({listed})' if status != 200 else ''}.",
                "Correct `tpaw_engine_url`, which ends in /v1 for most servers, or the key in the environment "
                f"variable `{KEY_VARIABLES[0]}`.",
            )
        # The model that has one of the names, or was loaded from one of the paths.
        pairs = [(each, field, name) for field in ("id", "root") for name in names for each in entries]
        entry = next((each for each, field, name in pairs if each.get(field) == name), None)
        if entry is None:
            listed = [*(each["id"] for each in entries[:LISTED]), *(["..."] if entries[LISTED:] else [])]
            shown = self.plain(", ".join(listed)) or "nothing"
            raise self.failed(
                f"The server at {self.url} serves {shown}, but {' or '.join(names)} is asked for.",
                "Start it with that model. Only where it serves that very model under another name, give the name as "
                "`tpaw_engine_model`.",
            )
        verified = any(os.path.isabs(name) and name in (entry["id"], entry.get("root")) for name in names)
        kind = title = OTHER
        if is_vllm:
            _, version = await self.ask(f"{root}/version")
            kind, title = VLLM, f"{VLLM} {self.plain(field_of(version, 'version') or '')}".strip()
        return Served(self.url, title, kind, entry["id"], verified, entry.get("max_model_len"))

    def words(self, error: Exception) -> str:
        """What an error says."""
        body, cause = getattr(error, "body", None), error.__cause__ or error
        said = field_of(body, "message") or field_of(body, "detail") or body or cause
        return self.plain(said) or type(cause).__name__

    def plain(self, said: Any) -> str:
        """The beginning of what the server said in one line, without the key."""
        text = str(said).replace(self.key, "...") if self.key else str(said)
        return " ".join(text[: 4 * WORDS].split())[:WORDS].encode(errors="replace").decode()
