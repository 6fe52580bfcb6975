# SPDX-License-Identifier: Apache-2.0
"""What the machine refuses: a full disk at every kind of file, a read-only one, no memory; how it goes on then.

A small tmpfs is mounted, which needs root: `sudo pytest …`, or `unshare --map-root-user --mount pytest …`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llamafactory_tpaw.team.checkpoint import check_checkpoint_complete
from tests.runs import Project

from .rows import Refusal
from .spoiling import anew, meta_of, remove_triplets, triplets_of


pytestmark = pytest.mark.integration
DISK = 4 << 20
FILLER = "filler"


def free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


@pytest.fixture
def mount(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that mounts a small tmpfs on a folder and leaves so many bytes free on it."""

    def mount_here(folder: str, left: int, *options: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={DISK}", *options]), "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"a tmpfs cannot be mounted ({done.stderr.strip()}): run as root or by `unshare -rm`")
        path = Path(folder).resolve()
        request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", str(path)], check=True))
        if not options:
            (path / FILLER).write_bytes(bytes(free(path) - left))

    return mount_here


@pytest.fixture
def start(
    project: Project, train_command: Callable[..., Refusal], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Refusal]:
    """Return a function that starts iteration 0 by the command, in this process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def start_iteration(**given: Any) -> Refusal:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        settings = anew(project, 0, num_train_epochs=1.0, tpaw_cache_dir="cache", **given)
        Path("run.yaml").write_text(yaml.safe_dump(settings))
        return train_command("run.yaml")

    return start_iteration


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).rglob("*") if path.is_file()} - {FILLER}


def assert_full(refusal: Refusal, key: str) -> None:
    (problem,) = refusal.problems
    assert refusal.code == 5
    assert re.search(f"no space is left on the disk of {key} \\([0-9.]+ (B|KiB|MiB) free\\)", problem), problem
    assert "Make space there, or move the folder to another disk" in problem
    assert "the same command then continues" in problem


@contextlib.contextmanager
def goes_on(start: Callable[..., Refusal], folder: str, **given: Any) -> Iterator[None]:
    """Make space; the same command finishes then."""
    yield
    (Path(folder) / FILLER).unlink()
    assert start(**given) == Refusal(0, [])
    assert check_checkpoint_complete(Path("saves/anew")) == []


# No space, space for some of the rows as they are sampled, for these but not the file, for that but not its meta.
@pytest.mark.parametrize("left", [0, 4 << 10, 8 << 10, 16 << 10])
def test_disk_of_the_triplets(mount: Callable[..., None], start: Callable[..., Refusal], left: int) -> None:
    remove_triplets(0)
    mount("data/tpaw", left)
    with goes_on(start, "data/tpaw"):
        assert_full(start(tpaw_generate_batch_tokens=128), "data/tpaw")
        found = names("data/tpaw")
        assert "play_iter0.meta.json" not in found
        assert not [name for name in found if name.endswith(".tmp")]
        assert "play_iter0.jsonl" not in found or len(triplets_of(0).read_text().splitlines()) == 16
    assert meta_of(0).is_file()


# No space; for a fingerprint; for that and what stands before the log-probs.
@pytest.mark.parametrize("left", [0, 8 << 10, 16 << 10])
def test_disk_of_the_cache(mount: Callable[..., None], start: Callable[..., Refusal], left: int) -> None:
    mount("cache", left)
    with goes_on(start, "cache"):
        assert_full(start(), "`tpaw_cache_dir: cache`")
        assert not [name for name in names("cache") if name.startswith("part-") or name.endswith(".tmp")]


# Weights have 175 KiB, the state of the optimizer 350.
@pytest.mark.parametrize(
    ("left", "given"),
    [
        (64 << 10, {"save_strategy": "steps", "save_steps": 2}),  # weights of a checkpoint
        (320 << 10, {"save_strategy": "steps", "save_steps": 2}),  # its optimizer
        (64 << 10, {}),  # weights of θ_1
        (0, {}),  # tpaw.json
    ],
)
def test_disk_of_the_output(
    mount: Callable[..., None], start: Callable[..., Refusal], left: int, given: dict[str, Any]
) -> None:
    mount("saves/anew", left)
    with goes_on(start, "saves/anew", **given):
        assert_full(start(**given), "`output_dir: saves/anew`")


def test_read_only_output(mount: Callable[..., None], start: Callable[..., Refusal]) -> None:
    mount("saves/anew", 0, "ro")
    assert start() == Refusal(
        5,
        [
            "`output_dir: saves/anew` cannot be written to: saves/anew does not let this user write. Give yourself "
            "the right to, or choose another folder."
        ],
    )


def test_memory_of_the_device(start: Callable[..., Refusal], monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_tpaw.train.trainer import TpawTrainer

    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(TpawTrainer, "compute_loss", fail)
    assert start(disable_gradient_checkpointing=True) == Refusal(
        5,
        [
            "Memory ran out: CUDA out of memory. Tried to allocate 2.00 GiB. Lower `per_device_train_batch_size` (4 "
            "now) while raising `gradient_accumulation_steps` as much, `cutoff_len` (256 now), or "
            "`tpaw_score_batch_tokens` where players were being scored, or remove `disable_gradient_checkpointing: "
            "true`; the same command then continues."
        ],
    )
