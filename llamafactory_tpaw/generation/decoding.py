# SPDX-License-Identifier: Apache-2.0
r"""Continuous batching over `model.forward`: finished rows leave the cache and waiting prompts take their places.

Which rows are together depends on the requests and on the responses alone, never on time or free memory, so that the
same requests give the same bits again. The bound is what the cache really holds: rows enter by the length that
responses had so far, and where they grow beyond the bound the youngest leaves, to go on later from its tokens.

docs/speed.md says why neither transformers' continuous batching nor its static cache is used. The buffers here are
static until rows come or go, and a step reads what is in use.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from .base import Request, Response, SamplingSettings
from .sampling import choose, refuse_unsound, uniforms_of


MAX_ROWS = 256
# Prompt tokens, padding included, in one forward pass over prompts that enter.
PREFILL_TOKENS = 8192
# Steps between two looks at which rows are finished; each look waits for the device.
STEPS = {"cpu": 1}
OTHER_STEPS = 8
KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
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
    kinds = {"full_attention", "sliding_attention", *(getattr(config, "layer_types", None) or ())}
    special = any(getattr(config, key, 0) for key in ("attention_chunk_size", "num_kv_shared_layers"))
    if model._is_stateful or special or len(kinds) > 2:
        return "its cache holds more than each layer's keys and values of one token after another"
    return None


def pad_left(rows: Sequence[np.ndarray], pad_token_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Put rows of ids into one batch that ends at the same column: ids and mask, (B, longest)."""
    width = max([1, *map(len, rows)])
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for place, row in enumerate(rows):
        input_ids[place, width - len(row) :] = torch.from_numpy(row)
        attention_mask[place, width - len(row) :] = 1
    return input_ids.to(device), attention_mask.to(device)


def further(width: int, steps: int) -> int:
    """Columns that buffers of this width get for what is to come: they are copied once in as many steps."""
    return max(steps, width // 8)


class RowLayer(DynamicLayer):
    r"""Keys and values of one layer: (rows, heads, columns, head size), with columns for the steps to come.

    Rows end at the same column, `end`, as in a batch that is padded on the left, so that one column is written a step
    and distances within a row are distances between columns, as masks of sliding windows need.
    """

    rows = start = end = 0  # what is in use: the first rows, and the columns from start to end

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one step's states (B, heads, 1, head size) and return all that is in use."""
        self.keys[: self.rows, :, self.end : self.end + 1] = key_states
        self.values[: self.rows, :, self.end : self.end + 1] = value_states
        self.end += 1
        return tuple(states[: self.rows, :, self.start : self.end] for states in (self.keys, self.values))

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.end - self.start

    def lacks(self, rows: int, width: int, steps: int) -> bool:
        """Whether the buffers have no place for so many rows and columns, and for as many steps to come."""
        return not self.is_initialized or not (
            rows <= len(self.keys) and width <= self.end and self.end + steps <= self.keys.shape[2]
        )

    def rearrange(self, staying: list[int], entering: DynamicLayer | None, width: int, steps: int) -> None:
        """Bring the rows that stay, by their places, to the first ones, and let others in behind them."""
        kept = len(staying)
        self.rows = kept + (len(entering.keys) if entering is not None else 0)
        anew = self.lacks(self.rows, width, steps)
        end = width if anew else self.end
        moved = [place for place, before in enumerate(staying) if anew or place != before]
        for name in ("keys", "values"):
            old, new = getattr(self, name), getattr(entering, name, None)
            buffer, columns = old, min(width, self.end)
            if anew:
                _, heads, _, size = (like := new if old is None else old).shape
                # What is masked may be anything but NaN.
                buffer = like.new_zeros(self.rows, heads, width + further(width, steps), size)
                self.dtype, self.device = buffer.dtype, buffer.device
                setattr(self, name, buffer)
            if moved:
                places = [staying[place] for place in moved]
                buffer[moved, :, end - columns : end] = old[places, :, self.end - columns : self.end]
            if new is not None:
                buffer[kept : self.rows, :, end - new.shape[2] : end] = new
        self.start, self.end, self.is_initialized = end - width, end, True


@dataclass(eq=False)
class Row:
    """A request, its place among the requests, its random numbers (none in greedy decoding) and what is sampled."""

    index: int
    request: Request
    uniforms: np.ndarray | None
    ids: list[int] = field(default_factory=list)
    place: int = 0  # in the cache

    @property
    def length(self) -> int:
        """Tokens of prompt and response. The last one is the next step's input, the others are in the cache."""
        return len(self.request.prompt_ids) + len(self.ids)

    def tokens(self) -> np.ndarray:
        """All of them."""
        return np.concatenate([self.request.prompt_ids, np.asarray(self.ids, dtype=np.int32)])

    def numbers(self, steps: int) -> np.ndarray:
        """The random numbers of the next steps; what lies beyond the request's limit is thrown away anyway."""
        return np.resize(self.uniforms[len(self.ids) : len(self.ids) + steps], steps)


@dataclass(eq=False)
class RowDecoder:
    """Decodes requests of a model without an `obstacle`; its cache holds `batch_tokens`, or one row that is larger."""

    model: PreTrainedModel
    settings: SamplingSettings
    stop_token_ids: Sequence[int]
    pad_token_id: int
    batch_tokens: int

    @torch.inference_mode()
    def decode(self, requests: Sequence[Request], finished: Callable[[int], object]) -> list[Response]:
        """Answer requests, in their order; `finished` is told again and again how many more are, or that none is."""
        self.steps = STEPS.get(self.model.device.type, OTHER_STEPS)
        greedy = self.settings.temperature == 0
        self.waiting = deque(
            Row(index, request, None if greedy else uniforms_of(request, self.settings))
            for index, request in enumerate(requests)
        )
        self.active: list[Row] = []
        self.cache = Cache(layers=[RowLayer() for _ in range(self.model.config.num_hidden_layers)])
        self.seen: torch.Tensor | None = None  # what each row holds, (B, V), for the repetition penalty
        self.responses: list[Response | None] = [None] * len(requests)
        self.usual_length = max((request.max_new_tokens for request in requests), default=0) // 4
        while self.waiting or self.active:
            self._admit()
            finished(self._take(self._step()))
        return self.responses

    # --- which rows are in the batch

    def _fits(self, rows: int, width: int) -> bool:
        return rows <= MAX_ROWS and rows * (width + further(width, self.steps)) <= self.batch_tokens

    def _admit(self) -> None:
        """Let the first waiting rows in when there is room for enough of them to be worth a forward pass."""
        while len(self.active) > 1 and not self._fits(len(self.active), _width(self.active) + self.steps):
            # The row that loses least goes on later.
            row = min(self.active, key=lambda row: (len(row.ids), -row.index))
            self.active.remove(row)
            self.waiting.appendleft(row)
        entering: list[Row] = []
        reserved = _width(self.active)
        for row in self.waiting:
            to_come = min(max(self.usual_length - len(row.ids), 0), row.request.max_new_tokens - len(row.ids))
            reserved = max(reserved, row.length + to_come)
            if not self._fits(len(self.active) + len(entering) + 1, reserved) and (self.active or entering):
                break
            entering.append(row)
        if len(entering) < min(len(self.active) // 8, len(self.waiting)):
            entering = []
        for _ in entering:
            self.waiting.popleft()
        for group in self._groups(entering):
            self._rearrange(group)
        first = self.cache.layers[0]
        if not entering and (len(self.active) < first.rows or first.lacks(0, 0, self.steps)):
            self._rearrange([])

    def _rearrange(self, entering: list[Row]) -> None:
        """Let rows enter the cache behind the active ones, and those leave it that are active no more."""
        states = self._prefill(entering).layers if entering else [None] * len(self.cache.layers)
        # Those behind take the places of those that left, so that few are moved.
        movers = [row for row in self.active if row.place >= len(self.active)]
        at_home = {row.place: row for row in self.active}
        self.active = [at_home[place] if place in at_home else movers.pop() for place in range(len(self.active))]
        staying = [row.place for row in self.active]
        if self.settings.repetition_penalty != 1:
            seen = torch.zeros(len(entering), self.model.config.vocab_size, dtype=torch.bool)
            for marks, row in zip(seen, entering, strict=True):
                marks[torch.from_numpy(row.tokens()).long()] = True
            seen = seen.to(self.model.device)
            self.seen = seen if self.seen is None else torch.cat([self.seen[staying], seen])
        self.active += entering
        width = _width(self.active)
        for layer, new in zip(self.cache.layers, states, strict=True):
            layer.rearrange(staying, new, width, self.steps)
        for place, row in enumerate(self.active):
            row.place = place

    # --- forward passes

    @staticmethod
    def _groups(rows: list[Row]) -> list[list[Row]]:
        """Split rows that enter, so that one forward pass is bounded."""
        groups: list[list[Row]] = []
        for row in rows:
            if groups and (len(groups[-1]) + 1) * _width([*groups[-1], row]) <= PREFILL_TOKENS:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _prefill(self, rows: list[Row]) -> DynamicCache:
        """Keys and values of all tokens but the last; the next step reads that one, so no head is needed here."""
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
        device, rows, width = self.model.device, self.active, self.cache.get_seq_length()
        tokens = torch.tensor([row.ids[-1] if row.ids else int(row.request.prompt_ids[-1]) for row in rows])
        lengths = torch.tensor([row.length - 1 for row in rows])
        padding = (width - lengths).to(device)[:, None]
        # Rows that finish between two looks run on, but not beyond the positions that the model may have.
        last = torch.tensor([len(row.request.prompt_ids) + row.request.max_new_tokens - 2 for row in rows])
        tokens, lengths, last = (values.to(device)[:, None] for values in (tokens, lengths, last))
        numbers = None
        if self.settings.temperature > 0:
            numbers = torch.from_numpy(np.stack([row.numbers(self.steps) for row in rows], 1)).to(device)
        sampled, sound = [], []
        for step in range(self.steps):
            columns = torch.arange(width + step + 1, device=device)
            logits = self.model(
                input_ids=tokens,
                attention_mask=(columns >= padding).long(),
                position_ids=torch.minimum(lengths + step, last),
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, -1]
            picked, is_sound = choose(logits, None if numbers is None else numbers[step], self.settings, self.seen)
            tokens = picked[:, None]
            if self.seen is not None:
                self.seen.scatter_(1, tokens, True)
            sampled.append(picked)
            sound.append(is_sound)
        refuse_unsound(bool(torch.stack(sound).all()))
        return torch.stack(sampled).cpu().numpy()

    def _take(self, tokens: np.ndarray) -> int:
        """Give the rows their tokens, let the finished ones leave, and say how many these were."""
        for row, column in zip(self.active, tokens.T.tolist(), strict=True):
            for token in column:
                row.ids.append(token)
                stopped = token in self.stop_token_ids
                if stopped or len(row.ids) == row.request.max_new_tokens:
                    self.responses[row.index] = Response(row.ids, "stop" if stopped else "length")
                    break
        before = len(self.active)
        self.active = [row for row in self.active if self.responses[row.index] is None]
        lengths = [len(response.ids) for response in self.responses if response is not None]
        self.usual_length = sum(lengths) // len(lengths) if lengths else self.usual_length
        return before - len(self.active)


def _width(rows: Sequence[Row]) -> int:
    """Columns that rows take in the cache."""
    return max([1, *(row.length - 1 for row in rows)])
