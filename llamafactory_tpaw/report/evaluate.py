# SPDX-License-Identifier: Apache-2.0
"""Evaluates checkpoints on tasks of lm-evaluation-harness; keeps what came out in `eval.json` beside each of them."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments.start import ADAPTER_CONFIG, is_adapter
from ..data.files import key_problems, locked, read_json, sha256_hex, write_json_atomic
from ..errors import ConfigError, DataError, EnvironmentProblem, Findings
from ..lf import facade
from ..lf.given import is_true
from ..team.checkpoint import read_object, weight_dtype
from ..team.fingerprint import hash_weights, identity, with_adapter
from ..team.manifest import MANIFEST, path_from, read_manifest
from .lineage import FINISHED, START, in_order, shown, trace


if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

EVALUATIONS, SCHEMA = "eval.json", 1
GROUPS = Path(__file__).with_name("tasks")  # of tasks, beside lm-eval's own
SEED = 1234  # lm-eval's own, of few-shot examples and of tasks that sample
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Evaluation:
    """What a task, or a group that has a result of its own, said of a checkpoint, and how it was asked."""

    metric: str  # the first one, `acc_norm` before others, as lm-eval names it: `exact_match,none`
    value: float
    stderr: float | None  # over items
    n: int  # items
    items: str | list[float]  # by document: `0` and `1`, or numbers; empty where `value` is not their mean
    metrics: dict[str, float]  # every metric, and its `..._stderr`
    version: str
    num_fewshot: int
    limit: int | None  # the first so many items alone
    backend: str
    dtype: str
    chat_template: str | None  # SHA-256; None where none was applied
    lm_eval: str
    seconds: float


def read_evaluations(folder: Path, fingerprint: str | None = None) -> dict[str, Evaluation]:
    """Read a checkpoint's `eval.json`, by task; empty where it has none, or is of weights of another `fingerprint`."""
    path = Path(folder) / EVALUATIONS
    content = read_json(path) if path.is_file() else {"schema": SCHEMA, "tasks": {}}
    tasks = content.get("tasks") if isinstance(content, dict) and content.get("schema") == SCHEMA else None
    if not isinstance(tasks, dict) or any(key_problems(Evaluation, entry) for entry in tasks.values()):
        raise DataError(f"{path} is damaged, or of another version. Delete it and evaluate the checkpoint again.")
    if fingerprint not in (None, content.get("fingerprint")):
        return {}
    return {name: Evaluation(**entry) for name, entry in tasks.items()}


def write_evaluations(folder: Path, fingerprint: str, evaluations: Mapping[str, Evaluation]) -> None:
    """Write a checkpoint's `eval.json`, whole or not at all."""
    tasks = {name: asdict(evaluation) for name, evaluation in evaluations.items()}
    write_json_atomic(folder / EVALUATIONS, {"schema": SCHEMA, "fingerprint": fingerprint, "tasks": tasks}, seal=True)


def find_checkpoints(places: Sequence[str | Path], lineage: bool = False) -> list[Path]:
    """Find what places mean: a checkpoint itself, with `lineage` all θ before it; of a folder all θ in it, and θ_0."""
    found: dict[str, Path] = {}
    for place in map(Path, places):
        if ((place / "config.json").is_file() or is_adapter(place)) and not (lineage and (place / MANIFEST).is_file()):
            found.setdefault(os.path.realpath(place), place)
            continue
        for node in in_order(trace([place]).checkpoints.values()):
            if node.place is not None and node.state in (FINISHED, START) and node.name.startswith("theta_"):
                found.setdefault(os.path.realpath(node.place), Path(shown(node.place)))
    return list(found.values())


def evaluate(
    folders: Sequence[Path],
    tasks: Sequence[str],
    say: Callable[[str], None],
    *,
    include_path: str | None = None,
    backend: str = "hf",
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: str | None = None,
    chat_template: bool | None = None,
    model_args: str = "",
) -> None:
    """Evaluate checkpoints and keep each result as soon as it is there; what is there already is left.

    The names of all arguments are those of the command's options; None of them is its default. `say` gets a line about
    each checkpoint and task. What is not here, or cannot be asked in this way, is a `TpawError`.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise EnvironmentProblem("lm-evaluation-harness is not installed: pip install 'llamafactory-tpaw[eval]'")
    from lm_eval.utils import simple_parse_args_string
    from transformers import AutoTokenizer

    units, seconds, passed = _load_tasks(tasks, include_path, num_fewshot), [], 0
    for folder in folders:
        fingerprint, arguments = _describe(folder, backend)
        arguments |= simple_parse_args_string(model_args)
        code = bool(arguments.get("trust_remote_code"))
        template = AutoTokenizer.from_pretrained(arguments["tokenizer"], trust_remote_code=code).chat_template
        if chat_template and not template:
            raise ConfigError(f"{folder} has no chat template. Leave --apply-chat-template out, or save one in it.")
        if chat_template is None and not template:
            say(f"{folder} has no chat template: it is asked in plain text, as a base model is.")
        digest = sha256_hex(str(template).encode()) if template and chat_template is not False else None
        how = {"limit": limit, "backend": backend, "dtype": str(arguments["dtype"]), "chat_template": digest}
        with locked(folder / EVALUATIONS, str(folder / EVALUATIONS)):
            model = None
            for name, unit in units.items():
                asked = _tasks_of(unit)
                settings = how | {"version": ",".join(sorted({str(task.VERSION) for task in asked}))}
                settings["num_fewshot"] = max(task.get_config("num_fewshot") for task in asked)
                kept, passed = read_evaluations(folder, fingerprint), passed + 1
                if name in kept and settings.items() <= asdict(kept[name]).items():
                    say(f"{folder}: evaluated already on {name}.")
                    continue
                started, model = time.monotonic(), model or _load(backend, batch_size, arguments)
                measured = _ask(model, name, unit, limit, digest is not None)
                seconds.append(round(time.monotonic() - started, 1))
                new = Evaluation(**measured, **settings, lm_eval=version("lm_eval"), seconds=seconds[-1])
                write_evaluations(folder, fingerprint, kept | {name: new})
                left = sum(seconds) / len(seconds) * (len(folders) * len(units) - passed) / 60
                text = f"{new.metric} {new.value:.4f} ± {new.stderr or math.nan:.4f} ({new.n} items)"
                say(f"{folder}, {name}: {text}, {seconds[-1]:.0f} s; at most {left:.0f} minutes left")
            del model
            facade.torch_gc()


def _load_tasks(words: Sequence[str], include_path: str | None, num_fewshot: int | None) -> dict[str, Task | Group]:
    """Load what has a result of its own, by name: tasks, and groups that lm-eval makes one number of."""
    from lm_eval.tasks import TaskManager

    places, units = [*filter(None, [include_path]), GROUPS], {}
    manager = TaskManager(include_path=places, include_defaults=False)
    if not {word for word in words if not word.endswith(".yaml")} <= set(manager.all_subtasks):
        manager = TaskManager(include_path=places)  # the index of lm-eval's own tasks takes seconds
    with Findings() as findings:
        for word in words:
            with findings.note():
                try:
                    loaded = manager.load(word)
                except Exception as error:  # of packages, the network, the hub: each has classes of its own
                    cause = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
                    raise EnvironmentProblem(
                        f"Task `{word}` cannot be loaded: {cause}. `lm-eval ls tasks` lists names; where a data set "
                        "comes from a hub, start this once with a network, or set HF_HOME to a cache that has it."
                    ) from error
                rest = list(loaded["groups"].values())[:1] or list(loaded["tasks"].values())
                while rest:
                    unit = rest.pop(0)
                    if getattr(unit, "has_aggregation", True):
                        units[getattr(unit, "task_name", None) or unit.name] = unit
                    else:
                        rest = [*unit, *rest]
    for task in (task for unit in units.values() for task in _tasks_of(unit)):
        own = task.get_config("num_fewshot")
        if own is None or (own and num_fewshot is not None):  # 0 is part of what a task is
            task.set_config("num_fewshot", num_fewshot or 0)
        task.set_fewshot_seed(SEED)
    return units


def _tasks_of(unit: Task | Group) -> list[Task]:
    return unit.get_all_tasks() if hasattr(unit, "get_all_tasks") else [unit]


def _describe(folder: Path, backend: str) -> tuple[str, dict[str, Any]]:
    """Return a checkpoint's fingerprint, and the arguments with which lm-eval loads it."""
    manifest, base, arguments = read_manifest(folder), str(folder), {}
    store = Path(os.path.normpath(folder / manifest.cache)) if manifest and manifest.cache else None
    store = store if store and store.is_dir() else None
    result, policy, settings = (manifest.result, manifest.policy, manifest.settings) if manifest else ({}, {}, {})
    own = hash_weights(folder, store).fingerprint
    fingerprint = identity(own, result)
    if is_adapter(folder):
        below = [path_from(part["path"], folder) for part in result.get("below") or policy.get("below", ())]
        if len(below) > 1 or (below and not result and is_true(settings, "create_new_adapter")):
            raise DataError(
                f"{folder} is an adapter on a model with adapters, and lm-eval takes one. Merge them "
                "(`llamafactory-cli export`) and evaluate what comes out."
            )
        base = below[0] if below else str(read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
        arguments["peft" if backend == "hf" else "lora_local_path"] = str(folder)
        if Path(base).is_dir():
            fingerprint = with_adapter(hash_weights(Path(base), store).fingerprint, own)
    source = str(folder) if (folder / "tokenizer_config.json").is_file() else base
    dtype = DTYPES.get(weight_dtype(Path(base)), "auto") if Path(base).is_dir() else "auto"
    return fingerprint, arguments | {"pretrained": base, "tokenizer": source, "dtype": dtype}


def _load(backend: str, batch_size: str | None, arguments: Mapping[str, Any]) -> Any:
    import torch
    from lm_eval.api.registry import get_model

    device = {"device": "cuda" if torch.cuda.is_available() else "cpu"} if backend == "hf" else {}
    batch = {"batch_size": batch_size or ("8" if backend == "hf" else "auto")}
    return get_model(backend)(**batch, **device | arguments)


def _ask(model: Any, name: str, unit: Task | Group, limit: int | None, chat: bool) -> dict[str, Any]:
    """Let lm-eval ask, and read what an evaluation keeps of its answer."""
    from lm_eval.evaluator import evaluate as ask
    from transformers import set_seed

    set_seed(SEED)
    tasks = {task.task_name: task for task in _tasks_of(unit)}
    parts = {"tasks": tasks, "groups": {} if name in tasks else {name: unit}}
    out = ask(model, parts, limit=limit, bootstrap_iters=1000, apply_chat_template=chat, fewshot_as_multiturn=chat)
    results = {key: value for key, value in out["results"][name].items() if isinstance(value, int | float)}
    metrics = {key: float(value) for key, value in results.items() if "," in key and math.isfinite(value)}
    names = sorted((key for key in metrics if "_stderr," not in key), key=lambda key: not key.startswith("acc_norm,"))
    if not names:
        raise DataError(f"Task `{name}` gave no number. Look at its items and metrics.")
    metric, value = names[0], metrics[names[0]]
    key, _, kind = metric.partition(",")
    rows = [row for task in tasks for row in out["samples"][task] if row["filter"] == kind]
    found, items = [row.get(key) for row in rows], ""
    # What one item says may be more than a number, such as a log-prob with its length, of which a perplexity is made.
    if all(isinstance(item, int | float) for item in found) and math.isclose(sum(found), value * len(found)):
        items = [float(item) for item in found] if set(found) - {0, 1} else "".join(str(int(item)) for item in found)
    n = sum(out["n-samples"][task]["effective"] for task in tasks)
    stderr = metrics.get(metric.replace(",", "_stderr,"))
    return {"metric": metric, "value": value, "stderr": stderr, "n": n, "items": items, "metrics": metrics}
