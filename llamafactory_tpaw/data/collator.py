# SPDX-License-Identifier: Apache-2.0
"""From triplets to a batch in which every sequence is there once, and the order in which epochs visit them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from .layout import Layout, Row, lay_out, pack


if TYPE_CHECKING:
    from .opponents import Triplet

# Which of a batch's sequences are a triplet's target, generated response and y_0.
RESPONSE_INDICES = ("target_index", "generated_index", "proto_index")
# Marks an item, and a batch of such items, of a process that has no triplet left.
IS_PADDING = "is_padding"
# An index of no triplet, of which `TripletDataset` makes such an item.
PADDING = -1
# Groups are sorted by length within as many batches as this, so that epochs still differ.
BUCKET_BATCHES = 50


@dataclass(eq=False)
class TripletDataset(Dataset):
    """Triplets with, for cached players, their log-probs: sums in nats, shape (n, J), players oldest first."""

    triplets: Sequence[Triplet]
    player_target_logps: np.ndarray | None = None
    player_generated_logps: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.triplets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == PADDING:
            return self[0] | {IS_PADDING: True}
        item: dict[str, Any] = {"triplet": self.triplets[index]}
        if self.player_target_logps is not None:
            item["player_target_logps"] = self.player_target_logps[index]
            item["player_generated_logps"] = self.player_generated_logps[index]
        return item


class GroupSampler(Sampler[int]):
    r"""Visits the triplets of a group one after another; one that does not fit a batch is continued in the next.

    Where they are `grouped`, triplets with the same prompt and target form a group. `seed` and the epoch's number give
    the order of groups that are shuffled; `by_length` brings those of like length together.
    """

    def __init__(
        self,
        dataset: TripletDataset,
        batch_size: int = 1,
        *,
        seed: int = 0,
        grouped: bool = True,
        shuffle: bool = True,
        by_length: bool = False,
    ) -> None:
        groups: dict[str | int, list[int]] = {}  # in the order in which the first of each stands
        for index, triplet in enumerate(dataset.triplets):
            groups.setdefault(triplet.id if grouped else index, []).append(index)
        self.groups = list(groups.values())
        triplets = dataset.triplets
        lengths = [len(one.prompt_ids) + max(map(len, one.responses)) for one in triplets] if by_length else []
        self.lengths = [max(lengths[index] for index in group) for group in self.groups] if by_length else None
        self.bucket = BUCKET_BATCHES * batch_size
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.arange(len(self.groups))
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        for group in order if self.lengths is None else self._by_length(order):
            yield from self.groups[group]

    def _by_length(self, order: np.ndarray) -> Iterator[int]:
        """Sort stretches of the order by length, longest first: a batch too large for the device shows at once."""
        bucket: list[int] = []
        triplets = 0
        for number, group in enumerate(order, start=1):
            bucket.append(int(group))
            triplets += len(self.groups[group])
            if triplets >= self.bucket or number == len(order):
                yield from sorted(bucket, key=lambda index: -self.lengths[index])
                bucket, triplets = [], 0


class ShardedSampler(Sampler[int]):
    r"""Pads an order, so that accelerate gives every process as many batches and every triplet to one of them.

    The k-th batch of all goes to process k modulo their number, so a step trains on the triplets that come next in
    the order, as one process with the whole batch would. Only at the end of an epoch do batches hold `PADDING`, or,
    with `drop_last`, are the triplets left out that do not fill a batch of every process.
    """

    def __init__(self, order: Sampler[int], batch_size: int, processes: int, *, drop_last: bool = False) -> None:
        self.order, self.batch_size, self.processes = order, batch_size, processes
        every = batch_size * processes
        self.triplets = len(order) // every * every if drop_last else len(order)
        self.padding = -self.triplets % every

    def __len__(self) -> int:
        return self.triplets + self.padding

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order comes next."""
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self.order, self.triplets)
        yield from itertools.repeat(PADDING, self.padding)


@dataclass
class TripletCollator:
    """Make a batch of B triplets with S sequences."""

    pad_token_id: int
    # Whether a sequence that several triplets have in common, such as the target of a prompt, is there once
    # (`tpaw_grouping: prompt`); otherwise each triplet brings its own.
    grouped: bool = True
    layout: Layout = field(default_factory=Layout)

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        r"""Collate items of `TripletDataset`, without those of padding; of those alone one is kept, with `is_padding`.

        Returned are the sequences as `lay_out` or `pack` write them; `target_index`, `generated_index` and, with y_0,
        `proto_index`, (B,): which of the S sequences are a triplet's; `truncated` and `equal`, bool (B,); `weights`,
        float32 (B,); `player_target_logps` and `player_generated_logps`, float32 (B, J), where players are cached.
        """
        is_padding = all(IS_PADDING in feature for feature in features)
        features = features[:1] if is_padding else [feature for feature in features if IS_PADDING not in feature]
        triplets = [feature["triplet"] for feature in features]
        prompts, indices = self._distinct(triplets)
        rows = self.layout.arrange(list(prompts.values()))
        batch = pack(rows) if self.layout.packed else lay_out(rows, pad_token_id=self.pad_token_id)
        for name, column in zip(RESPONSE_INDICES, indices, strict=False):
            batch[name] = torch.from_numpy(column.copy())
        batch["truncated"] = torch.tensor([triplet.truncated for triplet in triplets])
        batch["equal"] = torch.tensor([triplet.equal for triplet in triplets])
        batch["weights"] = torch.tensor([triplet.weight for triplet in triplets])
        for key in ("player_target_logps", "player_generated_logps"):
            if key in features[0]:
                batch[key] = torch.stack([torch.from_numpy(feature[key]) for feature in features])
        if is_padding:
            batch[IS_PADDING] = torch.ones(())
        return batch

    def _distinct(self, triplets: Sequence[Triplet]) -> tuple[dict[bytes, Row], np.ndarray]:
        """Return prompts with their responses, and which of all responses are the triplets', (kinds, B)."""
        prompts: dict[bytes, Row] = {}
        seen: dict[tuple[bytes, bytes], tuple[bytes, int]] = {}
        used = []
        for number, triplet in enumerate(triplets):
            own = b"" if self.grouped else number.to_bytes(4, "little")
            prompt = own + triplet.prompt_ids.tobytes()
            row = prompts.setdefault(prompt, Row(triplet.prompt_ids, []))
            for kind, response in enumerate(triplet.responses):
                key = (prompt, response.tobytes() if self.grouped else kind.to_bytes(4, "little"))
                if key not in seen:
                    seen[key] = prompt, len(row.responses)
                    row.responses.append(response)
                used.append(seen[key])
        sizes = [len(row.responses) for row in prompts.values()]
        first = dict(zip(prompts, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        numbers = [first[prompt] + place for prompt, place in used]
        return prompts, np.reshape(numbers, (len(triplets), -1)).T


def count_triplets(batch: Mapping[str, torch.Tensor]) -> int:
    """How many triplets a batch of `TripletCollator` has; 0 where all is padding."""
    return 0 if IS_PADDING in batch else len(batch["equal"])
