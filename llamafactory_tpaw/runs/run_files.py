# SPDX-License-Identifier: Apache-2.0
"""Run files: the next iteration's settings from those of one, their text, and how they get onto the disk."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arguments.checks import read_tpaw_args
from ..arguments.start import Start
from ..data.files import write_atomic, write_json_atomic
from ..data.rounds import split_names
from ..data.source import DATASET_INFO, read_info
from ..errors import ConfigError
from ..lf import facade


NUMBERED = re.compile(r"(?P<stem>.+)_iter(?P<number>\d+)")
SECTIONS = ("model", "method", "generation", "dataset", "output", "train", "eval")
GROUPS = ("model", "dataset", "train", "method", "generation")  # sections of LlamaFactory's groups of arguments
# Sections of the keys that begin so, the first that fits; other keys are where LlamaFactory has them.
BEGINNINGS = {
    ("tpaw_prompts", "tpaw_turn", "tpaw_max_", "tpaw_min_", "tpaw_engine", "tpaw_vllm_"): "generation",
    ("tpaw_samples_", "tpaw_opponent_", "tpaw_generate_"): "generation",
    ("tpaw_", "do_train", "deepspeed"): "method",
    ("output_dir", "logging_", "save_", "plot_loss", "report_to", "run_name"): "output",
    ("val_size", "eval_", "per_device_eval_"): "eval",
}


def numbered(stem: str, iteration: int) -> str:
    """How the folder, the triplets and the run file of an iteration end."""
    return f"{stem}_iter{iteration}"


def split_numbered(name: str) -> tuple[str, int | None]:
    """`tpaw_iter2` → (`tpaw`, 2); a name without a number → (name, None)."""
    match = NUMBERED.fullmatch(name)
    return (match["stem"], int(match["number"])) if match else (name, None)


def path_of(settings: Mapping[str, Any]) -> str:
    """Return the run file's path, relative to the project: it is called as the output folder is."""
    return f"yaml/{Path(settings['output_dir']).name}.yaml"


def launcher_of(settings: Mapping[str, Any]) -> str:
    """What stands before the command that trains."""
    return "FORCE_TORCHRUN=1 " if settings.get("deepspeed") else ""


def section_of(key: str) -> str:
    """Return the section of the run file that a key belongs to."""
    for beginnings, section in BEGINNINGS.items():
        if key.startswith(beginnings):
            return section
    groups = zip(facade.TRAIN_ARGS, GROUPS, strict=True)
    return next((section for kind, section in groups if key in kind.__dataclass_fields__), "train")


def render(settings: Mapping[str, Any], title: str) -> str:
    """Return the text of a run file, in which PyYAML and OmegaConf read the same values."""
    from omegaconf import OmegaConf

    blocks = [f"# {title}\n# {launcher_of(settings)}llamafactory-cli train {path_of(settings)}\n"]
    for section in SECTIONS:
        keys = {key: value for key, value in settings.items() if section_of(key) == section}
        if keys:
            blocks.append(f"### {section}\n{OmegaConf.to_yaml(OmegaConf.create(keys))}")
    return "\n".join(blocks)


def next_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the next iteration; a key that cannot be counted on from here is a `ConfigError`."""
    args, problems = read_tpaw_args(settings)
    problems += [
        f"`{key}` is missing, and the next iteration starts from it. Give it."
        for key in ("model_name_or_path", "dataset", "output_dir")
        if not settings.get(key)
    ]
    t, folder = args.tpaw_iteration, str(settings.get("output_dir") or "").rstrip("/")
    run, number = split_numbered(Path(folder).name)
    if folder and number != t:
        problems.append(
            f"`output_dir: {folder}` does not end with `_iter{t}`, so the folders of the iterations after it have no "
            f"name. Rename it, such as `{numbered(folder, t)}`, or play one iteration at a time."
        )
    if problems:
        raise ConfigError(problems)
    start = Start.of(settings)
    after = start.after(folder)
    players = [*(split_names(settings.get("tpaw_players")) or [start.spelled]), after.spelled]
    following = {key: copy.deepcopy(value) for key, value in settings.items() if key != "resume_from_checkpoint"}
    following |= {"tpaw_iteration": t + 1, "output_dir": str(Path(folder).with_name(numbered(run, t + 1)))}
    following |= {"model_name_or_path": after.model, "tpaw_players": ",".join(players)}
    following |= {"adapter_name_or_path": ",".join(after.adapters)} if after.adapters else {}
    following["dataset"] = ",".join(_next_rounds(split_names(settings["dataset"]), t, run, args.rounds_played))
    if args.tpaw_objective == "tspin" and t == 0:
        following["tpaw_proto"] = own_round(settings)
    return following


def own_round(settings: Mapping[str, Any]) -> str | None:
    """Name the entry of `dataset` that is D_t: the one that ends with `_iter<t>`, else the last."""
    names, t = split_names(settings.get("dataset")), read_tpaw_args(settings)[0].tpaw_iteration
    return next((name for name in reversed(names) if split_numbered(name)[1] == t), names[-1] if names else None)


def _next_rounds(names: list[str], t: int, run: str, size: int) -> list[str]:
    """D_{t+1} after D_t; older rounds than `size` are left out, other sets stay where they are."""
    newest = next((name for name in reversed(names) if split_numbered(name)[1] == t), None)
    stem = split_numbered(newest or run)[0]
    # An ablation shares D_0 with another run: from then on its rounds have its own name.
    added = numbered(stem if stem.endswith(run) else run, t + 1)
    kept: list[str] = []
    for name in names:
        number = split_numbered(name)[1]
        kept += [name] if number is None or number > t + 1 - size else []
        kept += [added] if name == newest else []
    return kept if newest else [*kept, added]


def write_project(
    folder: Path, dataset_dir: str, files: Mapping[str, str], entries: Mapping[str, Any], family: str, force: bool
) -> dict[str, str]:
    """Write run files, by path relative to `folder`, and entries into `dataset_info.json`; say what became of each.

    With `force` what has another content is overwritten, and run files of the family that are not written again are
    removed; without, other content is a `ConfigError` that names all of it, and nothing is written.
    """
    info = folder / dataset_dir / DATASET_INFO
    known = read_info(info) if info.exists() else {}
    there = {name: (folder / name).read_bytes() for name in files if (folder / name).exists()}
    conflicts = [str(folder / name) for name in there if there[name] != files[name].encode()]
    conflicts += [f"entry `{name}` of {info}" for name in entries if known.get(name, entries[name]) != entries[name]]
    if conflicts and not force:
        raise ConfigError(
            f"{', '.join(conflicts)} would be overwritten by other content. Choose another `--name` or folder, rename "
            "the file of `--data`, or add `--force`."
        )
    done = {}
    for name, text in files.items():
        is_same = there.get(name) == text.encode()
        if not is_same:
            write_atomic(folder / name, text)
        done[name] = "as it was" if is_same else "overwritten" if name in there else "new"
    changed = [name for name in entries if known.get(name) != entries[name]]
    if changed:
        write_json_atomic(info, {**known, **entries})
        done[f"{dataset_dir}/{DATASET_INFO}"] = ", ".join(changed)
    own = re.compile(rf"{re.escape(family)}(_no_(trw|mpw|team))?_(sft|(tpaw|spin|tspin|iris)_iter\d+)\.yaml")
    for path in sorted((folder / "yaml").glob("*.yaml")) if force else ():
        if own.fullmatch(path.name) and f"yaml/{path.name}" not in files:
            path.unlink()
            done[f"yaml/{path.name}"] = "removed: no longer part of the family"
    return done
