# SPDX-License-Identifier: Apache-2.0
"""A full disk at every kind of file: it is named, nothing half written is left, and the same command goes on then.

A small tmpfs is mounted, which needs root: `sudo pytest …`, or `unshare --map-root-user --mount pytest …`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_tpaw.team.checkpoint import check_checkpoint_complete
from tests.runs import Project

from .rows import Refusal
from .spoiling import anew, meta_of, remove_triplets, triplets_of


pytestmark = pytest.mark.integration
DISK = 4 << 20
SAVING = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def mount(request: pytest.FixtureRequest) -> Callable[[str, int], Path]:
    """Return a function that mounts a small tmpfs, leaves so many bytes free, and returns the file that fills it."""

    def mount_here(folder: str, left: int) -> Path:
        path = Path(folder).resolve()
        path.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a tmpfs cannot be mounted ({done.stderr.strip()}): run as root or by `unshare -rm`")
        request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", str(path)], check=True))
        stat = os.statvfs(path)
        (path / "filler").write_bytes(bytes(stat.f_bavail * stat.f_frsize - left))
        return path / "filler"

    return mount_here


@pytest.mark.parametrize(
    ("folder", "left", "given"),
    [
        # Space for some of the rows as they are sampled, for these but not the file, for that but not its meta file.
        *(("data/tpaw", left << 10, {"tpaw_generate_batch_tokens": 128}) for left in (4, 8, 16)),
        *(("cache", left << 10, {}) for left in (0, 16)),  # no space; for all that stands before the log-probs
        # Weights have 175 KiB, the state of the optimizer 350.
        ("saves/anew", 64 << 10, SAVING),  # weights of a checkpoint
        ("saves/anew", 320 << 10, SAVING),  # its optimizer
        ("saves/anew", 64 << 10, {}),  # weights of θ_1
        ("saves/anew", 0, {}),  # tpaw.json
    ],
)
def test_full_disk(
    mount: Callable[[str, int], Path],
    project: Project,
    train_command: Callable[..., Refusal],
    folder: str,
    left: int,
    given: dict[str, Any],
) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def start() -> Refusal:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        settings = anew(project, 0, num_train_epochs=1.0, tpaw_cache_dir="cache", **given)
        Path("run.yaml").write_text(yaml.safe_dump(settings))
        return train_command("run.yaml")

    if folder == "data/tpaw":
        remove_triplets(0)
    filler = mount(folder, left)
    refusal = start()
    (problem,) = refusal.problems
    keys = {"data/tpaw": "", "cache": "`tpaw_cache_dir: cache` has 0", "saves/anew": "`output_dir: saves/anew` has 0"}
    assert refusal.code == 5
    assert re.search(rf"No space is left on a disk: .*{keys[folder]}.* the same command then", problem)
    found = {path.name for path in Path(folder).rglob("*") if path.is_file()}
    assert not [name for name in found if name.endswith(".tmp")] or folder == "saves/anew"
    assert not [name for name in found if name.startswith("part-") or name == meta_of(0).name]
    if folder == "data/tpaw" and triplets_of(0).is_file():
        assert len(triplets_of(0).read_text().splitlines()) == 16
    filler.unlink()
    assert start() == Refusal(0, [])
    assert check_checkpoint_complete(Path("saves/anew")) == []
