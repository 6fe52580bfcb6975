# SPDX-License-Identifier: Apache-2.0
"""What a request says to each kind of server: prompt, sampling, where to stop, and nothing that it does not know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .served import OTHER, TRANSFORMERS, VLLM


if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from ..data.encoding import TurnEncoder
    from .base import Request, SamplingSettings

COMPLETIONS, CHAT = "/completions", "/chat/completions"
# OpenAI's own bound on the number of stop texts.
MOST_STOPS = 4
# Seeds of 63 bits are folded to 31: OpenAI's API gives no range, and some servers take 32 bits.
SEED_SHIFT = 32


class PromptText:
    r"""The text of a prompt that a server without token ids reads as the same ids.

    Args:
        tokenizer: The run's tokenizer; used in whatever thread asks.

    Attributes:
        add_bos: Whether the server puts the BOS before a text by itself, so that it is left out here.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.add_bos = False

    def of(self, ids: Sequence[int]) -> str | None:
        """Decode, special tokens kept; None where the tokenizer reads the text as other ids."""
        ids = list(map(int, ids))
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if self.tokenizer.encode(text, add_special_tokens=False) != ids:
            return None
        return text.removeprefix(self.tokenizer.bos_token or "") if self.add_bos else text


@dataclass(frozen=True)
class Bodies:
    r"""Makes the JSON bodies of requests.

    Attributes:
        kind: What the server is, see `served`.
        model: The name it has for the model.
        settings: Sampling settings.
        stop_token_ids: Ids that end a response.
        stop_texts: The same as texts, for servers that take no ids, the template's own first.
        limit_key: Under which name a chat server takes the most tokens of a response.
    """

    kind: str
    model: str
    settings: SamplingSettings
    stop_token_ids: tuple[int, ...]
    stop_texts: tuple[str, ...]
    limit_key: str = "max_tokens"

    def __post_init__(self) -> None:
        """Refuse settings that cannot be passed on."""
        if self.kind != OTHER:
            return
        neutral = {
            "top_k": self.settings.top_k == 0 or self.settings.temperature == 0,
            "repetition_penalty": self.settings.repetition_penalty == 1,
        }
        problems = [
            f"`{key}: {getattr(self.settings, key)}` cannot be passed on: OpenAI's API has no such setting, and the "
            f"server is neither vLLM nor `transformers serve`. Set `{key}: {int(key != 'top_k')}`, or use another "
            "server."
            for key, fits in neutral.items()
            if not fits
        ]
        if problems:
            raise ConfigError(problems)

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

    def chat(self, request: Request, messages: list[dict[str, Any]], tools: list[Any]) -> dict[str, Any]:
        """Ask for the answer to a conversation, by the server's own template."""
        body = {"model": self.model, "messages": messages, self.limit_key: request.max_new_tokens}
        body |= self._sampling(request) | ({"tools": tools} if tools else {})
        if self.kind == TRANSFORMERS:
            body["generation_config"] = json.dumps(self._generation_config())
        return body

    def _sampling(self, request: Request) -> dict[str, Any]:
        """What makes the response random in the same way again."""
        settings, seed = self.settings, request.seed(self.settings.seed)
        plain = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": seed >> SEED_SHIFT}
        if self.kind != VLLM:
            return plain
        # All of them, so that no default of the checkpoint or of the server's command line applies.
        return plain | {
            "seed": seed,
            "top_k": settings.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": settings.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    def _generation_config(self) -> dict[str, Any]:
        """For `transformers serve`, which without it decodes greedily wherever the checkpoint's own config says so."""
        settings = self.settings
        shared = {"repetition_penalty": settings.repetition_penalty, "do_sample": settings.temperature > 0}
        if settings.temperature == 0:
            return shared
        return shared | {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}


def stop_texts(encoder: TurnEncoder, stop_token_ids: Sequence[int]) -> tuple[str, ...]:
    """The texts of stop tokens, those of the template's end of turn first."""
    first = [token for token in encoder.end_of_turn if token in stop_token_ids]
    ids = dict.fromkeys([*first, encoder.tokenizer.eos_token_id, *stop_token_ids])
    return tuple(filter(None, (encoder.tokenizer.decode([token], skip_special_tokens=False) for token in ids)))
