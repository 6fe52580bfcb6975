# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw study`: methods × seeds from one θ_0 a seed. Each part is a chain of run files.

Several processes may play the parts of one study: each locks the part at which it works, and passes over the others'.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import multiprocessing
import os
import platform
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple

from filelock import FileLock
from tqdm import tqdm

from ..arguments.start import Start
from ..data.files import locked, read_json, write_atomic
from ..data.source import find_entry, triplet_entry
from ..errors import INTERRUPTED, TERMINATED, ConfigError, InUseError, TpawError
from ..lf.given import handed_file, is_true
from ..lf.signals import SAVING_S, end_with_parent, report
from ..lf.status import require_seams
from ..report.collect import read_part
from ..team.fingerprint import fingerprint_checkpoint
from ..team.manifest import versions
from .estimates import steps_of
from .init import LABELS, WITHOUT, plan_project
from .loop import PROMPT_KEYS, SAMPLING_KEYS, Item, checked_items, play, read_items
from .plan import with_defaults
from .run_files import next_settings, numbered, own_round, path_of, render, section_of, write_project
from .settings import NAME, Settings
from .sft_set import find_sft_set


# What a method is: the objective or LlamaFactory's stage, the keys in which it differs from it, and its label.
METHODS: dict[str, tuple[str, dict[str, Any], str]] = {
    **{objective: (objective, {}, label) for objective, label in LABELS.items()},
    **{f"no_{part}": ("tpaw", change, f"TPAW without {what}") for part, (what, change) in WITHOUT.items()},
    "east": ("tpaw", {"tpaw_prompt_weight": "entropy"}, "TPAW with EAST's weights, reconstructed"),
    "sft_epochs": ("sft", {}, "SFT, as many epochs"),
    "sft_steps": ("sft", {}, "SFT, as many steps"),
    "dpo": ("dpo", {}, "DPO"),
}
DECISIVE = ("kind", "overrides", "settings", "iterations")
MOST_LOGS = 60
LOGGED = re.compile(
    "step|loss|(rewards|logps|length)/(target|generated)|rewards/margin|weights/(target_eta_fraction|player/.+)|"
    "generated/.+"
)
PRELOADED = ("llamafactory_tpaw.train.workflow", "llamafactory_tpaw.generation.local", "lm_eval.models.huggingface")


@dataclass(frozen=True)
class Study:
    """What STUDY.yaml holds; `{seed}` in `theta_0`, `data` and `sft` stands for the seed."""

    name: str = "???"  # OmegaConf's word for a value that must be given
    theta_0: str = "???"  # folder of the SFT model
    data: str = "???"  # the SFT set: a file, or an entry of dataset_info.json
    methods: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    iterations: int = 4
    settings: dict[str, Any] = field(default_factory=dict)  # keys of all run files
    sft: str = ""  # run file and overrides, as words of `run`, that make `theta_0` where it is not there
    evaluate: str = ""  # options of `eval`, as words of the command line
    folder: str = "saves/${name}"  # of run files, models, triplets and log-probs
    results: str = "${folder}/results"

    def parts(self) -> list[Part]:
        """All methods with the first seed, then with the next, so that what is finished can be compared."""
        return [self._part(key, seed) for seed in self.seeds for key in self.methods]

    def _part(self, key: str, seed: int) -> Part:
        own = dict(self.methods[key] or {})
        kind, label = str(own.pop("from", key)), own.pop("label", None)
        if kind not in METHODS or (key in METHODS and kind != key) or not NAME.fullmatch(key):
            raise ConfigError(
                f"`methods: {key}` is not known. Take one of {', '.join(METHODS)}, or another name with `from:` and "
                "one of them."
            )
        if kind != key:
            label = label or f"{METHODS[kind][2]}, {', '.join(f'{name} {value}' for name, value in own.items())}"
            own = {name: value for name, value in (self.methods.get(kind) or {}).items() if name != "label"} | own
        name = f"{key}_seed{seed}"
        folders = [Path(self.folder, "runs", numbered(name, t)) for t in range(self.iterations)]
        return Part(self, key, seed, name, kind, label or METHODS[kind][2], own, folders)


class Part(NamedTuple):
    """A method with a seed."""

    study: Study
    key: str
    seed: int
    name: str  # of its run files, folders and results
    kind: str  # the method's name in METHODS
    label: str
    overrides: dict[str, Any]
    folders: list[Path]  # of its iterations

    @property
    def result(self) -> Path:
        """The file that is there once the part is finished."""
        return Path(self.study.results, f"{self.name}.json")

    @property
    def log(self) -> Path:
        """What its processes print."""
        return Path(self.study.folder, "logs", f"{self.name}.log")

    def filled(self, text: str) -> str:
        """Return a text with the seed."""
        return text.replace("{seed}", str(self.seed))

    def definition(self) -> dict[str, Any]:
        """What decides its result."""
        own = {key: getattr(self, key) for key in ("seed", "kind", "label", "overrides")}
        shared = {key: getattr(self.study, key) for key in ("settings", "iterations")}
        return {"schema": 1, "study": self.study.name, "method": self.key} | own | shared

    def state(self) -> str:
        """How far it is; results of other settings are a `ConfigError`."""
        if not self.result.is_file():
            done = sum((folder / "train_results.json").is_file() for folder in self.folders)
            return f"at iteration {done}" if self.folders[0].is_dir() else "not begun"
        found, now = read_json(self.result), self.definition()
        if changed := [f"`{key}`" for key in DECISIVE if found.get(key) != now[key]]:
            raise ConfigError(
                f"{self.result} was made with other {' and '.join(changed)}. Restore them, give the method another "
                "name, or delete the file and the folders of the part."
            )
        return "finished"


def read_study(file: str) -> Study:
    """Read STUDY.yaml; what cannot be read, and a method that there is not, is a `ConfigError`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Study), OmegaConf.load(file)))
    except (OSError, TypeError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} cannot be read: {' '.join(str(error).split())}. Correct it.") from None
    study.parts()
    return study


def run_study(file: str, only: int | None, tell: Callable[[str], None]) -> int:
    """Play the parts that are not finished, or part `only`, past those that fail; return the first failure's code."""
    study, failed = read_study(file), 0
    parts = study.parts()
    if only is not None and not 0 <= only < len(parts):
        raise ConfigError(f"`--only {only}` is no part of {file}, whose last one is {len(parts) - 1}. Correct it.")
    for number, part in enumerate(parts):
        if only not in (None, number) or part.state() == "finished":
            continue
        tell(f"{part.name} ({number}): {part.state()}.")
        try:
            with locked(Path(study.folder, "runs", part.name), part.name):
                code = 0 if part.state() == "finished" else _play_part(part, tell)
        except InUseError as error:
            if only is not None:
                raise
            tell(str(error))
            continue
        except TpawError as error:
            code = report(error)
        if code in (INTERRUPTED, TERMINATED):
            return code
        tell(f"{part.name} failed with exit code {code}. See {part.log}." if code else f"{part.result} is written.")
        failed = failed or code
    done = sum(part.result.is_file() for part in parts)
    tell(f"{done} of {len(parts)} parts are finished. `llamafactory-tpaw report {study.results}` compares them.")
    return failed


# -- run files


def write_part(part: Part) -> list[Item]:
    """Write a part's run files and the entries that they name as `init` does, and check them as `run` does."""
    study, folder, name = part.study, Path(part.study.folder), f"sft_seed{part.seed}"
    keys = {"plot_loss": False, "tpaw_cache_dir": str(folder / "cache"), **study.settings, "seed": part.seed}
    stage, data = METHODS[part.kind][0], str(keys.pop("dataset_dir", "data"))
    objective = stage if stage in LABELS else "tpaw"
    sft_set = find_sft_set(Path(data), part.filled(study.data), {})
    entries = {name: _absolute(sft_set.entry, sft_set.path)}
    if part.kind == "dpo":
        pairs = find_entry(str(part.overrides.get("dataset")), data)
        entries[pairs.name] = _absolute(pairs.attributes, pairs.path)
    keys["dataset_dir"] = str(folder / "data")
    asked = Settings(part.filled(study.theta_0), name, Path(), None, (objective,), iterations=1, keys=keys)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".files.lock"):  # dataset_info.json is read and written again
        write_project(folder, "data", {}, entries, part.name, force=True)
        first = plan_project(asked, lambda _: None).runs[LABELS[objective]][0]
        if stage in LABELS:
            runs = _self_play(part, first | METHODS[part.kind][1])
        else:
            runs = _baseline(part, first | {"dataset": name}, sft_set.total)
        title = f"{part.label}, seed {part.seed}, iteration"
        files = {path_of(run): render(run, f"{title} {t}.") for t, run in enumerate(runs)}
        rounds = {own_round(run): triplet_entry(own_round(run)) for run in runs if stage in LABELS}
        write_project(folder, "data", files, rounds, part.name, force=True)
    return read_items([str(folder / file) for file in files], [])


def _absolute(entry: dict[str, Any], path: Path | None) -> dict[str, Any]:
    return entry | ({"file_name": str(path.resolve())} if path else {})


def _self_play(part: Part, first: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of a part's iterations; methods that sample alike have one D_0 a seed."""
    own = any(section_of(key) == "generation" or key in (*PROMPT_KEYS, *SAMPLING_KEYS) for key in part.overrides)
    dataset = numbered(part.name if own else f"seed{part.seed}", 0)
    runs = [first | part.overrides | {"dataset": dataset, "output_dir": str(part.folders[0])}]
    while len(runs) < len(part.folders):
        runs.append(next_settings(runs[-1]))
    return runs


def _baseline(part: Part, first: Mapping[str, Any], rows: int | None) -> list[dict[str, Any]]:
    """The settings of LlamaFactory's own stage, as often as TPAW has iterations; `rows` are those of the SFT set."""
    tpaw = first | (part.study.methods.get("tpaw") or {})
    if part.kind != "dpo" and (rows is None or int(tpaw.get("tpaw_max_prompts", rows)) < rows):
        raise ConfigError(
            f"`methods: {part.key}` needs a local SFT set whose rows are all prompts. Leave `tpaw_max_prompts` out, "
            "and give `data` the rows to play with alone."
        )
    keys = {key: value for key, value in first.items() if section_of(key) != "generation" and key[:5] != "tpaw_"}
    keys |= {"stage": METHODS[part.kind][0], "num_train_epochs": tpaw["num_train_epochs"], **part.overrides}
    runs = []
    for t, folder in enumerate(part.folders):
        if part.kind == "sft_steps":
            triplets = rows * int(tpaw.get("tpaw_samples_per_prompt", 1)) * min(t + 1, int(tpaw["tpaw_team_size"]))
            keys["max_steps"] = steps_of(with_defaults(tpaw), triplets)
        runs.append(keys | {"output_dir": str(folder)})
        after = Start.of(keys).after(str(folder))
        keys |= {"model_name_or_path": after.model}
        keys |= {"adapter_name_or_path": ",".join(after.adapters)} if after.adapters else {}
    return runs


# -- playing


def _play_part(part: Part, tell: Callable[[str], None]) -> int:
    study, log, theta_0 = part.study, part.log, part.filled(part.study.theta_0)
    log.parent.mkdir(parents=True, exist_ok=True)
    forks = is_true(study.settings, "use_cpu") and sys.platform == "linux"
    if forks:
        _preload()
    start = functools.partial(_start, log=log, method="fork" if forks else "spawn")
    play_one = functools.partial(_play_one, start=start, folder=Path(study.folder))
    if study.sft:
        file, *overrides = part.filled(study.sft).split()
        with FileLock(Path(study.folder, f".theta_0_seed{part.seed}.lock")):
            items = checked_items([file], [*overrides, f"output_dir={theta_0}"])
            if not items[0].finished and (code := play(items, tell, play_one)):
                return code
    with ProcessPoolExecutor(1, initializer=_become_child, initargs=(log,)) as pool:
        items = pool.submit(write_part, part).result()
    code = play(items, tell, play_one)
    if not code and study.evaluate:
        with FileLock(Path(study.folder, f".theta_0_seed{part.seed}.lock")):  # θ_0 belongs to several parts
            code = start(["eval", theta_0, *map(str, part.folders), *study.evaluate.split()])
    if not code:
        write_atomic(part.result, json.dumps(collect(part), ensure_ascii=False, allow_nan=False) + "\n")
    return code


def _play_one(item: Item, start: Callable[[list[str]], int], folder: Path) -> int:
    """Play a run file by two commands, since a training that generates starts a process that imports everything."""
    given = item.given
    if not item.is_iteration and not any(item.folder.glob("checkpoint-*")):
        given = given | {"overwrite_output_dir": True}  # LlamaFactory would refuse what an interruption left
    with handed_file(given, **({"run_file": item.file} if item.is_iteration else {})) as file:
        if item.is_iteration:
            with FileLock(folder / f".{own_round(given)}.lock"):  # D_0 belongs to several parts
                if code := start(["generate", file]):
                    return code
        return start(["train", file])


def _preload() -> None:
    """Import what trains, generates and evaluates, and do nothing with it: no thread, no device, no random number."""
    require_seams()
    tqdm.set_lock(threading.RLock())  # of all bars: one that processes share stays taken where its holder is killed
    for name in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):  # lm_eval is an extra
            importlib.import_module(name)


def _start(words: list[str], log: Path, method: str) -> int:
    """Run a command of this package, by `fork` in a copy of this process, which saves the seconds of its imports."""
    process = multiprocessing.get_context(method).Process(target=_as_command, args=(words, log))
    process.start()
    try:
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join(SAVING_S)
            process.kill()
            process.join()
    return process.exitcode if process.exitcode >= 0 else 128 - process.exitcode


def _as_command(words: list[str], log: Path) -> None:
    _become_child(log)
    sys.argv = ["llamafactory-tpaw", *words]
    runpy.run_module("llamafactory_tpaw", run_name="__main__")


def _become_child(log: Path) -> None:
    """End with the parent, and write into the log."""
    end_with_parent(multiprocessing.parent_process().pid)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


# -- results


def collect(part: Part) -> dict[str, Any]:
    """Gather from a part's folders what a report needs, as one small object."""
    read = read_part(part.key, part.seed, Path(part.filled(part.study.theta_0)), part.folders)
    points = []
    for theta, point in enumerate(point for point in read.points if "checkpoint-" not in Path(point.folder).name):
        rows = point.logs[:: math.ceil(len(point.logs) / MOST_LOGS) or 1]
        logs = [{key: float(f"{row[key]:.6g}") for key in row if LOGGED.fullmatch(key)} for row in rows]
        fingerprint = fingerprint_checkpoint(Path(point.folder), Path(part.study.folder, "cache"))
        points.append(asdict(point) | {"theta": theta, "fingerprint": fingerprint, "logs": logs})
    return part.definition() | {"environment": _environment(), "points": points, "examples": read.examples}


def _environment() -> dict[str, Any]:
    """Versions, the commit of this package where it is a checkout, and the machine."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout if which("git") else ""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8")) if info.is_file() else None
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    return {**versions(), "commit": commit.strip(), "cpu": cpu[1] if cpu else platform.machine(), "threads": threads}
