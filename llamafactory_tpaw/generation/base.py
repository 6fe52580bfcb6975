# SPDX-License-Identifier: Apache-2.0
"""What an engine is asked and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ..arguments.parsed import RunArguments
    from ..data.encoding import TurnEncoder
    from ..data.prompts import PromptSet

# Batches' worth of requests that an engine is given at once, and that an interruption costs at most. The more, the
# rarer are the times when rows finish and none is left to take their places.
UNIT_BATCHES = 8


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are sampled: LlamaFactory's keys of the same names; temperature 0 is greedy, top-k 0 keeps all."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_new_tokens: int
    seed: int

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


@dataclass(frozen=True)
class Request:
    """One prompt."""

    id: str
    prompt_ids: np.ndarray  # int32; exactly these are conditioned on
    max_new_tokens: int  # what `max_new_tokens` and `cutoff_len` leave for this prompt
    # Which θ answers. It is part of the seed: with the same random numbers in every iteration, players that differ
    # little would give the same response, and D_O would hold it several times.
    iteration: int
    sample: int = 0  # which of the prompt's responses this is (`tpaw_samples_per_prompt`)

    def seed(self, seed: int) -> int:
        """The seed of this request's random numbers: it does not depend on order, batch or process."""
        name = f"{seed}:{self.iteration}:{self.id}" + (f":{self.sample}" if self.sample else "")
        digest = hashlib.sha256(name.encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class Response:
    """What was sampled: ids with the stop token, or a text without it where a server gives no ids."""

    ids: list[int] | None
    finish_reason: str  # `stop` or `length`
    text: str | None = None


@dataclass(frozen=True)
class Failure:
    """A request that no attempt answered, and why, in words for the user."""

    reason: str


class PromptRequests:
    r"""All requests of a round, each made when it is asked for, so that prompts need not be in memory.

    Request `i` is sample `i % samples` of prompt `i // samples`; what a prompt leaves of `cutoff_len` bounds its
    responses.
    """

    def __init__(self, prompts: PromptSet, iteration: int, samples: int, max_new_tokens: int, cutoff_len: int) -> None:
        self.prompts, self.iteration, self.samples = prompts, iteration, samples
        # Tokens of each request's prompt and response, (N,) int32.
        tokens = prompts.prompts.prompt_tokens
        self.prompt_tokens = tokens if samples == 1 else np.repeat(tokens, samples)
        self.new_tokens = np.minimum(cutoff_len - self.prompt_tokens, max_new_tokens, dtype=np.int32)

    def __len__(self) -> int:
        """Prompts times samples."""
        return len(self.prompt_tokens)

    def __getitem__(self, index: int) -> Request:
        """Make one request."""
        prompt, sample = divmod(index, self.samples)
        prompts, limit = self.prompts.prompts, int(self.new_tokens[index])
        return Request(prompts.ids[prompt], prompts.prompt_ids(prompt), limit, self.iteration, sample)


Answers = list[tuple[int, Response | Failure]]
Finished = Callable[[int], object]  # told how many more requests are done


def ignore(_: int) -> None:
    """Take no notice of how many requests are finished."""


class Engine(Protocol):
    """Samples responses. One that holds something, a server for example, also has a method `close`."""

    name: str  # its kind: `hf`, `vllm` or `openai`
    version: str  # of what samples; read after the first answers, since a server says it only then

    def answer(self, requests: PromptRequests, left: np.ndarray, finished: Finished = ignore) -> Iterator[Answers]:
        r"""Answer the requests of the round that are `left`, indices (M,) int64, ascending; each once, in any order.

        `finished` may be told before they are given. A list is on the disk before the next one is asked for. The
        iterator is closed where the workflow ends early.
        """
        ...


@dataclass(frozen=True)
class EngineContext:
    """What an engine is made from."""

    run: RunArguments
    name: str  # `theta_2`, or the name of the opponent model; for messages
    model: Path | str  # the checkpoint's folder, or the name under which a server knows it where it is none
    encoder: TurnEncoder
    settings: SamplingSettings
    dtype: str  # what the run computes in, `bfloat16` for example; not what the files hold
    stop_token_ids: tuple[int, ...]
    devices: tuple[str, ...] = ()  # what `CUDA_VISIBLE_DEVICES` names for each in sight; empty on the CPU
    opponent: str = ""  # `tpaw_opponent_model`; empty where θ_t generates
    adapters: tuple[Path, ...] = ()  # folders of the adapters on the model, in order


def units_left(requests: PromptRequests, left: np.ndarray, batch_tokens: int) -> Iterator[list[int]]:
    r"""Split requests into units, of which each is answered and kept as a whole, and give what is left of each.

    The plan covers all requests, so that after an interruption the units that are left are the same ones: responses
    are rounded by what is in a batch together.
    """
    wanted = np.zeros(len(requests), dtype=bool)
    wanted[left] = True
    for unit in plan_batches(requests.prompt_tokens, requests.new_tokens, UNIT_BATCHES * batch_tokens):
        indices = unit[wanted[unit]].tolist()
        if indices:
            yield indices


def plan_batches(prompt_tokens: np.ndarray, new_tokens: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    r"""Split requests into batches, longest prompts first, and give the indices of each.

    A batch has at most `batch_tokens` tokens, prompts padded to the longest and new tokens included; a request that is
    larger by itself forms a batch of one. The plan depends on nothing else.
    """
    order = np.argsort(-prompt_tokens.astype(np.int64), kind="stable")
    begin = width = longest = 0
    for place, index in enumerate(order):
        prompt, new = int(prompt_tokens[index]), int(new_tokens[index])
        longest = max(longest, new)
        if place == begin:
            width = prompt
        elif (place + 1 - begin) * (width + longest) > batch_tokens:
            yield order[begin:place]
            begin, width, longest = place, prompt, new
    if begin < len(order):
        yield order[begin:]
