# SPDX-License-Identifier: Apache-2.0
"""The training processes of a run: who goes first, how they wait for each other, and what they agree on."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..errors import EnvironmentProblem


# How long a process waits for one that still scores, or hashes a large model; `ddp_timeout` where that is longer. The
# group of training itself would give up much earlier.
PATIENCE_S = 24 * 3600.0


class Processes:
    r"""The processes of a run as one of them sees them; all of them make it at the same time.

    Attributes:
        count: How many they are.
        rank: Which of them this is, from 0.
        is_first_on_node: Whether it is the first one on this machine.
    """

    def __init__(self, training_args: Any) -> None:
        self.count: int = training_args.world_size
        self.rank: int = training_args.process_index
        self.is_first_on_node = training_args.local_process_index == 0
        self.device: torch.device = training_args.device
        self.patience = datetime.timedelta(seconds=max(PATIENCE_S, training_args.ddp_timeout))
        self._group = None
        if self.count > 1 and dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=self.patience)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Return the largest of all processes' values, element by element; all call it with the same shape."""
        if self.count == 1:
            return values
        values = values.detach().clone()
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def as_first(self, marks: np.ndarray) -> np.ndarray:
        """Return the booleans that the first process has, (n,); all call it with the same n."""
        if self.count == 1:
            return marks
        shared = torch.from_numpy(marks.astype(np.uint8)).to(self.device)
        dist.broadcast(shared, src=0)
        return shared.cpu().numpy().astype(bool)

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
        r"""Wait for all processes.

        Raises:
            EnvironmentProblem: If one ended, or does not come for a day, or for `ddp_timeout`.
        """
        if self._group is None:
            return
        try:
            dist.monitored_barrier(self._group, self.patience)
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"Process {self.rank} of {self.count} (counted from 0) waited for the others in vain: "
                f"{' '.join(str(error).split())[:300]}. Look at the others' output; the same command continues."
            ) from error
