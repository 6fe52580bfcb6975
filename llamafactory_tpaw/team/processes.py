# SPDX-License-Identifier: Apache-2.0
"""The training processes of a run: who goes first, how they wait for each other, and what they agree on."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from ..errors import EnvironmentProblem


# How long a process waits for one that still scores, or hashes a large model; `ddp_timeout` where that is longer. The
# group of training itself would give up much earlier.
PATIENCE_S = 24 * 3600.0


class Processes:
    """The processes of a run as one of them sees them, `rank` of `count`; all of them make it at the same time."""

    def __init__(self, training_args: Any) -> None:
        self.count: int = training_args.world_size
        self.rank: int = training_args.process_index
        self.is_first_on_node = training_args.local_process_index == 0
        self.patience = datetime.timedelta(seconds=max(PATIENCE_S, training_args.ddp_timeout))
        self._group = dist.new_group(backend="gloo", timeout=self.patience) if self.count > 1 else None

    def as_first(self, value: Any) -> Any:
        """Return what the first process gives; all call it."""
        shared = [value]
        if self.count > 1:
            dist.broadcast_object_list(shared, src=0, group=self._group)
        return shared[0]

    @contextlib.contextmanager
    def first_on_node(self) -> Iterator[None]:
        """Let the first process of each machine do something before its others, who then find it done."""
        if not self.is_first_on_node:
            self.meet()
        try:
            yield
        finally:
            # Also where it failed: the others then find the same and say so.
            if self.is_first_on_node:
                self.meet()

    def meet(self) -> None:
        """Wait for all processes: EnvironmentProblem if one ended, or does not come for a day or `ddp_timeout`."""
        if self.count == 1:
            return
        try:
            dist.monitored_barrier(self._group, self.patience)
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"Process {self.rank} of {self.count} (counted from 0) waited for the others in vain: "
                f"{' '.join(str(error).split())[:300]}. Look at the others' output; the same command continues."
            ) from error
