# SPDX-License-Identifier: Apache-2.0
"""Disk that an iteration needs, and whether the file systems have it."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...arguments.start import Start
from ...data.rounds import split_names
from ...errors import EnvironmentProblem
from ...team.cache import KEY_BYTES
from ...team.checkpoint import read_tensors
from .figures import Figure, readable_bytes
from .optimizers import optimizer_bytes
from .spread import count_processes
from .workload import steps_of


if TYPE_CHECKING:
    from ..findings import Report
    from ..preflight import Plan
    from .workload import Workload

# Where less than this is left beyond the estimate, it is tight.
TIGHT = 1.1
CACHE_ENTRY = KEY_BYTES + 8  # key, log-prob, count
ID_BYTES, PROMPT_RECORD = 4, 44  # a token id; what is kept of a prompt beside them, and to count it
UNADAPTED = ("embed_tokens", "wte", "lm_head", "embed_out")  # LlamaFactory's `lora_target: all` leaves them out
CACHE_FILES = 1200  # numerics.json, a fingerprint, headers of parts
TENSOR_NAME = 110  # an entry of a safetensors header
OPTIMIZER_ENTRY = 870  # names and headers that torch.save writes for the states of one tensor
CHECKPOINT_FILES = 24_000  # random states, scheduler, arguments
OUTPUT_FILES = 14_000  # model card, results, arguments, tpaw.json, a chat template
LOGGED, LOGGED_PLAYER = 1310, 475  # a logged step in trainer_state.json and trainer_log.jsonl; more for each player
CURVE, CURVE_STEP, CURVE_MOST = 33_000, 300, 60_000  # a picture of a curve
CURVES = 5


@dataclass(frozen=True)
class Space:
    """What is written to a folder: `sure` bytes at least."""

    folder: Path
    figure: Figure
    sure: float


class SavedBytes(NamedTuple):
    """What training writes of weights: the result's bytes, those of all savings together, and how many these are."""

    result: float
    whole: float
    times: int


def saved_bytes(plan: Plan, keys: dict[str, Any], workload: Workload) -> SavedBytes | None:
    r"""Count what training writes, checkpoints that are removed again included.

    Args:
        plan: Its players.
        keys: The run's keys with LlamaFactory's defaults.
        workload: What there is to do.
    """
    counts = _saved_counts(plan, keys)
    steps = _steps(keys, workload)
    if not counts:
        return None
    _, result, state = _weights_and_state(keys, counts)
    times = _checkpoints(keys | {"save_total_limit": None}, steps)
    return SavedBytes(result, result + times * (result + state), 1 + times)


def disk_spaces(plan: Plan, keys: dict[str, Any], workload: Workload | None) -> list[Space]:
    r"""Estimate what an iteration writes.

    Args:
        plan: Its settings, players and datasets.
        keys: The run's keys with LlamaFactory's defaults.
        workload: What there is to do, or None where the data was not looked at.
    """
    spaces = []
    if _is_true(keys.get("do_train")):
        spaces += _output_spaces(plan, keys, workload)
    if workload is not None:
        spaces += _data_spaces(plan, keys, workload)
    return spaces


def _data_spaces(plan: Plan, keys: dict[str, Any], workload: Workload) -> list[Space]:
    spaces = []
    if workload.generates:
        amount = None if workload.new_rows is None else workload.new_rows * workload.row_bytes
        each = f" with {workload.samples} responses each" if workload.samples > 1 else ""
        rows = f"{workload.prompts} prompts{each}, {workload.row_bytes:.0f} bytes a row"
        how = f"{rows} ({workload.how}), and 1 KiB of meta"
        for round_ in plan.to_generate:
            spaces.append(Space(round_.path.parent, Figure("triplets", amount and amount + 1024, "bytes", how), 0))
            half_done = Figure("half-done triplets", amount, "bytes", "as many, kept until the round is whole")
            spaces.append(Space(round_.path.parent, half_done, 0))
    spaces.append(Space(Path(keys["tpaw_cache_dir"]), _token_ids(workload), 0))
    if workload.players and keys["tpaw_reference"] == "cached":
        count = workload.scored_sequences
        amount = None if count is None else count * CACHE_ENTRY + workload.players * CACHE_FILES
        how = f"{CACHE_ENTRY} bytes for each of {count} log-probs that the players' caches lack"
        spaces.append(Space(Path(keys["tpaw_cache_dir"]), Figure("cache", amount, "bytes", how), 0))
    return spaces


def _token_ids(workload: Workload) -> Figure:
    """Files without a name that hold token ids while prompts are answered and triplets are trained on."""
    triplets, count = workload.triplets, workload.train_triplets
    prompt = np.mean([len(triplet.prompt_ids) + len(triplet.target_ids) for triplet in triplets])
    generated = np.mean([len(triplet.generated_ids) for triplet in triplets])
    amount = None
    if count is not None:
        amount = workload.prompts * (PROMPT_RECORD + ID_BYTES * prompt) + count * ID_BYTES * generated
    how = f"{ID_BYTES} bytes a token of prompts, targets and responses ({workload.how}), gone with the process"
    return Figure("token ids", amount, "bytes", how)


def _output_spaces(plan: Plan, keys: dict[str, Any], workload: Workload | None) -> list[Space]:
    folder, policy = Path(keys["output_dir"]), Path(plan.players[-1].base)
    counts = _saved_counts(plan, keys)
    if not counts:
        return []
    numbers, weights, state = _weights_and_state(keys, counts)
    texts = _text_bytes(policy)
    steps = _steps(keys, workload)
    players = workload.players if workload else 1
    logs = (steps or 0) / max(float(keys["logging_steps"]), 1) * (LOGGED + LOGGED_PLAYER * players)
    curves = _curves(keys, steps)
    dtype = "bfloat16" if _is_true(keys.get("pure_bf16")) else "float32"
    theta = weights + texts + logs + curves + OUTPUT_FILES
    how = f"{numbers} weights in {dtype}, tokenizer, logs{', curves' if curves else ''}"
    spaces = [Space(folder, Figure("theta_{t+1}", theta, "bytes", how), weights)]
    kept = _checkpoints(keys, steps)
    if kept:
        one = weights + texts + state + CHECKPOINT_FILES + logs / 4
        how = f"{kept} at a time (`save_strategy`, `save_steps`, `save_total_limit`) of {readable_bytes(one)}" + (
            ", with the optimizer's state" if state else ""
        )
        spaces.append(Space(folder, Figure("checkpoints", kept * one, "bytes", how), kept * (weights + state)))
    return spaces


def _saved_counts(plan: Plan, keys: dict[str, Any]) -> dict[str, int]:
    """Number of weights of each tensor that is saved: all of θ_t's, or those of its last or of a new adapter."""
    policy, start = plan.players[-1], Start.of(keys)
    going_on = start.is_lora and start.adapters and not start.new_adapter
    folder = Path(policy.path if going_on or not start.is_lora else policy.base)
    if not folder.is_dir():
        return {}
    shapes = _weight_shapes(folder)
    if start.is_lora and not going_on:
        shapes = _adapter_shapes(shapes, keys)
    return {name: math.prod(shape) for name, shape in shapes.items()}


def _weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Shape of each tensor, from the headers of safetensors files."""
    return {tensor.name: tensor.shape for tensor in read_tensors(folder)}


def _adapter_shapes(shapes: dict[str, list[int]], keys: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of a new adapter's matrices, and of the modules that are trained beside them, upon a model's weights."""
    rank, targets = int(keys["lora_rank"]), split_names(keys["lora_target"])
    whole = split_names(keys.get("additional_target"))
    found = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight").rpartition(".")[2]
        if module in whole:
            found[name] = shape
        elif len(shape) == 2 and (module in targets or (targets == ["all"] and module not in UNADAPTED)):
            found |= {f"{name}.lora_A": [rank, shape[1]], f"{name}.lora_B": [shape[0], rank]}
    return found


def _weights_and_state(keys: dict[str, Any], counts: dict[str, int]) -> tuple[int, float, float]:
    """Number of weights, their bytes in a file, and those of the optimizer's state in a checkpoint."""
    numbers = sum(counts.values())
    size = 2 if _is_true(keys.get("pure_bf16")) else 4
    state = 0
    if not _is_true(keys.get("save_only_model")):
        optim = str(getattr(keys["optim"], "value", keys["optim"]))
        state = optimizer_bytes(optim.removeprefix("paged_"), numbers, numbers * size)[0]
        state += len(counts) * OPTIMIZER_ENTRY
    return numbers, numbers * size + len(counts) * TENSOR_NAME, state


def _steps(keys: dict[str, Any], workload: Workload | None) -> int | None:
    triplets = workload.train_triplets if workload else None
    most = int(keys["max_steps"])
    if triplets is None and most <= 0:
        return None
    held_out = float(keys.get("val_size") or 0)
    if triplets is not None:
        triplets -= int(held_out) * workload.responses if held_out >= 1 else math.ceil(held_out * triplets)
    return steps_of(
        triplets or 1,
        int(keys["per_device_train_batch_size"]) * count_processes(keys.get("ray_num_workers")),
        int(keys["gradient_accumulation_steps"]),
        float(keys["num_train_epochs"]),
        most,
    )


def _checkpoints(keys: dict[str, Any], steps: int | None) -> int:
    """Most checkpoints that are there at a time: before the oldest goes, there is one more than the limit."""
    strategy = str(getattr(keys["save_strategy"], "value", keys["save_strategy"]))
    if strategy == "no" or (strategy == "steps" and steps is None):
        return 0
    if strategy == "steps":
        every = float(keys["save_steps"])
        count = math.ceil(steps / max(every if every >= 1 else every * steps, 1))
    else:
        count = math.ceil(float(keys["num_train_epochs"]))
    limit = keys.get("save_total_limit")
    return min(count, int(limit) + 1) if limit else count


def _curves(keys: dict[str, Any], steps: int | None) -> float:
    if not _is_true(keys.get("plot_loss")):
        return 0.0
    points = (steps or 0) / max(float(keys["logging_steps"]), 1)
    return CURVES * min(CURVE + CURVE_STEP * points, CURVE_MOST)


def _text_bytes(folder: Path) -> int:
    """Tokenizer and config files, which every checkpoint has."""
    patterns = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens*", "*config.json")
    return sum({path: path.stat().st_size for pattern in patterns for path in folder.glob(pattern)}.values())


def check_disk(spaces: list[Space], report: Report) -> None:
    """Compare what is needed with what is free, for each file system; what is there already counts as done."""
    systems: dict[int, list[Space]] = {}
    for space in spaces:
        systems.setdefault(nearest_folder(space.folder).stat().st_dev, []).append(space)
    for parts in systems.values():
        folder = nearest_folder(parts[0].folder)
        free = shutil.disk_usage(folder).free
        there = sum(_bytes_below(path) for path in {space.folder for space in parts if space.sure})
        sure = sum(space.sure for space in parts) - there
        whole = sum(space.figure.amount or 0 for space in parts) - there
        listed = ", ".join(
            f"{space.figure.name} {space.figure.readable()} in {space.folder}"
            for space in parts
            if space.figure.amount
        )
        needs = f"The iteration writes {listed}, but the file system of {folder} has {readable_bytes(free)} free."
        advice = (
            "Free some, save fewer checkpoints (`save_total_limit`, `save_only_model: true`), or choose another "
            "`output_dir`."
        )
        if sure > free:
            report.error(EnvironmentProblem, f"{needs} {advice}")
        elif whole * TIGHT > free:
            report.warn(f"{needs} That is tight. {advice}")


def nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _is_true(value: Any) -> bool:
    return str(value).lower() == "true"
