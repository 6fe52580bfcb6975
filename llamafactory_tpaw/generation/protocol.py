# SPDX-License-Identifier: Apache-2.0
"""How a request looks to each kind of server, how its answer is read, and which answers are none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .base import Failure, Response


if TYPE_CHECKING:
    from ..data.encoding import TurnEncoder
    from ..data.prompts import Prompt
    from .base import PromptRequests, Request, SamplingSettings

VLLM, TRANSFORMERS, OTHER = "vLLM", "transformers serve", "a server of OpenAI's API"
# How prompts go: as token ids, as a text that the server reads as these ids, or as messages, by its own template.
IDS, TEXT, MESSAGES = "ids", "text", "messages"
# OpenAI's own bound on the number of stop texts.
MOST_STOPS = 4
# Seeds of 63 bits are folded to 31: OpenAI's API gives no range, and some servers take 32 bits.
SEED_SHIFT = 32
# Ids have to fit the files of triplets.
MOST_ID = 2**31
# How servers say that a response has ended, and that it ran into its limit, in small letters.
FINISHES = dict.fromkeys(("stop", "eos", "eos_token", "endoftext", "stop_sequence", "end_turn", "complete"), "stop")
FINISHES |= dict.fromkeys(("length", "max_tokens"), "length")
PASSING = ("none", "abort", "error")  # no reason, or one that may be gone when it is asked again


@dataclass(frozen=True)
class Dialect:
    """What a server is sent for a request, and how its answers are read."""

    kind: str  # what the server is
    model: str  # the name it has for the model
    settings: SamplingSettings
    encoder: TurnEncoder
    stop_token_ids: tuple[int, ...]  # ids that end a response
    way: str  # how prompts go
    adds_bos: bool = False  # whether the server puts the BOS before a text by itself
    limit_key: str = "max_tokens"  # under which name it takes the most tokens of a response
    counts: bool = field(default=False, compare=False)  # whether it counted the one token that was asked for at first

    def __post_init__(self) -> None:
        """Refuse settings that cannot be passed on."""
        settings = self.settings
        given = {"top_k": (settings.temperature and settings.top_k, 0)}
        given["repetition_penalty"] = (settings.repetition_penalty, 1)
        lost = {key: pair for key, pair in given.items() if pair[0] != pair[1]}
        if self.kind == OTHER and lost:
            raise ConfigError(
                f"{', '.join(f'`{key}: {value}`' for key, (value, _) in lost.items())} cannot be passed on: OpenAI's "
                "API has no such setting, and the server is neither vLLM nor `transformers serve`. Set "
                f"{' and '.join(f'`{key}: {none}`' for key, (_, none) in lost.items())}, or use another server."
            )

    @property
    def path(self) -> str:
        """Where requests go."""
        return "/chat/completions" if self.way == MESSAGES else "/completions"

    @cached_property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts of stop tokens, those of the template's end of turn first."""
        tokenizer = self.encoder.tokenizer
        first = [token for token in self.encoder.end_of_turn if token in self.stop_token_ids]
        ids = dict.fromkeys([*first, tokenizer.eos_token_id, *self.stop_token_ids])
        return tuple(filter(None, (tokenizer.decode([token], skip_special_tokens=False) for token in ids)))

    def prompt(self, requests: PromptRequests, index: int) -> list[Any] | str:
        """A prompt as ids, as a text that is read as the same ids, or as messages; ValueError where it is no such."""
        if self.way == MESSAGES:
            return messages_of(requests.prompts.prompts.take([index // requests.samples])[0])
        tokenizer, ids = self.encoder.tokenizer, requests[index].prompt_ids.tolist()
        if self.way == IDS:
            return ids
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if tokenizer.encode(text, add_special_tokens=False) != ids:
            raise ValueError("written as text, it is read as other tokens, and the server takes no token ids")
        return text.removeprefix(tokenizer.bos_token or "") if self.adds_bos else text

    def body(self, request: Request, prompt: list[Any] | str) -> dict[str, Any]:
        """Ask for the continuation of a prompt, or for the answer to messages."""
        settings, seed, chat = self.settings, request.seed(self.settings.seed), self.way == MESSAGES
        body = {
            "model": self.model,
            "messages" if chat else "prompt": prompt,
            self.limit_key: request.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": seed if self.kind == VLLM else seed >> SEED_SHIFT,
        }
        if self.kind == VLLM:
            # All of them, so that no default of the checkpoint or of the server's command line applies.
            body |= {"top_k": settings.top_k or -1, "repetition_penalty": settings.repetition_penalty}
            body |= {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
            if not chat:
                body |= {"stop_token_ids": list(self.stop_token_ids), "return_token_ids": True}
                body |= {"add_special_tokens": False, "skip_special_tokens": False}
                body["spaces_between_special_tokens"] = False
        elif self.kind == TRANSFORMERS:
            # Without it, it decodes greedily wherever the checkpoint's own config says so.
            config = {"repetition_penalty": settings.repetition_penalty, "do_sample": settings.temperature > 0}
            if settings.temperature > 0:
                config |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
            if not chat:
                config["eos_token_id"] = list(self.stop_token_ids)
            body["generation_config"] = json.dumps(config)
        elif not chat:
            body["stop"] = list(self.stop_texts[:MOST_STOPS])
        return body

    def read(self, answer: Any, request: Request) -> Response | Failure:
        """Read an answer: ids where the server gives them, else its text; ValueError says why it is no answer."""
        choices = field_of(answer, "choices")
        if not isinstance(choices, list) or len(choices) != 1:
            raise ValueError("it has not one choice")
        choice, said = choices[0], str(field_of(choices[0], "finish_reason"))[:60]
        reason = FINISHES.get(said.lower())
        if reason is None:
            problem = f"its finish_reason is {said!r}, neither stop nor length"
            if said.lower() not in PASSING:
                return Failure(problem)
            raise ValueError(problem)
        counted = None if self.way == MESSAGES else count_of(answer, "prompt_tokens")
        if counted not in (None, len(request.prompt_ids)):
            raise ValueError(f"it read {counted} prompt tokens, but {len(request.prompt_ids)} were sent")
        if self.kind != VLLM or self.way != IDS or choice.get("token_ids") is None:  # only vLLM is asked for ids
            response = self._read_text(choice, reason)
            tokens = count_of(answer, "completion_tokens") if self.counts else None
        elif choice.get("prompt_token_ids") not in (None, request.prompt_ids.tolist()):
            raise ValueError("it answered another prompt than was sent")
        else:
            response, tokens = self._read_ids(choice, reason, request.max_new_tokens), len(choice["token_ids"])
        # One that ran into another limit than this run's would count as cut where the run does not cut.
        if response.finish_reason == "length" and tokens is not None and tokens < request.max_new_tokens:
            raise ValueError(
                f"it stopped after {tokens} tokens for length, but {request.max_new_tokens} were asked for: the "
                "server has a lower limit"
            )
        return response

    def _read_ids(self, choice: Mapping[str, Any], reason: str, most: int) -> Response:
        ids, stops = choice["token_ids"], self.stop_token_ids
        if not isinstance(ids, list) or any(type(token) is not int or not 0 <= token < MOST_ID for token in ids):
            raise ValueError("its `token_ids` are no list of ids")
        end = next((place for place, token in enumerate(ids) if token in stops), None)
        if end is None and reason == "stop" and choice.get("stop_reason") in stops:
            ids, end = [*ids, choice["stop_reason"]], len(ids)
        if end is not None and end < most:  # a server that goes on after a stop token is cut there
            return Response(ids[: end + 1], "stop")
        if reason == "stop":
            raise ValueError("it says `stop`, but its last token is no stop token")
        return Response(ids[:most], "length")

    def _read_text(self, choice: Mapping[str, Any], reason: str) -> Response:
        chat = self.way == MESSAGES
        text = field_of(choice.get("message"), "content") if chat else choice.get("text")
        if not isinstance(text, str):
            raise ValueError("its choice has no text")
        # Halves of characters, which JSON can hold and no file, become U+FFFD.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ends = [] if chat else [text.index(stop) for stop in self.stop_texts if stop in text]
        return Response(None, "stop", text[: min(ends)]) if ends else Response(None, reason, text)


def messages_of(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages of a prompt; ValueError where it calls functions, which each server writes by its own template."""
    roles = {message["role"] for message in prompt.messages} - {"user", "assistant", "system"}
    if roles or prompt.tools:
        raise ValueError(f"it has {' and '.join(sorted(roles)) or 'tools'}, and only plain turns go as messages")
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, *({"role": turn["role"], "content": turn["content"]} for turn in prompt.messages)]


def field_of(value: Any, name: str) -> Any:
    """A field of what a server sent, which may be no object."""
    return value.get(name) if isinstance(value, Mapping) else None


def count_of(answer: Any, name: str) -> int | None:
    """A number of tokens that the server counted; None where it did not, for which some say 0."""
    count = field_of(field_of(answer, "usage"), name)
    return count if type(count) is int and count > 0 else None
