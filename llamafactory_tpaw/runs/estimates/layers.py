# SPDX-License-Identifier: Apache-2.0
"""Traces a training step of a deep model by two with few of its layers: what a layer takes is their difference."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import AutoConfig

from ...team.forward import disable_dropout
from .passes import Pass, model_without_data, see_shortcuts, size_of, trace_training, whole_pass
from .tracing import ByteTracer, Step


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from ...arguments.parsed import RunArguments
    from ...data.opponents import Triplet
    from ...team.shortcuts import Shortcuts

# Layers of the two models, in patterns of unlike layers. Even, so that half of a step ends between two layers.
FEW, MORE = 2, 4
LAYERS, KINDS = "num_hidden_layers", "layer_types"
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


class Size(NamedTuple):
    """A model's weights in training: how many and their bytes, and of those that an update moves."""

    parameters: int
    weight_bytes: int
    moved: int
    moved_bytes: int


def size_in_training(model: torch.nn.Module) -> Size:
    """Count a model's weights, those that are shared once."""
    weights = {id(weight): weight for weight in model.parameters()}.values()
    moved = [weight for weight in weights if weight.requires_grad]
    return Size(
        sum(weight.numel() for weight in weights),
        size_of(model),
        sum(weight.numel() for weight in moved),
        sum(weight.numel() * weight.element_size() for weight in moved),
    )


def trace_deep_training(
    run: RunArguments, tokenizer: Any, size: Size, triplets: Sequence[Triplet]
) -> tuple[Pass, Shortcuts] | None:
    r"""Trace a training step of two models that are the run's but for their number of layers, and extend it.

    In each phase of a step the most bytes grow by the same with each layer: at the end of the forward pass by what it
    keeps and autocast's copies of its weights, early in the backward pass by what it keeps, late by its gradients.

    Args:
        run: The run's arguments.
        tokenizer: The tokenizer, already adapted to the template.
        size: Of the whole model. Where layers are not alike, it does not follow from the two others.
        triplets: The batch.

    Returns:
        The step, and what the forward pass does without; None where the model cannot be cut or its layers differ.
    """
    config = _config_of(run)
    depths = _depths(config) if config else None
    if config is None or depths is None:
        return None
    sizes, traced, shortcuts = [], [], None
    for depth in depths:
        with _cut_to(run, config, depth) as cut:
            tracer = ByteTracer()
            model = model_without_data(cut, tokenizer, tracer, trainable=True)
            disable_dropout(model)
            shortcuts = shortcuts or see_shortcuts(cut, tracer, model)
            sizes.append(size_in_training(model))
            traced.append(trace_training(cut, tokenizer, tracer, model, shortcuts, triplets))
    times = (config[LAYERS] - depths[1]) / (depths[1] - depths[0])
    if any(_extended(*pair, times) != whole for pair, whole in zip(zip(*sizes, strict=True), size, strict=True)):
        return None
    phases = [_extended_pass(few, more, times) for few, more in zip(*traced, strict=True)]
    return whole_pass(phases), shortcuts


def _extended(few: float, more: float, times: float) -> int:
    return round(more + times * (more - few))


def _extended_pass(few: Pass, more: Pass, times: float) -> Pass:
    step = Step(*(_extended(*pair, times) for pair in zip(few.step, more.step, strict=True)))
    return Pass(step, _extended(few.flops, more.flops, times), _extended(few.calls, more.calls, times), more.tokens)


def _config_of(run: RunArguments) -> dict[str, Any] | None:
    """θ_t's config with all that its file leaves to defaults; None where θ_t is no folder here."""
    if not Path(run.model.model_name_or_path).is_dir():
        return None
    config = AutoConfig.from_pretrained(
        run.model.model_name_or_path, trust_remote_code=run.model.trust_remote_code, local_files_only=True
    )
    return json.loads(config.to_json_string(use_diff=False))


def _depths(config: dict[str, Any]) -> tuple[int, int] | None:
    """Layers of the two models; None for a model that is not deep, or says something else of each layer."""
    layers = config.get(LAYERS)
    if not isinstance(layers, int):
        return None
    kinds = config.get(KINDS)
    others = [value for name, value in config.items() if name != KINDS and isinstance(value, list)]
    if any(len(value) >= layers for value in others) or (kinds is not None and len(kinds) != layers):
        return None
    period = 1
    if kinds is not None:
        period = next(size for size in range(1, layers + 1) if kinds == (kinds[:size] * layers)[:layers])
    if layers % period or layers < 2 * MORE * period:
        return None
    return FEW * period, MORE * period


@contextlib.contextmanager
def _cut_to(run: RunArguments, config: dict[str, Any], depth: int) -> Iterator[RunArguments]:
    """Give arguments whose model is θ_t with fewer layers: its files but the weights, and another config."""
    changes = {LAYERS: depth} | ({KINDS: config[KINDS][:depth]} if config.get(KINDS) else {})
    source = Path(run.model.model_name_or_path).resolve()
    with tempfile.TemporaryDirectory(prefix="llamafactory-tpaw-") as folder:
        for path in source.iterdir():
            if path.is_file() and path.suffix not in WEIGHT_FILES and path.name != "config.json":
                (Path(folder) / path.name).symlink_to(path)
        (Path(folder) / "config.json").write_text(json.dumps(config | changes))
        model_args = copy.copy(run.model)
        model_args.model_name_or_path = folder
        yield run._replace(model=model_args)
