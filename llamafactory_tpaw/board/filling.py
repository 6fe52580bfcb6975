# SPDX-License-Identifier: Apache-2.0
"""What the tab offers and fills in from what is on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, TpawError
from . import runs
from .arguments import elements_from, start_of
from .datasets import prompt_sets
from .fields import COMPOSED, TABLE
from .locales import say
from .places import Places
from .session import places_of


# Every element that the settings of an iteration say something of; `top.model_name` decides where it is looked for.
ELEMENTS = tuple(
    dict.fromkeys([*(field.element for field in TABLE), *(each for each in COMPOSED if each != "top.model_name")])
)
Choices = list[tuple[str, Any]]


def offered(model_name: str | None, finetuning_type: str, dataset_dir: str) -> tuple[list[str], list[str]]:
    """Return the names of a model's runs, and those of the sets of prompts; Start says what is wrong with a name."""
    try:
        places = places_of({"train.dataset_dir": dataset_dir})
    except ConfigError:
        return [], []
    try:
        names = runs.run_names(places, model_name, finetuning_type) if model_name else []
    except ConfigError:
        names = []
    return names, prompt_sets(places)


def only_rounds(dataset_dir: str, names: list[str]) -> list[str]:
    """Leave out the sets that are known to hold no pairs of responses."""
    try:
        unfit = set(prompt_sets(places_of({"train.dataset_dir": dataset_dir})))
    except ConfigError:
        return names
    return [name for name in names if name not in unfit]


def of_run(values: Mapping[str, Any], players: Sequence[str] | None = None) -> tuple[Choices, Choices]:
    r"""Return what the lists of iterations and of players offer for the run that the page shows.

    Args:
        values: What the page shows.
        players: Of a run that is not on disk yet, θ_0 first.
    """
    try:
        run = run_of_page(values)
        places = places_of(values)
        iterations = [(str(each.number), each.number) for each in runs.iterations_of(places, run)]
        checkpoints = [(each.theta, each.path) for each in runs.checkpoints_of(places, run)]
    except TpawError:
        return [("0", 0)], []
    named = checkpoints or list(enumerate(players or ()))
    return iterations, [(f"θ_{theta} · {_brief(path, run)}", path) for theta, path in named]


def next_iteration(values: Mapping[str, Any]) -> int:
    r"""Return the first iteration of the page's run that is not finished.

    Raises:
        ConfigError: If the run's name is none.
    """
    return runs.next_iteration(places_of(values), run_of_page(values))


def filled_in(
    values: Mapping[str, Any], iteration: Any, fits: Callable[[str, Any], bool], lang: str | None
) -> tuple[dict[str, Any], str]:
    r"""Return what the page is to show for an iteration of its run.

    Args:
        values: What it shows now.
        iteration: Number of the iteration.
        fits: Whether the element of an id can show a value.
        lang: Language of the message.

    Returns:
        The values that change, by the elements' full ids, and a message.

    Raises:
        TpawError: If nothing on disk says the settings of the iteration.
    """
    try:
        number = int(str(iteration))
    except ValueError:
        raise ConfigError(f"`tpaw_iteration` is {iteration!r}, but must be a whole number >= 0.") from None
    places, run = places_of(values), run_of_page(values)
    if number == 0 and not _is_known(places, run):
        settings = runs.first_settings(places, run, start_of(values))
        shown = elements_from(settings, values, fits, partly=True)
    else:
        shown = elements_from(runs.settings_of(places, run, number), values, fits)
    return _changes(shown, values), say("filled_in", lang, run=run.name, iteration=number)


def unreadable(values: Mapping[str, Any]) -> list[str]:
    """Say which files of the page's model cannot be read, so that nothing is filled in from them."""
    try:
        return runs.unreadable(places_of(values), values.get("top.model_name"), values.get("top.finetuning_type"))
    except ConfigError:
        return []  # what is wrong with the names is said where they are used


def run_of_page(values: Mapping[str, Any]) -> runs.Run:
    r"""Return the run that the page names.

    Raises:
        ConfigError: If a name is missing or could lead out of the saves folder.
    """
    names = ("top.model_name", "top.finetuning_type", "train.tpaw_run")
    return runs.find_run(places_of(values), *(values.get(name) for name in names))


def _is_known(places: Places, run: runs.Run) -> bool:
    """Whether anything on disk says what iteration 0 is played with."""
    try:
        runs.settings_of(places, run, 0)
    except TpawError:
        return False
    return True


def _brief(path: str, run: runs.Run) -> str:
    """A checkpoint's name where it lies beside the run's folders, else its path."""
    return Path(path).name if Path(path).parent == run.folder else path


def _changes(shown: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not shown yet: LlamaBoard acts on a field whenever it is set."""
    return {
        name: value
        for name, value in shown.items()
        if values.get(name) != value and (value not in (None, [], "") or values.get(name) not in (None, [], ""))
    }
