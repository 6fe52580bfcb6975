# SPDX-License-Identifier: Apache-2.0
"""The run files that LlamaBoard starts iterations with, in their output folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arguments.recorded import SECRET
from ..data.files import locked
from ..data.source import DATASET_INFO, triplet_entry
from ..errors import ConfigError, Findings
from ..runs.scaffold.writing import write_project
from ..runs.succession import names_in, own_round
from ..runs.yaml_text import settings_text
from .datasets import dataset_info
from .path_check import check_paths
from .places import Places
from .run_folders import BOARD_FILE


def write_run_files(places: Places, settings_list: Sequence[Mapping[str, Any]]) -> list[Path]:
    r"""Write each iteration's settings into its output folder, and the entries of triplets that there are none of.

    Either everything is written, or nothing. The files are `<output_dir>/training_args.yaml`, as
    `llamafactory-cli train` and `llamafactory-tpaw run` take them. To both a folder that holds nothing else is a new
    one. Entries of `dataset_info.json` that are there stay as they are.

    Args:
        places: Where runs are.
        settings_list: The keys of a run file, for each iteration.

    Returns:
        The run files, in the same order.

    Raises:
        ConfigError: If they cannot be written, see `check_writable`, or a name of triplets is none.
        DataError: If `dataset_info.json` is damaged, or another process is writing to it.
        EnvironmentProblem: If a folder cannot be written to.
    """
    check_writable(places, settings_list)
    files = {}
    for settings in settings_list:
        name = str(Path(settings["output_dir"]) / BOARD_FILE)
        files[name] = settings_text(settings, f"llamafactory-cli train {name}")
    info = places.dataset_dir / DATASET_INFO
    with locked(info, str(info)):
        known = dataset_info(places)
        names = filter(None, map(generated, settings_list))
        entries = {name: triplet_entry(places.name(name, "dataset")) for name in names if name not in known}
        write_project(Path(), str(places.dataset_dir), files, entries, force=True)
    return [Path(name) for name in files]


def check_writable(places: Places, settings_list: Sequence[Mapping[str, Any]]) -> None:
    r"""Refuse settings that are not written to run files, or not as those of one run.

    Args:
        places: Where runs are.
        settings_list: The keys of a run file, for each iteration.

    Raises:
        ConfigError: If a path leads elsewhere (see `check_paths`), an output folder is missing or given twice, there
            are no triplets, or a key holds a secret.
    """
    with Findings() as findings:
        with findings.note():
            check_paths(places, settings_list)
        for settings in settings_list:
            with findings.note():
                _check(places, settings)
        folders = [Path(str(settings.get("output_dir") or "")).resolve() for settings in settings_list]
        if len(set(folders)) < len(folders):
            findings.refuse(
                ConfigError, ["`output_dir` is the same for two iterations. Each has a folder of its own."]
            )


def _check(places: Places, settings: Mapping[str, Any]) -> None:
    problems = []
    folder = settings.get("dataset_dir", "data")
    if Path(str(folder)).resolve() != places.dataset_dir.resolve():
        problems.append(f"`dataset_dir` is {folder!r}, but the page was opened for {places.dataset_dir}. Reload it.")
    if not names_in(settings.get("dataset")):
        problems.append("`dataset` is empty. Name the triplets of the iteration, oldest round first.")
    problems += [
        f"`{key}` is not written to a file. Set it in the environment in which LlamaBoard is started, or log in "
        "there, and leave it empty here."
        for key, value in settings.items()
        if SECRET.search(key) and value
    ]
    if problems:
        raise ConfigError(problems)


def generated(settings: Mapping[str, Any]) -> str | None:
    """Return the entry of the triplets that an iteration generates; None where it generates none."""
    return own_round(settings) if settings.get("tpaw_prompts") else None
