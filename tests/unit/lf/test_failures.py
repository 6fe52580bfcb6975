# SPDX-License-Identifier: Apache-2.0
"""What the machine refuses, told from other errors and explained with path, room and keys."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from llamafactory_tpaw.arguments.fields import FIELDS
from llamafactory_tpaw.errors import DataError, EnvironmentProblem
from llamafactory_tpaw.lf.failures import DEFAULTS, MachineProblem, explained, nearest_folder, places_of
from llamafactory_tpaw.lf.failures import _explain as explain


NONE: dict[str, object] = {}
FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space" })'),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 57280 vs 57168"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
]
OTHERS = [
    OSError(errno.ENOENT, "No such file or directory", "x"),
    SafetensorError("Error while deserializing header: InvalidHeader"),
    RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory"),
    RuntimeError("CUDA error: device-side assert triggered"),
    KeyError("output_dir"),
    PermissionError("of nothing in particular"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_known_however_it_is_said(error: Exception) -> None:
    found = explain(error, {"output_dir": "saves/x"})
    assert isinstance(found, MachineProblem)
    assert "because no space is left on the disk of " in str(found)
    assert found.exit_code == 5


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_pass(error: Exception) -> None:
    assert explain(error, NONE) is None
    with pytest.raises(type(error)), explained(NONE):
        raise error


def test_a_full_disk_behind_another_error() -> None:
    error = DataError("`sft` cannot be read.")
    assert explain(error, NONE) is None
    error.__cause__ = FULL[0]
    assert "no space is left" in str(explain(error, NONE))


def test_what_was_explained_stays_as_it_is() -> None:
    settings = {"output_dir": ".", "dataset_dir": ".", "tpaw_cache_dir": "."}
    error = explain(OSError(errno.ENOSPC, "No space left on device", "./model.safetensors"), settings)
    assert str(error).startswith(
        "model.safetensors could not be written, because no space is left on the disk of `out"
    )
    assert explain(error, {"output_dir": "elsewhere"}) is None


def test_a_file_on_a_disk_that_no_key_names(tmp_path: Path) -> None:
    other_disk = Path("/dev/shm")
    if not other_disk.is_dir() or other_disk.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    error = OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x")
    settings = {key: str(tmp_path) for key in ("output_dir", "dataset_dir", "tpaw_cache_dir")}
    assert "the disk of /dev/shm (" in str(explain(error, settings))


def test_rights_and_files_in_the_way() -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "saves/x/config.json")
    assert str(explain(denied, {"output_dir": "saves/x"})) == (
        "saves/x/config.json, which belongs to `output_dir: saves/x`, cannot be opened: Permission denied. Give "
        "yourself the right to read and write there, or choose another folder."
    )
    in_the_way = NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b")
    assert "A file is where a folder belongs: move it" in str(explain(in_the_way, NONE))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=repr,
)
def test_memory(error: Exception) -> None:
    found = explain(error, {"per_device_train_batch_size": 8, "cutoff_len": 2048})
    assert isinstance(found, EnvironmentProblem)
    assert "Lower `per_device_train_batch_size` (8 now) while raising `gradient_accumulation_steps`" in str(found)
    assert "`cutoff_len` (2048 now)" in str(found)
    assert "disable_gradient_checkpointing" not in str(found)


def test_places_and_the_folder_above(tmp_path: Path) -> None:
    assert places_of({"output_dir": "a"}, ("output_dir",)) == {"`output_dir: a`": Path("a")}
    assert nearest_folder(tmp_path / "a" / "b") == tmp_path


def test_default_of_the_cache_is_the_keys() -> None:
    assert DEFAULTS["tpaw_cache_dir"] == FIELDS["tpaw_cache_dir"].default
