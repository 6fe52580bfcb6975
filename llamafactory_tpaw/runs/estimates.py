# SPDX-License-Identifier: Apache-2.0
"""Memory by arithmetic from a model's config and its weights' headers, disk from sizes, hours from `tpaw.json`."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.encoding import cut_response
from ..data.layout import padded
from ..data.opponents import Limits, Triplet, load_foreign, load_triplets
from ..data.prompts import load_prompts
from ..data.rounds import split_names
from ..data.triplets import read_meta
from ..errors import DataError, EnvironmentProblem
from ..lf import facade
from ..lf.failures import nearest_folder
from ..lf.given import is_on, is_true
from ..objectives.head import BLOCK_SCORES, BLOCK_SCORES_ELSEWHERE
from ..team.checkpoint import read_tensors
from ..team.manifest import read_manifest
from ..team.sharding import deepspeed_config, uses_fsdp
from .plan import with_defaults


if TYPE_CHECKING:
    from ..arguments.parsed import RunArguments
    from ..data.encoding import TurnEncoder
    from ..data.prompts import BadRow, Prompt
    from ..errors import Findings
    from .plan import Plan

HALVES = ("bf16", "fp16", "pure_bf16")
UNADAPTED = ("embed_tokens", "wte", "lm_head", "embed_out")  # LlamaFactory's `lora_target: all` leaves them out


@dataclass(frozen=True)
class Sample:
    """The first rows of a run's data, and how many there are of them."""

    prompts: list[Prompt]  # of `tpaw_prompts`; empty where it is not set
    bad_rows: list[BadRow]  # among those looked at
    source: str  # where they are
    # Of `dataset` where `tpaw_prompts` is not set; else the prompts, each with another one's target in place of what
    # will be generated.
    triplets: list[Triplet]
    total: int | None  # prompts of the whole set; None where that cannot be told
    responses: int  # a prompt, of all rounds together
    players: int  # of the team; 0 for T-SPIN
    scored: int  # log-probs a prompt that are not cached: all of θ_t's, the new round's of each other player
    longest: tuple[int, int]  # tokens of the longest prompt, and of the longest response that can come after it

    def mean(self, part: str) -> float:
        """Mean tokens of the triplets' `prompt`, `target` or `generated`."""
        return sum(len(getattr(triplet, f"{part}_ids")) for triplet in self.triplets) / max(len(self.triplets), 1)


def take_sample(run: RunArguments, plan: Plan, encoder: TurnEncoder, rows: int) -> Sample:
    r"""Look at the first rows of a run's prompts, or where it generates none at all triplets of its datasets.

    Raises:
        TpawError: If the data cannot be read.
    """
    args, cutoff = plan.tpaw_args, run.data.cutoff_len
    finished = [(round_, read_meta(round_.path)) for round_ in plan.opponents.rounds if round_.complete]
    prompts, bad_rows, source, triplets = [], [], "", []
    if args.tpaw_prompts:
        found = load_prompts(encoder, run.model, run.data, run.training, args, first=rows)
        prompts, bad_rows = list(found.prompts), found.bad_rows
        looked = len(prompts) + len(bad_rows)
        source = f"{found.entry.path or 'on the hub'}, first {looked} rows"
        bounds = [run.data.max_samples, args.tpaw_max_prompts, looked if looked < rows else _rows_of(found.entry.path)]
        total = finished[0][1].prompts if finished else min(filter(None, bounds), default=None)
        for prompt, other in zip(prompts, [*prompts[1:], *prompts[:1]], strict=True):
            target, generated = (cut_response(p.target_ids, len(prompt.prompt_ids), cutoff) for p in (prompt, other))
            triplets.append(Triplet(prompt.id, args.tpaw_iteration, prompt.prompt_ids, target, generated, False))
    else:
        limits = Limits(cutoff, args.tpaw_min_response, args.tpaw_max_bad_rows)
        for round_, meta in finished:
            triplets += load_triplets(round_.entry, meta, encoder, limits)
        for entry in plan.opponents.foreign:
            triplets += load_foreign(entry, encoder, limits, run.model, run.data, run.training)
        if not triplets:
            raise DataError(f"`dataset` has no usable row under `cutoff_len: {cutoff}`. Give other data.")
        total = min(len({triplet.id for triplet in triplets}), run.data.max_samples or len(triplets))
    prompt = max((len(triplet.prompt_ids) for triplet in triplets), default=0)
    response = max((len(ids) for triplet in triplets for ids in triplet.responses), default=0)
    if plan.to_generate:
        response = max(response, int(plan.given.get("max_new_tokens", 1024)))
    longest = prompt, max(min(response, cutoff - prompt), 1)
    own, samples = args.tpaw_samples_per_prompt, {round_.iteration: meta.samples for round_, meta in finished}
    responses = sum(samples.get(each.iteration, own) for each in plan.opponents.rounds) + len(plan.opponents.foreign)
    players = min(len(plan.players), args.tpaw_team_size) if args.tpaw_objective == "tpaw" else 0
    cached = players and args.tpaw_reference == "cached"
    scored = 1 + responses + (players - 1) * own if cached else 0
    return Sample(prompts, bad_rows, source, triplets, total, responses, players, scored, longest)


def _rows_of(path: Path | None) -> int | None:
    """Count the rows of a local file of JSON lines; other formats are not opened for this."""
    if path is None or path.suffix != ".jsonl":
        return None
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


# -- memory


class Weights(NamedTuple):
    """How many weights a model has, and in matrices of layers; bytes of all, of gradients, of the optimizer."""

    count: int
    matrices: int
    held: float
    gradients: float
    state: float


def weight_shapes(folder: str, config: Any = None) -> dict[str, list[int]]:
    """Read the shapes of all tensors from safetensors headers; without a folder let transformers say them."""
    if Path(folder).is_dir():
        return {tensor.name: tensor.shape for tensor in read_tensors(Path(folder))}
    if config is None:
        return {}
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=True)
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
        adapted = [shape for name, shape in matrices.items() if targets == ["all"] or modules[name] in targets]
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
    r"""Say what generation, scoring and training need of a device at their peaks.

    Args:
        run: The run's arguments, for the model's config and the device.
        plan: The iteration.
        sample: Gives the longest rows.

    Returns:
        Bytes by step and by what they are for; the last of each step is named `peak`.
    """
    import psutil

    from ..generation.decoding import MAX_ROWS, PREFILL_TOKENS

    keys = with_defaults(plan.given) | vars(plan.tpaw_args)
    config = facade.load_config(run.model).get_text_config()
    weights = weights_of(keys, weight_shapes(plan.players[-1].base, config))
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


def zero_stage(config: Mapping[str, Any]) -> int:
    """Stage of ZeRO that a DeepSpeed config asks for; 0 for none."""
    return int((config.get("zero_optimization") or {}).get("stage", 0))


def count_processes() -> int:
    """How many training processes a command of this environment would start, all nodes counted."""
    import torch

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
    saved = weights.gradients if keys["finetuning_type"] == "lora" else weights.held
    # Before the oldest checkpoint goes, there is one more than the limit; the last step is saved in any case.
    count, limit = 1, keys.get("save_total_limit")
    if keys["save_strategy"] == "no":
        count = 0
    elif keys["save_strategy"] == "epoch":
        count = math.ceil(float(keys["num_train_epochs"]))
    elif sample is not None:
        steps, every = steps_of(keys, sample), float(keys["save_steps"])
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


def steps_of(keys: Mapping[str, Any], sample: Sample) -> int:
    """Optimizer steps of the training."""
    batch = int(keys["per_device_train_batch_size"]) * int(keys["gradient_accumulation_steps"]) * count_processes()
    steps = math.ceil(math.ceil((sample.total or 0) * sample.responses / batch) * float(keys["num_train_epochs"]))
    return int(keys["max_steps"]) if int(keys["max_steps"]) > 0 else steps


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


def readable_bytes(amount: float) -> str:
    """Write a number of bytes as KiB, MiB, GiB: `14.3 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.{0 if unit == 'B' else 1}f} {unit}"
        amount /= 1024
