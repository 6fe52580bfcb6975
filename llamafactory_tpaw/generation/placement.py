# SPDX-License-Identifier: Apache-2.0
"""Which GPUs each of vLLM's servers has: one each where a GPU holds the model, otherwise as few as hold it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..data.files import read_json
from ..errors import ConfigError
from ..team.checkpoint import read_tensors


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A GPU has to hold the weights and, of its memory, this much more: activations, CUDA graphs, and keys and values of
# enough sequences at once. vLLM itself takes 0.9 of the memory.
ROOM = 1.4
# Options by which a user settles it.
SPLITTING = {
    "--tensor-parallel-size": "-tp",
    "--pipeline-parallel-size": "-pp",
    "--data-parallel-size": "-dp",
}
RAY = "--distributed-executor-backend"


class Gpu(NamedTuple):
    """A GPU, as `CUDA_VISIBLE_DEVICES` names it, and its memory in bytes."""

    name: str
    memory: int


def place(
    model: str, dtype: str, gpus: Sequence[Gpu], extra: Sequence[str], say: Callable[[str], object] = lambda _: None
) -> tuple[list[tuple[str, ...]], int | None]:
    r"""Settle which GPUs each server has.

    Where a GPU holds the model, each has a server of its own; otherwise as few as hold it share one.

    Args:
        model: Checkpoint folder; the size of a hub's model is not known.
        dtype: What it computes in.
        gpus: Those in sight.
        extra: `tpaw_vllm_args`; what it says of parallel sizes is taken instead of the estimate.
        say: Is told where GPUs stay idle, or where the model may be too large.

    Returns:
        The GPUs of each server, and `--tensor-parallel-size`, or None where `extra` settles it.
    """
    names = [gpu.name for gpu in gpus]
    asked = _asked_sizes(extra)
    if not gpus:
        return [()], None if asked else 1
    needed = ROOM * weight_bytes(Path(model), dtype)
    smallest = min(gpu.memory for gpu in gpus)
    if asked:
        size = math.prod(asked.values())
    else:
        size = _shards(needed / smallest, len(gpus), _attention_heads(Path(model)))
        if needed > size * smallest:
            say(
                f"{model} may be too large: about {needed / 1e9:.0f} GB are wanted in {dtype}, and "
                f"{size} of the GPUs in sight have {size * smallest / 1e9:.0f} GB. vLLM is asked all the same."
            )
    if size > len(gpus):
        if _is_on_ray(extra):
            return [tuple(names)], None
        raise ConfigError(
            f"`tpaw_vllm_args` asks for {size} GPUs a server ({' x '.join(asked)}), but {len(gpus)} are in sight: "
            f"{', '.join(names)}. Lower it, show more GPUs in `CUDA_VISIBLE_DEVICES`, or let the server use those of "
            "a Ray cluster (`--distributed-executor-backend ray`)."
        )
    servers = len(gpus) // size
    if idle := names[servers * size :]:
        say(f"The GPUs {', '.join(idle)} stay idle: each server takes {size}.")
    return [tuple(names[size * index : size * (index + 1)]) for index in range(servers)], None if asked else size


def gpus_in_sight(names: Sequence[str]) -> list[Gpu]:
    """Ask torch for the memory of the devices that `CUDA_VISIBLE_DEVICES` names; none where there is no CUDA."""
    import torch

    count = torch.cuda.device_count()
    memory = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
    # This process may see fewer of them than it was told about: they are taken to be alike.
    return [Gpu(name, memory[min(index, count - 1)]) for index, name in enumerate(names)] if count else []


def weight_bytes(model: Path, dtype: str) -> int:
    """What the weights of a checkpoint take in a dtype; 0 of a model that is not a folder here."""
    if not model.is_dir():
        return 0
    return BYTES[dtype] * sum(math.prod(tensor.shape) for tensor in read_tensors(model))


def _shards(least: float, gpus: int, heads: int) -> int:
    """The smallest power of two that is enough and divides the heads; the largest there is where none is enough."""
    sizes = [1 << power for power in range(gpus.bit_length()) if 1 << power <= gpus and heads % (1 << power) == 0]
    return next((size for size in sizes if size >= least), sizes[-1])


def _attention_heads(model: Path) -> int:
    if not (model / "config.json").is_file():
        return 0  # divisible by every number
    config = read_json(model / "config.json")
    return int(config.get("num_attention_heads") or config.get("text_config", {}).get("num_attention_heads") or 0)


def _asked_sizes(extra: Sequence[str]) -> dict[str, int]:
    """The parallel sizes that a user gives: option with its value -> size."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for option, short in SPLITTING.items():
        parser.add_argument(option, short, type=int, dest=option)
    try:
        found = vars(parser.parse_known_args(_with_dashes(extra))[0])
    except argparse.ArgumentError as error:
        raise ConfigError(f"`tpaw_vllm_args`: {error}. Give a whole number.") from error
    return {f"{option} {size}": size for option, size in found.items() if size is not None}


def _is_on_ray(extra: Sequence[str]) -> bool:
    """Whether the user has vLLM take its GPUs from a Ray cluster, which may have more than this machine."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(RAY, nargs="?")
    return parser.parse_known_args(_with_dashes(extra))[0].distributed_executor_backend == "ray"


def _with_dashes(extra: Sequence[str]) -> list[str]:
    """The words with option names as vLLM's parser reads them."""
    return [word.replace("_", "-") if word.startswith("--") and "=" not in word else word for word in extra]
