# SPDX-License-Identifier: Apache-2.0
"""What the machine refuses (space on a disk, a right, the device's memory) as an error that says what to do.

This is the one place: every command, and the training process, run under `explained`.
"""

import contextlib
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arguments.fields import FIELDS
from ..errors import EnvironmentProblem, TpawError
from .given import FILE_ENDINGS, is_true, read_given


FULL = {errno.ENOSPC, errno.EDQUOT}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_FOLDER = {errno.ENOTDIR, errno.EEXIST}
# safetensors and torch write files in other languages than Python: the system's error is in their text at best.
FULL_TEXT = re.compile(r"StorageFull|QuotaExceeded|\bcode: (28|122)\b|os error (28|122)\b|[Nn]o space left on device")
TORCH_WRITER = re.compile(r"inline_container\.cc.*unexpected pos|PytorchStreamWriter failed writing", re.DOTALL)
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)
CAUSE_CHARACTERS = 160
UNITS = ("B", "KiB", "MiB", "GiB")
DEFAULTS = {"output_dir": ".", "dataset_dir": "data", "tpaw_cache_dir": FIELDS["tpaw_cache_dir"].default}


class MachineProblem(EnvironmentProblem):
    """What `explain` returns."""


@contextlib.contextmanager
def explained(settings: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    r"""Turn what the machine refuses into a `MachineProblem`; let every other error pass.

    Args:
        settings: Returns the keys of the run, for the folders it writes to and the keys to turn; called on failure.
    """
    try:
        yield
    except Exception as error:
        problem = explain(error, settings)
        if problem is None:
            raise
        raise problem from error


def explain(error: BaseException, settings: Callable[[], Mapping[str, Any]]) -> MachineProblem | None:
    """Say what the machine refused; None for an error of another kind."""
    if isinstance(error, MachineProblem):
        return None
    for cause in _causes(error):
        if _says_full(cause):
            return _disk_full(cause, _known(settings))
    if isinstance(error, TpawError):
        return None
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.filename and cause.errno in DENIED | NO_FOLDER:
            return _not_writable(cause, _known(settings))
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and OUT_OF_MEMORY.search(str(cause))):
            return _out_of_memory(cause, _known(settings))
    return None


def settings_in(arguments: Sequence[str]) -> Mapping[str, Any]:
    """The keys that a command line gives by its run file and overrides; none where it names no run file."""
    return read_given(list(arguments)) if arguments and arguments[0].endswith(FILE_ENDINGS) else {}


def places_of(settings: Mapping[str, Any], keys: Sequence[str] = tuple(DEFAULTS)) -> dict[str, Path]:
    """The folders that a run's keys name, by how a message calls them."""
    paths = {key: str(settings.get(key) or DEFAULTS[key]) for key in keys}
    return {f"`{key}: {path}`": Path(path) for key, path in paths.items()}


def nearest_folder(path: Path) -> Path:
    """The path itself or the first of the folders above it that exists."""
    path = Path(os.path.abspath(path))
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _known(settings: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The keys of the run; none where they cannot be read, which somebody else says."""
    try:
        return settings()
    except (TpawError, OSError):
        return {}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    if type(error).__name__ == "SafetensorError":
        return FULL_TEXT.search(str(error)) is not None
    return isinstance(error, RuntimeError) and TORCH_WRITER.search(str(error)) is not None


def _disk_full(error: BaseException, settings: Mapping[str, Any]) -> MachineProblem:
    """Name the file where the error does, and the folder on its disk; else the fullest disk that the run writes to."""
    places = places_of(settings) | _other_places(settings)
    free = {name: shutil.disk_usage(nearest_folder(place)).free for name, place in places.items()}
    name = min(free, key=free.__getitem__)
    file = getattr(error, "filename", None)
    what = "A file could not be written"
    if file:
        folder = Path(os.fsdecode(file)).parent
        same_disk = [place for place in places if _device(places[place]) == _device(folder)]
        name = next(iter(same_disk), str(folder))
        free[name] = shutil.disk_usage(nearest_folder(folder)).free
        what = f"{os.fsdecode(file)} could not be written"
    cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return MachineProblem(
        f"{what}, because no space is left on the disk of {name} ({_size(free[name])} free): {cause}. Make space "
        "there, or move the folder to another disk. No file is left half-written: the same command then continues."
    )


def _other_places(settings: Mapping[str, Any]) -> dict[str, Path]:
    """Where rounds are generated, and where other packages keep files, by the variable that moves them."""
    rounds = places_of(settings, ("dataset_dir",)).popitem()[1] / "tpaw"
    places = {str(rounds): rounds, "TMPDIR": Path(tempfile.gettempdir())}
    datasets = sys.modules.get("datasets")
    return places if datasets is None else places | {"HF_DATASETS_CACHE": Path(datasets.config.HF_DATASETS_CACHE)}


def _device(path: Path) -> int:
    return nearest_folder(path).stat().st_dev


def _not_writable(error: OSError, settings: Mapping[str, Any]) -> MachineProblem:
    path = os.fsdecode(error.filename)
    key = next((name for name, place in places_of(settings).items() if _is_below(Path(path), place)), None)
    whose = f", which belongs to {key}," if key else ""
    advice = (
        "A file is where a folder belongs: move it, or choose another folder."
        if error.errno in NO_FOLDER
        else "Give yourself the right to read and write there, or choose another folder."
    )
    return MachineProblem(f"{path}{whose} cannot be opened: {error.strerror}. {advice}")


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _out_of_memory(error: BaseException, settings: Mapping[str, Any]) -> MachineProblem:
    advice = [
        f"{_with_value('per_device_train_batch_size', settings)} and raise `gradient_accumulation_steps` as much, "
        "which gives the same updates",
        _with_value("cutoff_len", settings),
        f"{_with_value('tpaw_score_batch_tokens', settings)} where players were being scored",
    ]
    if is_true(settings, "disable_gradient_checkpointing"):
        advice.append("remove `disable_gradient_checkpointing: true`")
    cause = " ".join(str(error).split())[:CAUSE_CHARACTERS].rstrip(".") or type(error).__name__
    return MachineProblem(
        f"Memory ran out: {cause}. Lower {', or '.join(advice)}. Then give the same command again: what is done is "
        "kept."
    )


def _with_value(key: str, settings: Mapping[str, Any]) -> str:
    return f"`{key}` ({settings[key]} now)" if settings.get(key) else f"`{key}`"


def _size(count: int) -> str:
    size, unit = float(count), UNITS[0]
    for unit in UNITS:
        if size < 1024 or unit == UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
