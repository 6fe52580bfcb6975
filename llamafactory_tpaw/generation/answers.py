# SPDX-License-Identifier: Apache-2.0
"""What a server's answer says, and which answers are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .base import Response


FINISHED = ("stop", "length")
SHOWN = 60
# Ids have to fit the files of triplets.
MOST_ID = 2**31


def read_completion(
    answer: Mapping[str, Any],
    prompt_tokens: int,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    stop_texts: Sequence[str],
    prompt_ids: Sequence[int] | None = None,
) -> Response:
    r"""Read an answer of `/completions`.

    Args:
        answer: The answer's JSON object.
        prompt_tokens: Tokens of the prompt.
        max_new_tokens: What was asked for at most.
        stop_token_ids: Ids that end a response.
        stop_texts: The same as texts.
        prompt_ids: The prompt, where it went as ids.

    Returns:
        Ids where the server gives them, else its text. A server that goes on after a stop token is cut there.

    Raises:
        ValueError: If it is no answer to this request, with the reason.
    """
    choice, reason = _choice(answer)
    counted = _count(answer, "prompt_tokens")
    if counted is not None and counted != prompt_tokens:
        raise ValueError(f"it read {counted} prompt tokens, but {prompt_tokens} were sent")
    if choice.get("token_ids") is not None:
        echoed = choice.get("prompt_token_ids")
        if prompt_ids is not None and isinstance(echoed, list) and echoed != list(prompt_ids):
            raise ValueError("it answered another prompt than was sent")
        return _from_ids(choice, reason, max_new_tokens, stop_token_ids)
    if not isinstance(choice.get("text"), str):
        raise ValueError("its choice has no `text`")
    text = _writable(choice["text"])
    end = min((text.index(stop) for stop in stop_texts if stop in text), default=None)
    if end is not None:
        return Response(None, "stop", text[:end])
    _refuse_early_end(reason, _count(answer, "completion_tokens"), max_new_tokens)
    return Response(None, reason, text)


def read_chat(answer: Mapping[str, Any], max_new_tokens: int) -> Response:
    r"""Read an answer of `/chat/completions`.

    Raises:
        ValueError: If it is no answer, with the reason.
    """
    choice, reason = _choice(answer)
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(text, str):
        raise ValueError("its message has no text")
    _refuse_early_end(reason, _count(answer, "completion_tokens"), max_new_tokens)
    return Response(None, reason, _writable(text))


def _choice(answer: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise ValueError("it has not one choice")
    reason = choices[0].get("finish_reason")
    if reason not in FINISHED:
        raise ValueError(f"its finish_reason is {str(reason)[:SHOWN]!r}, neither stop nor length")
    return choices[0], reason


def _count(answer: Mapping[str, Any], name: str) -> int | None:
    usage = answer.get("usage")
    count = usage.get(name) if isinstance(usage, Mapping) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def prompt_count(answer: Any) -> int | None:
    """How many prompt tokens the server counted, where it says so."""
    return _count(answer, "prompt_tokens") if isinstance(answer, Mapping) else None


def gives_ids(answer: Mapping[str, Any]) -> bool:
    """Whether an answer to a probe has the sampled ids."""
    try:
        return isinstance(_choice(answer)[0].get("token_ids"), list)
    except ValueError:
        return False


def _writable(text: str) -> str:
    """Replace halves of characters, which JSON can hold and no file, by U+FFFD."""
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
