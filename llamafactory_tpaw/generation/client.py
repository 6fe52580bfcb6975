# SPDX-License-Identifier: Apache-2.0
r"""Engines `openai` and `vllm`: requests become calls of servers, and their answers responses.

Prompts go as token ids where the server takes them, else as a text that it reads as the same ids, by its own count.
An opponent model that others serve has its own template, so it is sent messages.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..arguments.start import Start
from ..errors import ConfigError, GenerationError
from ..lf.logs import get_logger
from .base import Answers, EngineContext, PromptRequests, Request, Response, ignore
from .exchange import Exchange
from .process import ServerProcess
from .protocol import IDS, MESSAGES, TEXT, TRANSFORMERS, VLLM, Dialect, count_of, messages_of
from .server import ADVICE, Served, Server, api_key, load_openai, names_of


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

    def answer(
        self, requests: PromptRequests, left: np.ndarray, finished: Callable[[int], object] = ignore
    ) -> Iterator[Answers]:
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
        keys, own = self.context.run.finetuning, self.own
        numbers = keys.tpaw_engine_timeout, keys.tpaw_engine_retries, keys.tpaw_engine_concurrency
        advice = own.advice if own else ADVICE
        servers = [Server(url, self.key, *numbers, keys.tpaw_engine_startup, advice) for url in self.urls]
        try:
            dialect = await self._settle(servers, requests, left)

            def body_of(index: int) -> dict[str, Any]:
                request, row = requests[index], index // requests.samples
                if dialect.way == MESSAGES:
                    return dialect.body(request, messages_of(requests.prompts.prompts.take([row])[0]))
                return dialect.body(request, dialect.prompt(request))

            def read(index: int, answer: Any) -> Response:
                response = dialect.read(answer, requests[index])
                if dialect.way != MESSAGES:
                    self.facts["responses"] = TEXT if response.ids is None else IDS
                return response

            indices, check = iter(left.tolist()), own.check if own else lambda: None
            async for results in Exchange(indices, dialect.path, body_of, read, servers, keys, check).answers():
                yield results
        finally:
            await asyncio.gather(*(server.client.close() for server in servers))

    async def _settle(self, servers: Sequence[Server], requests: PromptRequests, left: np.ndarray) -> Dialect:
        """Ask each server what it is, serves and reads; they have to agree."""
        context = self.context
        found = [(await server.examine(self.names), server) for server in servers]
        asked = [(served, await self._dialect(served, server, requests, left)) for served, server in found]
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
        return dialect

    async def _dialect(self, served: Served, server: Server, requests: PromptRequests, left: np.ndarray) -> Dialect:
        context = self.context
        way = MESSAGES if context.opponent and self.own is None else IDS
        limit_key = OPENAIS_OWN.get(urlsplit(served.url).hostname or "", "max_tokens")
        stops = context.stop_token_ids
        made = Dialect(served.kind, served.model, context.settings, context.encoder, stops, way, limit_key=limit_key)
        longest = int((requests.prompt_tokens[left] + requests.new_tokens[left]).max())
        if way == IDS and served.max_tokens is not None and served.max_tokens < longest:
            raise ConfigError(
                f"The server at {served.url} takes {served.max_tokens} tokens of prompt and response together, but "
                f"the longest request has {longest}. Serve the model with more (`--max-model-len {longest}`), or "
                "lower `max_new_tokens` or `cutoff_len`."
            )
        return made if way == MESSAGES else await self._probe(made, server, requests[int(left[0])])

    async def _probe(self, dialect: Dialect, server: Server, request: Request) -> Dialect:
        """Have one token generated, to find a way of prompts by which the server counts as many tokens as this run."""
        ways = [(IDS, False), (TEXT, False), (TEXT, True)]
        ways = ways[:1] if dialect.kind == VLLM else ways[1:] if dialect.kind == TRANSFORMERS else ways
        said, tokens = [], len(request.prompt_ids)
        for way, adds_bos in ways:
            tried = dataclasses.replace(dialect, way=way, adds_bos=adds_bos)
            try:
                body = tried.body(dataclasses.replace(request, max_new_tokens=1), tried.prompt(request))
            except ValueError as error:
                said.append(str(error))
                continue
            status, content = await server.ask(tried.path, body)
            count = count_of(content, "prompt_tokens")
            if status == 200 and count == tokens:
                return tried
            said.append(f"it answers {status}" + (f", but reads it as {count}" if status == 200 else f" ({content})"))
        raise GenerationError(
            f"The server at {server.url} does not take a prompt of {tokens} tokens as this run has it: "
            f"{'; '.join(dict.fromkeys(said))}. Serve the checkpoint with its own tokenizer, by a server that has "
            "`/completions` and counts the tokens (`usage`), as vLLM and `transformers serve` do."
        )
