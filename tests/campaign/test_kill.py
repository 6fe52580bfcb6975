# SPDX-License-Identifier: Apache-2.0
"""The short form of the campaign `kill`: iterations disturbed in each phase end as those that nothing disturbed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from .faults import Fault
from .kill import FILES, Campaign


pytestmark = pytest.mark.integration
# Iteration, phase and how far in it, what happens there after which part of a write, and the exit code.
FAULTS = [
    (0, "generating", 0.5, "kill all", 0.5, -signal.SIGKILL),
    (1, "scoring", 0.7, "kill", 1.0, 128 + signal.SIGKILL),
    (0, "training", 0.6, "ENOSPC", 0.5, 5),
    (1, "saving a checkpoint", 0.5, "SIGTERM", 0.0, 128 + signal.SIGTERM),
    (1, "saving a checkpoint", 0.95, "kill all", 0.5, -signal.SIGKILL),
]


def test_a_disturbed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, seed=0, iterations=2)
    for number, (iteration, phase, share, kind, part, code) in enumerate(FAULTS):
        places, root = campaign.places[iteration][phase], campaign.copy(iteration, f"run{number}")
        at, _ = places[int(share * len(places))]
        command = campaign.start(root, FILES[: iteration + 1], Fault(at, kind, part))
        assert command.wait() == code, command.output
        assert len(command.operations()) >= at
        assert campaign.problems(root, iteration) == []
