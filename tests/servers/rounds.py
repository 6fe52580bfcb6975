# SPDX-License-Identifier: Apache-2.0
"""A round of made-up prompts for the engine `openai`: the real workflow and engine, without a model or a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.data.encoding import digest_of_ids
from llamafactory_tpaw.data.prompts import Prompt
from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.generation import exchange
from llamafactory_tpaw.generation.base import SamplingSettings
from llamafactory_tpaw.generation.client import ServerEngine
from llamafactory_tpaw.generation.workflow import Job
from tests.servers.faulty import answer_ids


STOP, PROMPT_TOKENS, NEW_TOKENS = 3, 6, 32
TARGET = np.arange(97, 103, dtype=np.int32)


class Prompts:
    """Prompts of token ids that differ, made when they are asked for."""

    def __init__(self, count: int) -> None:
        self.count, self.prompt_tokens = count, np.full(count, PROMPT_TOKENS, dtype=np.int32)
        self.ids = [f"{index:016x}-0" for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def prompt_ids(self, index: int) -> np.ndarray:
        return np.array([10 + int(digit) for digit in f"{index:0{PROMPT_TOKENS}d}"], dtype=np.int32)

    def take(self, indices: Sequence[int]) -> list[Prompt]:
        message, target = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
        return [Prompt(self.ids[at], [message], "", "", target, self.prompt_ids(at), TARGET) for at in indices]


class Encoder:
    """Ids are the codes of letters."""

    tokenizer_digest = template_digest = "0"
    end_of_turn = (STOP,)

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(eos_token_id=STOP, bos_token=None, decode=lambda *_, **__: "")

    def text_of(self, ids: Sequence[int], reason: str) -> str:
        return bytes(ids[:-1] if reason == "stop" else ids).decode()

    def finish(self, ids: Sequence[int], _: str) -> np.ndarray:
        return np.asarray(ids, dtype=np.int32)


def make_job(path: Path, count: int, samples: int) -> Job:
    """A round of so many prompts and responses a prompt."""
    prompts = SimpleNamespace(
        prompts=Prompts(count),
        bad_rows=[],
        digest=digest_of_ids(Prompts(count).ids),
        entry=SimpleNamespace(name="stub"),
    )
    round_ = Round(0, SimpleNamespace(name="stub", path=path))
    settings = SamplingSettings(1.0, 1.0, 0, 1.0, NEW_TOKENS, seed=5)
    engine = {"name": "openai", "version": "", "dtype": "float32"}
    return Job(round_, prompts, {}, Encoder(), "0", "0", settings, engine, cutoff_len=100, samples=samples)


def keys_of(**changes: Any) -> SimpleNamespace:
    """The keys of a run that engine `openai` reads."""
    plain = {"engine": "openai", "engine_concurrency": 32, "engine_timeout": 30.0, "engine_retries": 8}
    plain |= {"engine_startup": 60.0, "engine_model": "tiny"}
    return SimpleNamespace(**{f"tpaw_{name}": value for name, value in (plain | changes).items()})


def make_engine(job: Job, *urls: str, **changes: Any) -> ServerEngine:
    """The engine for a round."""
    context = SimpleNamespace(
        run=SimpleNamespace(finetuning=keys_of(**changes)),
        model="tiny",
        encoder=job.encoder,
        settings=job.settings,
        stop_token_ids=(STOP,),
        opponent="",
    )
    return ServerEngine(context, urls, ["tiny"])


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `openai` and the exchange wait for moments, so that a campaign takes seconds."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.002)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.05)
    monkeypatch.setattr(exchange, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(exchange, "FLUSH_S", 0.05)


def right_ids(job: Job, index: int) -> list[int]:
    """The one right response to a request."""
    request = job.requests()[index]
    return [*answer_ids(request.prompt_ids.tolist(), request.seed(job.settings.seed), NEW_TOKENS - 1), STOP]
