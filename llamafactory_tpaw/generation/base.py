# SPDX-License-Identifier: Apache-2.0
"""What an engine is asked and what it answers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigError


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are sampled; LlamaFactory's keys of the same names.

    Attributes:
        temperature: Divides the logits; 0 is greedy decoding.
        top_p: Smallest probability mass that is kept.
        top_k: Number of tokens kept; 0 keeps all.
        repetition_penalty: 1 is none.
        max_new_tokens: Most tokens of a response.
        seed: With a prompt's id it fixes that prompt's random numbers.
    """

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_new_tokens: int
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges: all problems at once, before a model is loaded."""
        allowed = {
            "temperature": (0 <= self.temperature < math.inf, ">= 0"),
            "top_p": (0 < self.top_p <= 1, "> 0 and <= 1"),
            "top_k": (self.top_k >= 0, ">= 0 (0 keeps all tokens)"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "> 0 (1 is none)"),
            "max_new_tokens": (self.max_new_tokens >= 1, ">= 1"),
        }
        problems = [
            f"`{key}` is {getattr(self, key)}, but must be {range_}. Correct the key."
            for key, (fits, range_) in allowed.items()
            if not fits
        ]
        if problems:
            raise ConfigError(problems)

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> SamplingSettings:
        """Read them from the keys of a run, with LlamaFactory's defaults; `do_sample: false` is temperature 0."""
        greedy = str(keys.get("do_sample", True)).lower() == "false"
        return cls(
            temperature=0.0 if greedy else float(keys.get("temperature", 0.95)),
            top_p=float(keys.get("top_p", 0.7)),
            top_k=int(keys.get("top_k", 50)),
            repetition_penalty=float(keys.get("repetition_penalty", 1.0)),
            max_new_tokens=int(keys.get("max_new_tokens", 1024)),
            seed=int(keys.get("seed", 42)),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a meta file."""
        return asdict(self)


@dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
        id: The prompt's id.
        prompt_ids: int32 token ids; exactly these are conditioned on.
        max_new_tokens: What `max_new_tokens` and `cutoff_len` leave for this prompt.
        iteration: Which θ answers. Its number is part of the seed: with the same random numbers in every iteration,
            players that differ little would give the same response, and D_O would hold it several times.
        sample: Which of the prompt's responses this is, from 0 (`tpaw_samples_per_prompt`).
    """

    id: str
    prompt_ids: np.ndarray
    max_new_tokens: int
    iteration: int
    sample: int = 0

    def seed(self, seed: int) -> int:
        """The seed of this request's random numbers: it does not depend on order, batch or process."""
        name = f"{seed}:{self.iteration}:{self.id}" + (f":{self.sample}" if self.sample else "")
        digest = hashlib.sha256(name.encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class Response:
    r"""What was sampled.

    Attributes:
        ids: Sampled ids, the stop token included; None where a server gives text only.
        finish_reason: `stop` or `length`.
        text: The response's text without the stop token; None where ids are given.
    """

    ids: list[int] | None
    finish_reason: str
    text: str | None = None


@dataclass(frozen=True)
class Failure:
    """A request that no attempt answered, and why, in words for the user."""

    reason: str


def ignore(_: int) -> None:
    """Take no notice of how many requests are finished."""


class Engine(Protocol):
    """Samples responses. Made by its own module, so that heavy imports stay there."""

    name: str
    version: str

    def generate(self, requests: Sequence[Request], finished: Callable[[int], object] = ignore) -> list[Response]:
        """Answer the requests of one unit, in their order; `finished` may be told how many more are done."""
        ...


# Batches' worth of requests that an engine is given at once, and that an interruption costs at most. The more, the
# rarer are the times when rows finish and none is left to take their places.
UNIT_BATCHES = 8


def plan_units(requests: Sequence[Request], batch_tokens: int) -> list[list[int]]:
    """Split requests into units: each is answered and kept as a whole, whatever happened before."""
    return plan_batches(requests, UNIT_BATCHES * batch_tokens)


def plan_batches(requests: Sequence[Request], batch_tokens: int) -> list[list[int]]:
    r"""Split requests into batches: longest prompts first, bounded by tokens rather than rows.

    Args:
        requests: The requests.
        batch_tokens: Most tokens in a batch, prompts padded to the longest and new tokens included. A request that
            is larger by itself forms a batch of one.

    Returns:
        Indices of the requests in each batch. The plan depends on nothing else, so a run that was interrupted makes
        the same batches again.
    """
    order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].prompt_ids), index))
    batches: list[list[int]] = []
    width = new_tokens = 0
    for index in order:
        request = requests[index]
        if batches:
            new_tokens = max(new_tokens, request.max_new_tokens)
            if (len(batches[-1]) + 1) * (width + new_tokens) <= batch_tokens:
                batches[-1].append(index)
                continue
        batches.append([index])
        width, new_tokens = len(request.prompt_ids), request.max_new_tokens
    return batches
