# SPDX-License-Identifier: Apache-2.0
"""Prompts and responses as token ids, through the template that LlamaFactory trains with.

One encoder serves generation, scoring and training, so that a response is always conditioned on the same prompt
tokens, and target and generated response end by the same rule.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import tempfile
from array import array
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from jinja2 import TemplateError

from ..lf import facade


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

# What templates and their tool formats raise for messages or tools that they cannot write.
UNENCODABLE = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
SHOWN = 40  # characters of a text around a difference
# LlamaFactory writes the day before llama3's tools, by which prompts would change daily. This is Llama 3.1's default.
CLOCK = SimpleNamespace(now=lambda: datetime(2024, 7, 26))
# Two contents that share no last character: what their encoded turns have in common at the end is the end of turn.
_PROBES = ("0", "Z")


class TurnEncoder:
    r"""Encode one-turn examples and finish sampled responses.

    LlamaFactory has adapted the tokenizer to its `template`, and may have replaced the checkpoint's own chat template
    there, which is given by itself.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Any, chat_template: Any = None) -> None:
        self.tokenizer, self.template, self.chat_template = tokenizer, template, chat_template
        # What the template writes after a response's text, the final EOS of an `efficient_eos` template included.
        self.end_of_turn: list[int] = []
        question = {"role": "user", "content": "?"}
        turns = [self.encode([question], {"role": "assistant", "content": text})[1].tolist() for text in _PROBES]
        for first, second in zip(reversed(turns[0]), reversed(turns[1]), strict=False):
            if first != second:
                break
            self.end_of_turn.insert(0, first)

    def encode(
        self, prompt: Sequence[Message], response: Message, system: str | None = None, tools: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Return the ids, int32, of a prompt, whose last message is from the user's side, and of its whole response.

        Without `system` the template's default is written; `tools` is a JSON text as LlamaFactory keeps it. The end of
        turn is part of the response, and nothing is cut. What cannot be written raises one of `UNENCODABLE`.
        """
        with patch.object(facade.tool_utils, "datetime", CLOCK) if tools else nullcontext():
            prompt_ids, response_ids = self.template.encode_oneturn(
                self.tokenizer, [*prompt, response], system or None, tools or None
            )
        if self.template.efficient_eos:
            response_ids = [*response_ids, self.tokenizer.eos_token_id]
        return np.asarray(prompt_ids, dtype=np.int32), np.asarray(response_ids, dtype=np.int32)

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer, computed once: a large vocabulary takes a while."""
        return tokenizer_digest(self.tokenizer)

    @cached_property
    def template_digest(self) -> str:
        """SHA-256 over everything the template writes: slots, default system text, stop and thought words."""
        return hashlib.sha256(json.dumps(self.template, sort_keys=True, default=_describe).encode()).hexdigest()

    def finish(self, sampled: Sequence[int], finish_reason: str) -> np.ndarray:
        r"""Complete a sampled response, stop token included, with the tokens that end a turn.

        After a stop token of the template's end of turn the rest of that end follows; after any other one nothing
        does, nor after a response that ran into the limit (`finish_reason` is `length`).
        """
        ids = list(sampled)
        if finish_reason == "stop" and ids and ids[-1] in self.end_of_turn:
            ids += self.end_of_turn[self.end_of_turn.index(ids[-1]) + 1 :]
        return np.asarray(ids, dtype=np.int32)

    def text_of(self, sampled: Sequence[int], finish_reason: str) -> str:
        r"""Decode a sampled response without its end of turn; nothing else is stripped or joined.

        The stop token is left out, and so are the tokens that an end of turn has before it (a line break in some
        templates).
        """
        ids = list(sampled)
        if finish_reason == "stop" and ids:
            stop = ids.pop()
            begun = self.end_of_turn[: self.end_of_turn.index(stop)] if stop in self.end_of_turn else []
            if begun and ids[-len(begun) :] == begun:
                del ids[-len(begun) :]
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def encode_text(self, text: str, finish_reason: str) -> np.ndarray:
        """Encode a response's text where its sampled ids are of another tokenizer."""
        ids = self.tokenizer.encode(text, add_special_tokens=False) if text else []
        return np.asarray([*ids, *(self.end_of_turn if finish_reason == "stop" else [])], dtype=np.int32)

    def template_warnings(self, name: str, model: str) -> list[str]:
        """What may go wrong with the template: no end of turn, or other turns than the chat template of the model."""
        turns, said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "0"}], f"`template: {name}`"
        if not {*self.end_of_turn} & {*self.stop_token_ids()}:
            return [f"{said} ends no turn with a stop token, so targets lack the end of responses. Choose another."]
        try:
            chat = self.tokenizer.apply_chat_template(turns, chat_template=self.chat_template, tokenize=False)
        except (TemplateError, *UNENCODABLE):
            return []  # there is none, or it writes other conversations only
        ids = np.concatenate(self.encode(turns[:1], turns[1])), self.tokenizer.encode(chat, add_special_tokens=False)
        texts = (self.tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in ids)
        # LlamaFactory writes an empty thought where some chat templates write none; and one may end before the other.
        own, other = (text.replace("".join(self.template.thought_words), "") for text in texts)
        same = next((place for place, pair in enumerate(zip(own, other, strict=False)) if len({*pair}) > 1), None)
        if same is None:
            return []
        before, here, there = own[:same][-SHOWN:], own[same:][:SHOWN], other[same:][:SHOWN]
        return [
            f"{said} writes turns otherwise than the chat template of {model}: after {before!r} comes {here!r}, there "
            f"{there!r}. Choose the one that the model was trained with; `default_system` sets a system text."
        ]

    def stop_token_ids(self, model_eos: int | Sequence[int] | None = None) -> list[int]:
        """Ids that end a response: the template's, the tokenizer's EOS and those of the model's generation config."""
        extra = [model_eos] if isinstance(model_eos, int) else list(model_eos or [])
        return sorted({*self.template.get_stop_token_ids(self.tokenizer), self.tokenizer.eos_token_id, *extra})


def cut_response(ids: np.ndarray, prompt_tokens: int, cutoff_len: int) -> np.ndarray:
    """Cut a response to what the prompt leaves of `cutoff_len` tokens; a cut response has no end of turn."""
    return ids[: max(cutoff_len - prompt_tokens, 0)]


def prompt_id(prompt_ids: np.ndarray, target_ids: np.ndarray, seen: dict[int, int]) -> str:
    r"""Name a prompt and its uncut target by their content: 16 hex digits of SHA-256, `-`, and the occurrence from 0.

    `seen` has, of each content in this set so far, the number of its last occurrence; it is updated.
    """
    digest = hashlib.sha256()
    for ids in (prompt_ids, target_ids):
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(ids, dtype="<i8").tobytes())
    content = int.from_bytes(digest.digest()[:8])
    seen[content] = seen.get(content, -1) + 1
    return f"{content:016x}-{seen[content]}"


def digest_of_ids(ids: Iterable[str]) -> str:
    """SHA-256 over an ordered list of prompt ids: which prompts a set of triplets answers."""
    digest = hashlib.sha256()
    for item in ids:
        digest.update(item.encode() + b"\n")
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what maps text to ids: vocabulary, merges, normalisation and added tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
    else:
        state = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    special = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    return hashlib.sha256(json.dumps([state, special], sort_keys=True).encode()).hexdigest()


def _describe(value: Any) -> Any:
    """Turn a part of a template into what JSON has, with class names so that formatters of other kinds differ."""
    if is_dataclass(value):
        return {"class": type(value).__name__, **{spec.name: getattr(value, spec.name) for spec in fields(value)}}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return type(value).__name__


class TokenFile:
    r"""Arrays of token ids in a file without a name, which goes with the process: memory holds what is looked at.

    All arrays are appended before the first is read. `folder` None is the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)
        self.ends = array("q", [0])

    def append(self, *arrays: np.ndarray) -> None:
        """Add arrays, which are numbered from 0."""
        for ids in arrays:
            self._file.write(np.asarray(ids, dtype=np.int32).tobytes())
            self.ends.append(self.ends[-1] + len(ids))

    def __getitem__(self, number: int) -> np.ndarray:
        """Return an array, read-only int32."""
        return self._ids[self.ends[number] : self.ends[number + 1]]

    @cached_property
    def _ids(self) -> np.ndarray:
        self._file.flush()
        if not self.ends[-1]:
            return np.empty(0, dtype=np.int32)
        return np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.int32)
