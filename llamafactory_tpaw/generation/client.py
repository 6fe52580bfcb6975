# SPDX-License-Identifier: Apache-2.0
r"""Engines `openai` and `vllm`: requests become calls of servers, and their answers responses.

Prompts go as token ids where the server takes them, else as a text that it reads as the same ids, by its own count.
An opponent model that others serve has its own template, so it is sent messages.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..arguments.start import Start
from ..errors import ConfigError, GenerationError
from ..lf.logs import get_logger
from .base import Answers, EngineContext, Failure, Finished, PromptRequests, Response, ignore
from .exchange import Exchange
from .process import ServerProcess
from .protocol import IDS, MESSAGES, TEXT, TRANSFORMERS, VLLM, Dialect, count_of, field_of
from .server import Served, Server, api_key, load_openai, names_of


logger = get_logger(__name__)

# Its newer models refuse the name that all other servers know.
OPENAIS_OWN = {"api.openai.com": "max_completion_tokens"}


def make_engine(context: EngineContext, beside: Path) -> ServerEngine:
    """Make the engine that `tpaw_engine` names; of `vllm` the server is started, with its log `beside` a file."""
    load_openai()  # before a server of ours spends minutes on its start
    args = context.run.finetuning
    # With an adapter the model's own name would be that of another θ.
    home = str(context.adapters[-1] if context.adapters else context.model)
    if args.tpaw_engine == "vllm":
        from .vllm import start_vllm

        server = start_vllm(context, beside)
        return ServerEngine(context, (server.url,), [context.name, *names_of(None, home)], server)
    paths = [home] if context.opponent else [home, Start.of(vars(context.run.model)).path]
    return ServerEngine(context, tuple(args.tpaw_engine_url), names_of(args.tpaw_engine_model, *paths))


class ServerEngine:
    """Asks servers for a model by one of its names, best first; one that is our own is ended with the engine."""

    def __init__(
        self, context: EngineContext, urls: tuple[str, ...], names: list[str], own: ServerProcess | None = None
    ) -> None:
        self.context, self.urls, self.names, self.own = context, urls, names, own
        self.name, self.version = context.run.finetuning.tpaw_engine, ""
        # For the meta file: the model's name at the servers, whether they say that they loaded this very checkpoint,
        # and how prompts went and responses came.
        self.facts: dict[str, Any] = {}
        self.key = own.api_key if own else api_key()

    def close(self) -> None:
        """End the server that is ours."""
        if self.own is not None:
            self.own.close()

    def answer(self, requests: PromptRequests, left: np.ndarray, finished: Finished = ignore) -> Iterator[Answers]:
        """Answer what is left; see `base.Engine`."""
        if not len(left):
            return
        answers = self._answers(requests, left)

        async def more() -> Answers | None:
            return await anext(answers, None)

        with asyncio.Runner() as runner:  # its end leaves nothing in flight, and ends `answers`
            while results := runner.run(more()):
                yield results

    async def _answers(self, requests: PromptRequests, left: np.ndarray) -> AsyncIterator[Answers]:
        servers = [Server(url, self.key, self.context.run.finetuning, self.own) for url in self.urls]
        try:
            dialect = await self._settle(servers, requests, left)

            def body_of(index: int) -> dict[str, Any]:
                return dialect.body(requests[index], dialect.prompt(requests, index))

            def read(index: int, answer: Any) -> Response | Failure:
                response = dialect.read(answer, requests[index])
                if dialect.way != MESSAGES and isinstance(response, Response):
                    self.facts["responses"] = TEXT if response.ids is None else IDS
                return response

            async for results in Exchange(iter(left.tolist()), dialect.path, body_of, read, servers).answers():
                yield results
        finally:
            await asyncio.gather(*(server.client.close() for server in servers))

    async def _settle(self, servers: Sequence[Server], requests: PromptRequests, left: np.ndarray) -> Dialect:
        """Ask each server what it is, serves and reads; they have to agree."""
        context = self.context
        asked = [await self._meet(server, requests, left) for server in servers]
        first, dialect = asked[0]
        for other, its in asked[1:]:
            if (other.title, its) != (first.title, dialect):
                raise GenerationError(
                    f"{first.url} is {first.title}, serves {first.model} and takes {dialect.way}, but {other.url} is "
                    f"{other.title}, serves {other.model} and takes {its.way}. Give addresses of servers that are "
                    "alike as `tpaw_engine_url`."
                )
        verified = self.own is not None or all(served.verified for served, _ in asked)
        self.version, self.facts = first.title, {"served": first.model, "verified": verified, "prompts": dialect.way}
        if not verified and not context.opponent:
            logger.warning_rank0(
                f"{', '.join(self.urls)} ({first.title}) knows the model by the name {first.model} alone. Whether its "
                f"weights are those of {context.model} is not known."
            )
        return dataclasses.replace(dialect, counts=all(its.counts for _, its in asked))

    async def _meet(self, server: Server, requests: PromptRequests, left: np.ndarray) -> tuple[Served, Dialect]:
        """Ask a server what it serves, and for one token: which way of prompts does it take, and does it count?"""
        context, served = self.context, await server.examine(self.names)
        is_chat, key = context.opponent and self.own is None, OPENAIS_OWN.get(urlsplit(served.url).hostname or "")
        way, limit, stops = MESSAGES if is_chat else IDS, key or "max_tokens", context.stop_token_ids
        made = Dialect(served.kind, served.model, context.settings, context.encoder, stops, way, limit_key=limit)
        longest = int((requests.prompt_tokens[left] + requests.new_tokens[left]).max())
        if not is_chat and type(served.max_tokens) is int and 0 < served.max_tokens < longest:
            raise ConfigError(
                f"The server at {served.url} takes {served.max_tokens} tokens of prompt and response together, but "
                f"the longest request has {longest}. Serve the model with more (`--max-model-len {longest}`), or "
                "lower `max_new_tokens` or `cutoff_len`."
            )
        ways = [(IDS, False), (TEXT, False), (TEXT, True)]
        ways = ways[:1] if made.kind == VLLM else ways[1:] if made.kind == TRANSFORMERS else ways
        index, said = int(left[0]), []
        first, tokens = dataclasses.replace(requests[index], max_new_tokens=1), int(requests.prompt_tokens[index])
        for way, adds_bos in [(MESSAGES, False)] if is_chat else ways:
            tried = dataclasses.replace(made, way=way, adds_bos=adds_bos)
            try:
                body = tried.body(first, tried.prompt(requests, index))
            except ValueError as error:
                said.append(str(error))
                continue
            status, content = await server.ask(tried.path, body)
            count = count_of(content, "prompt_tokens")
            # Ids cannot be read as others, so it need not count them; messages are written by its own template.
            if is_chat or count == tokens or (way == IDS and count is None and field_of(content, "choices")):
                return served, dataclasses.replace(tried, counts=count_of(content, "completion_tokens") == 1)
            said.append(f"it answers {status}" + (f", but reads it as {count}" if status == 200 else f" ({content})"))
        if is_chat:
            return served, made
        raise server.failed(
            f"The server at {server.name} does not take a prompt of {tokens} tokens as this run has it: "
            f"{'; '.join(dict.fromkeys(said))}.",
            "Serve the checkpoint with its own tokenizer, by a server that has `/completions` and counts the tokens "
            "(`usage`), as vLLM and `transformers serve` do.",
        )
