# SPDX-License-Identifier: Apache-2.0
"""What a server is asked before the first prompt goes there, so that `check` can ask too: standard library only."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..arguments.checks import KEY_VARIABLES
from ..errors import ConfigError, GenerationError
from .protocol import CHAT, COMPLETIONS, OTHER, TRANSFORMERS, VLLM


# What is asked, and how many seconds one answer may take. A server writes its description when it is first asked for
# it, and may load the model for the first completion.
ANSWER_S = {"/models": 10.0, "/version": 10.0, "/openapi.json": 60.0, COMPLETIONS: 600.0, CHAT: 600.0}
# What is no answer yet: the question is put again.
BUSY = {408, 425, 429, 502, 503, 504, 529}
AGAIN_S = 2.0
LISTED, WORDS, ANSWER_BYTES = 5, 300, 16 << 20
# A name that no model can have, and what `transformers serve` says of it where it is pinned to another.
NO_MODEL = "--"
PINNED = re.compile(r"pinned to '(.+)'; requested '--'")
START = "Start it, or correct `tpaw_engine_url`; the same command continues."


@dataclass(frozen=True)
class Answered:
    """A server's answer: its status and its JSON, or its text where it is none."""

    status: int
    content: Any


@dataclass(frozen=True)
class Served:
    """What is known of a server."""

    url: str
    kind: str  # `VLLM`, `TRANSFORMERS` or `OTHER`
    version: str  # its release, where it says so
    model: str  # the name to ask for
    verified: bool  # whether the server says that it loaded this very path; a name says nothing about weights
    max_tokens: int | None  # most tokens of prompt and response together, where it says so

    @property
    def title(self) -> str:
        """Kind and version, as the meta file of triplets names them."""
        return f"{self.kind} {self.version}".strip()


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Gives every answer as it is: an error's status is read here, and a redirect would take the key elsewhere."""

    def http_response(self, _: Any, response: Any) -> Any:
        return response

    https_response = http_response


def api_key() -> str | None:
    r"""The servers' key, from the environment.

    Raises:
        ConfigError: If it holds characters that no header can carry; they are not shown.
    """
    name, key = next(((name, key) for name in KEY_VARIABLES if (key := os.environ.get(name, "").strip())), ("", None))
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"The environment variable `{name}` holds blanks or characters outside of ASCII, but a server's key is "
            "one plain word. Set it again."
        )
    return key


def on_loopback(url: str) -> bool:
    """Whether an address is of this machine alone, so that no proxy of the environment may stand between."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None


def error_words(content: Any) -> str:
    """What a server says of an error, which servers wrap in different ways: its beginning in one line."""
    for name in ("error", "message", "detail", "message"):
        if isinstance(content, Mapping) and content.get(name):
            content = content[name]
    text = content if isinstance(content, str) else json.dumps(content)
    return " ".join(text[: 4 * WORDS].split())[:WORDS].encode(errors="replace").decode()


def names_of(given: str | None, *paths: str) -> list[str]:
    """Names under which servers may have a model: `given` alone, or what the run calls the checkpoint, best first."""
    if given:
        return [given]
    whole = [name for path in paths for name in ((os.path.realpath(path), path) if os.path.isdir(path) else (path,))]
    return list(dict.fromkeys([*whole, *(os.path.basename(os.path.normpath(path)) for path in paths)]))


def examine(url: str, names: Sequence[str], key: str | None, answer_s: float = 10.0) -> Served:
    """Ask a server once what it is and whether it serves a model; see `Inquiry`."""
    return Inquiry(url, key, answer_s).examine(names)


@dataclass
class Inquiry:
    r"""Puts questions to one server.

    Where it is there and gives no answer, or says that it is busy, the question is put again while there is time.
    Where nothing listens at all, that is told at once.
    """

    url: str
    key: str | None
    answer_s: float  # bound of each answer, beside that of `ANSWER_S`
    patience_s: float = 0.0  # for how long questions are put again, all together
    advice: str = START  # what to do where it does not answer

    def __post_init__(self) -> None:
        """Start the clock."""
        self._end = time.monotonic() + self.patience_s

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Answered:
        r"""Put one question: a GET, or with a body a POST.

        Raises:
            GenerationError: If it does not answer.
        """
        while True:
            found = self._ask_once(path, body)
            if isinstance(found, Answered) and found.status not in BUSY:
                return found
            if time.monotonic() + AGAIN_S > self._end or isinstance(found, urllib.error.URLError):
                break
            time.sleep(AGAIN_S)
        if isinstance(found, Answered):
            return found
        reason = self._hide(str(getattr(found, "reason", None) or found)) or type(found).__name__
        raise GenerationError(f"No server answers at {self.url} ({reason}). {self.advice}")

    def _ask_once(self, path: str, body: Mapping[str, Any] | None) -> Answered | Exception:
        root = self.url.rstrip("/")
        if path in ("/version", "/openapi.json"):
            root = root.removesuffix("/v1")
        request = urllib.request.Request(root + path, None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        proxies = urllib.request.ProxyHandler({} if on_loopback(root) else None)
        opener = urllib.request.build_opener(_AnyStatus, proxies)
        try:
            with opener.open(request, timeout=min(self.answer_s, ANSWER_S[path])) as response:
                status, content = response.status, response.read(ANSWER_BYTES)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return error
        text = self._hide(content.decode("utf-8", errors="replace"))
        try:
            return Answered(status, json.loads(text))
        except ValueError:
            return Answered(status, text)

    def _hide(self, text: str) -> str:
        return text.replace(self.key, "...") if self.key else text

    def examine(self, names: Sequence[str]) -> Served:
        r"""Find out what the server is and whether it serves a model by one of the names, best first.

        Raises:
            GenerationError: If it does not answer, refuses the key, or serves other models.
        """
        listed = self.ask("/models")
        if listed.status in (401, 403):
            given = "refuses the key of the environment" if self.key else "asks for a key"
            raise GenerationError(
                f"The server at {self.url} {given} ({listed.status}). Set the environment variable "
                f"`{KEY_VARIABLES[0]}`."
            )
        entries = listed.content.get("data") if isinstance(listed.content, Mapping) else None
        if isinstance(entries, list):
            entries = [each for each in entries if isinstance(each, Mapping) and isinstance(each.get("id"), str)]
        is_vllm = any(each.get("owned_by") == "vllm" for each in entries or [])
        if not is_vllm:
            schema = self.ask("/openapi.json").content
            paths = schema.get("paths") if isinstance(schema, Mapping) else None
            # `transformers serve` lists the hub's cache instead of what it serves.
            if isinstance(paths, Mapping) and {"/load_model", "/v1/completions"} <= set(paths):
                return self._examine_transformers(names)
        if listed.status != 200 or not isinstance(entries, list):
            hint = "" if self.url.rstrip("/").endswith("/v1") else "Most servers' addresses end in /v1. "
            raise GenerationError(
                f"The server at {self.url} does not list its models: {self.url.rstrip('/')}/models answered "
                f"{listed.status}. {hint}Correct `tpaw_engine_url`, the address before `/completions`."
            )
        # The model that has one of the names, or was loaded from one of the paths.
        pairs = [(each, field, name) for field in ("id", "root") for name in names for each in entries]
        entry = next((each for each, field, name in pairs if each.get(field) == name), None)
        if entry is None:
            shown = ", ".join(each["id"] for each in entries[:LISTED]) or "nothing"
            raise self._other(shown + (f" and {len(entries) - LISTED} more" if len(entries) > LISTED else ""), names)
        version = self.ask("/version").content if is_vllm else None
        version = str(version.get("version") or "") if isinstance(version, Mapping) else ""
        verified = any(os.path.isabs(name) and name in (entry["id"], entry.get("root")) for name in names)
        limit = entry.get("max_model_len")
        kind = VLLM if is_vllm else OTHER
        return Served(self.url, kind, version, entry["id"], verified, limit if isinstance(limit, int) else None)

    def _examine_transformers(self, names: Sequence[str]) -> Served:
        """It loads what it is asked for by path, unless it is pinned to one model."""
        found = PINNED.search(error_words(self.ask(COMPLETIONS, {"model": NO_MODEL, "prompt": "?"}).content))
        name = found[1] if found else next(filter(os.path.isabs, names), names[0])
        if name not in names:
            raise self._other(name, names)
        return Served(self.url, TRANSFORMERS, "", name, os.path.isabs(name), None)

    def _other(self, served: str, names: Sequence[str]) -> GenerationError:
        return GenerationError(
            f"The server at {self.url} serves {served}, but {' or '.join(names)} is asked for. Start it with that "
            "model. Only where it serves that very model under another name, give the name as `tpaw_engine_model`."
        )
