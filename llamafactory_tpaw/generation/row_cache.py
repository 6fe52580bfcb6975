# SPDX-License-Identifier: Apache-2.0
"""A key-value cache that rows enter and leave while the others go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass
class Window:
    """Which part of the buffers is in use; one for all layers.

    Rows end at the same column, `end`, as in a batch that is padded on the left, so that one column is written a step
    and distances within a row are distances between columns, as masks of sliding windows need.
    """

    rows: int = 0  # in use, the first ones of the buffer
    start: int = 0  # first column of the longest row
    end: int = 0  # the next column to be written
    row_capacity: int = 0
    capacity: int = 0


class RowLayer(DynamicLayer):
    """Keys and values of one layer, in buffers (rows, heads, columns, head size) that are larger than what is used."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one step's states (B, heads, Q, head size) and return all that is in use; the window moves later."""
        if not self.is_initialized:
            self.allocate(key_states, value_states)
        window, width = self.window, key_states.shape[-2]
        rows, columns = slice(window.rows), slice(window.start, window.end + width)
        self.keys[rows, :, window.end : window.end + width] = key_states
        self.values[rows, :, window.end : window.end + width] = value_states
        return self.keys[rows, :, columns], self.values[rows, :, columns]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.window.end - self.window.start

    def allocate(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Make buffers for states like these. They hold zeros: what is masked may be anything but NaN."""
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = (self._buffer(states) for states in (keys, values))

    def move(self, old: Window) -> None:
        """Take what was in use to new buffers of the window's size."""
        for name in ("keys", "values"):
            used = getattr(self, name)[: old.rows, :, old.start : old.end]
            buffer = self._buffer(used)
            buffer[: old.rows, :, self.window.start : self.window.end] = used
            setattr(self, name, buffer)

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(self.window.row_capacity, like.shape[1], self.window.capacity, like.shape[3])


class RowCache(Cache):
    """The cache of a batch whose rows change."""

    def __init__(self, layers: int) -> None:
        self.window = Window()
        super().__init__(layers=[RowLayer(self.window) for _ in range(layers)])

    @property
    def width(self) -> int:
        """Columns in use, that is the length of the longest row."""
        return self.window.end - self.window.start

    @property
    def allocated_tokens(self) -> int:
        """Tokens that the buffers have room for."""
        return self.window.row_capacity * self.window.capacity

    def reserve(self, rows: int, width: int, needed: int, further: int) -> None:
        """Make room for rows of up to `width` columns and `needed` ones to come; `further` where that takes a copy."""
        window, width = self.window, max(width, self.width)
        if rows <= window.row_capacity and width <= window.end and window.end + needed <= window.capacity:
            return
        old = Window(**vars(window))
        window.start, window.end = width - self.width, width
        window.row_capacity, window.capacity = max(rows, window.rows), width + further
        for layer in self.layers:
            if layer.is_initialized:
                layer.move(old)

    def append(self, states: DynamicCache | None, rows: int) -> None:
        """Let rows enter behind the others. `states` are theirs, padded on the left; None if they hold nothing yet."""
        window = self.window
        if states is not None:
            width = states.get_seq_length()
            window.start = min(window.start, window.end - width)
            for layer, new in zip(self.layers, states.layers, strict=True):
                if not layer.is_initialized:
                    layer.allocate(new.keys, new.values)
                entering = slice(window.rows, window.rows + rows)
                layer.keys[entering, :, window.end - width : window.end] = new.keys
                layer.values[entering, :, window.end - width : window.end] = new.values
        window.rows += rows

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Let rows leave; the last ones take their places. Returns which row is now at each place."""
        leaving, left = set(rows), self.window.rows - len(rows)
        order = list(range(left))
        movers = [row for row in range(left, self.window.rows) if row not in leaving]
        holes = sorted(row for row in leaving if row < left)
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        columns = slice(self.window.start, self.window.end)
        for layer in self.layers if holes else ():
            for buffer in (layer.keys, layer.values):
                buffer[holes, :, columns] = buffer[movers, :, columns]
        self.window.rows = left
        return order

    def advance(self, columns: int) -> None:
        """Count the columns that a step has written."""
        self.window.end += columns

    def shrink(self, width: int) -> None:
        """Forget columns before the longest row's first."""
        self.window.start = self.window.end - width
