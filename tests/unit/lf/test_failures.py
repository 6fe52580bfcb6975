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
from llamafactory_tpaw.lf.failures import DEFAULTS, explained, nearest_folder, places_of


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError("Not enough disk space. Needed: 2.1 GiB (download: Unknown size, generated: Unknown size)"),
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
    PermissionError("of nothing in particular"),
    DataError("`sft` cannot be read."),
]
MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


def explain(error: Exception, cause: Exception | None = None) -> str:
    """What is said in place of an error, also where `explained` is around `explained`."""
    with pytest.raises(EnvironmentProblem) as caught, explained({}), explained({"output_dir": "saves/x"}):
        raise error from cause
    return str(caught.value)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_known_however_it_is_said(error: Exception) -> None:
    for said in (explain(error), explain(DataError("`sft` cannot be read."), error)):
        assert said.startswith("No space is left on a disk: ")
        assert "`output_dir: saves/x` has " in said
        assert "`cache_dir: " in said


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained({}):
        raise error
    assert caught.value is error


def test_rights_and_files_in_the_way() -> None:
    for error in (
        PermissionError(errno.EACCES, "Permission denied", "saves/x/config.json"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "saves/x/config.json"),
    ):
        assert explain(error).startswith(f"saves/x/config.json cannot be opened: {error.strerror}. Give yourself the")


@pytest.mark.parametrize("error", MEMORY, ids=repr)
def test_memory(error: Exception) -> None:
    assert "Lower `per_device_train_batch_size` while raising `gradient_accumulation_steps`" in explain(error)


def test_places_and_the_folder_above(tmp_path: Path) -> None:
    assert places_of({"output_dir": "a"}, ("output_dir",)) == {"`output_dir: a`": Path("a")}
    assert nearest_folder(tmp_path / "a" / "b") == tmp_path
    assert DEFAULTS["tpaw_cache_dir"] == FIELDS["tpaw_cache_dir"].default
