# SPDX-License-Identifier: Apache-2.0
"""Servers' answers as responses, what is none, and prompts as messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llamafactory_tpaw.generation.base import Failure, Request, Response
from llamafactory_tpaw.generation.protocol import IDS, MESSAGES, OTHER, VLLM, Dialect, messages_of


TEXTS = {7: "<|im_end|>", 8: "</s>"}
TOKENIZER = SimpleNamespace(eos_token_id=8, decode=lambda ids, **_: TEXTS[ids[0]])
ASKED = Request("a-0", np.asarray([1, 2], dtype=np.int32), 4, 0)


def answer(usage: tuple[int, int] | None = None, **choice: Any) -> dict[str, Any]:
    """An answer with one choice; `usage` is prompt and completion tokens."""
    content: dict[str, Any] = {"choices": [{"index": 0, "finish_reason": "stop"} | choice]}
    if usage:
        content["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return content


def read(content: dict[str, Any], way: str = IDS, kind: str = VLLM) -> Response:
    encoder = SimpleNamespace(end_of_turn=(7,), tokenizer=TOKENIZER)
    plain = SimpleNamespace(temperature=1.0, top_k=0, repetition_penalty=1.0)
    return Dialect(kind, "theta_0", plain, encoder, (7, 8), way, counts=True).read(content, ASKED)


@pytest.mark.parametrize(
    ("content", "response"),
    [
        (answer(token_ids=[5, 7]), Response([5, 7], "stop")),
        (answer(token_ids=[5], stop_reason=8), Response([5, 8], "stop")),
        (answer(token_ids=[5, 7, 9, 9], finish_reason="length"), Response([5, 7], "stop")),
        (answer(token_ids=[5, 5, 5, 5], finish_reason="length"), Response([5, 5, 5, 5], "length")),
        (answer(token_ids=[5, 7], prompt_token_ids=[1, 2]), Response([5, 7], "stop")),
        (answer(text=" a \n"), Response(None, "stop", " a \n")),
        (answer(text="a</s>b<|im_end|>c", finish_reason="length"), Response(None, "stop", "a")),
        (answer(text="<|im_end|></s>"), Response(None, "stop", "")),
        (answer(text="a\ud83d"), Response(None, "stop", "a\ufffd")),
        (answer(text="\ud83d\ude00 é"), Response(None, "stop", "\U0001f600 é")),
        (answer((2, 4), text="a b", finish_reason="length"), Response(None, "length", "a b")),
        (answer((2, 0), text="a b", finish_reason="MAX_TOKENS"), Response(None, "length", "a b")),
        (answer(text="a", finish_reason="eos"), Response(None, "stop", "a")),
        (answer(token_ids=[5, 8], finish_reason="end_turn"), Response([5, 8], "stop")),
    ],
)
def test_responses(content: dict[str, Any], response: Response) -> None:
    assert read(content) == response


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "not one choice"),
        ({"choices": [{}, {}]}, "not one choice"),
        ({"choices": ["a"]}, "finish_reason is 'None'"),
        (answer(text="a", finish_reason="abort"), "finish_reason is 'abort'"),
        (answer(text=["a"]), "no text"),
        (answer((3, 1), text="a"), "read 3 prompt tokens, but 2 were sent"),
        (answer(token_ids=[5]), "its last token is no stop token"),
        (answer(token_ids=[True]), "no list of ids"),
        (answer(token_ids=[2**31]), "no list of ids"),
        (answer(token_ids=[5, 7], prompt_token_ids=[1, 3]), "another prompt"),
        (answer(token_ids=[5], finish_reason="length"), "after 1 tokens for length, but 4 were asked for"),
        (answer((2, 3), text="a", finish_reason="length"), "after 3 tokens for length, but 4 were asked for"),
    ],
)
def test_what_is_no_answer(content: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read(content)
    assert read(answer(text="a", finish_reason="x")) == Failure("its finish_reason is 'x', neither stop nor length")


def test_ids_that_nobody_asked_for_are_not_read() -> None:
    assert read(answer(text="a", token_ids=[], prompt_token_ids=[]), kind=OTHER) == Response(None, "stop", "a")


def test_chat() -> None:
    assert read(answer((9, 3), message={"content": " hi</s> "}), MESSAGES) == Response(None, "stop", " hi</s> ")
    with pytest.raises(ValueError, match="no text"):
        read(answer(message={"content": None, "tool_calls": []}), MESSAGES)
    with pytest.raises(ValueError, match="lower limit"):
        read(answer((9, 3), message={"content": "a"}, finish_reason="length"), MESSAGES)


def test_prompts_as_messages() -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", " c "))]
    plain = SimpleNamespace(messages=turns, system="s", tools="")
    assert messages_of(plain) == [{"role": "system", "content": "s"}, *turns]
    called = [*turns, {"role": "observation", "content": "1"}, {"role": "function", "content": "{}"}]
    with pytest.raises(ValueError, match="it has function and observation, and only plain turns go as messages"):
        messages_of(SimpleNamespace(messages=called, system="", tools=""))
    with pytest.raises(ValueError, match="it has tools"):
        messages_of(SimpleNamespace(messages=turns, system="", tools="[]"))
