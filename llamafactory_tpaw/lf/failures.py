# SPDX-License-Identifier: Apache-2.0
"""What the machine refuses (space on a disk, a right, the device's memory) as an error that says what to do.

This is the one place: every command, and the training process, run under `explained`.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, TpawError


FULL = {errno.ENOSPC, errno.EDQUOT}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_FOLDER = {errno.ENOTDIR, errno.EEXIST}
# safetensors and torch write files in other languages than Python: the system's error is in their text at best.
FULL_TEXT = re.compile(r"StorageFull|QuotaExceeded|\bcode: (28|122)\b|os error (28|122)\b|[Nn]o space left on device")
TORCH_WRITER = re.compile(r"inline_container\.cc.*unexpected pos|PytorchStreamWriter failed writing", re.DOTALL)
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)
CAUSE_CHARACTERS = 160
DEFAULTS = {"output_dir": ".", "dataset_dir": "data", "tpaw_cache_dir": "saves/.tpaw_cache"}


class MachineProblem(EnvironmentProblem):
    """What `explained` raises."""


@contextlib.contextmanager
def explained(settings: Mapping[str, Any]) -> Iterator[None]:
    r"""Turn what the machine refuses into a `MachineProblem`; let every other error pass.

    Args:
        settings: The keys of the run, for the folders it writes to and the keys to turn; may be filled later.
    """
    try:
        yield
    except Exception as error:
        problem = _explain(error, settings)
        if problem is None:
            raise
        raise problem from error


def places_of(settings: Mapping[str, Any], keys: Sequence[str] = tuple(DEFAULTS)) -> dict[str, Path]:
    """The folders that a run's keys name, by how a message calls them."""
    paths = {key: str(settings.get(key) or DEFAULTS[key]) for key in keys}
    return {f"`{key}: {path}`": Path(path) for key, path in paths.items()}


def nearest_folder(path: Path) -> Path:
    """The path itself or the first of the folders above it that exists."""
    path = Path(os.path.abspath(path))
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _explain(error: BaseException, settings: Mapping[str, Any]) -> MachineProblem | None:
    if isinstance(error, MachineProblem):
        return None
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    for cause in causes:
        if _says_full(cause):
            return _disk_full(cause, settings)
    if isinstance(error, TpawError):
        return None
    for cause in causes:
        if isinstance(cause, OSError) and cause.filename and cause.errno in DENIED | NO_FOLDER:
            return _not_writable(cause, settings)
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and OUT_OF_MEMORY.search(str(cause))):
            return _out_of_memory(cause, settings)
    return None


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    if type(error).__name__ == "SafetensorError":
        return FULL_TEXT.search(str(error)) is not None
    return isinstance(error, RuntimeError) and TORCH_WRITER.search(str(error)) is not None


def _disk_full(error: BaseException, settings: Mapping[str, Any]) -> MachineProblem:
    """Name the file where the error does, and the folder on its disk; else the fullest disk that the run writes to."""
    places = places_of(settings) | {"TMPDIR": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(nearest_folder(place)).free for name, place in places.items()}
    name = min(free, key=free.__getitem__)
    what = "A file could not be written"
    if getattr(error, "filename", None):
        file = Path(os.fsdecode(error.filename))
        folder = nearest_folder(file.parent)
        device = folder.stat().st_dev
        name = next(
            (each for each in places if nearest_folder(places[each]).stat().st_dev == device), str(file.parent)
        )
        free[name] = shutil.disk_usage(folder).free
        what = f"{file} could not be written"
    cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return MachineProblem(
        f"{what}, because no space is left on the disk of {name} ({free[name] / 2**20:.1f} MiB free): {cause}. Make "
        "space there, or move the folder to another disk; the same command then continues."
    )


def _not_writable(error: OSError, settings: Mapping[str, Any]) -> MachineProblem:
    path = os.path.abspath(os.fsdecode(error.filename))
    places = places_of(settings)
    key = next((name for name in places if Path(path).is_relative_to(os.path.abspath(places[name]))), None)
    whose = f", which belongs to {key}," if key else ""
    advice = (
        "A file is where a folder belongs: move it, or choose another folder."
        if error.errno in NO_FOLDER
        else "Give yourself the right to read and write there, or choose another folder."
    )
    return MachineProblem(f"{os.fsdecode(error.filename)}{whose} cannot be opened: {error.strerror}. {advice}")


def _out_of_memory(error: BaseException, settings: Mapping[str, Any]) -> MachineProblem:
    def named(key: str) -> str:
        return f"`{key}` ({settings[key]} now)" if settings.get(key) else f"`{key}`"

    advice = (
        f"{named('per_device_train_batch_size')} while raising `gradient_accumulation_steps` as much, "
        f"{named('cutoff_len')}, or {named('tpaw_score_batch_tokens')} where players were being scored"
    )
    if str(settings.get("disable_gradient_checkpointing", "")).lower() == "true":
        advice += ", or remove `disable_gradient_checkpointing: true`"
    cause = " ".join(str(error).split())[:CAUSE_CHARACTERS].rstrip(".") or type(error).__name__
    return MachineProblem(f"Memory ran out: {cause}. Lower {advice}; the same command then continues.")
