# SPDX-License-Identifier: Apache-2.0
"""What a request says to each kind of server, what the answer says, and which answers are none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .base import Response


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data.encoding import TurnEncoder
    from ..data.prompts import Prompt
    from .base import Request, SamplingSettings

VLLM, TRANSFORMERS, OTHER = "vLLM", "transformers serve", "a server of OpenAI's API"
COMPLETIONS, CHAT = "/completions", "/chat/completions"
# OpenAI's own bound on the number of stop texts.
MOST_STOPS = 4
# Seeds of 63 bits are folded to 31: OpenAI's API gives no range, and some servers take 32 bits.
SEED_SHIFT = 32
# Ids have to fit the files of triplets.
MOST_ID = 2**31


def prompt_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], add_bos: bool) -> str | None:
    """The text that a server without token ids reads as these ids; None where the tokenizer reads it as other ids.

    `add_bos` says that the server puts the BOS before a text by itself, so that it is left out here.
    """
    ids = list(map(int, ids))
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if tokenizer.encode(text, add_special_tokens=False) != ids:
        return None
    return text.removeprefix(tokenizer.bos_token or "") if add_bos else text


@dataclass(frozen=True)
class Bodies:
    """Makes the JSON bodies of requests."""

    kind: str  # what the server is
    model: str  # the name it has for the model
    settings: SamplingSettings
    stop_token_ids: tuple[int, ...]  # ids that end a response
    stop_texts: tuple[str, ...]  # the same as texts, for servers that take no ids, the template's own first
    limit_key: str = "max_tokens"  # under which name a chat server takes the most tokens of a response

    def __post_init__(self) -> None:
        """Refuse settings that cannot be passed on."""
        penalty, top_k = self.settings.repetition_penalty, self.settings.top_k if self.settings.temperature else 0
        if self.kind == OTHER and (top_k or penalty != 1):
            lost = {"top_k": (top_k, 0), "repetition_penalty": (penalty, 1)}
            raise ConfigError(
                [
                    f"`{key}: {value}` cannot be passed on: OpenAI's API has no such setting, and the server is "
                    f"neither vLLM nor `transformers serve`. Set `{key}: {neutral}`, or use another server."
                    for key, (value, neutral) in lost.items()
                    if value != neutral
                ]
            )

    def completion(self, request: Request, prompt: list[int] | str) -> dict[str, Any]:
        """Ask for the continuation of a prompt, as ids or as text."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": request.max_new_tokens, **self._sampling(request)}
        if self.kind == VLLM:
            return body | {
                "stop_token_ids": list(self.stop_token_ids),
                "return_token_ids": True,
                "add_special_tokens": False,
                "skip_special_tokens": False,
                "spaces_between_special_tokens": False,
            }
        if self.kind == TRANSFORMERS:
            config = self._generation_config() | {"eos_token_id": list(self.stop_token_ids)}
            return body | {"generation_config": json.dumps(config)}
        return body | ({"stop": list(self.stop_texts[:MOST_STOPS])} if self.stop_texts else {})

    def chat(self, request: Request, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Ask for the answer to a conversation, by the server's own template."""
        body = {"model": self.model, "messages": messages, self.limit_key: request.max_new_tokens}
        body |= self._sampling(request)
        if self.kind == TRANSFORMERS:
            body["generation_config"] = json.dumps(self._generation_config())
        return body

    def _sampling(self, request: Request) -> dict[str, Any]:
        """What makes the response random in the same way again."""
        settings, seed = self.settings, request.seed(self.settings.seed)
        body = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": seed >> SEED_SHIFT}
        if self.kind == VLLM:
            # All of them, so that no default of the checkpoint or of the server's command line applies.
            body |= {"seed": seed, "top_k": settings.top_k or -1, "min_p": 0.0}
            body |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
            body["repetition_penalty"] = settings.repetition_penalty
        return body

    def _generation_config(self) -> dict[str, Any]:
        """For `transformers serve`, which without it decodes greedily wherever the checkpoint's own config says so."""
        settings = self.settings
        config = {"repetition_penalty": settings.repetition_penalty, "do_sample": settings.temperature > 0}
        if settings.temperature > 0:
            config |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
        return config


def stop_texts(encoder: TurnEncoder, stop_token_ids: Sequence[int]) -> tuple[str, ...]:
    """The texts of stop tokens, those of the template's end of turn first."""
    first = [token for token in encoder.end_of_turn if token in stop_token_ids]
    ids = dict.fromkeys([*first, encoder.tokenizer.eos_token_id, *stop_token_ids])
    return tuple(filter(None, (encoder.tokenizer.decode([token], skip_special_tokens=False) for token in ids)))


def messages_of(prompt: Prompt) -> list[dict[str, Any]]:
    r"""The conversation of a prompt as the messages of OpenAI's chat API, its system text first.

    Raises:
        ValueError: If it calls functions, which each server writes by its own template.
    """
    roles = {message["role"] for message in prompt.messages} - {"user", "assistant", "system"}
    if roles or prompt.tools:
        raise ValueError(f"it has {' and '.join(sorted(roles)) or 'tools'}, and only plain turns go as messages")
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, *({"role": turn["role"], "content": turn["content"]} for turn in prompt.messages)]


def read_completion(
    answer: Any, request: Request, prompt: list[int] | str, stop_token_ids: Sequence[int], stops: Sequence[str]
) -> Response:
    r"""Read an answer of `/completions`: ids where the server gives them, else its text.

    A server that goes on after a stop token (`stop_token_ids`, as texts `stops`) is cut there.

    Raises:
        ValueError: If it is no answer to this request, with the reason.
    """
    choice, reason = _choice(answer)
    counted = count_of(answer, "prompt_tokens")
    if counted is not None and counted != len(request.prompt_ids):
        raise ValueError(f"it read {counted} prompt tokens, but {len(request.prompt_ids)} were sent")
    if choice.get("token_ids") is not None:
        if isinstance(prompt, list) and choice.get("prompt_token_ids") not in (None, prompt):
            raise ValueError("it answered another prompt than was sent")
        return _from_ids(choice, reason, request.max_new_tokens, stop_token_ids)
    text = _writable(choice.get("text"))
    end = min((text.index(stop) for stop in stops if stop in text), default=None)
    if end is not None:
        return Response(None, "stop", text[:end])
    _refuse_early_end(reason, count_of(answer, "completion_tokens"), request.max_new_tokens)
    return Response(None, reason, text)


def read_chat(answer: Any, request: Request) -> Response:
    r"""Read an answer of `/chat/completions`.

    Raises:
        ValueError: If it is no answer, with the reason.
    """
    choice, reason = _choice(answer)
    message = choice.get("message")
    text = _writable(message.get("content") if isinstance(message, Mapping) else None)
    _refuse_early_end(reason, count_of(answer, "completion_tokens"), request.max_new_tokens)
    return Response(None, reason, text)


def count_of(answer: Any, name: str) -> int | None:
    """A number of tokens that the server counted, where it says so."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    count = usage.get(name) if isinstance(usage, Mapping) else None
    return count if type(count) is int else None


def _choice(answer: Any) -> tuple[Mapping[str, Any], str]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise ValueError("it has not one choice")
    reason = choices[0].get("finish_reason")
    if reason not in ("stop", "length"):
        raise ValueError(f"its finish_reason is {str(reason)[:60]!r}, neither stop nor length")
    return choices[0], reason


def _writable(text: Any) -> str:
    """Replace halves of characters, which JSON can hold and no file, by U+FFFD."""
    if not isinstance(text, str):
        raise ValueError("its choice has no text")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _from_ids(choice: Mapping[str, Any], reason: str, max_new_tokens: int, stop_token_ids: Sequence[int]) -> Response:
    ids = choice["token_ids"]
    if not isinstance(ids, list) or any(type(token) is not int or not 0 <= token < MOST_ID for token in ids):
        raise ValueError("its `token_ids` are no list of ids")
    end = next((place for place, token in enumerate(ids) if token in stop_token_ids), None)
    if end is None and reason == "stop" and choice.get("stop_reason") in stop_token_ids:
        ids, end = [*ids, choice["stop_reason"]], len(ids)
    if end is not None and end < max_new_tokens:
        return Response(ids[: end + 1], "stop")
    if reason == "stop":
        raise ValueError("it says `stop`, but its last token is no stop token")
    _refuse_early_end(reason, len(ids), max_new_tokens)
    return Response(ids[:max_new_tokens], "length")


def _refuse_early_end(reason: str, tokens: int | None, max_new_tokens: int) -> None:
    """A response that ran into another limit than this run's would count as cut where the run does not cut."""
    if reason == "length" and tokens is not None and tokens < max_new_tokens:
        raise ValueError(
            f"it stopped after {tokens} tokens for length, but {max_new_tokens} were asked for: the server has a "
            "lower limit"
        )
