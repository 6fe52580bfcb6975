# SPDX-License-Identifier: Apache-2.0
r"""Engines `openai` and `vllm`: requests become calls of servers, and their answers responses.

Prompts go as token ids where the server takes them, else as a text that it reads as the same ids, by its own count.
An opponent model that others serve has a template of its own, so it is sent messages.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from ..arguments.checks import KEY_VARIABLES
from ..arguments.start import Start
from ..errors import ConfigError, GenerationError
from ..lf.logs import get_logger
from .answers import gives_ids, prompt_count, read_chat, read_completion
from .base import Failure, ignore
from .bodies import CHAT, COMPLETIONS, Bodies, PromptText, stop_texts
from .client import Call, ClientSettings, complete
from .conversation import messages_of, tools_of
from .endpoint import OVERLOADED, load_openai
from .served import TRANSFORMERS, VLLM, Answered, Served, api_key, ask, examine, names_of


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np

    from .base import Answers, EngineContext, Request, Requests, Response
    from .managed import ManagedServers

logger = get_logger(__name__)

IDS, TEXT, MESSAGES = "ids", "text", "messages"
# Prompts that are looked at before the first request, and read at once where they go as messages.
LOOKED_AT, READ_AT_ONCE = 32, 256
# Before a server with too much to do is asked again what it is.
OVERLOAD_WAITS_S = (1.0, 2.0, 4.0, 8.0, 15.0)
# No such path, or no such model.
NOT_HERE = (401, 403, 404, 405)


def make_engine(context: EngineContext, beside: Path) -> ServerEngine:
    r"""Make the engine that `tpaw_engine` names, servers started where they are ours.

    Args:
        context: What is generated, and with which model.
        beside: The round's file; logs of servers lie beside it.

    Raises:
        TpawError: If the client is not installed, or a server does not start.
    """
    load_openai()  # before a server of ours spends minutes on its start
    args, model_args = context.run.finetuning, context.run.model
    # With an adapter the model's own name would be that of another θ.
    home = str(context.adapters[-1] if context.adapters else context.model)
    if args.tpaw_engine == "vllm":
        from .vllm import start_vllm

        servers = start_vllm(context, beside, logger.info_rank0)
        try:
            return ServerEngine(context, servers.urls, [servers.model, *names_of(None, home)], servers)
        except BaseException:
            servers.close()
            raise
    written = Start.of(vars(model_args)).path
    paths = [home] if context.opponent else [home, written]
    return ServerEngine(context, tuple(args.tpaw_engine_url), names_of(args.tpaw_engine_model, *paths))


class ServerEngine:
    r"""Ask servers.

    Args:
        context: What is generated, and with which model.
        urls: Base addresses.
        names: Names that the servers may have for the model, best first.
        servers: The servers, where they are ours: they are ended with the engine.

    Attributes:
        name: `openai` or `vllm`.
        version: What the servers are; known after the first answers.
        facts: What a meta file says besides: the model's name at the servers, whether they say that they loaded this
            very checkpoint, and how prompts went and responses came.
    """

    def __init__(
        self,
        context: EngineContext,
        urls: tuple[str, ...],
        names: list[str],
        servers: ManagedServers | None = None,
    ) -> None:
        self.context, self.urls, self.names, self.servers = context, urls, names, servers
        args = context.run.finetuning
        self.name, self.version = args.tpaw_engine, ""
        self.facts: dict[str, Any] = {}
        self.settings = ClientSettings(
            urls=urls,
            concurrency=args.tpaw_engine_concurrency,
            timeout_s=args.tpaw_engine_timeout,
            retries=args.tpaw_engine_retries,
            wait_s=args.tpaw_engine_startup,
            api_key=servers.api_key if servers else api_key(),
        )
        # A tokenizer of its own: calls are made in the client's thread.
        self.text = PromptText(copy.deepcopy(context.encoder.tokenizer))
        self.stop_texts = stop_texts(context.encoder, context.stop_token_ids)
        self.prompts_go_as = MESSAGES if context.opponent and servers is None else IDS

    def close(self) -> None:
        """End the servers that are ours."""
        if self.servers is not None:
            self.servers.close()

    def answer(
        self, requests: Requests, left: np.ndarray, finished: Callable[[int], object] = ignore
    ) -> Iterator[Answers]:
        r"""Answer what is left; see `base.Engine`.

        Raises:
            ConfigError: If a setting cannot be passed on to the servers.
            GenerationError: If a server serves something else, reads prompts otherwise, or none is left.
        """
        if not len(left):
            return
        bodies = self._settle(requests, left)
        unsendable: Answers = []

        def take() -> Answers:
            taken = unsendable.copy()
            del unsendable[: len(taken)]
            return taken

        calls = self._calls(bodies, requests, left, unsendable)
        revive = self.servers.revive if self.servers else None
        with contextlib.closing(complete(calls, self.settings, self._reader(requests), revive)) as lists:
            for results in lists:
                yield [*results, *take()]
        rest = take()
        if rest:
            yield rest

    # --- what goes and what comes

    def _calls(self, bodies: Bodies, requests: Requests, left: np.ndarray, unsendable: Answers) -> Iterator[Call]:
        """Make calls as they are wanted; what cannot be sent is put aside."""
        if self.prompts_go_as == MESSAGES:
            yield from self._chats(bodies, requests, left, unsendable)
            return
        for index in map(int, left):
            request = requests[index]
            prompt: list[int] | str | None = request.prompt_ids.tolist()
            if self.prompts_go_as == TEXT:
                prompt = self.text.of(prompt)
            if prompt is None:
                unsendable.append((index, Failure(self._unreadable())))
            else:
                yield Call(index, bodies.completion(request, prompt), COMPLETIONS)

    def _chats(self, bodies: Bodies, requests: Any, left: np.ndarray, unsendable: Answers) -> Iterator[Call]:
        for start in range(0, len(left), READ_AT_ONCE):
            block = left[start : start + READ_AT_ONCE].tolist()
            prompts = requests.prompts.prompts.take([index // requests.samples for index in block])
            for index, prompt in zip(block, prompts, strict=True):
                try:
                    body = bodies.chat(requests[index], messages_of(prompt), tools_of(prompt))
                except ValueError as error:
                    unsendable.append((index, Failure(f"it cannot be sent as messages: {error}")))
                else:
                    yield Call(index, body, CHAT)

    def _reader(self, requests: Requests) -> Callable[[Call, dict[str, Any]], Response]:
        stops, texts = self.context.stop_token_ids, self.stop_texts

        def read(call: Call, answer: dict[str, Any]) -> Response:
            most = int(requests.new_tokens[call.index])
            if call.path == CHAT:
                return read_chat(answer, most)
            sent = call.body["prompt"]
            ids = sent if isinstance(sent, list) else None
            return read_completion(answer, int(requests.prompt_tokens[call.index]), most, stops, texts, ids)

        return read

    def _unreadable(self) -> str:
        return (
            "written as text, it is not read as the same tokens, and the server takes no token ids: serve the model "
            "with vLLM, which does"
        )

    # --- what is checked at the start

    def _settle(self, requests: Requests, left: np.ndarray) -> Bodies:
        """Ask each server what it is, serves and reads; they have to agree."""
        key = self.settings.api_key
        servers = [examine(url, self.names, key) for url in self.urls]
        first = servers[0]
        for other in servers[1:]:
            if (other.kind, other.version, other.model) != (first.kind, first.version, first.model):
                raise GenerationError(
                    f"{first.url} is {first.title} and serves {first.model}, but {other.url} is {other.title} and "
                    f"serves {other.model}. Give addresses of servers that are alike as `tpaw_engine_url`."
                )
        context = self.context
        bodies = Bodies(first.kind, first.model, context.settings, context.stop_token_ids, self.stop_texts)
        self.version = first.title
        if self.prompts_go_as == MESSAGES:
            bodies = self._probe_chat(bodies, first, requests, left)
            for server in servers[1:]:
                self._probe_chat(bodies, server, requests, left)
        else:
            self._refuse_long(servers, requests, left)
            kinds = [self._probe(bodies, server, requests, left) for server in servers]
            if len(set(kinds)) > 1:
                raise GenerationError(
                    f"Of {', '.join(self.urls)} some take or give token ids and others do not. Give addresses of "
                    "servers that are alike as `tpaw_engine_url`."
                )
            self.prompts_go_as, responses = kinds[0]
            self.facts["responses"] = responses
            self._refuse_unreadable(requests, left)
        verified = self.servers is not None or all(server.verified for server in servers)
        self.facts |= {"served": first.model, "verified": verified, "prompts": self.prompts_go_as}
        if not verified:
            self._tell_unverified(first)
        return bodies

    def _tell_unverified(self, served: Served) -> None:
        own = "" if self.context.opponent else f" Whether its weights are those of {self.context.model} is not known."
        logger.warning_rank0(
            f"{', '.join(self.urls)}: {served.title}, which knows the model by the name {served.model} alone.{own}"
        )

    def _refuse_long(self, servers: list[Served], requests: Requests, left: np.ndarray) -> None:
        longest = int((requests.prompt_tokens[left] + requests.new_tokens[left]).max())
        for server in servers:
            if server.max_tokens is not None and server.max_tokens < longest:
                raise ConfigError(
                    f"The server at {server.url} takes {server.max_tokens} tokens of prompt and response together, "
                    f"but the longest request has {longest}. Serve the model with more (`--max-model-len "
                    f"{longest}`), or lower `max_new_tokens` or `cutoff_len`."
                )

    def _probe(self, bodies: Bodies, server: Served, requests: Requests, left: np.ndarray) -> tuple[str, str]:
        """Have one token generated, to see how the server reads a prompt: how prompts go, and responses come."""
        request = dataclasses.replace(requests[int(left[0])], max_new_tokens=1)
        if server.kind != TRANSFORMERS:
            ids = request.prompt_ids.tolist()
            answer = self._ask(server, bodies.completion(request, ids))
            if answer.status == 200 and prompt_count(answer.content) == len(ids):
                return IDS, IDS if gives_ids(answer.content) else TEXT
            if answer.status in NOT_HERE or server.kind == VLLM:
                self._refuse_answer(server, COMPLETIONS, answer)
        for index in left[:LOOKED_AT].tolist():
            if self.text.of(requests[index].prompt_ids) is not None:
                request = dataclasses.replace(requests[index], max_new_tokens=1)
                return self._probe_text(bodies, server, request), TEXT
        raise GenerationError(
            f"None of the first prompts can be sent: {self._unreadable()}. Or use `tpaw_engine: hf`."
        )

    def _probe_text(self, bodies: Bodies, server: Served, request: Request) -> str:
        """Count the tokens of a prompt there, with its BOS and, where the server adds one, without."""
        expected, counts = len(request.prompt_ids), {}
        for add_bos in (self.text.add_bos, True):
            self.text.add_bos = add_bos
            text = self.text.of(request.prompt_ids)
            if text in counts:
                break
            answer = self._ask(server, bodies.completion(request, text))
            if answer.status != 200:
                self._refuse_answer(server, COMPLETIONS, answer)
            counts[text] = prompt_count(answer.content)
            if counts[text] == expected:
                return TEXT
            if counts[text] is None:
                raise GenerationError(
                    f"The server at {server.url} gives no count of prompt tokens (`usage.prompt_tokens`), so it "
                    "cannot be known that it reads the prompts as this run does. Use another server."
                )
        raise GenerationError(
            f"The server at {server.url} reads a prompt of {expected} tokens as "
            f"{' or '.join(map(str, dict.fromkeys(counts.values())))}: its tokenizer is another one. Serve the "
            "checkpoint with its own tokenizer."
        )

    def _probe_chat(self, bodies: Bodies, server: Served, requests: Any, left: np.ndarray) -> Bodies:
        request = dataclasses.replace(requests[int(left[0])], max_new_tokens=1)
        question = [{"role": "user", "content": "?"}]
        answer = self._ask(server, bodies.chat(request, question, []), CHAT)
        if answer.status == 400 and "max_completion_tokens" in answer.words:
            bodies = dataclasses.replace(bodies, limit_key="max_completion_tokens")
            answer = self._ask(server, bodies.chat(request, question, []), CHAT)
        if answer.status != 200:
            self._refuse_answer(server, CHAT, answer)
        return bodies

    def _ask(self, server: Served, body: dict[str, Any], path: str = COMPLETIONS) -> Answered:
        key, timeout_s = self.settings.api_key, self.settings.timeout_s
        answer = ask(server.url, path, key, body, timeout_s)
        for wait_s in OVERLOAD_WAITS_S:
            if answer.status in OVERLOADED:
                time.sleep(wait_s)
                answer = ask(server.url, path, key, body, timeout_s)
        return answer

    def _refuse_answer(self, server: Served, path: str, answer: Answered) -> None:
        advice = "Correct what it names; the same command continues."
        if answer.status in (401, 403):
            advice = f"Set the environment variable `{KEY_VARIABLES[0]}`."
        elif answer.status in NOT_HERE and path == CHAT:
            advice = "What `tpaw_opponent_model` names is asked through the chat API: use a server that has it."
        elif answer.status in NOT_HERE:
            advice = (
                "Prompts as this run writes them need `/completions`, which vLLM and `transformers serve` have; "
                "`llamafactory-cli api` has the chat API alone, which `tpaw_opponent_model` uses."
            )
        raise GenerationError(
            f"The server at {server.url} answered {answer.status} to {path}: {answer.words}. {advice}"
        )

    def _refuse_unreadable(self, requests: Requests, left: np.ndarray) -> None:
        """End at once where prompts cannot be sent and no failure is allowed, rather than after all the others."""
        if self.prompts_go_as != TEXT:
            return
        looked = left[:LOOKED_AT].tolist()
        unreadable = sum(self.text.of(requests[index].prompt_ids) is None for index in looked)
        if unreadable > self.context.run.finetuning.tpaw_max_failed:
            raise GenerationError(
                f"{unreadable} of the first {len(looked)} prompts cannot be sent: {self._unreadable()}. Or use "
                "`tpaw_engine: hf`."
            )
