# SPDX-License-Identifier: Apache-2.0
"""One server of OpenAI's API: its connections, what it is and serves, and whether it is there."""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..arguments.checks import KEY_VARIABLES
from ..errors import ConfigError, EnvironmentProblem, GenerationError
from .protocol import OTHER, TRANSFORMERS, VLLM, field_of


CONNECT_S = 10.0
# Shorter than the five seconds after which common servers close an idle connection, so that none is used as it closes.
KEEPALIVE_S = 3.0
# How long a look at a server may take, and how long it is until a question is put again.
LOOK_S, AGAIN_S = 10.0, 2.0
# What is no answer yet.
BUSY = {408, 425, 429, 502, 503, 504, 529}
LISTED, WORDS = 5, 300
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
    max_tokens: int | None = None  # most tokens of prompt and response together, where it says so


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


async def examine(url: str, names: Sequence[str], key: str | None) -> Served:
    """Ask a server once what it is and whether it serves a model; see `Server.examine`."""
    server = Server(url, key)
    async with server.client:
        return await server.examine(names)


@dataclass(eq=False)
class Server:
    """A server's connections."""

    url: str
    key: str | None  # bearer token; it appears in no message
    answer_s: float = LOOK_S  # within how long it has to answer
    retries: int = 0  # how often `openai` repeats a request
    most: int = 1  # how many requests it has at once
    patience_s: float = 0.0  # for how long from now on questions are put again
    advice: str = ADVICE  # what to do where it does not answer

    def __post_init__(self) -> None:
        """Make the client; nothing is connected yet."""
        self.end = time.monotonic() + self.patience_s
        # For the exchange: whether it is there, whether it is given up, and how many of its places are put aside.
        self.up, self.given_up, self.parked, self.looking = True, False, 0, asyncio.Lock()
        self.openai, host, most = load_openai(), urlsplit(self.url).hostname or "", self.most + 2
        options = {
            "limits": type(self.openai.DEFAULT_CONNECTION_LIMITS)(
                max_connections=most, max_keepalive_connections=most, keepalive_expiry=KEEPALIVE_S
            ),
            "timeout": self.openai.Timeout(self.answer_s, connect=min(CONNECT_S, self.answer_s)),
            "follow_redirects": False,  # they would take the prompts and the key elsewhere
            # No proxy of the environment stands before an address of this machine alone.
            "trust_env": not (host in ("localhost", "::1") or host.startswith("127.")),
        }
        try:  # aiohttp's connections, whose cost does not grow with their number, or httpx's without it
            connections = self.openai.DefaultAioHttpClient(**options)
        except (AttributeError, RuntimeError):
            connections = self.openai.DefaultAsyncHttpxClient(**options)
        self.client = self.openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self.key or "none",  # the package insists on one, and servers that need none take any
            max_retries=self.retries,
            timeout=options["timeout"],
            http_client=connections,
        )

    async def ask(self, path: str, body: Mapping[str, Any] | None = None, patient: bool = True) -> tuple[int, Any]:
        r"""Put one question, a GET or with a body a POST, and return the status and what it says.

        Where the server is late or busy and the run is `patient`, the question is put again while there is time.

        Raises:
            GenerationError: If it does not answer.
        """
        # Once more, since the first connection may be one that broke.
        client = self.client.with_options(max_retries=1)
        client = client if patient else client.with_options(timeout=LOOK_S)
        while True:
            may_repeat = patient and time.monotonic() + AGAIN_S < self.end
            try:
                if body is None:
                    return 200, await client.get(path, cast_to=object)
                return 200, await client.post(path, body=body, cast_to=object)
            except self.openai.APIStatusError as error:
                if error.status_code not in BUSY or not may_repeat:
                    return error.status_code, self.words(error)
            except self.openai.APIConnectionError as error:
                if not (may_repeat and isinstance(error, self.openai.APITimeoutError)):
                    said = f"No server answers at {self.url} ({self.words(error)}). {self.advice}"
                    raise GenerationError(said) from None
            except ValueError:
                return 200, None  # what it sent is no JSON
            await asyncio.sleep(AGAIN_S)

    async def is_there(self) -> bool:
        """Whether the server can be reached and does not say that it is down."""
        try:
            status, _ = await self.ask("/models", patient=False)
        except GenerationError:
            return False
        return status not in BUSY

    async def examine(self, names: Sequence[str]) -> Served:
        r"""Find out what the server is and whether it serves a model by one of the names, best first.

        Raises:
            GenerationError: If it does not answer, does not list its models, or serves other ones.
        """
        base = self.url.rstrip("/")
        root = base.removesuffix("/v1")
        status, listed = await self.ask("/models")
        data = field_of(listed, "data")
        entries = [each for each in data if isinstance(field_of(each, "id"), str)] if isinstance(data, list) else []
        is_vllm = any(each.get("owned_by") == "vllm" for each in entries)
        if not is_vllm:
            _, schema = await self.ask(f"{root}/openapi.json")
            # `transformers serve` lists the hub's cache instead of what it serves, and takes the very path that it was
            # started with: most likely the run's, before links are followed.
            if {"/load_model", "/v1/completions"} <= set(field_of(schema, "paths") or ()):
                name = next(filter(os.path.isabs, reversed(names)), names[0])
                return Served(self.url, TRANSFORMERS, TRANSFORMERS, name, os.path.isabs(name))
        if not isinstance(data, list):
            raise GenerationError(
                f"The server at {self.url} does not list its models: {base}/models answered {status}"
                f"{f' ({listed})' if status != 200 else ''}. Correct `tpaw_engine_url`, which ends in /v1 for most "
                f"servers, or the key in the environment variable `{KEY_VARIABLES[0]}`."
            )
        # The model that has one of the names, or was loaded from one of the paths.
        pairs = [(each, field, name) for field in ("id", "root") for name in names for each in entries]
        entry = next((each for each, field, name in pairs if each.get(field) == name), None)
        if entry is None:
            shown = ", ".join([*(each["id"] for each in entries[:LISTED]), *(["..."] if entries[LISTED:] else [])])
            raise GenerationError(
                f"The server at {self.url} serves {shown or 'nothing'}, but {' or '.join(names)} is asked for. Start "
                "it with that model. Only where it serves that very model under another name, give the name as "
                "`tpaw_engine_model`."
            )
        verified = any(os.path.isabs(name) and name in (entry["id"], entry.get("root")) for name in names)
        kind = title = OTHER
        if is_vllm:
            _, version = await self.ask(f"{root}/version")
            kind, title = VLLM, f"{VLLM} {field_of(version, 'version') or ''}".strip()
        return Served(self.url, title, kind, entry["id"], verified, entry.get("max_model_len"))

    def words(self, error: Exception) -> str:
        """What an error says: its beginning in one line, without the key."""
        body, cause = getattr(error, "body", None), error.__cause__ or error
        text = str(field_of(body, "message") or field_of(body, "detail") or body or cause) or type(cause).__name__
        text = text.replace(self.key, "...") if self.key else text
        return " ".join(text[: 4 * WORDS].split())[:WORDS].encode(errors="replace").decode()
