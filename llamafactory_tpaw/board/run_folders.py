# SPDX-License-Identifier: Apache-2.0
"""Run files and output folders of LlamaBoard's runs, read one by one, so that a damaged one hides no other."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments.checks import read_tpaw_args
from ..errors import ConfigError, DataError, TpawError
from ..lf.given import mentions_stage, read_given
from ..runs.run_files import numbered
from ..runs.succession import split_numbered
from ..team.manifest import MANIFEST, Manifest, read_manifest
from .places import Places


BOARD_FILE = "training_args.yaml"  # as LlamaBoard calls the run file in an output folder
RUN_FILE = re.compile(r".+_iter\d+\.ya?ml")
MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class Run:
    """A run: `name` is what its output folders are called before `_iter<t>`, `folder` is where they are."""

    name: str
    folder: Path

    def output_dir(self, iteration: int) -> str:
        """Return the output folder of an iteration."""
        return (self.folder / numbered(self.name, iteration)).as_posix()


@dataclass(frozen=True)
class RunFile:
    """A run file of stage tpaw: where it is, what it says, and when it was changed (nanoseconds)."""

    path: Path
    settings: dict[str, Any]
    iteration: int
    changed: int

    def belongs_to(self, folder: Path) -> bool:
        """Whether it names this output folder; a copy elsewhere does not."""
        return Path(str(self.settings.get("output_dir"))).resolve() == folder.resolve()


def run_of(places: Places, settings: Mapping[str, Any]) -> Run | None:
    """Return the run whose output folder the settings name; None where the folder's name has no `_iter<t>`."""
    folder = Path(places.output_dir(settings.get("output_dir")))
    parts = split_numbered(folder.name)
    return Run(parts[0], folder.parent) if parts else None


def iteration_in(settings: Mapping[str, Any]) -> int:
    """Return t of a run file's keys."""
    return read_tpaw_args(settings)[0].tpaw_iteration


def manifest_of(folder: Path) -> tuple[Manifest | None, str]:
    """Return the `tpaw.json` of an output folder, None where it has none or a damaged one, and what is damaged."""
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return None, str(error)
    if manifest is not None and not _is_well_formed(manifest):
        return None, f"{folder / MANIFEST} is damaged: a value is of another kind than it should be. Restore the file."
    return manifest, ""


def _is_well_formed(manifest: Manifest) -> bool:
    lists = (manifest.players, manifest.triplets)
    if not isinstance(manifest.settings, dict) or not all(isinstance(each, list) for each in lists):
        return False
    thetas = [manifest.policy, *manifest.players]
    return all(isinstance(theta, dict) and isinstance(theta.get("path"), str) for theta in thetas) and all(
        isinstance(source, dict) for source in manifest.triplets
    )


def numbered_folders(folder: Path) -> Iterator[tuple[Path, tuple[str, int]]]:
    """Yield the folders of a model's runs that end with `_iter<t>`, each with its run's name and t."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        parts = split_numbered(path.name)
        if parts is not None and parts[1] <= MOST_ITERATIONS and path.is_dir():
            yield path, parts


def yaml_files(places: Places) -> list[Path]:
    """Return the files below `yaml` that are called as run files of iterations are."""
    if not places.yaml.is_dir():
        return []
    return sorted(path for path in places.yaml.iterdir() if RUN_FILE.fullmatch(path.name) and path.is_file())


def run_files(places: Places) -> Iterator[tuple[Run, RunFile]]:
    """Yield the run files of stage tpaw below `yaml`, each with the run that its output folder belongs to."""
    for path in yaml_files(places):
        file = read_file(path)
        if not isinstance(file, RunFile):
            continue
        try:
            run = run_of(places, file.settings)
        except ConfigError:
            continue  # its output is not where LlamaBoard's runs are
        if run is not None and run.output_dir(file.iteration) == Path(file.settings["output_dir"]).as_posix():
            yield run, file


def board_file(folder: Path) -> RunFile | None:
    """Return the run file of stage tpaw that LlamaBoard wrote into an output folder."""
    file = read_file(folder / BOARD_FILE)
    return file if isinstance(file, RunFile) else None


def read_file(path: Path) -> RunFile | str | None:
    """Return a run file of stage tpaw, None for another or none, or what is wrong with it."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return _parsed(str(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1024)
def _parsed(path: str, changed: int, size: int) -> RunFile | str | None:
    """Keep what a file says as long as it stays as it is."""
    try:
        settings = read_given([path]) if mentions_stage([path]) else {}
    except TpawError as error:
        return str(error)
    return RunFile(Path(path), settings, iteration_in(settings), changed) if settings.get("stage") == "tpaw" else None
