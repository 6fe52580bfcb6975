# SPDX-License-Identifier: Apache-2.0
"""Whether the paths in settings that came from LlamaBoard's page stay where they may lead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arguments.start import Start
from ..errors import Findings
from ..runs.succession import names_in
from ..team.manifest import path_from
from ..team.players import HUB_NAME
from .places import Places
from .run_folders import Run, board_file, manifest_of, numbered_folders, run_files, run_of


# Folders that the stage writes to or reads from, beside the output folder and the models.
FOLDERS = ("tpaw_cache_dir", "resume_from_checkpoint")


def check_paths(places: Places, settings_list: Sequence[Mapping[str, Any]]) -> None:
    r"""Refuse settings that lead out of the saves folder, in the page's fields of this stage.

    Elsewhere may be what LlamaBoard's own field names as model, a name of a hub that is no folder here, and what the
    files of the run on disk name: whoever writes those need not ask the page.

    Args:
        places: Where runs are.
        settings_list: The keys of a run file, for each iteration.

    Raises:
        ConfigError: With every path that leads elsewhere.
    """
    models = {part for settings in settings_list for part in _parts([str(settings.get("model_name_or_path") or "")])}
    with Findings() as findings:
        for settings in settings_list:
            with findings.note():
                places.output_dir(settings.get("output_dir"))
                allowed = models | _named_on_disk(places, run_of(places, settings))
                for key, path in _paths(settings):
                    with findings.note():
                        _check_path(places, key, path, allowed)


def _check_path(places: Places, key: str, path: str, allowed: set[str]) -> None:
    if path in allowed:
        return
    if key in FOLDERS:
        places.output_dir(path, key)
        return
    hub = {part for part in path.split("+") if HUB_NAME.fullmatch(part) and not Path(part).exists()}
    places.checkpoint(path, allowed | hub, key)


def _paths(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    folders = [(key, str(settings[key])) for key in FOLDERS if settings.get(key)]
    adapters = [("adapter_name_or_path", name) for name in Start.of(settings).adapters]
    return [*folders, *adapters, *(("tpaw_players", name) for name in names_in(settings.get("tpaw_players")))]


def _named_on_disk(places: Places, run: Run | None) -> set[str]:
    """What the run's files name: models, players and folders."""
    if run is None:
        return set()
    folders = [path for path, parts in numbered_folders(run.folder) if parts[0] == run.name]
    written = [file.settings for each, file in run_files(places) if each == run]
    written += [file.settings for file in map(board_file, folders) if file is not None]
    named = {path for settings in written for _, path in _paths(settings)}
    named |= {Start.of(settings).model for settings in written}
    for folder in folders:
        manifest = manifest_of(folder)[0]
        described = [manifest.policy, *manifest.players] if manifest is not None else []
        for theta in described:
            named |= {path_from(part["path"], folder) for part in (*theta.get("below", ()), theta)}
    return named | _parts(named)


def _parts(names: Iterable[str]) -> set[str]:
    return {part for name in names for part in name.split("+") if part}
