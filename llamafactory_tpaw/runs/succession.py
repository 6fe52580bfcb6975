# SPDX-License-Identifier: Apache-2.0
"""How the settings of iteration t + 1 follow from those of iteration t: its model, players, datasets and folder."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arguments.checks import read_tpaw_args
from ..arguments.start import Start
from ..data.rounds import split_names
from ..errors import ConfigError
from .run_files import numbered


NUMBERED = re.compile(r"(?P<stem>.+)_iter(?P<number>\d+)")
# What is meant for one output folder alone.
OF_ONE_FOLDER = ("resume_from_checkpoint",)


def split_numbered(name: str) -> tuple[str, int] | None:
    """`tpaw_iter2` → (`tpaw`, 2); None for a name without a number."""
    match = NUMBERED.fullmatch(name)
    return (match["stem"], int(match["number"])) if match else None


def names_in(value: Any) -> list[str]:
    """Return the names of a key's value, whatever a run file gives there."""
    if isinstance(value, list | tuple):
        return split_names([str(part) for part in value])
    return [] if value is None else split_names(str(value))


def next_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    r"""Return the settings of the iteration after this one; nothing but what the iteration changes differs.

    Args:
        settings: The keys of an iteration's run file. `output_dir` ends with `_iter<t>`. They are left as they are.

    Raises:
        ConfigError: If a key that this depends on is missing or cannot be counted on.
    """
    tpaw_args, problems = read_tpaw_args(settings)
    problems += [
        f"`{key}` is missing, so nobody knows what the next iteration starts from. Give it."
        for key in ("model_name_or_path", "dataset", "output_dir")
        if not settings.get(key)
    ]
    t = tpaw_args.tpaw_iteration
    folder = str(settings.get("output_dir") or "").rstrip("/")
    run = split_numbered(Path(folder).name)
    if folder and (run is None or run[1] != t):
        problems.append(
            f"`output_dir: {folder}` does not end with `_iter{t}`, so the folders of the iterations after it have no "
            f"name. Rename it, such as `{numbered(folder, t)}`, or play one iteration at a time."
        )
    if problems:
        raise ConfigError(problems)
    datasets = names_in(settings["dataset"])
    following = {key: copy.deepcopy(value) for key, value in settings.items() if key not in OF_ONE_FOLDER}
    following |= {"tpaw_iteration": t + 1, "output_dir": str(Path(folder).with_name(numbered(run[0], t + 1)))}
    following |= _next_models(settings, folder)
    following["dataset"] = ",".join(_next_rounds(datasets, t, run[0], tpaw_args.rounds_played))
    if tpaw_args.tpaw_objective == "tspin" and t == 0:
        following["tpaw_proto"] = own_round(settings)
    return following


def own_round(settings: Mapping[str, Any]) -> str | None:
    """Name the entry of `dataset` that is D_t: the one that ends with `_iter<t>`, else the last."""
    names = names_in(settings.get("dataset"))
    t = read_tpaw_args(settings)[0].tpaw_iteration
    return next((name for name in reversed(names) if _number(name) == t), names[-1] if names else None)


def _next_models(settings: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """θ_{t+1} is the folder of this iteration; where adapters are trained, upon the model of before."""
    start = Start.of(settings)
    after = start.after(folder)
    players = [*(names_in(settings.get("tpaw_players")) or [start.spelled]), after.spelled]
    adapters = {"adapter_name_or_path": ",".join(after.adapters)} if after.adapters else {}
    return {"model_name_or_path": after.model, "tpaw_players": ",".join(players), **adapters}


def _next_rounds(names: list[str], t: int, run: str, size: int) -> list[str]:
    """D_{t+1} after D_t; older rounds than `size` are left out, other sets stay where they are."""
    newest = next((name for name in reversed(names) if _number(name) == t), None)
    stem = split_numbered(newest)[0] if newest else run
    # An ablation shares D_0 with another run: from then on its rounds have its own name.
    added = numbered(stem if stem.endswith(run) else run, t + 1)
    kept: list[str] = []
    for name in names:
        number = _number(name)
        if number is None or not number <= t + 1 - size:
            kept.append(name)
        if name == newest:
            kept.append(added)
    return kept if newest else [*kept, added]


def _number(name: str) -> int | None:
    parts = split_numbered(name)
    return parts[1] if parts else None
