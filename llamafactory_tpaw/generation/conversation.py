# SPDX-License-Identifier: Apache-2.0
"""A prompt as the messages of OpenAI's chat API, for a model with a template of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data.encoding import Message
    from ..data.prompts import Prompt


def messages_of(prompt: Prompt) -> list[dict[str, Any]]:
    r"""The conversation of a prompt, its system text first.

    Raises:
        ValueError: If a message is none that the API has, with the reason.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": prompt.system}] if prompt.system else []
    called: list[str] = []
    for number, message in enumerate(prompt.messages):
        role, content = message["role"], message["content"]
        if role in ("user", "assistant", "system"):
            messages.append({"role": role, "content": content})
        elif role == "function":
            calls = _calls(content, number)
            called = [call["id"] for call in calls]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif role == "observation" and called:
            messages += _results(content, called)
            called = []
        else:
            raise ValueError(f"the chat API has no message of role {role!r} in this place")
    return messages


def tools_of(prompt: Prompt) -> list[Any]:
    r"""The tools of a prompt as the API describes them.

    Raises:
        ValueError: If they are no JSON list.
    """
    if not prompt.tools:
        return []
    try:
        tools = json.loads(prompt.tools)
    except ValueError as error:
        raise ValueError("its tools are no JSON text") from error
    if not isinstance(tools, list):
        raise ValueError("its tools are no list")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _calls(content: str, number: int) -> list[dict[str, Any]]:
    """Calls of functions, which LlamaFactory keeps as the JSON text of one or of a list."""
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError("its function call is no JSON text") from error
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise ValueError("its function call names no function")
    return [
        {
            "id": f"call_{number}_{place}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call.get("arguments", {}), ensure_ascii=False)},
        }
        for place, call in enumerate(calls)
    ]


def _results(content: str, called: Sequence[str]) -> list[Message]:
    """What the functions returned: one text, or a JSON list with one for each call."""
    parts: list[Any] = [content]
    if len(called) > 1:
        try:
            parts = json.loads(content)
        except ValueError as error:
            raise ValueError("several functions were called, but their results are no JSON list") from error
        if not isinstance(parts, list) or len(parts) != len(called):
            raise ValueError(f"{len(called)} functions were called, but their results are no list of as many")
    texts = [part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in parts]
    return [{"role": "tool", "tool_call_id": name, "content": text} for name, text in zip(called, texts, strict=True)]
