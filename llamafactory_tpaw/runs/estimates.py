# SPDX-License-Identifier: Apache-2.0
"""Memory by arithmetic from a model's config and its weights' headers, disk from sizes, hours from `tpaw.json`."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..data.files import readable_bytes
from ..data.layout import padded
from ..data.rounds import split_names
from ..errors import ConfigError, EnvironmentProblem
from ..lf.failures import nearest_folder
from ..lf.given import is_on, is_true
from ..objectives.head import BLOCK_SCORES, BLOCK_SCORES_ELSEWHERE
from ..team.checkpoint import read_tensors
from ..team.manifest import read_manifest
from ..team.members import load_config
from ..team.sharding import deepspeed_config, uses_fsdp
from .checks import zero_stage
from .plan import with_defaults


if TYPE_CHECKING:
    from ..arguments.parsed import RunArguments
    from ..errors import Findings
    from .checks import Sample
    from .plan import Plan

HALVES = ("bf16", "fp16", "pure_bf16")
UNADAPTED = ("embed_tokens", "wte", "lm_head", "embed_out")  # LlamaFactory's `lora_target: all` leaves them out


class Weights(NamedTuple):
    """How many weights a model has, and in matrices of layers; bytes of all, of gradients, of the optimizer."""

    count: int
    matrices: int
    held: float
    gradients: float
    state: float


def weight_shapes(folder: str, config: Any = None, trust_remote_code: bool = False) -> dict[str, list[int]]:
    """Read the shapes of all tensors from safetensors headers; without a folder let transformers say them."""
    if Path(folder).is_dir():
        return {tensor.name: tensor.shape for tensor in read_tensors(Path(folder))}
    if config is None:
        return {}
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    head = {} if config.tie_word_embeddings else {"lm_head.weight": [config.vocab_size, config.hidden_size]}
    return {name: list(weight.shape) for name, weight in model.named_parameters()} | head


def weights_of(keys: Mapping[str, Any], shapes: dict[str, list[int]]) -> Weights:
    """Count a model's weights by the run's keys with LlamaFactory's defaults and the shapes of the tensors."""
    modules = {name: name.removesuffix(".weight").rpartition(".")[2] for name in shapes}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1 and modules[name] not in UNADAPTED}
    count, inner = (sum(math.prod(shape) for shape in part.values()) for part in (shapes, matrices))
    size, kind, trained = 2 if is_true(keys, "pure_bf16") else 4, keys["finetuning_type"], count
    if kind == "freeze":
        layers = sum(module == "o_proj" for module in modules.values()) or 1
        trained = round(inner * min(abs(int(keys["freeze_trainable_layers"])) / layers, 1))
    elif kind == "lora":
        targets, whole = split_names(keys["lora_target"]), split_names(keys.get("additional_target"))
        names = [name for name, shape in shapes.items() if shape[1:] and any(f".{x}." in f".{name}." for x in targets)]
        adapted = [shapes[name] for name in (matrices if targets == ["all"] else names)]
        trained = int(keys["lora_rank"]) * sum(map(sum, adapted))
        trained += sum(math.prod(shape) for name, shape in shapes.items() if modules[name] in whole)
    frozen, bits = 2 if any(is_true(keys, name) for name in HALVES) else 4, keys.get("quantization_bit")
    held = count * frozen - inner * (frozen - int(bits) / 8 if bits else 0)
    held += trained * (size if kind == "lora" else size - frozen)
    optim = str(keys["optim"])
    # AdamW and its kin keep two numbers for each weight, the others next to none.
    kept = 0 if optim in ("sgd", "adafactor") else 2 if "8bit" in optim else 2 * size
    return Weights(count, inner, held, trained * size, trained * kept)


def estimate_memory(run: RunArguments, plan: Plan, sample: Sample) -> dict[str, dict[str, float]]:
    """Say in bytes, by what they are for, what each step needs of a device at its peak, on the longest rows."""
    import psutil

    from ..generation.decoding import MAX_ROWS, PREFILL_TOKENS

    keys = with_defaults(plan.given) | vars(plan.tpaw_args)
    config = load_config(run.model)
    weights = weights_of(keys, weight_shapes(plan.players[-1].base, config, run.model.trust_remote_code))
    state, gradients, held = _shared_out(run, weights)
    device, (prompt, response) = run.training.device.type, sample.longest
    length, layers, vocabulary = prompt + response, config.num_hidden_layers, config.vocab_size
    hidden, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or hidden // heads
    pairs = (getattr(config, "num_key_value_heads", None) or heads) * head
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    computed = 2 if any(is_true(keys, name) for name in HALVES) else 4
    residual = 2 if is_true(keys, "pure_bf16") else 4

    def layer_bytes(tokens: int) -> float:
        """What a layer keeps for its backward pass: norms, attention with keys and values repeated, the MLP."""
        return tokens * (2 * hidden * (4 + computed) + computed * (5 * heads * head + 3 * pairs + 5 * inner))

    def head_bytes(tokens: int) -> float:
        if keys["tpaw_logits"] != "blocks":
            return 2 * computed * tokens * vocabulary
        return 6 * min(tokens * vocabulary, BLOCK_SCORES.get(device, BLOCK_SCORES_ELSEWHERE))

    parts: dict[str, dict[str, float]] = {}
    if plan.to_generate and keys["tpaw_engine"] == "hf":
        rows = min(max(int(keys["tpaw_generate_batch_tokens"]) // length, 1), MAX_ROWS, sample.total or MAX_ROWS)
        cache = 2 * layers * pairs * computed * rows * length
        prefill = layer_bytes(min(rows * prompt, max(PREFILL_TOKENS, prompt)))
        sampler = 28 * rows * vocabulary
        parts["generation"] = {"weights": weights.count * computed, "cache and activations": cache + prefill + sampler}
    if sample.scored:
        tokens = max(int(keys["tpaw_score_batch_tokens"]), length)
        parts["scoring"] = {"weights": held, "activations": layer_bytes(tokens) + head_bytes(tokens)}
    size = int(keys["per_device_train_batch_size"])
    together = min(sample.responses, size) if keys["tpaw_grouping"] == "prompt" else 1  # which have one target
    tokens = math.ceil(size / together) * (together + 1) * padded(length)
    unchecked = is_true(keys, "disable_gradient_checkpointing")
    kept = layers * (layer_bytes(tokens) if unchecked else tokens * hidden * residual)
    # Autocast copies matrices that are trained, until the forward pass is over.
    copies = computed * weights.matrices if computed < residual and keys["finetuning_type"] == "full" else 0
    passing = gradients + kept + max(layer_bytes(tokens) + head_bytes(tokens), copies)
    players = sample.players * held if keys["tpaw_reference"] == "online" and keys["finetuning_type"] != "lora" else 0
    parts["training"] = {"weights": held + players, "optimizer": state, "gradients and activations": passing}
    for figures in parts.values():
        if device == "cpu":
            figures["process"] = psutil.Process().memory_info().rss
        figures["peak"] = sum(figures.values())
    return parts


def _shared_out(run: RunArguments, weights: Weights) -> list[float]:
    """A process's share of the optimizer's state (ZeRO-1), of gradients (ZeRO-2), of weights (ZeRO-3, FSDP)."""
    config, fsdp = deepspeed_config(run), run.engine.get("fsdp") or uses_fsdp(run.training)
    stage = zero_stage(config) if config else 3 if fsdp and run.training.device.type != "cpu" else 0
    amounts = enumerate((weights.state, weights.gradients, weights.held), start=1)
    return [amount / (count_processes() if stage >= least else 1) for least, amount in amounts]


def count_processes() -> int:
    """How many training processes a command of this environment would start, all nodes counted."""
    devices = torch.cuda.device_count()
    if is_on("USE_RAY") or (not is_on("FORCE_TORCHRUN") and devices <= 1):
        return 1
    return int(os.environ.get("NNODES", "1")) * int(os.environ.get("NPROC_PER_NODE", devices or 1))


# -- disk and hours


def check_disk(plan: Plan, sample: Sample | None, findings: Findings) -> dict[str, float]:
    r"""Say in bytes what is saved in `output_dir`, and refuse what its file system has no room for.

    What is there already counts as done. Without a sample of the data one checkpoint is counted.
    """
    keys = with_defaults(plan.given) | vars(plan.tpaw_args)
    shapes = weight_shapes(plan.players[-1].base)
    if not is_true(keys, "do_train") or not shapes:
        return {}
    weights = weights_of(keys, shapes)
    is_lora, named = keys["finetuning_type"] == "lora", f"`lora_target: {keys['lora_target']}`"
    if is_lora and not weights.gradients:
        findings.refuse(ConfigError, [f"{named} is nowhere in {plan.players[-1].base}. Correct the names of modules."])
    saved = weights.gradients if is_lora else weights.held
    # Before the oldest checkpoint goes, there is one more than the limit; the last step is saved in any case.
    count, limit = 1, keys.get("save_total_limit")
    if keys["save_strategy"] == "no":
        count = 0
    elif keys["save_strategy"] == "epoch":
        count = math.ceil(float(keys["num_train_epochs"]))
    elif sample is not None:
        steps, every = steps_of(keys, (sample.total or 0) * sample.responses), float(keys["save_steps"])
        count = max(math.ceil(steps / (every if every >= 1 else every * max(steps, 1))), 1)
    count = min(count, int(limit) + 1) if limit else count
    state = 0 if is_true(keys, "save_only_model") else weights.state
    written = {"theta_{t+1}": saved, "checkpoints": count * (saved + state)}
    output = Path(str(keys["output_dir"]))
    free = shutil.disk_usage(nearest_folder(output)).free
    if sum(written.values()) > free + sum(path.stat().st_size for path in output.rglob("*") if path.is_file()):
        listed = " and ".join(f"{name} of {readable_bytes(amount)}" for name, amount in written.items() if amount)
        findings.refuse(
            EnvironmentProblem,
            [
                f"`output_dir: {output}` is to hold {listed}, but its file system has {readable_bytes(free)} free. "
                "Free some, save fewer checkpoints (`save_total_limit`, `save_only_model: true`), or choose another "
                "folder."
            ],
        )
    return written


def steps_of(keys: Mapping[str, Any], triplets: int) -> int:
    """Optimizer steps of the training on so many triplets."""
    batch = int(keys["per_device_train_batch_size"]) * int(keys["gradient_accumulation_steps"]) * count_processes()
    steps = math.ceil(math.ceil(triplets / batch) * float(keys["num_train_epochs"]))
    return int(keys["max_steps"]) if int(keys["max_steps"]) > 0 else steps


def check_schedule(args: Any, steps: int, findings: Findings) -> None:
    """Refuse a schedule of learning rates that cannot be made, and warn of one that has no rate above 0."""
    from transformers import get_scheduler

    from ..train.trainer import moves

    warm_up = args.get_warmup_steps(steps)
    given = f"`lr_scheduler_type: {args.lr_scheduler_type.value}`, `learning_rate: {args.learning_rate}`"
    try:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], args.learning_rate)
        schedule = get_scheduler(args.lr_scheduler_type, optimizer, warm_up, steps, args.lr_scheduler_kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{given}: {error}. Correct them, or `lr_scheduler_kwargs`.") from error
    if not moves(schedule, steps):
        findings.warnings.append(
            f"The training would change no weight: by {given} and a warm-up of {warm_up} of {steps} steps each step "
            "has a learning rate of 0. Correct them, or take more and smaller steps."
        )


def estimate_hours(plan: Plan, sample: Sample) -> dict[str, float]:
    """Take the seconds of the iteration before, by the number of rows; empty where none came before."""
    newest = plan.players[-1]
    before = read_manifest(newest.path) if newest.is_local else None
    if before is None or not sample.total:
        return {}
    scored, rows = before.counts.get("scored_sequences"), before.counts.get("train_triplets")
    epochs = float(with_defaults(plan.given)["num_train_epochs"])
    epochs /= float(before.settings.get("num_train_epochs", 3.0))
    shares = {
        "generate": len(plan.to_generate),
        "score": sample.total * sample.scored / scored if scored else 0.0,
        "train": sample.total * sample.responses / rows * epochs if rows else 0.0,
    }
    return {name: before.seconds.get(name, 0.0) * share for name, share in shares.items()}
