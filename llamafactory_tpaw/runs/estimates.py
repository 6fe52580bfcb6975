# SPDX-License-Identifier: Apache-2.0
"""Memory by arithmetic from a model's config and its weights' headers, disk from sizes, hours from `tpaw.json`."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.layout import Layout, Row, padded
from ..data.rounds import split_names
from ..errors import EnvironmentProblem
from ..lf import facade
from ..lf.failures import nearest_folder
from ..lf.given import is_on, is_true
from ..team.cache import KEY_BYTES
from ..team.checkpoint import read_tensors
from ..team.manifest import read_manifest
from ..team.sharding import deepspeed_config, uses_fsdp
from .plan import with_defaults


if TYPE_CHECKING:
    from ..arguments.parsed import RunArguments
    from ..errors import Findings
    from .plan import Plan
    from .sample import Sample

# Numbers that an optimizer keeps for each trained weight, by a part of the name of `optim`; AdamW and its kin keep 2.
STATES = {"adafactor": 0.02, "ademamix": 3.0, "lion": 1.0, "rmsprop": 1.0, "adagrad": 1.0, "sgd": 0.0}
HALVES = ("bf16", "fp16", "pure_bf16")
UNADAPTED = ("embed_tokens", "wte", "lm_head", "embed_out")  # LlamaFactory's `lora_target: all` leaves them out
# What engine `hf` takes at a time, and how many scores the head holds.
MAX_ROWS, PREFILL_TOKENS, BLOCK_SCORES = 256, 8192, {"cpu": 1 << 22, "cuda": 1 << 26}
SMALL_FILES, TIGHT = 1 << 18, 1.1  # curves, logs, arguments
UNITS = {
    "bytes": ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")),
    "seconds": ((3600, "h"), (60, "min"), (1, "s")),
}


class Figure(NamedTuple):
    """An estimate: its name, `bytes` or `seconds` (None where they cannot be told), and how it was estimated."""

    name: str
    amount: float | None
    unit: str
    how: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return self._asdict() | {"amount": self.amount if self.amount is None else round(self.amount, 6)}

    def readable(self) -> str:
        """The amount for people, e.g. `14.3 GiB` or `2.1 h`."""
        if self.amount is None:
            return "unknown"
        size, unit = next((unit for unit in UNITS[self.unit] if self.amount >= unit[0]), UNITS[self.unit][-1])
        return f"{self.amount / size:.{0 if unit == 'B' else 1}f} {unit}"


class Weights(NamedTuple):
    """How many weights a model has, are trained, and are in matrices of layers; bytes of all, trained, optimizer."""

    count: int
    trained: int
    matrices: int
    bytes: float
    trained_bytes: float
    state: float


class Space(NamedTuple):
    """What is written to a folder; `sure` bytes of it at least."""

    folder: Path
    figure: Figure
    sure: float = 0.0


def zero_stage(config: Mapping[str, Any]) -> int:
    """Stage of ZeRO that a DeepSpeed config asks for; 0 for none."""
    return int((config.get("zero_optimization") or {}).get("stage", 0))


def readable_bytes(amount: float) -> str:
    """Write a number of bytes as KiB, MiB, GiB: `14.3 GiB`."""
    return Figure("", amount, "bytes", "").readable()


def weight_shapes(folder: str, config: Any = None) -> dict[str, list[int]]:
    """Read the shapes of all tensors from safetensors headers; without a folder say what a Llama's would be."""
    if Path(folder).is_dir():
        return {tensor.name: tensor.shape for tensor in read_tensors(Path(folder))}
    if config is None:
        return {}
    hidden, queries, keys, inner = _widths(config)
    inner = inner * (getattr(config, "num_experts", None) or 1) // (getattr(config, "num_experts_per_tok", None) or 1)
    layer = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": queries}
    layer |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), inner)
    names = {f"{at}.{name}": size for at in range(config.num_hidden_layers) for name, size in layer.items()}
    ends = ["embed_tokens"] if config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    names |= dict.fromkeys(ends, config.vocab_size)
    return {f"{name}.weight": [size, hidden] for name, size in names.items()}


def weights_of(keys: dict[str, Any], shapes: dict[str, list[int]]) -> Weights:
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
    optim = _word(keys["optim"])
    kept = 1 if "8bit" in optim else 0.5 if "4bit" in optim else size
    kept *= next((number for name, number in STATES.items() if name in optim), 2.0)
    return Weights(count, trained, inner, held, trained * size, trained * kept)


def estimate_memory(run: RunArguments, plan: Plan, sample: Sample) -> dict[str, list[Figure]]:
    r"""Say what generation, scoring and training need of a device at their peaks.

    Args:
        run: The run's arguments, for the model's config and the device.
        plan: The iteration.
        sample: Gives the longest rows.

    Returns:
        Figures by step; the last one of each is named `peak`.
    """
    import psutil

    keys = with_defaults(plan.given) | vars(plan.tpaw_args)
    config = facade.load_config(run.model).get_text_config()
    weights = weights_of(keys, weight_shapes(plan.players[-1].base, config))
    kind, (prompt, response) = run.training.device.type, sample.longest
    length, layers, vocabulary = prompt + response, config.num_hidden_layers, config.vocab_size
    hidden, queries, pairs, inner = _widths(config)
    computed = 2 if any(is_true(keys, name) for name in HALVES) else 4
    residual = 2 if is_true(keys, "pure_bf16") else 4
    processes, deepspeed, fsdp = (
        count_processes(),
        deepspeed_config(run),
        run.engine.get("fsdp") or uses_fsdp(run.training),
    )
    stage = zero_stage(deepspeed) if deepspeed else 3 if fsdp and kind != "cpu" else 0
    shared = f"; a share of {processes} processes" if stage and processes > 1 else ""
    # ZeRO-1 shares out the optimizer's state, ZeRO-2 gradients too, ZeRO-3 and FSDP weights too.
    amounts = zip((weights.state, weights.trained_bytes, weights.bytes), (1, 2, 3), strict=True)
    state, gradients, held = (amount / (processes if stage >= least else 1) for amount, least in amounts)

    def layer_bytes(tokens: int, copies: int = 4) -> float:
        """What a layer keeps for its backward pass: norms, attention with keys and values repeated, the MLP."""
        attention = 2 * hidden * (4 + computed) + computed * (5 * queries + 3 * pairs)
        if _word(keys["flash_attn"]) == "disabled":
            attention += config.num_attention_heads * length * (4 + 2 * computed)
        return tokens * (attention + copies * inner * computed)

    def head_bytes(tokens: int) -> float:
        scores = tokens * vocabulary
        return 2 * computed * scores if keys["tpaw_logits"] != "blocks" else 6 * min(scores, BLOCK_SCORES[kind])

    parts: dict[str, list[Figure]] = {}
    if plan.to_generate and keys["tpaw_engine"] == "hf":
        rows = min(max(int(keys["tpaw_generate_batch_tokens"]) // length, 1), MAX_ROWS, sample.total or MAX_ROWS)
        cache = 2 * layers * pairs * computed * rows * length
        prefill = layer_bytes(min(rows * prompt, max(PREFILL_TOKENS, prompt)))
        parts["generation"] = [
            _bytes("weights", weights.count * computed, "in the dtype of computation"),
            _bytes("keys, values and activations", cache + prefill, f"{rows} rows of {length} tokens"),
            _bytes("sampler", 28 * rows * vocabulary, "28 bytes a row and token of the vocabulary"),
        ]
    if sample.players:
        tokens = max(int(keys["tpaw_score_batch_tokens"]), length)
        how = f"a layer and the head, {tokens} tokens (`tpaw_score_batch_tokens`)"
        parts["scoring"] = [
            _bytes("weights of one player", held, f"in the dtypes of training{shared}"),
            _bytes("activations", layer_bytes(tokens) + head_bytes(tokens), how),
        ]
    tokens = _batch_tokens(keys, sample)
    unchecked = is_true(keys, "disable_gradient_checkpointing")
    kept = layers * (layer_bytes(tokens) if unchecked else tokens * hidden * residual)
    # Autocast copies matrices that are trained, until the forward pass is over.
    copies = computed * weights.matrices if computed < residual and weights.trained == weights.count else 0
    # Without accumulation gradients grow while activations go.
    together = gradients + kept if int(keys["gradient_accumulation_steps"]) > 1 else max(gradients, kept)
    together += max(layer_bytes(tokens, 6) + head_bytes(tokens), copies)
    optim = _word(keys["optim"])
    how = f"{tokens} tokens of {keys['per_device_train_batch_size']} triplets at the longest rows expected{shared}"
    parts["training"] = [
        _bytes("weights", held, f"from the headers, float32 where trained unless `pure_bf16`{shared}"),
        _bytes("optimizer", 0 if optim.startswith("paged") else state, f"`optim: {optim}`{shared}"),
        _bytes("gradients and activations", together, how),
    ]
    if keys["tpaw_reference"] == "online" and keys["finetuning_type"] != "lora":
        parts["training"].insert(1, _bytes("players", sample.players * held, "`tpaw_reference: online`"))
    rss = psutil.Process().memory_info().rss
    base = [_bytes("process", rss, "Python and what is imported, as this one has now")] if kind == "cpu" else []
    return {
        part: [*base, *figures, _bytes("peak", sum(figure.amount for figure in [*base, *figures]), "the sum")]
        for part, figures in parts.items()
    }


def estimate_disk(plan: Plan, sample: Sample | None) -> list[Space]:
    """Say what an iteration writes; without a sample of its data only the weights."""
    keys = with_defaults(plan.given) | vars(plan.tpaw_args)
    policy, output, spaces = Path(plan.players[-1].base), Path(str(keys["output_dir"])), []
    shapes = weight_shapes(str(policy))
    if is_true(keys, "do_train") and shapes:
        weights = weights_of(keys, shapes)
        saved = weights.trained_bytes if keys["finetuning_type"] == "lora" else weights.bytes
        texts = SMALL_FILES + sum(path.stat().st_size for path in policy.glob("*token*") if path.is_file())
        figure = _bytes("theta_{t+1}", saved + texts, "weights as trained, tokenizer, logs")
        spaces.append(Space(output, figure, saved))
        kept, one = _checkpoints(keys, sample), saved + (0 if is_true(keys, "save_only_model") else weights.state)
        how = f"{kept} at a time (`save_strategy`, `save_steps`, `save_total_limit`) of {readable_bytes(one)}"
        spaces += [Space(output, _bytes("checkpoints", kept * (one + texts), how), kept * one)] if kept else []
    if sample is not None:
        for round_ in plan.to_generate:
            amount = sample.rows(sample.own * sample.row_bytes)
            spaces.append(Space(round_.path.parent, _bytes("triplets", amount, f"lengths as in {sample.how}")))
        if sample.scored and keys["tpaw_reference"] == "cached":
            amount = sample.rows(sample.scored * (KEY_BYTES + 8))
            how = f"{KEY_BYTES + 8} bytes for each log-prob that is new, {sample.scored} a prompt"
            spaces.append(Space(Path(keys["tpaw_cache_dir"]), _bytes("cache", amount, how)))
    return spaces


def check_disk(plan: Plan, sample: Sample | None, findings: Findings) -> list[Figure]:
    """Compare what is needed with what each file system has free; what is there already counts as done."""
    spaces, systems = estimate_disk(plan, sample), {}
    for space in spaces:
        systems.setdefault(nearest_folder(space.folder).stat().st_dev, []).append(space)
    for parts in systems.values():
        folder, own = nearest_folder(parts[0].folder), {space.folder for space in parts if space.sure}
        free = shutil.disk_usage(folder).free
        there = sum(path.stat().st_size for place in own for path in place.rglob("*") if path.is_file())
        listed = ", ".join(f"{part.figure.name} {part.figure.readable()} in {part.folder}" for part in parts)
        text = (
            f"The iteration writes {listed}, but the file system of {folder} has {readable_bytes(free)} free. Free "
            "some, save fewer checkpoints (`save_total_limit`, `save_only_model: true`), or choose another folder."
        )
        if sum(space.sure for space in parts) > free + there:
            findings.refuse(EnvironmentProblem, [text])
        elif sum(space.figure.amount or 0 for space in parts) * TIGHT > free + there:
            findings.warnings.append(text)
    return [space.figure for space in spaces]


def estimate_hours(plan: Plan, sample: Sample) -> list[Figure]:
    """Take the seconds of the iteration before, by the number of rows; the last figure is named `total`."""
    keys, newest = with_defaults(plan.given), plan.players[-1]
    before = read_manifest(newest.path) if newest.is_local else None
    if before is None or sample.total is None:
        how = "no iteration came before: `check --model` measures one batch of each step"
        return [Figure("total", None, "seconds", how)]
    scored, rows = before.counts.get("scored_sequences"), before.counts.get("train_triplets")
    epochs = float(keys["num_train_epochs"]) / float(before.settings.get("num_train_epochs", 3.0))
    shares = {
        "generate": len(plan.to_generate),
        "score": sample.rows(sample.scored) / scored if scored else 0.0,
        "train": sample.rows(sample.responses) / rows * epochs if rows else 0.0,
    }
    seconds = {name: before.seconds.get(name, 0.0) * share for name, share in shares.items()}
    return time_figures(seconds, f"what {newest.path} took, by the number of rows")


def time_figures(seconds: dict[str, float], how: str) -> list[Figure]:
    """Figures of the steps, and their sum."""
    figures = [Figure(name, amount, "seconds", how) for name, amount in seconds.items()]
    return [*figures, Figure("total", sum(seconds.values()), "seconds", "the sum")]


def steps_of(keys: dict[str, Any], rows: float) -> int:
    """Optimizer steps of a training on that many triplets."""
    batch = int(keys["per_device_train_batch_size"]) * int(keys["gradient_accumulation_steps"]) * count_processes()
    steps = max(math.ceil(math.ceil(rows / batch) * float(keys["num_train_epochs"])), 1)
    return int(keys["max_steps"]) if int(keys["max_steps"]) > 0 else steps


def count_processes() -> int:
    """How many training processes a command of this environment would start, all nodes counted."""
    import torch

    devices = torch.cuda.device_count()
    if is_on("USE_RAY") or (not is_on("FORCE_TORCHRUN") and devices <= 1):
        return 1
    counts = os.environ.get("NNODES", "1"), os.environ.get("NPROC_PER_NODE", str(devices or 1))
    return max(math.prod(int(count) if count.isdigit() else 1 for count in counts), 1)


def _checkpoints(keys: dict[str, Any], sample: Sample | None) -> int:
    """How many checkpoints are there at a time: before the oldest goes, there is one more than the limit."""
    strategy, limit = _word(keys["save_strategy"]), keys.get("save_total_limit")
    rows = sample.rows(sample.responses) if sample else None
    if strategy == "no" or (strategy == "steps" and rows is None):
        return 0
    count = math.ceil(float(keys["num_train_epochs"]))
    if strategy == "steps":
        steps, every = steps_of(keys, rows), float(keys["save_steps"])
        count = math.ceil(steps / max(every if every >= 1 else every * steps, 1))
    return min(count, int(limit) + 1) if limit else count


def _widths(config: Any) -> tuple[int, int, int, int]:
    """Width of the hidden states, of all queries, of all keys, and of what an MLP computes for a token."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    if experts := getattr(config, "num_experts_per_tok", None):
        inner = experts * (getattr(config, "moe_intermediate_size", None) or inner)
    return hidden, heads * size, (getattr(config, "num_key_value_heads", None) or heads) * size, inner


def _batch_tokens(keys: dict[str, Any], sample: Sample) -> int:
    """Tokens of the largest batch as the collator lays it out, padding included."""
    size, (prompt, response) = int(keys["per_device_train_batch_size"]), sample.longest
    each = min(sample.responses, size) if keys["tpaw_grouping"] == "prompt" else 1
    rows = [Row(range(prompt), [range(response)] * (each + 1))] * math.ceil(size / each)
    sharing = {"auto": "cheaper", "shared": "always"}.get(keys["tpaw_layout"], "never")
    sharing = "never" if _word(keys["flash_attn"]).startswith("fa") else sharing
    arranged = Layout(sharing).arrange(rows)
    return len(arranged) * padded(max(row.length for row in arranged))


def _word(value: Any) -> str:
    """The text of a key that LlamaFactory or transformers may have as an enumeration."""
    return str(getattr(value, "value", value))


def _bytes(name: str, amount: float | None, how: str) -> Figure:
    return Figure(name, amount, "bytes", how)
