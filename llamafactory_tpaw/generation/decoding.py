# SPDX-License-Identifier: Apache-2.0
r"""Continuous batching over `model.forward`: finished rows leave the cache and waiting prompts take their places.

Which rows are together depends on the requests and on the responses alone, never on time or free memory, so that the
same requests give the same bits again. The bound is what the cache really holds: rows enter by the length that
responses had so far, and where they grow beyond the bound the youngest leaves, to go on later from its tokens.

Transformers' own continuous batching (`generate_batch`) is not used. It samples all rows from the device's one
generator and drops logits processors that it does not know, so a prompt could not have its own random numbers, and it
sizes its batches by the memory that is free, so an interrupted run could not be continued to the same result.
A static cache is not used either: without compiled kernels each step would read all of it, used or not. The buffers
here are static between their enlargements instead, and a step reads what is in use.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel

from .base import Request, Response, SamplingSettings
from .row_cache import RowCache
from .sampling import choose, refuse_unsound, uniforms_of


MAX_ROWS = 256
# Prompt tokens, padding included, in one forward pass over prompts that enter.
PREFILL_TOKENS = 8192
# Steps between two looks at which rows are finished; each look waits for the device.
STEPS = {"cpu": 1}
OTHER_STEPS = 8
KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
FULL = "full_attention"
NEEDED = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache"}


def obstacle(model: PreTrainedModel) -> str | None:
    """Say why a model cannot be decoded here; None if it can."""
    config = model.config
    if not isinstance(model, GenerationMixin) or (
        type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    ):
        return "it prepares its inputs in its own way"
    if config.is_encoder_decoder or config.get_text_config() is not config:
        return "it is more than a text decoder"
    if not all(NEEDED <= set(inspect.signature(part.forward).parameters) for part in (model, model.get_decoder())):
        return "its forward takes other arguments than " + ", ".join(sorted(NEEDED))
    if config._attn_implementation not in KERNELS:
        return f"its attention is {config._attn_implementation}, not one of {', '.join(KERNELS)}"
    kinds = set(getattr(config, "layer_types", None) or [FULL])
    special = ("attention_chunk_size", "num_kv_shared_layers")
    if (
        model._is_stateful
        or not kinds <= {FULL, "sliding_attention"}
        or any(getattr(config, key, 0) for key in special)
    ):
        return "its cache holds more than each layer's keys and values of one token after another"
    return None


def pad_left(rows: Sequence[np.ndarray], pad_token_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Put rows of ids into one batch that ends at the same column: ids and mask, (B, longest)."""
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for place, row in enumerate(rows):
        input_ids[place, width - len(row) :] = torch.from_numpy(row)
        attention_mask[place, width - len(row) :] = 1
    return input_ids.to(device), attention_mask.to(device)


@dataclass(eq=False)
class Row:
    """A request, its place among the requests, its random numbers (none in greedy decoding) and what is sampled."""

    index: int
    request: Request
    uniforms: np.ndarray | None
    ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of prompt and response. The last one is the next step's input, the others are in the cache."""
        return len(self.request.prompt_ids) + len(self.ids)

    @property
    def last_position(self) -> int:
        """Where the last token stands that predicts one within the limit."""
        return len(self.request.prompt_ids) + self.request.max_new_tokens - 2

    def tokens(self) -> np.ndarray:
        """All of them."""
        return np.concatenate([self.request.prompt_ids, np.asarray(self.ids, dtype=np.int32)])

    def numbers(self, steps: int) -> np.ndarray:
        """The random numbers of the next steps; what lies beyond the request's limit is thrown away anyway."""
        return np.resize(self.uniforms[len(self.ids) : len(self.ids) + steps], steps)


class RowDecoder:
    """Decodes requests of a model without an `obstacle`; its cache holds `batch_tokens`, or one row that is larger."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: SamplingSettings,
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        batch_tokens: int,
    ) -> None:
        self.model, self.settings, self.batch_tokens = model, settings, batch_tokens
        self.stop_token_ids, self.pad_token_id = frozenset(stop_token_ids), pad_token_id
        self.steps = STEPS.get(model.device.type, OTHER_STEPS)

    @torch.inference_mode()
    def decode(self, requests: Sequence[Request], finished: Callable[[int], object]) -> list[Response]:
        """Answer requests, in their order; `finished` is told how many are whenever some are."""
        greedy = self.settings.temperature == 0
        self.waiting = deque(
            Row(index, request, None if greedy else uniforms_of(request, self.settings))
            for index, request in enumerate(requests)
        )
        self.active: list[Row] = []
        self.cache = RowCache(self.model.config.num_hidden_layers)
        self.seen: torch.Tensor | None = None
        self.responses: list[Response | None] = [None] * len(requests)
        self.answered = self.answered_tokens = 0
        self.usual_length = max((request.max_new_tokens for request in requests), default=0) // 4
        while self.waiting or self.active:
            self._admit()
            tokens = self._step()
            left = self._take(tokens)
            if left:
                finished(left)
        return self.responses

    # --- which rows are in the batch

    def _further(self, width: int) -> int:
        """Columns that buffers of this width get for what is to come: they are copied once in as many steps."""
        return max(self.steps, width // 8)

    def _fits(self, rows: int, width: int) -> bool:
        return rows <= MAX_ROWS and rows * (width + self._further(width)) <= self.batch_tokens

    def _admit(self) -> None:
        """Let the first waiting rows in when there is room for enough of them to be worth a forward pass."""
        while len(self.active) > 1 and not self._fits(len(self.active), self.cache.width + self.steps):
            self._preempt()
        entering: list[Row] = []
        width = reserved = self.cache.width
        for row in self.waiting:
            to_come = min(max(self.usual_length - len(row.ids), 0), row.request.max_new_tokens - len(row.ids))
            reserved = max(reserved, row.length + to_come)
            if not self._fits(len(self.active) + len(entering) + 1, reserved) and (self.active or entering):
                break
            width = max(width, row.length - 1)
            entering.append(row)
        if not entering or len(entering) < min(len(self.active) // 8, len(self.waiting)):
            entering = []
        for _ in entering:
            self.waiting.popleft()
        rows = len(self.active) + len(entering)
        if entering or self.cache.window.end + self.steps > self.cache.window.capacity:
            self.cache.reserve(rows, width, self.steps, self._further(width))
        for group in self._groups(entering):
            self.cache.append(self._prefill(group), len(group))
            self._remember(group)
            self.active += group

    def _preempt(self) -> None:
        """Send the row that loses least back to wait."""
        place = min(
            range(len(self.active)), key=lambda place: (len(self.active[place].ids), -self.active[place].index)
        )
        self.waiting.appendleft(self.active[place])
        self._remove([place])

    def _remove(self, places: list[int]) -> None:
        order = self.cache.drop(places)
        if self.seen is not None:
            self.seen = self.seen[order]
        self.active = [self.active[place] for place in order]
        self.cache.shrink(max((row.length - 1 for row in self.active), default=0))

    # --- forward passes

    @staticmethod
    def _groups(rows: list[Row]) -> list[list[Row]]:
        """Split rows that enter, so that one forward pass is bounded."""
        groups: list[list[Row]] = []
        longest = 0
        for row in rows:
            longest = max(longest, row.length - 1)
            if groups and (len(groups[-1]) + 1) * longest <= PREFILL_TOKENS:
                groups[-1].append(row)
            else:
                groups.append([row])
                longest = row.length - 1
        return groups

    def _prefill(self, rows: list[Row]) -> DynamicCache | None:
        """Keys and values of all tokens but the last; the next step reads that one, so no head is needed here."""
        if max(row.length for row in rows) == 1:
            return None
        tokens = [row.tokens()[:-1] for row in rows]
        input_ids, attention_mask = pad_left(tokens, self.pad_token_id, self.model.device)
        states = DynamicCache()
        self.model.get_decoder()(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=states,
            use_cache=True,
        )
        return states

    def _step(self) -> np.ndarray:
        """Sample the next tokens of all rows; shape (steps, rows)."""
        device, rows, cache = self.model.device, self.active, self.cache
        tokens = torch.tensor([row.ids[-1] if row.ids else int(row.request.prompt_ids[-1]) for row in rows])
        lengths = torch.tensor([row.length - 1 for row in rows])
        padding = (cache.width - lengths).to(device)[:, None]
        # Rows that finish between two looks run on, but not beyond the positions that the model may have.
        last = torch.tensor([row.last_position for row in rows]).to(device)[:, None]
        tokens, lengths = tokens.to(device)[:, None], lengths.to(device)[:, None]
        numbers = None
        if self.settings.temperature > 0:
            numbers = torch.from_numpy(np.stack([row.numbers(self.steps) for row in rows], 1)).to(device)
        sampled, sound = [], []
        for step in range(self.steps):
            columns = torch.arange(cache.width + 1, device=device)
            logits = self.model(
                input_ids=tokens,
                attention_mask=(columns >= padding).long(),
                position_ids=torch.minimum(lengths + step, last),
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            cache.advance(1)
            picked = choose(logits, None if numbers is None else numbers[step], self.settings, self.seen)
            tokens = picked.tokens[:, None]
            if self.seen is not None:
                self.seen.scatter_(1, tokens, True)
            sampled.append(picked.tokens)
            sound.append(picked.sound)
        refuse_unsound(bool(torch.stack(sound).all()))
        return torch.stack(sampled).cpu().numpy()

    def _remember(self, rows: list[Row]) -> None:
        """Keep what rows that enter hold, for the repetition penalty."""
        if self.settings.repetition_penalty == 1:
            return
        seen = torch.zeros(len(rows), self.model.config.vocab_size, dtype=torch.bool)
        for place, row in enumerate(rows):
            seen[place, torch.from_numpy(row.tokens()).long()] = True
        seen = seen.to(self.model.device)
        self.seen = seen if self.seen is None else torch.cat([self.seen, seen])

    def _take(self, tokens: np.ndarray) -> int:
        """Give the rows their tokens, let the finished ones leave, and say how many these were."""
        leaving: list[int] = []
        for place, row in enumerate(self.active):
            for token in tokens[:, place].tolist():
                row.ids.append(token)
                stopped = token in self.stop_token_ids
                if stopped or len(row.ids) == row.request.max_new_tokens:
                    self.responses[row.index] = Response(row.ids, "stop" if stopped else "length")
                    leaving.append(place)
                    break
        if leaving:
            self.answered_tokens += sum(len(self.active[place].ids) for place in leaving)
            self.answered += len(leaving)
            self.usual_length = self.answered_tokens // self.answered
            self._remove(leaving)
        return len(leaving)
