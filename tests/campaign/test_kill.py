# SPDX-License-Identifier: Apache-2.0
"""The short form of the campaign `kill`: iterations disturbed in each phase end as those that nothing disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest

from .faults import Fault
from .kill import FILES, Campaign


pytestmark = pytest.mark.integration
# Iteration, phase and how far in it, what happens there after which part of a write, and the exit code.
FAULTS = [
    (0, "generating", 0.5, "kill all", 0.5, -signal.SIGKILL),
    (0, "generating", 0.99, "kill all", 0.0, -signal.SIGKILL),  # the last: to remove what was half-done
    (1, "scoring", 0.7, "kill", 1.0, 128 + signal.SIGKILL),
    (0, "training", 0.6, "ENOSPC", 0.5, 5),
    (1, "saving a checkpoint", 0.5, "SIGTERM", 0.0, 128 + signal.SIGTERM),
    (1, "saving a checkpoint", 0.95, "kill all", 0.5, -signal.SIGKILL),
]


def test_a_disturbed_run_ends_as_an_undisturbed_one(campaign: Campaign) -> None:
    for number, (iteration, phase, share, kind, part, code) in enumerate(FAULTS):
        places, root = campaign.places[iteration][phase], campaign.copy(iteration, f"run{number}")
        at, _ = places[int(share * len(places))]
        command = campaign.start(root, FILES[: iteration + 1], Fault(at, kind, part))
        assert command.wait() == code, command.output
        assert len(command.operations()) >= at
        assert campaign.problems(root, iteration) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: run as root or by `unshare --map-root-user --mount`")
def test_a_run_whose_disk_was_full_ends_as_another(campaign: Campaign) -> None:
    assert campaign.has_disk()
    try:
        for left in (8 << 10, 200 << 10, 480 << 10):  # for some rows; no weights; no state of the optimizer
            root = campaign.copy(0, f"full{left}")
            what, *wrong = campaign.full(root, FILES[:1], SimpleNamespace(randrange=lambda _, left=left: left))
            assert (what, wrong) == ("a full disk", [])
            assert not (root / "saves/play_iter0/train_results.json").exists()
            assert campaign.problems(root, 0) == []
    finally:
        subprocess.run(["umount", campaign.folder / "runs"], check=True)
