# SPDX-License-Identifier: Apache-2.0
"""Over how many processes LlamaFactory's launcher would spread a run, and what each of them holds of the whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...lf.given import is_on
from ...team.sharding import deepspeed_config, uses_fsdp
from ..distributed import zero_stage


if TYPE_CHECKING:
    from ...arguments.parsed import RunArguments


@dataclass(frozen=True)
class Spread:
    r"""How a run is spread.

    Attributes:
        processes: How many train.
        stage: What of the whole each holds a share of: 1 of the optimizer's state, 2 of the gradients too, 3 of the
            weights too; 0 of nothing. FSDP counts as 3.
    """

    processes: int = 1
    stage: int = 0

    def share(self, amount: float, stage: int) -> float:
        """Of what is spread from a stage on, how much one process holds."""
        return amount / self.processes if self.stage >= stage else amount

    def describe(self, stage: int) -> str:
        """Say that a figure is a share; nothing where it is not."""
        return f"; a share of {self.processes} processes" if self.stage >= stage and self.processes > 1 else ""


def spread_of(run: RunArguments) -> Spread:
    """Look at the run's keys, the environment and the devices in sight."""
    config = deepspeed_config(run)
    stage = zero_stage(config) if config is not None else 0
    if config is None and run.training.device.type != "cpu" and (run.engine.get("fsdp") or uses_fsdp(run.training)):
        stage = 3
    return Spread(count_processes(getattr(run.training, "ray_num_workers", None)), stage)


def count_processes(ray_workers: int | None = None) -> int:
    """How many training processes a command of this environment would start, all nodes counted."""
    devices = torch.cuda.device_count()
    if is_on("USE_RAY"):
        return int(ray_workers or 1)
    if not is_on("FORCE_TORCHRUN") and (devices <= 1 or is_on("USE_KT")):
        return 1
    nodes, per_node = os.environ.get("NNODES", "1"), os.environ.get("NPROC_PER_NODE", str(devices))
    return max(int(nodes) * int(per_node), 1) if nodes.isdigit() and per_node.isdigit() else 1
