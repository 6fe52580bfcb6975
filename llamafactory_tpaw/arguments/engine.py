# SPDX-License-Identifier: Apache-2.0
"""How the keys of engines go together, from the keys alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


KEY_VARIABLES = ("TPAW_ENGINE_API_KEY", "OPENAI_API_KEY")
SECRET_WAY_OUT = f"Put the key into the environment variable `{KEY_VARIABLES[0]}`, and nowhere else."


def url_problem(url: str) -> str | None:
    """Say what is wrong with a server's address, without repeating a password that is in it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        return (
            f"`tpaw_engine_url` has an address at host {host} with a user, a password, a query or a fragment, but "
            f"must be http(s)://host:port/path alone: it is written to logs. {SECRET_WAY_OUT}"
        )
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\s;,]|.://.*://", url):
        shown = url.rpartition("@")[2].partition("?")[0]
        return (
            f"`tpaw_engine_url` has the address {shown!r}, but each must be http(s)://host:port/path. Give the base "
            "address that the server's paths are appended to, such as `http://localhost:8000/v1`; several stand with "
            "commas between them."
        )
    return None


def engine_problems(given: Mapping[str, Any]) -> list[str]:
    r"""Check the keys of engines against one another.

    Args:
        given: Every key the user gave.

    Returns:
        One message a problem.
    """
    engine = str(given.get("tpaw_engine") or "hf")
    problems = [
        f"`{key}` is for `tpaw_engine: {wanted}`, but the engine is `{engine}`. Remove it, or change the engine."
        for key, wanted in (
            ("tpaw_engine_url", "openai"),
            ("tpaw_engine_model", "openai"),
            ("tpaw_vllm_command", "vllm"),
            ("tpaw_vllm_args", "vllm"),
        )
        if given.get(key) and engine != wanted
    ]
    if engine == "openai" and given.get("tpaw_prompts") and not _items(given.get("tpaw_engine_url")):
        problems.append(
            "`tpaw_engine: openai` needs `tpaw_engine_url`, the address of a server that serves theta_t, such as "
            "`http://localhost:8000/v1`. Give it."
        )
    urls = [url.rstrip("/") for url in _items(given.get("tpaw_engine_url"))]
    problems += [
        f"`tpaw_engine_url` has the address {url!r} {urls.count(url)} times. Give each server once; how much is sent "
        "to one is `tpaw_engine_concurrency`."
        for url in dict.fromkeys(urls)
        if urls.count(url) > 1 and url_problem(url) is None
    ]
    return problems + _argument_problems(given) + _sample_problems(given)


def _items(value: Any) -> list[str]:
    items = value if isinstance(value, (list, tuple)) else str(value or "").split(",")
    return [str(item).strip() for item in items if str(item).strip()]


def _argument_problems(given: Mapping[str, Any]) -> list[str]:
    """Arguments of `vllm serve` that no shell would read, and a key among them, which every process could see."""
    try:
        words = shlex.split(str(given.get("tpaw_vllm_args") or ""))
    except ValueError as error:
        return [f"`tpaw_vllm_args` cannot be read as a shell would ({error}). Correct the quotes."]
    if any(word == "--api-key" or word.startswith("--api-key=") for word in words):
        return [f"`tpaw_vllm_args` has `--api-key`, but no key of a server may be in a run file. {SECRET_WAY_OUT}"]
    return []


def _sample_problems(given: Mapping[str, Any]) -> list[str]:
    """Several samples of a prompt that would all be the same."""
    try:
        samples = int(str(given.get("tpaw_samples_per_prompt") or 1))
        temperature = float(str(given.get("temperature", 1)))
    except ValueError:
        return []  # said of the keys themselves
    greedy = "`do_sample: false`" if str(given.get("do_sample", True)).lower() == "false" else ""
    greedy = greedy or ("`temperature: 0`" if temperature == 0 else "")
    if samples < 2 or not greedy:
        return []
    return [
        f"`tpaw_samples_per_prompt` is {samples}, but with {greedy} all responses to a prompt are the same. Set it to "
        "1, or sample with a temperature above 0."
    ]
