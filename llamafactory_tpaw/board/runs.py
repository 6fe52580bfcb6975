# SPDX-License-Identifier: Apache-2.0
r"""The runs of self-play that are on disk, as LlamaBoard shows them, and the run files that it starts them with.

A run is named by its output folders, `saves/<model name>/<finetuning type>/<run>_iter<t>`. Its settings come from its
run files `yaml/*_iter<t>.yaml`, from those that LlamaBoard wrote into its folders, or from its `tpaw.json` files.
Nothing here raises because a file on the way is damaged: `unreadable` says which ones are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..arguments.fields import FIELDS
from ..arguments.recorded import different_settings, same_value
from ..arguments.start import Start
from ..errors import ConfigError, DataError, TpawError
from ..lf import facade
from ..runs.run_files import numbered
from ..runs.scaffold.model import UNKNOWN_MODEL
from ..runs.scaffold.settings import slug
from ..runs.succession import names_in, next_settings, own_round
from ..team.checkpoint import check_checkpoint_complete
from ..team.manifest import MANIFEST, Manifest, path_from
from ..team.players import HUB_NAME
from .datasets import OpponentSet, dataset_info, opponent_sets, prompt_sets
from .places import Places
from .run_folders import (
    MOST_ITERATIONS,
    Run,
    board_file,
    iteration_in,
    manifest_of,
    numbered_folders,
    read_file,
    run_files,
    run_of,
    yaml_files,
)
from .writing import write_run_files


__all__ = [
    "Checkpoint", "Iteration", "OpponentSet", "Run", "checkpoints_of", "find_run", "first_settings", "following",
    "iterations_of", "next_iteration", "opponent_sets", "prompt_sets", "rounds_of", "run_names", "run_of",
    "settings_of", "unreadable", "write_run_files",
]  # fmt: skip

State = Literal["finished", "interrupted", "new", "damaged"]


@dataclass(frozen=True)
class Iteration:
    r"""How far an iteration is.

    Attributes:
        number: t.
        state: `finished`; `interrupted` where its triplets or its training were begun, so that a start continues;
            `new`; `damaged` where its `tpaw.json` cannot be read.
        output_dir: Its folder.
        problem: What is damaged.
    """

    number: int
    state: State
    output_dir: str
    problem: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """θ_k of a run: its number, its path as in `tpaw_players`, and whether it is here (or on a hub)."""

    theta: int
    path: str
    here: bool

    @property
    def name(self) -> str:
        """`theta_<k>`."""
        return f"theta_{self.theta}"


def find_run(places: Places, model_name: Any, finetuning_type: Any, name: Any) -> Run:
    r"""Return a run by what LlamaBoard's page says; it need not be on disk.

    Under `Custom` a run of another folder is named with it, `Tiny/tpaw`, see `run_names`.

    Raises:
        ConfigError: If a name is missing or could lead out of the saves folder.
    """
    if model_name == UNKNOWN_MODEL and isinstance(name, str) and "/" in name:
        model_name, _, name = name.partition("/")
    run = Run(places.name(name, "run"), places.run_folder(model_name, finetuning_type))
    places.output_dir(run.output_dir(0))
    return run


def run_names(places: Places, model_name: Any, finetuning_type: Any) -> list[str]:
    r"""Return the names of a model's runs that are on disk, as run files or as output folders, in order.

    `Custom` is LlamaBoard's name for whatever is not in its list of models: under it are also the runs of folders that
    the list has no name for, such as `Tiny/tpaw`, which nothing else in the page leads to.

    Raises:
        ConfigError: If the model's name could lead out of the saves folder.
    """
    folder = places.run_folder(model_name, finetuning_type)
    names = _names_in(places, folder)
    if model_name == UNKNOWN_MODEL:
        known = {name.replace(" ", "") for name in (*facade.SUPPORTED_MODELS, UNKNOWN_MODEL)}
        others = {run.folder for run, _ in run_files(places)} | set(places.saves.glob(f"*/{folder.name}"))
        for other in others:
            if other.name == folder.name and other.parent.parent == places.saves and other.parent.name not in known:
                names |= {f"{other.parent.name}/{name}" for name in _names_in(places, other)}
    return sorted(names)


def _names_in(places: Places, folder: Path) -> set[str]:
    names = {run.name for run, _ in run_files(places) if run.folder == folder}
    for path, parts in numbered_folders(folder):
        if (path / MANIFEST).is_file() or board_file(path) is not None:
            names.add(parts[0])
    return names


def iterations_of(places: Places, run: Run) -> list[Iteration]:
    """Return the iterations of a run that are on disk, as run files or output folders, and the one after them."""
    known = _known_iterations(places, run)
    following = 0
    states = {number: _state(places, run, number) for number in known}
    while following in states and states[following].state == "finished":
        following += 1
    states.setdefault(following, _state(places, run, following))
    return [states[number] for number in sorted(states)]


def next_iteration(places: Places, run: Run) -> int:
    """Return the first iteration that is not finished."""
    return next(each.number for each in iterations_of(places, run) if each.state != "finished")


def settings_of(places: Places, run: Run, iteration: int) -> dict[str, Any]:
    r"""Return the settings of an iteration, as its run file would have them.

    They are those of its run file below `yaml` or of the one that LlamaBoard wrote into its output folder: of two, the
    one with which the iteration was begun, else the one that was changed last. Without either they are those that its
    `tpaw.json` recorded, and without that they follow from the nearest iteration before.

    Raises:
        ConfigError: If nothing on disk says them, or the number is none.
    """
    _check_number(iteration)
    for number in sorted((known for known in _known_iterations(places, run) if known <= iteration), reverse=True):
        settings = _own_settings(places, run, number)
        if settings is None:
            continue
        for _ in range(number, iteration):
            settings = next_settings(settings)
        return settings
    raise ConfigError(
        f"Nothing in {run.folder} or {places.yaml} says the settings of iteration {iteration} of run `{run.name}`. "
        "Start the run at iteration 0, or choose another."
    )


def first_settings(places: Places, run: Run, start: Start) -> dict[str, Any]:
    r"""Return what iteration 0 of a new run has of its own: model, player, D_0 and folder.

    Args:
        places: Where runs are.
        run: The run.
        start: θ_0.
    """
    name = f"{slug(run.folder.parent.name)}_{slug(run.name)}"
    return {
        "model_name_or_path": start.model,
        **({"adapter_name_or_path": ",".join(start.adapters)} if start.adapters else {}),
        "stage": "tpaw",
        "do_train": True,
        "finetuning_type": run.folder.name,
        "tpaw_iteration": 0,
        "tpaw_players": start.spelled,
        "dataset": numbered(name, 0),
        "output_dir": places.output_dir(run.output_dir(0)),
    }


def following(places: Places, settings: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    r"""Return the settings of `count` iterations, these first.

    Each follows from the one before. Where run files below `yaml` have another value of a key from one iteration to
    the next, they are followed in it, unless these settings already differ from theirs in that key.

    Args:
        places: Where runs are.
        settings: Those of the first iteration.
        count: How many, at least 1.

    Raises:
        ConfigError: If the count is no such number, or a key that the next iteration depends on is missing.
    """
    _check_number(count, "tpaw_iterations", 1)
    run = run_of(places, settings) if count > 1 else None
    files = {file.iteration: file.settings for each, file in run_files(places) if each == run}
    expected = files.get(iteration_in(settings))
    keys = {*(expected or ()), *settings}
    edited = {key for key in keys if not same_value((expected or {}).get(key), settings.get(key))}
    played = [dict(settings)]
    while len(played) < count:
        later = next_settings(played[-1])
        if expected is not None:
            expected = next_settings(expected)
            file = files.get(iteration_in(later), expected)
            for key in {*expected, *file} - edited:
                if not same_value(file.get(key), expected.get(key)):
                    later.pop(key, None)
                    later |= {key: copy.deepcopy(file[key])} if key in file else {}
            expected = file
        played.append(later)
    return played


def checkpoints_of(places: Places, run: Run) -> list[Checkpoint]:
    """Return θ_0, θ_1, … of a run, oldest first: what its settings name as players, and what is finished."""
    paths: dict[int, str] = {}
    for each in iterations_of(places, run):
        try:
            settings = settings_of(places, run, each.number)
        except TpawError:
            continue  # what is wrong with it is said where it is chosen
        players = names_in(settings.get("tpaw_players")) or [str(settings.get("model_name_or_path") or "")]
        first = each.number + 1 - len(players)
        named = {first + place: path for place, path in enumerate(players) if path and first + place >= 0}
        paths = named | paths
        if each.state == "finished":
            paths[each.number + 1] = Start.of(settings).after(each.output_dir).spelled
    return [Checkpoint(theta, paths[theta], _is_here(paths[theta])) for theta in sorted(paths)]


def rounds_of(places: Places, run: Run) -> dict[int, str]:
    """Return the entries of the triplets D_t of a run by t."""
    rounds = {}
    for each in iterations_of(places, run):
        try:
            name = own_round(settings_of(places, run, each.number))
        except TpawError:
            continue
        if name:
            rounds[each.number] = name
    return rounds


def unreadable(places: Places, model_name: Any, finetuning_type: Any) -> list[str]:
    """Say which run files, `tpaw.json` of a model's runs and dataset list cannot be read; all else is shown."""
    problems = []
    for path in yaml_files(places):
        problem = read_file(path)
        problems += [problem] if isinstance(problem, str) else []
    for path, _ in numbered_folders(places.run_folder(model_name, finetuning_type)):
        _, problem = manifest_of(path)
        problems += [problem] if problem else []
    try:
        dataset_info(places)
    except DataError as error:
        problems += error.problems
    return problems


def _check_number(value: Any, key: str = "tpaw_iteration", least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_ITERATIONS:
        raise ConfigError(
            f"`{key}` is {value!r}, but must be a whole number from {least} to {MOST_ITERATIONS}. Correct it."
        )


def _known_iterations(places: Places, run: Run) -> set[int]:
    known = {file.iteration for each, file in run_files(places) if each == run}
    return known | {parts[1] for _, parts in numbered_folders(run.folder) if parts[0] == run.name}


def _own_settings(places: Places, run: Run, number: int) -> dict[str, Any] | None:
    """What the files of an iteration itself say."""
    folder = Path(run.output_dir(number))
    files = [file for each, file in run_files(places) if each == run and file.iteration == number]
    own = board_file(folder)
    files += [own] if own is not None and own.iteration == number and own.belongs_to(folder) else []
    files.sort(key=lambda file: file.changed, reverse=True)
    manifest, _ = manifest_of(folder)
    if manifest is not None and manifest.iteration == number:
        defaults = {name: spec.default for name, spec in FIELDS.items()}
        begun = [file for file in files if not different_settings(manifest.settings, file.settings, defaults)]
        if not files:
            return _recorded(manifest, folder)
        files = begun + files
    return copy.deepcopy(files[0].settings) if files else None


def _recorded(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """The settings that a manifest knows, and where its model and players are now."""
    model, *adapters = _parts(manifest.policy, folder)
    settings = copy.deepcopy(manifest.settings) | {
        "model_name_or_path": model,
        "tpaw_iteration": manifest.iteration,
        "output_dir": folder.as_posix(),
    }
    if adapters:
        settings["adapter_name_or_path"] = ",".join(adapters)
    if manifest.players:
        settings["tpaw_players"] = ",".join("+".join(_parts(player, folder)) for player in manifest.players)
    opponents = [
        source.get("opponent") for source in manifest.triplets if source.get("iteration") == manifest.iteration
    ]
    if any(opponents):
        settings["tpaw_opponent_model"] = path_from(opponents[-1], folder)
    return settings


def _parts(described: Mapping[str, Any], folder: Path) -> list[str]:
    """Where the model of a recorded θ and the adapters upon it are now."""
    return [path_from(part["path"], folder) for part in (*described.get("below", ()), described)]


def _state(places: Places, run: Run, number: int) -> Iteration:
    folder = run.output_dir(number)
    manifest, problem = manifest_of(Path(folder))
    state: State = "new"
    if problem:
        state = "damaged"
    elif manifest is not None and manifest.iteration == number:
        state = "finished" if manifest.status == "finished" else "interrupted"
    elif _is_sampled(places, run, number):
        state = "interrupted"
    return Iteration(number, state, folder, problem)


def _is_sampled(places: Places, run: Run, number: int) -> bool:
    """Whether triplets of an iteration that has not trained yet are there, if only some of them."""
    try:
        name = own_round(settings_of(places, run, number))
        file_name = dataset_info(places).get(name or "", {}).get("file_name")
    except TpawError:
        return False
    if not isinstance(file_name, str):
        return False
    path = places.dataset_dir / file_name
    # Whole triplets may be those of another run that starts from the same model.
    begun = Path(run.output_dir(number)).is_dir() and path.is_file()
    return begun or path.with_name(f"{path.name}.partial").is_file()


def _is_here(player: str) -> bool:
    """Whether a player's folders are whole; a name of a hub is taken for one."""
    for part in player.split("+"):
        folder = Path(part)
        if HUB_NAME.fullmatch(part) and not folder.exists() and not folder.parent.is_dir():
            continue
        if check_checkpoint_complete(folder):
            return False
    return True
