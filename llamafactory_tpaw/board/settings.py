# SPDX-License-Identifier: Apache-2.0
"""From what the page shows to the run files of the iterations that Start plays."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arguments.checks import read_tpaw_args, setting_problems
from ..arguments.recorded import SECRET
from ..data.files import write_json_atomic
from ..data.rounds import split_names
from ..data.source import DATASET_INFO, read_info, triplet_entry
from ..errors import ConfigError, TpawError
from ..runs.run_files import next_settings, numbered, own_round, split_numbered
from ..team.manifest import read_manifest


# Objectives and the fields that do something under them.
OBJECTIVES = {
    "tpaw": ("tpaw_team_size", "tpaw_reward_scale", "tpaw_eta", "tpaw_gamma", "tpaw_reference"),
    "tspin": ("tpaw_scale", "tpaw_history_weight"),
    "iris": ("tpaw_reward_scale", "tpaw_renyi_alpha", "tpaw_reference"),
}
OF_OBJECTIVES = tuple(dict.fromkeys(name for names in OBJECTIVES.values() for name in names))
OF_GENERATION = ("tpaw_prompts", "tpaw_max_prompts", "tpaw_engine", "tpaw_engine_url", "tpaw_samples_per_prompt")
# LlamaFactory's defaults of these would not be self-play's.
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 1024}
# The accordion's fields -> keys. A key without a field is given in LlamaBoard's field for extra arguments.
FIELDS = {key: key for key in ("tpaw_objective", *OF_OBJECTIVES, *OF_GENERATION)}
FIELDS |= {f"tpaw_{key}": key for key in SAMPLING}
# What LlamaBoard says for all stages whatever the page shows. Here a model's own code is run only where the extra
# arguments ask for it, and loading the rows takes one process.
BOARDS_OWN = ("trust_remote_code", "preprocessing_num_workers", "include_num_input_tokens_seen")
# LlamaBoard shows this before anybody typed; here it stands for no limit.
NO_LIMIT = 100_000
# Keys that the page's fields decide alone.
DECIDED = ("stage", "do_train", "output_dir", "tpaw_iteration")


def run_settings(args: Mapping[str, Any], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the run files say of the iterations that Start plays.

    Problems that the keys alone show are a `ConfigError`, with all of them; a seed that is no number is a ValueError.
    """
    extra = json.loads(values.get("train.extra_args") or "{}")
    first, count = (values.get(f"train.{name}") for name in ("tpaw_iteration", "tpaw_iterations"))
    problems = [
        f"`extra_args` has `{key}`, which the page's fields decide. Remove it." for key in DECIDED if key in extra
    ]
    if not isinstance(first, int) or first < 0 or not isinstance(count, int) or count < 1:
        problems.append(
            f"The first iteration is {first} and {count} are to be played. Give whole numbers, from 0 and from 1."
        )
    settings = {key: value for key, value in args.items() if key in extra or key not in BOARDS_OWN}
    if seed := values.get("train.train_seed"):  # a field since 0.9.6; LlamaBoard takes 42 for what is no number
        settings["seed"] = extra.get("seed", int(seed))
    if settings.get("max_samples") == NO_LIMIT and "max_samples" not in extra:
        del settings["max_samples"]
    settings |= _own_keys(values, extra)
    problems += [
        f"`{key}` is not written to a file. Leave it empty, and set it in LlamaBoard's environment."
        for key, value in settings.items()
        if SECRET.search(key) and value
    ]
    if not settings.get("tpaw_prompts"):
        problems.append("`tpaw_prompts` is empty. Choose the SFT set whose prompts are answered.")
    if problems:
        raise ConfigError(problems)
    return _succession(settings, first, count, "dataset" in extra)


def _own_keys(values: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the accordion that do something; those of the extra arguments go before them."""
    unused = set(OF_OBJECTIVES) - set(OBJECTIVES.get(values.get("train.tpaw_objective"), OBJECTIVES["tpaw"]))
    if values.get("train.tpaw_engine") != "openai":
        unused.add("tpaw_engine_url")
    shown = {key: values.get(f"train.{name}") for name, key in FIELDS.items() if key not in unused}
    return {key: value for key, value in shown.items() if value not in (None, "") and key not in extra}


def _succession(settings: dict[str, Any], first: int, count: int, named: bool) -> list[dict[str, Any]]:
    """The iterations from `first` on; they are counted from 0, so that each has the players of all before it."""
    folder = Path(settings["output_dir"])
    run, _ = split_numbered(folder.name)
    settings |= {"tpaw_iteration": 0, "output_dir": str(folder.with_name(numbered(run, 0)))}
    if not named:
        own = round_name(folder, run)
        foreign = [name for name in split_names(settings.get("dataset")) if split_numbered(name)[0] != own]
        settings["dataset"] = ",".join([*foreign, numbered(own, 0)])
    played = [settings]
    while len(played) < first + count:
        played.append(next_settings(played[-1]))
    played = played[first:]
    given = {key: value for key, value in played[0].items() if value is not None}
    problems = [*read_tpaw_args(given)[1], *setting_problems(given)]
    if problems:
        raise ConfigError(problems)
    return played


def round_name(folder: Path, run: str) -> str:
    """Return how the triplets of a run are called before `_iter<t>`: by its model's folder and its name."""
    parts = folder.parts[-3:-2] if len(folder.parts) > 3 else ()
    return "_".join(re.sub(r"[^A-Za-z0-9._-]+", "_", part).strip("._-") for part in (*parts, run))


def next_iteration(folder: Path) -> int:
    """Return the first iteration that is not finished, of the run that an output folder belongs to."""
    run, iteration = split_numbered(folder.name)[0], 0
    while status_of(folder.with_name(numbered(run, iteration))) == "finished":
        iteration += 1
    return iteration


def status_of(folder: Path) -> str | None:
    """Return the status that an iteration's `tpaw.json` records; None without one that can be read."""
    try:
        manifest = read_manifest(folder)
    except TpawError:
        return None
    return manifest.status if manifest is not None else None


def prompt_sets(dataset_dir: str) -> list[str]:
    """Return the names of the SFT sets in `dataset_info.json`; none where it cannot be read."""
    try:
        info = read_info(Path(dataset_dir, DATASET_INFO))
    except TpawError:
        return []
    return [name for name, entry in info.items() if not (isinstance(entry, dict) and entry.get("ranking"))]


def add_entries(played: Sequence[Mapping[str, Any]]) -> None:
    """Write the entries of the triplets that the iterations generate; those that are there stay as they are."""
    path = Path(played[0].get("dataset_dir") or "data", DATASET_INFO)
    info = read_info(path)
    new = {name: triplet_entry(name) for name in map(own_round, played) if name and name not in info}
    if new:
        write_json_atomic(path, info | new)
