# SPDX-License-Identifier: Apache-2.0
"""How training processes wait for each other and agree, in real processes over gloo."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from llamafactory_tpaw.errors import EnvironmentProblem
from llamafactory_tpaw.team import processes as module
from llamafactory_tpaw.team.processes import Processes


def start(rank: int, folder: Path, count: int, work: Callable[[Processes, Path], None]) -> None:
    torch.set_num_threads(1)
    # The timeout of training's own group is shorter than what is waited for here.
    patience = datetime.timedelta(seconds=2)
    dist.init_process_group("gloo", f"file://{folder}/store", patience, rank=rank, world_size=count)
    ranks = {"world_size": count, "process_index": rank, "local_process_index": rank}
    work(Processes(SimpleNamespace(**ranks, ddp_timeout=1)), folder)


def together(folder: Path, work: Callable[[Processes, Path], None], count: int = 3) -> None:
    multiprocessing.start_processes(start, (folder, count, work), nprocs=count, start_method="fork")


def first_then_others(processes: Processes, folder: Path) -> None:
    for turn in range(2):
        with processes.first_on_node():
            if processes.rank == 0:
                time.sleep(3 * (turn == 0))
                (folder / f"done_{turn}").touch()
            assert (folder / f"done_{turn}").exists()
    (folder / f"arrived_{processes.rank}").touch()
    processes.meet()
    assert len(list(folder.glob("arrived_*"))) == processes.count
    assert processes.as_first([processes.rank, b"key"]) == [0, b"key"]
    with pytest.raises(ValueError, match=f"{processes.rank} found it"), processes.first_on_node():
        raise ValueError(f"{processes.rank} found it")  # which keeps no other one waiting


def one_does_not_come(processes: Processes, folder: Path) -> None:
    if processes.rank == 1:
        time.sleep(3)
        return
    with pytest.raises(EnvironmentProblem, match=r"Process 0 of 2 .* in vain: .*; the same command continues"):
        processes.meet()


def test_they_wait_for_each_other(tmp_path: Path) -> None:
    together(tmp_path, first_then_others)


def test_one_that_does_not_come_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 1)
    together(tmp_path, one_does_not_come, count=2)
