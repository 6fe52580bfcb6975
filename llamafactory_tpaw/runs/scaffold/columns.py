# SPDX-License-Identifier: Apache-2.0
"""Which columns of a file are what: its entry for `dataset_info.json`, from the rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import DataError


Row = Mapping[str, Any]
# By preference. Columns of these names hold what LlamaFactory calls so.
PROMPTS = ("instruction", "prompt", "question", "query", "problem", "input")
RESPONSES = ("output", "response", "answer", "completion", "solution", "target")
QUERY = "input"
SYSTEMS = ("system", "system_prompt", "system_message")
MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
SHAPES = (("from", "value"), ("role", "content"))
ROLES = {
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt", "model", "bot", "chatgpt"),
    "system_tag": ("system",),
    "observation_tag": ("observation", "tool", "function_response"),
    "function_tag": ("function_call", "function"),
}
MADE_FOR = (
    "`instruction` (with `input`) and `output`; `prompt` and `response`; `question` and `answer`; or `messages` or "
    "`conversations`, a list of messages with `role` and `content` or `from` and `value`"
)
SPELL_OUT = "Say which is which with `--columns prompt=…,response=…` or `--columns messages=…`, or rename them."


def find_columns(path: str, rows: Sequence[Row], given: Mapping[str, str]) -> dict[str, Any]:
    r"""Make the entry of a file, without its `file_name`.

    Args:
        path: As messages call it.
        rows: Some or all of its rows, at least one.
        given: What the user says of the columns, by LlamaFactory's names: `prompt`, `response`, `messages` and so on.

    Raises:
        DataError: If nothing fits, more than one thing fits, or the file is of another kind.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    absent = [f"`{column}`" for column in given.values() if column not in columns]
    if absent:
        raise DataError(
            f"`--columns` names {', '.join(absent)}, but {path} has the columns {_listed(columns)}. Correct it."
        )
    if not given and {"chosen", "rejected"} <= set(columns):
        raise DataError(
            f"{path} has the columns `chosen` and `rejected`, so it is a preference set. Self-play starts from an SFT "
            "set, with one response a row. Name such a file, or the columns with `--columns`."
        )
    messages = _messages_column(rows, columns, given)
    if messages:
        entry = _message_entry(path, rows, messages)
    else:
        entry = _pair_entry(path, columns, given)
    for role, names in (("system", SYSTEMS), ("tools", ("tools",))):
        column = given.get(role) or _only([name for name in names if _holds_text(rows, name)])
        if column:
            entry["columns"][role] = column
    return entry


def _messages_column(rows: Sequence[Row], columns: Iterable[str], given: Mapping[str, str]) -> str | None:
    if given:
        return given.get("messages")
    shaped = [column for column in columns if _shape(rows, column) is not None]
    known = [name for name in MESSAGES if name in shaped]
    return known[0] if known else _only(shaped)


def _shape(rows: Sequence[Row], column: str) -> tuple[str, str] | None:
    """Names of a message's role and content, if the column holds lists of messages."""
    values = [row.get(column) for row in rows if row.get(column)]
    first = next((message for value in values if isinstance(value, list) for message in value), None)
    if not isinstance(first, dict):
        return None
    return next((shape for shape in SHAPES if set(shape) <= set(first)), None)


def _message_entry(path: str, rows: Sequence[Row], column: str) -> dict[str, Any]:
    shape = _shape(rows, column)
    if shape is None:
        raise DataError(
            f"`{column}` of {path} does not hold lists of messages with `role` and `content`, or `from` and `value`. "
            f"Convert it, or name other columns: {SPELL_OUT}"
        )
    messages = [message for row in rows for message in row.get(column) or [] if isinstance(message, dict)]
    roles = list(dict.fromkeys(str(message.get(shape[0])) for message in messages))
    tags = {"role_tag": shape[0], "content_tag": shape[1]}
    tags |= {tag: _only([role for role in roles if role in words]) for tag, words in ROLES.items()}
    unknown = [role for role in roles if role not in tags.values()]
    if unknown or not tags["user_tag"] or not tags["assistant_tag"]:
        raise DataError(
            f"The messages in `{column}` of {path} have the roles {_listed(roles)}, of which init must know one for "
            f"each side: {_listed(word for words in ROLES.values() for word in words)}. Rename the roles in the file, "
            "or write its entry with `tags` into dataset_info.json yourself and give the entry's name."
        )
    if any(message.get("tool_calls") for message in messages):
        formatting = "openai"
        tags["function_tag"] = tags["function_tag"] or "function"
    else:
        formatting = "sharegpt"
    tags = {tag: word for tag, word in tags.items() if word}
    return {"formatting": formatting, "columns": {"messages": column}, "tags": tags}


def _pair_entry(path: str, columns: Sequence[str], given: Mapping[str, str]) -> dict[str, Any]:
    prompts = [given["prompt"]] if "prompt" in given else [name for name in PROMPTS if name in columns]
    responses = [given["response"]] if "response" in given else [name for name in RESPONSES if name in columns]
    query = given.get("query")
    if "prompt" not in given and len(prompts) > 1 and QUERY in prompts:
        # Beside a column that asks, `input` is what the question is about.
        prompts.remove(QUERY)
        query = query or QUERY
    if len(prompts) == len(responses) == 1 and prompts != responses:
        found = {"prompt": prompts[0], "query": query, "response": responses[0], "history": given.get("history")}
        return {"columns": {role: column for role, column in found.items() if column}}
    unclear = [
        f"{_listed(found)} {'all could be' if len(found) > 1 else 'could be'} the {what}"
        for what, found in (("prompt", prompts), ("response", responses))
        if len(found) != 1
        if found
    ]
    if unclear:
        raise DataError(f"Of the columns of {path} ({_listed(columns)}) {'; '.join(unclear)}. {SPELL_OUT}")
    raise DataError(f"{path} has the columns {_listed(columns)}. init finds its way by {MADE_FOR}. {SPELL_OUT}")


def _holds_text(rows: Sequence[Row], column: str) -> bool:
    values = [row.get(column) for row in rows if row.get(column)]
    return bool(values) and all(isinstance(value, str) for value in values)


def _only(found: Sequence[str]) -> str | None:
    return found[0] if len(found) == 1 else None


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words) or "none"
