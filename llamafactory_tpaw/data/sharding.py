# SPDX-License-Identifier: Apache-2.0
r"""Which triplets each of several training processes gets: all of a step once, in the same number of batches.

A step trains on the same triplets as one process with the whole batch would: those that come next in the order.
Each process takes a stretch of them, which begins with a new group wherever its share allows that. Where there are
too few, at the end of an epoch, batches hold `PADDING`, which stands for no triplet.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


# An index of no triplet. `TripletDataset` gives a stand-in for it, and `TripletCollator` leaves it out.
PADDING = -1


class ShardedSampler(Sampler[int]):
    r"""Arranges an order for accelerate, which gives the k-th batch of all to process k modulo their number.

    Args:
        order: Indices of the triplets in the order in which one process would train on them.
        groups: The group of each triplet by index; None where each is one by itself.
        batch_size: Triplets in a batch of one process.
        processes: How many processes there are.
        accumulation: Batches of a process in a step.
        drop_last: Whether the triplets at the end that do not fill a batch of every process are left out.
    """

    def __init__(
        self,
        order: Sampler[int],
        groups: Sequence[object] | None,
        batch_size: int,
        processes: int,
        *,
        accumulation: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.order, self.groups = order, groups
        self.batch_size, self.processes, self.accumulation = batch_size, processes, accumulation
        every = batch_size * processes
        self.triplets = len(order) // every * every if drop_last else len(order)

    def __len__(self) -> int:
        every = self.batch_size * self.processes
        return -(-self.triplets // every) * every

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order comes next."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        indices = itertools.islice(iter(self.order), self.triplets)
        while step := list(itertools.islice(indices, self.batch_size * self.processes * self.accumulation)):
            yield from self._arrange(step)

    def _arrange(self, step: list[int]) -> Iterator[int]:
        """Yield the batches of a step: the first of every process, the second of every process, and so on."""
        batches = -(-len(step) // (self.batch_size * self.processes))
        shares = share_out(self._runs(step), self.processes, batches * self.batch_size)
        starts = list(itertools.accumulate(shares, initial=0))
        for number in range(batches):
            for start, share in zip(starts, shares, strict=False):
                first, last = number * self.batch_size, min((number + 1) * self.batch_size, share)
                batch = step[start + first : start + last] if last > first else []
                yield from batch
                yield from itertools.repeat(PADDING, self.batch_size - len(batch))

    def _runs(self, step: list[int]) -> list[int]:
        """Lengths of the groups of a step, one after another."""
        if self.groups is None:
            return [1] * len(step)
        return [len(list(run)) for _, run in itertools.groupby(step, key=lambda index: self.groups[index])]


def share_out(runs: Sequence[int], processes: int, most: int) -> list[int]:
    r"""Cut triplets that come one after another into a share for each process, as even as whole groups allow.

    Args:
        runs: Number of triplets of each group, in order.
        processes: How many shares.
        most: Triplets that a share may have; all shares together hold them all.

    Returns:
        The sizes of the shares. A group is cut only where no share could end with it.
    """
    ends = list(itertools.accumulate(runs))
    total = ends[-1] if ends else 0
    shares, start = [], 0
    for left in range(processes, 0, -1):
        rest = total - start
        low, high = max(0, rest - most * (left - 1)), min(most, rest)
        whole = [end - start for end in ends if end > start and low <= end - start <= high]
        even = rest / left
        size = min(whole, key=lambda share: abs(share - even)) if whole else max(low, min(high, -(-rest // left)))
        shares.append(size)
        start += size
    return shares
