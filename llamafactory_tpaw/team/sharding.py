# SPDX-License-Identifier: Apache-2.0
"""What training in several processes does to a model: the dtypes it computes in, and how it is cut into shards."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from ..data.files import read_json


if TYPE_CHECKING:
    from ..arguments.parsed import RunArguments

# What of a DeepSpeed config says how a player's shards are held.
KEPT_ZERO = ("offload_param", "stage3_param_persistence_threshold", "stage3_max_live_parameters", "sub_group_size")


class Precision(NamedTuple):
    """The dtype that an engine casts all weights to, and the one under which forward passes run; None for none."""

    weights: torch.dtype | None
    autocast: torch.dtype | None


def autocast_dtype(training_args: Any) -> torch.dtype | None:
    """The 16-bit dtype that a run computes in, or None for none."""
    if training_args.bf16:
        return torch.bfloat16
    return torch.float16 if training_args.fp16 else None


def compute_dtype(run: RunArguments) -> torch.dtype:
    """What the run trains in, and θ_t samples in. Files do not say it: bf16 training is saved in float32."""
    return torch.bfloat16 if run.finetuning.pure_bf16 else autocast_dtype(run.training) or torch.float32


def precision_of(run: RunArguments) -> Precision:
    r"""Say in which dtypes the policy computes.

    DeepSpeed casts the weights themselves, and its forward passes run without autocast; FSDP casts what it gathers,
    under autocast; otherwise autocast alone does it.
    """
    config = deepspeed_config(run)
    if config is not None:
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            if _is_enabled(config, name, getattr(run.training, name)):
                return Precision(dtype, None)
        return Precision(None, None)
    dtype = autocast_dtype(run.training)
    with_fsdp = run.training.device.type != "cpu" and (run.engine.get("fsdp") or uses_fsdp(run.training))
    return Precision(dtype if with_fsdp else None, dtype)


def deepspeed_config(run: RunArguments) -> dict[str, Any] | None:
    """Return DeepSpeed's config, of the run's own engine or of the training that it scores for."""
    own = getattr(run.training, "hf_deepspeed_config", None)
    if own is not None:
        return own.config
    given = run.engine.get("deepspeed")
    return read_json(Path(given)) if isinstance(given, str) else given


def sharding_of(training_args: Any) -> Literal["zero3", "fsdp"] | None:
    """Say whether each process holds only a part of the policy's weights, and by whom it is cut."""
    config = getattr(training_args, "hf_deepspeed_config", None)
    if config is not None:
        return "zero3" if config.is_zero3() else None
    if training_args.world_size > 1 and training_args.device.type != "cpu" and uses_fsdp(training_args):
        return "fsdp"
    return None


def uses_fsdp(training_args: Any) -> bool:
    """Whether FSDP is asked for, by the run's keys or by accelerate's launcher."""
    by_launcher = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    return bool(getattr(training_args, "fsdp", None)) or by_launcher


def shard(model: torch.nn.Module, training_args: Any, precision: Precision) -> torch.nn.Module:
    r"""Make a player that LlamaFactory loaded ready for forward passes that all processes do together.

    Under ZeRO-3 its weights are in shards already; under FSDP only the first process needs to have them. Where nothing
    is held in shards it stays as it is.
    """
    kind = sharding_of(training_args)
    if kind == "zero3":
        import deepspeed

        engine = deepspeed.initialize(model=model, config=player_config(training_args.hf_deepspeed_config.config))[0]
        engine.eval()
        return engine
    return fully_sharded(model, training_args.device, precision.weights) if kind == "fsdp" else model


def player_config(config: dict[str, Any]) -> dict[str, Any]:
    """Derive the DeepSpeed config of a player: the policy's without all that is about training."""
    zero = config.get("zero_optimization", {})
    kept = {name: copy.deepcopy(zero[name]) for name in KEPT_ZERO if zero.get(name, "auto") != "auto"}
    halves = {name: {"enabled": True} for name in ("bf16", "fp16") if _is_enabled(config, name, False)}
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": kept | {"stage": 3}, **halves}


def fully_sharded(model: torch.nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """Cut a model on the CPU into shards on a device: each of its layers, and the rest; gathered in a dtype."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    weights = model.state_dict() if torch.distributed.get_rank() == 0 else {}
    policy = MixedPrecisionPolicy(param_dtype=dtype)
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in [module for module in model.modules() if type(module).__name__ in layers]:
        fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=options)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
        torch.distributed.broadcast(buffer.data, src=0)
    return model


def _is_enabled(config: dict[str, Any], section: str, default: bool) -> bool:
    enabled = config.get(section, {}).get("enabled", False)
    return bool(default if enabled == "auto" else enabled)
