# SPDX-License-Identifier: Apache-2.0
"""How training processes wait for each other: threads that share a store stand for them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from llamafactory_tpaw.errors import EnvironmentProblem
from llamafactory_tpaw.team.processes import Processes


def make(rank: int, count: int, store: dist.Store | None, *, per_node: int = 4, patience: float = 60.0) -> Processes:
    training_args = SimpleNamespace(
        world_size=count,
        process_index=rank,
        local_process_index=rank % per_node,
        device=torch.device("cpu"),
        ddp_timeout=patience,
    )
    processes = Processes(training_args)
    processes.store = store
    return processes


def together(count: int, work: Callable[[Processes], Any], **settings: Any) -> list[Any]:
    """What each of the processes returns."""
    store = dist.HashStore()
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, [make(rank, count, store, **settings) for rank in range(count)]))


def test_nobody_goes_on_before_all_are_there() -> None:
    arrived: list[list[int]] = [[], []]

    def work(processes: Processes) -> list[int]:
        seen = []
        for number in range(2):
            arrived[number].append(processes.rank)
            processes.meet("scores")
            seen.append(len(arrived[number]))
        return seen

    assert together(5, work) == [[5, 5]] * 5


def test_the_first_of_each_node_goes_first_every_time() -> None:
    order: list[int] = []

    def work(processes: Processes) -> None:
        for _ in range(3):
            with processes.first_on_node("fingerprints"):
                order.append(processes.rank)
            processes.meet("turn")

    together(4, work, per_node=2)
    for number in range(3):
        turn = order[4 * number : 4 * number + 4]
        assert turn.index(0) < turn.index(1)
        assert turn.index(2) < turn.index(3)


def test_where_the_first_fails_the_others_find_out_by_themselves() -> None:
    def work(processes: Processes) -> str:
        try:
            with processes.first_on_node("fingerprints"):
                raise ValueError(f"{processes.rank} found it")
        except ValueError as error:
            return str(error)

    assert together(2, work) == ["0 found it", "1 found it"]


def test_a_process_without_a_sign_of_life_is_named() -> None:
    """It is waited for as long as it lives, however long that is."""
    store, gone = dist.HashStore(), Event()
    waiting, other = (make(rank, 2, store, patience=0.2) for rank in range(2))

    def live_a_little() -> None:
        with other.alive():
            gone.wait(5 * other.patience)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(live_a_little)
        with pytest.raises(EnvironmentProblem, match=r"Process 1 of 2 .*`ddp_timeout: 0`.*waits for its scores"):
            waiting.meet("scores")
        assert store.add("alive/1", 0) > 5
        gone.set()


def test_one_process_waits_for_nobody() -> None:
    alone = make(0, 1, None)
    alone.meet("scores")
    with alone.first_on_node("fingerprints"), alone.alive():
        marks = np.array([True, False])
    assert alone.as_first(marks) is marks
    assert float(alone.largest(torch.tensor(2.0))) == 2.0
