# SPDX-License-Identifier: Apache-2.0
r"""The training processes of a run: who goes first, how they wait for each other, and what they agree on.

Long waits go through the store under which the processes met, not through a collective operation, which would time
out while one process still scores. Each process shows there that it lives; how long the others wait without such a
sign is `ddp_timeout`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from ..errors import EnvironmentProblem


PREFIX = "llamafactory_tpaw"
BEAT_SECONDS = 10.0
FIRST_POLL_SECONDS, LAST_POLL_SECONDS = 0.01, 1.0


class Processes:
    r"""The processes of a run as one of them sees them.

    Attributes:
        count: How many they are.
        rank: Which of them this is, from 0.
        node: Rank of the first one on this machine.
    """

    def __init__(self, training_args: Any) -> None:
        self.count: int = training_args.world_size
        self.rank: int = training_args.process_index
        self.node = self.rank - training_args.local_process_index
        self.device: torch.device = training_args.device
        self.patience = float(training_args.ddp_timeout)
        several = self.count > 1 and dist.is_initialized()
        self.store = dist.PrefixStore(PREFIX, distributed_c10d._get_default_store()) if several else None

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
    def first_on_node(self, what: str) -> Iterator[None]:
        """Let the first process of each machine do something before its others, who then find it done."""
        if self.store is None:
            yield
            return
        done = f"{what}/{self.node}/done"
        if self.rank == self.node:
            try:
                yield
            finally:
                # Also where it failed: the others then find the same and say so.
                self.store.add(done, 1)
            return
        turn = self.store.add(f"{what}/{self.rank}/turns", 1)
        self._wait(lambda: self.store.add(done, 0) >= turn, what, lambda: [self.node])
        yield

    def meet(self, what: str) -> None:
        r"""Wait for all processes, however long they take while they live.

        Raises:
            EnvironmentProblem: If one shows no sign of life for `ddp_timeout`; it is named.
        """
        if self.store is None:
            return
        meeting = (self.store.add(what, 1) - 1) // self.count
        self.store.set(f"{what}/{meeting}/{self.rank}", "here")

        def missing() -> list[int]:
            return [rank for rank in range(self.count) if not self.store.check([f"{what}/{meeting}/{rank}"])]

        self._wait(lambda: self.store.add(what, 0) >= (meeting + 1) * self.count, what, missing)

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Meanwhile show the others that this process lives."""
        if self.store is None:
            yield
            return
        stop = threading.Event()
        beating = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        beating.start()
        try:
            yield
        finally:
            stop.set()
            beating.join()

    def _beat(self, stop: threading.Event) -> None:
        pause = min(BEAT_SECONDS, self.patience / 4)
        # A store that is gone is found by whoever waits at it.
        with contextlib.suppress(RuntimeError):
            self.store.add(f"alive/{self.rank}", 1)
            while not stop.wait(pause):
                self.store.add(f"alive/{self.rank}", 1)

    def _wait(self, happened: Callable[[], bool], what: str, missing: Callable[[], list[int]]) -> None:
        """Wait until something happened, with a look at the signs of life of those who are missing now and then."""
        begun = looked = time.monotonic()
        seen: dict[int, tuple[int, float]] = {}
        pause = FIRST_POLL_SECONDS
        while not happened():
            now = time.monotonic()
            if now - looked >= min(BEAT_SECONDS, self.patience / 4):
                looked = now
                for rank in missing():
                    beats = self.store.add(f"alive/{rank}", 0)
                    last, since = seen.get(rank, (-1, begun))
                    if beats != last:
                        seen[rank] = beats, now
                    elif now - since > self.patience:
                        raise EnvironmentProblem(
                            f"Process {rank} of {self.count} (counted from 0) has shown no sign of life for "
                            f"{now - since:.0f} s (`ddp_timeout: {self.patience:.0f}`), and process {self.rank} waits "
                            f"for its {what}. Look at its machine and its output; the same command continues."
                        )
            time.sleep(pause)
            pause = min(1.5 * pause, LAST_POLL_SECONDS)
