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


# safetensors and torch write files in other languages than Python: the system's error is in their text at best.
FULL = re.compile(
    r"StorageFull|QuotaExceeded|\bcode: (28|122)\b|os error (28|122)\b|No space left on device|Disk quota exceeded"
    r"|Not enough disk space|inline_container\.cc.*unexpected pos|PytorchStreamWriter failed writing",
    re.DOTALL | re.IGNORECASE,
)
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
REFUSED |= {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)
CAUSE_CHARACTERS = 160
DEFAULTS = {"output_dir": ".", "dataset_dir": "data", "tpaw_cache_dir": "saves/.tpaw_cache"}
HUB = os.getenv("HF_DATASETS_CACHE") or os.getenv("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
DEFAULTS["cache_dir"] = HUB  # also where `datasets` keeps the rows of local files


@contextlib.contextmanager
def explained(settings: Mapping[str, Any]) -> Iterator[None]:
    """Turn what the machine refuses into an `EnvironmentProblem` with the folders of the run's settings."""
    try:
        yield
    except EnvironmentProblem:
        raise
    except Exception as error:
        problem = explain(error, places_of(settings))
        if problem is None:
            raise
        raise EnvironmentProblem(problem) from error


def places_of(settings: Mapping[str, Any], keys: Sequence[str] = tuple(DEFAULTS)) -> dict[str, Path]:
    """The folders that a run's keys name, by how a message calls them."""
    paths = {key: str(settings.get(key) or DEFAULTS[key]) for key in keys}
    return {f"`{key}: {path}`": Path(path) for key, path in paths.items()}


def nearest_folder(path: Path) -> Path:
    """The path itself or the first of the folders above it that exists."""
    path = Path(os.path.abspath(path))
    return next(folder for folder in (path, *path.parents) if folder.exists())


def explain(error: Exception, places: Mapping[str, Path]) -> str | None:
    """Say what the machine refused, with the free space of these places, and what to do; None for other errors."""
    # One with a name is of a module that is there but lacks something: that of another version, or a bug.
    if isinstance(error, ModuleNotFoundError) or (isinstance(error, ImportError) and error.name is None):
        text = " ".join(str(error).split()).rstrip(".")
        return f"A package is missing, or is not of the version that is needed: {text}. Install it."
    causes: list[BaseException] = [error]
    while (last := causes[-1]).__cause__ or (last.__context__ and not last.__suppress_context__):
        causes.append(last.__cause__ or last.__context__)
    for cause in causes:
        text = " ".join(str(cause).split())[:CAUSE_CHARACTERS].rstrip(".") or type(cause).__name__
        if FULL.search(str(cause)):
            among = {**places, "TMPDIR": Path(tempfile.gettempdir())}
            free = {name: shutil.disk_usage(nearest_folder(place)).free / 2**20 for name, place in among.items()}
            listed = ", ".join(f"{name} has {room:.1f} MiB" for name, room in free.items())
            return (
                f"No space is left on a disk: {text}. Of the run's folders {listed} free: make space, or move the "
                "folder to another disk; the same command then continues."
            )
        if isinstance(error, TpawError):
            continue  # which has said what to do about anything else
        if isinstance(cause, OSError) and cause.filename and cause.errno in REFUSED:
            return (
                f"{os.fsdecode(cause.filename)} cannot be opened: {cause.strerror}. Give yourself the right to read "
                "and write there, move a file that stands where a folder belongs, or choose another folder."
            )
        if isinstance(cause, OSError) and cause.errno == errno.EIO:
            return f"A disk failed: {text}. Move what the run has on it; the same command then continues."
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and OUT_OF_MEMORY.search(str(cause))):
            return (
                f"Memory ran out: {text}. Lower `per_device_train_batch_size` while raising "
                "`gradient_accumulation_steps` as much, or `cutoff_len`, or `tpaw_score_batch_tokens` where players "
                "were being scored; the same command then continues."
            )
    return None
