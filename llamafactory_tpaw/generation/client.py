# SPDX-License-Identifier: Apache-2.0
r"""Engines `openai` and `vllm`: requests become calls of servers, and their answers responses.

Prompts go as token ids where the server takes them, else as a text that it reads as the same ids, by its own count.
An opponent model that others serve has its own template, so it is sent messages.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..arguments.checks import KEY_VARIABLES
from ..arguments.start import Start
from ..errors import ConfigError, GenerationError
from ..lf.logs import get_logger
from .base import Answers, EngineContext, Failure, PromptRequests, Request, Response, ignore
from .exchange import Call, Exchange, load_openai
from .process import ServerProcess
from .protocol import (
    CHAT,
    COMPLETIONS,
    TRANSFORMERS,
    VLLM,
    Bodies,
    count_of,
    messages_of,
    prompt_text,
    read_chat,
    read_completion,
    stop_texts,
)
from .served import START, Inquiry, Served, api_key, error_words, names_of


logger = get_logger(__name__)

IDS, TEXT, MESSAGES = "ids", "text", "messages"
# Its newer models refuse the name that all other servers know.
OPENAIS_OWN = "api.openai.com"
UNREADABLE = "written as text, it is read as other tokens, and the server takes no token ids, as vLLM does"
CHECK = (
    f"Check `tpaw_engine_url`, `tpaw_engine_model` and the environment variable {KEY_VARIABLES[0]}: what is generated "
    "is kept, and the same command continues."
)


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
    r"""Ask servers.

    Args:
        context: What is generated, and with which model.
        urls: Base addresses.
        names: Names that the servers may have for the model, best first.
        server: The server, where it is ours: it is ended with the engine.

    """

    def __init__(
        self, context: EngineContext, urls: tuple[str, ...], names: list[str], server: ServerProcess | None = None
    ) -> None:
        self.context, self.urls, self.names, self.server = context, urls, names, server
        args = context.run.finetuning
        self.name, self.version = args.tpaw_engine, ""
        # For the meta file: the model's name at the servers, whether they say that they loaded this very checkpoint,
        # and how prompts went and responses came.
        self.facts: dict[str, Any] = {}
        self.api_key = server.api_key if server else api_key()
        self.add_bos = False
        self.stop_texts = stop_texts(context.encoder, context.stop_token_ids)
        self.prompts_go_as = MESSAGES if context.opponent and server is None else IDS

    def close(self) -> None:
        """End the server that is ours."""
        if self.server is not None:
            self.server.close()

    def answer(
        self, requests: PromptRequests, left: np.ndarray, finished: Callable[[int], object] = ignore
    ) -> Iterator[Answers]:
        """Answer what is left; see `base.Engine`."""
        if not len(left):
            return
        calls = self._calls(self._settle(requests, left), requests, left)
        with asyncio.Runner() as runner:
            exchange = Exchange(
                calls,
                self.urls,
                self.context.run.finetuning,
                self.api_key,
                self._read,
                self.server.advice if self.server else CHECK,
                self.server.check if self.server else lambda: None,
            )
            try:
                while results := runner.run(exchange.next()):
                    yield results
            finally:
                runner.run(exchange.close())

    def _calls(
        self, bodies: Bodies, requests: PromptRequests, left: np.ndarray
    ) -> Iterator[Call | tuple[int, Failure]]:
        for index in left.tolist():
            request = requests[index]
            try:
                if self.prompts_go_as == MESSAGES:
                    messages = messages_of(requests.prompts.prompts.take([index // requests.samples])[0])
                    yield Call(index, request, CHAT, bodies.chat(request, messages))
                else:
                    prompt: list[int] | str | None = request.prompt_ids.tolist()
                    if self.prompts_go_as == TEXT:
                        prompt = prompt_text(self.context.encoder.tokenizer, prompt, self.add_bos)
                    if prompt is None:
                        raise ValueError(UNREADABLE)
                    yield Call(index, request, COMPLETIONS, bodies.completion(request, prompt))
            except ValueError as error:
                yield index, Failure(f"it cannot be sent: {error}")

    def _read(self, call: Call, answer: Any) -> Response:
        if call.path == CHAT:
            return read_chat(answer, call.request)
        stops = self.context.stop_token_ids
        response = read_completion(answer, call.request, call.body["prompt"], stops, self.stop_texts)
        self.facts["responses"] = TEXT if response.ids is None else IDS
        return response

    # --- what is checked at the start

    def _settle(self, requests: PromptRequests, left: np.ndarray) -> Bodies:
        """Ask each server what it is, serves and reads; they have to agree."""
        context, keys = self.context, self.context.run.finetuning
        advice = self.server.advice if self.server else START
        inquiries = [
            Inquiry(url, self.api_key, keys.tpaw_engine_timeout, keys.tpaw_engine_startup, advice) for url in self.urls
        ]
        servers = [inquiry.examine(self.names) for inquiry in inquiries]
        first = servers[0]
        for other in servers[1:]:
            if (other.kind, other.version, other.model) != (first.kind, first.version, first.model):
                raise GenerationError(
                    f"{first.url} is {first.title} and serves {first.model}, but {other.url} is {other.title} and "
                    f"serves {other.model}. Give addresses of servers that are alike as `tpaw_engine_url`."
                )
        limit_key = "max_completion_tokens" if urlsplit(first.url).hostname == OPENAIS_OWN else "max_tokens"
        stops = context.stop_token_ids, self.stop_texts
        bodies = Bodies(first.kind, first.model, context.settings, *stops, limit_key)
        self.version = first.title
        if self.prompts_go_as != MESSAGES:
            self._refuse_long(servers, requests, left)
            ways = {self._probe(bodies, inquiry, requests[int(left[0])]) for inquiry in inquiries}
            if len(ways) > 1:
                raise GenerationError(
                    f"Of {', '.join(self.urls)} some take token ids and others do not. Give addresses of servers that "
                    "are alike as `tpaw_engine_url`."
                )
            self.prompts_go_as, self.add_bos = ways.pop()
        verified = self.server is not None or all(server.verified for server in servers)
        self.facts |= {"served": first.model, "verified": verified, "prompts": self.prompts_go_as}
        if not verified and not context.opponent:
            logger.warning_rank0(
                f"{', '.join(self.urls)} ({first.title}) knows the model by the name {first.model} alone. Whether its "
                f"weights are those of {context.model} is not known."
            )
        return bodies

    def _refuse_long(self, servers: list[Served], requests: PromptRequests, left: np.ndarray) -> None:
        longest = int((requests.prompt_tokens[left] + requests.new_tokens[left]).max())
        for server in servers:
            if server.max_tokens is not None and server.max_tokens < longest:
                raise ConfigError(
                    f"The server at {server.url} takes {server.max_tokens} tokens of prompt and response together, "
                    f"but the longest request has {longest}. Serve the model with more (`--max-model-len "
                    f"{longest}`), or lower `max_new_tokens` or `cutoff_len`."
                )

    def _probe(self, bodies: Bodies, inquiry: Inquiry, request: Request) -> tuple[str, bool]:
        """Have one token generated, to find a way of prompts by which the server counts as many tokens as this run."""
        ids, said, tokenizer = request.prompt_ids.tolist(), [], self.context.encoder.tokenizer
        ways: dict[tuple[str, bool], list[int] | str | None] = {(IDS, False): ids}
        if bodies.kind == TRANSFORMERS:
            ways = {}
        if bodies.kind != VLLM:
            ways |= {(TEXT, add_bos): prompt_text(tokenizer, ids, add_bos) for add_bos in (False, True)}
        for way, prompt in ways.items():
            if prompt is None:
                said.append(UNREADABLE)
                continue
            asked = dataclasses.replace(request, max_new_tokens=1)
            answer = inquiry.ask(COMPLETIONS, bodies.completion(asked, prompt))
            count = count_of(answer.content, "prompt_tokens")
            if answer.status == 200 and count == len(ids):
                return way
            reads = f"reads it as {count}" if answer.status == 200 else error_words(answer.content)
            said.append(f"it answers {answer.status} and {reads}")
        raise GenerationError(
            f"The server at {inquiry.url} does not take a prompt of {len(ids)} tokens as this run has it: "
            f"{'; '.join(dict.fromkeys(said))}. Serve the checkpoint with its own tokenizer, by a server that has "
            "`/completions` and counts the tokens (`usage`), as vLLM and `transformers serve` do."
        )
