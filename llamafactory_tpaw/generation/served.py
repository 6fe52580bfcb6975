# SPDX-License-Identifier: Apache-2.0
r"""What a server is asked before the first prompt goes there: whether it answers, what it is, and what it serves.

Standard library only, and every question is bounded by seconds, so that a preflight can ask too.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..arguments.checks import KEY_VARIABLES
from ..errors import ConfigError, GenerationError


VLLM, TRANSFORMERS, OTHER = "vLLM", "transformers serve", "a server of OpenAI's API"
LISTED = 5
WORDS = 300
NAME_ADVICE = (
    "Start it with that model. Only where it serves that very model under another name, give the name as "
    "`tpaw_engine_model`."
)
ANSWER_BYTES = 16 << 20
# A name that no model can have, and what `transformers serve` says of it where it is pinned to another.
NO_MODEL = "--"
PINNED = re.compile(r"pinned to '(.+)'; requested '--'")


@dataclass(frozen=True)
class Answered:
    """A server's answer: its status and its JSON, or its text where it is none."""

    status: int
    content: Any

    @property
    def words(self) -> str:
        """What it says of an error, in one short line."""
        return one_line(error_message(self.content))


@dataclass(frozen=True)
class Served:
    r"""What is known of a server.

    Attributes:
        url: Base address.
        kind: `VLLM`, `TRANSFORMERS` or `OTHER`.
        version: Its release, where it says so.
        model: The name to ask for.
        verified: Whether the server says that it loaded this very path; a name says nothing about weights.
        max_tokens: Most tokens of prompt and response together, where it says so.
    """

    url: str
    kind: str
    version: str
    model: str
    verified: bool
    max_tokens: int | None

    @property
    def title(self) -> str:
        """Kind and version, as the meta file of triplets names them."""
        return f"{self.kind} {self.version}".strip()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def api_key() -> str | None:
    r"""The servers' key, from the environment.

    Raises:
        ConfigError: If it holds characters that no header can carry; they are not shown.
    """
    for name in KEY_VARIABLES:
        key = os.environ.get(name, "").strip()
        if key:
            if not (key.isascii() and key.isprintable()) or " " in key:
                raise ConfigError(
                    f"The environment variable `{name}` holds blanks or characters outside of ASCII, but a server's "
                    "key is one plain word. Set it anew."
                )
            return key
    return None


def ask(
    url: str, path: str, key: str | None = None, body: Mapping[str, Any] | None = None, timeout_s: float = 10.0
) -> Answered:
    r"""Put one question to a server.

    Args:
        url: Base address.
        path: What is appended to it.
        key: Bearer token.
        body: JSON body of a POST; None is a GET.
        timeout_s: Bound of each wait, in seconds.

    Raises:
        GenerationError: If nothing answers there.
    """
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    if data is not None:
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url.rstrip("/") + path, data=data, headers=headers)
    proxies = urllib.request.ProxyHandler({} if on_loopback(url) else None)
    opener = urllib.request.build_opener(_NoRedirect, proxies)
    try:
        try:
            with opener.open(request, timeout=timeout_s) as response:
                status, text = response.status, response.read(ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read(ANSWER_BYTES)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise GenerationError(
            f"No server answers at {url} ({_hide(str(reason), key) or type(error).__name__}). Start it, or correct "
            "`tpaw_engine_url`; the same command continues."
        ) from None
    decoded = _hide(text.decode("utf-8", errors="replace"), key)
    try:
        return Answered(status, json.loads(decoded))
    except ValueError:
        return Answered(status, decoded)


def on_loopback(url: str) -> bool:
    """Whether an address is of this machine alone, so that no proxy of the environment may stand between."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def error_message(content: Any) -> str:
    """What a server says of an error in its answer's JSON; servers wrap it in different ways."""
    found = content
    for name in ("error", "message", "detail", "message"):
        if isinstance(found, Mapping) and found.get(name):
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found)


def one_line(text: str) -> str:
    """The beginning of a server's words, in one line that can be written to any file."""
    return " ".join(text[: 4 * WORDS].split())[:WORDS].encode(errors="replace").decode()


def _hide(text: str, key: str | None) -> str:
    return text.replace(key, "...") if key else text


def names_of(given: str | None, *paths: str) -> list[str]:
    r"""Names under which servers may have a model.

    Args:
        given: `tpaw_engine_model`; where it is given, no other name counts.
        paths: What the run calls the checkpoint: the path as written, a folder, a name on the hub.
    """
    if given:
        return [given]
    whole = [name for path in paths for name in ((os.path.realpath(path), path) if os.path.isdir(path) else (path,))]
    return list(dict.fromkeys([*whole, *(os.path.basename(os.path.normpath(path)) for path in paths)]))


def examine(url: str, names: Sequence[str], key: str | None, timeout_s: float = 10.0) -> Served:
    r"""Ask a server what it is and whether it serves a model.

    Args:
        url: Base address.
        names: Names of the model, best first.
        key: Bearer token.
        timeout_s: Bound of each wait, in seconds.

    Raises:
        GenerationError: If it does not answer, refuses the key, or serves other models.
    """
    listed = ask(url, "/models", key, timeout_s=timeout_s)
    if listed.status in (401, 403):
        given = "refuses the key of the environment" if key else "asks for a key"
        raise GenerationError(
            f"The server at {url} {given} ({listed.status}). Set the environment variable `{KEY_VARIABLES[0]}`."
        )
    if _is_transformers(url, key, timeout_s):
        return Served(url, TRANSFORMERS, "", *_pinned(url, names, key, timeout_s), None)
    entries = listed.content.get("data") if isinstance(listed.content, Mapping) else None
    if listed.status != 200 or not isinstance(entries, list):
        raise GenerationError(
            f"The server at {url} does not list its models: {url.rstrip('/')}/models answered {listed.status}. "
            f"{_path_hint(url)}Correct `tpaw_engine_url`, the address before `/completions`."
        )
    entries = [entry for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get("id"), str)]
    entry = _find(entries, names)
    if entry is None:
        served = ", ".join(str(item["id"]) for item in entries[:LISTED]) or "nothing"
        more = f" and {len(entries) - LISTED} more" if len(entries) > LISTED else ""
        raise GenerationError(
            f"The server at {url} serves {served}{more}, but {' or '.join(names)} is asked for. {NAME_ADVICE}"
        )
    kind = VLLM if entry.get("owned_by") == "vllm" else OTHER
    version = _version(url, key, timeout_s) if kind == VLLM else ""
    limit = entry.get("max_model_len")
    verified = any(os.path.isabs(name) and name in (entry["id"], entry.get("root")) for name in names)
    return Served(url, kind, version, entry["id"], verified, limit if isinstance(limit, int) else None)


def _path_hint(url: str) -> str:
    return "" if url.rstrip("/").endswith("/v1") else "Most servers' addresses end in /v1. "


def _find(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Mapping[str, Any] | None:
    """The model that has one of the names, or was loaded from one of the paths."""
    for field in ("id", "root"):
        for name in names:
            for entry in entries:
                if entry.get(field) == name:
                    return entry
    return None


def _root(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _version(url: str, key: str | None, timeout_s: float) -> str:
    answer = ask(_root(url), "/version", key, timeout_s=timeout_s)
    version = answer.content.get("version") if isinstance(answer.content, Mapping) else None
    return version if answer.status == 200 and isinstance(version, str) else ""


def _is_transformers(url: str, key: str | None, timeout_s: float) -> bool:
    """Whether it is `transformers serve`, which lists the hub's cache instead of what it serves."""
    schema = ask(_root(url), "/openapi.json", key, timeout_s=timeout_s)
    paths = schema.content.get("paths") if schema.status == 200 and isinstance(schema.content, Mapping) else None
    return isinstance(paths, Mapping) and {"/load_model", "/v1/completions"} <= set(paths)


def _pinned(url: str, names: Sequence[str], key: str | None, timeout_s: float) -> tuple[str, bool]:
    """The name that `transformers serve` takes: it loads what it is asked for, unless it is pinned to one model."""
    answer = ask(url, "/completions", key, {"model": NO_MODEL, "prompt": "?"}, timeout_s)
    found = PINNED.search(answer.words)
    name = found[1] if found else next(filter(os.path.isabs, names), names[0])
    if name not in names:
        raise GenerationError(
            f"The server at {url} serves {name}, but {' or '.join(names)} is asked for. {NAME_ADVICE}"
        )
    return name, os.path.isabs(name)
