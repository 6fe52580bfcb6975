# SPDX-License-Identifier: Apache-2.0
"""vLLM's own server, `vllm serve`: its command line, its environment, and what it cannot serve."""

from __future__ import annotations

import math
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.files import read_json
from ..errors import ConfigError, EnvironmentProblem
from ..team.checkpoint import read_tensors
from .base import EngineContext
from .process import HOST, ServerProcess


LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# How a user settles which GPUs work together.
PARALLEL = re.compile(r"--?(tp|pp|dp|(tensor|pipeline|data)[-_]parallel[-_]size)(=|$)")
# A GPU has to hold the weights and, of its memory, this much more: activations, CUDA graphs, and keys and values of
# enough sequences at once. vLLM itself takes 0.9 of the memory.
ROOM = 1.4
# What an adapter's config says where vLLM serves it.
PLAIN_ADAPTER = {"peft_type": "LORA", "use_dora": False, "bias": "none", "modules_to_save": None}
# What the training launcher means for its own processes.
DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def start_vllm(context: EngineContext, beside: Path) -> ServerProcess:
    """Start vLLM on the GPUs in sight and wait until it answers; its log lies beside the triplet file."""
    keys = context.run.finetuning
    extra = shlex.split(keys.tpaw_vllm_args or "")
    program = find_program(keys.tpaw_vllm_command)
    if not any(map(PARALLEL.match, extra)):
        extra = [*parallel_arguments(Path(context.model), context.dtype, len(context.devices)), *extra]
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        port = holder.getsockname()[1]
    api_key = secrets.token_hex(16)
    return ServerProcess(
        [*program, *serve_arguments(context, port, extra)],
        server_environment(os.environ, context.devices, api_key),
        port,
        api_key,
        beside.with_name(f"{beside.stem}.server.log"),
        keys.tpaw_engine_startup,
    )


def parallel_arguments(model: Path, dtype: str, gpus: int) -> list[str]:
    """Settle how the GPUs in sight are used: as many copies of the model as they hold, each on as few as hold it.

    The size of a hub's model is not known, and it is taken to fit.
    """
    import torch

    if gpus < 2 or not torch.cuda.is_available():
        return []
    # This process may see fewer than it was told about: they are taken to be alike.
    memory = min(torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count()))
    tensors, config = (read_tensors(model), read_json(model / "config.json")) if model.is_dir() else ([], {})
    needed = ROOM * getattr(torch, dtype).itemsize * sum(math.prod(tensor.shape) for tensor in tensors)
    heads = int({**config.get("text_config", {}), **config}.get("num_attention_heads") or 0)  # 0 by any number
    sizes = [1 << power for power in range(gpus.bit_length()) if 1 << power <= gpus and heads % (1 << power) == 0]
    size = next((size for size in sizes if size * memory >= needed), sizes[-1])
    arguments = ["--tensor-parallel-size", str(size)] if size > 1 else []
    return arguments + (["--data-parallel-size", str(gpus // size)] if gpus // size > 1 else [])


def serve_arguments(context: EngineContext, port: int, extra: Sequence[str]) -> list[str]:
    """Return the arguments of the server; `extra` are further ones, which come last."""
    name, rank = context.name, served_rank(context.adapters)
    arguments = ["serve", str(context.model), "--served-model-name", f"{name}-base" if rank else name]
    # The run's compute dtype: LlamaFactory saves bf16 training as float32, which vLLM would turn into float16.
    arguments += ["--host", HOST, "--port", str(port), "--dtype", context.dtype]
    arguments += ["--max-model-len", str(context.run.data.cutoff_len)]
    # The checkpoint's own sampling defaults must not fill in what a request leaves out.
    arguments += ["--generation-config", "vllm", "--enable-prefix-caching", "--uvicorn-log-level", "warning"]
    if rank:
        arguments += ["--enable-lora", "--lora-modules", f"{name}={context.adapters[0]}", "--max-lora-rank", str(rank)]
    if context.run.model.trust_remote_code:
        arguments.append("--trust-remote-code")
    return [*arguments, "--seed", str(context.settings.seed), *extra]


def server_environment(inherited: Mapping[str, str], gpus: Sequence[str], api_key: str) -> dict[str, str]:
    """Return the environment of the server: its GPUs, if there are some, and the key, which no command line hides."""
    environment = {
        name: value
        for name, value in inherited.items()
        if name not in DISTRIBUTED and not name.startswith(("TORCHELASTIC_", "LLAMAFACTORY_TPAW"))
    }
    environment |= {"VLLM_API_KEY": api_key, "LLAMAFACTORY_TPAW": "0"}
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    if gpus:
        # ROCm's own variable wins over CUDA's where it is set.
        variable = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in inherited else "CUDA_VISIBLE_DEVICES"
        environment[variable] = ",".join(gpus)
    return environment


def find_program(command: str | None) -> list[str]:
    """Return the words that start vLLM, which has to be there: `tpaw_vllm_command`, or this environment's `vllm`."""
    try:
        words = shlex.split(command or "") or ["vllm"]
    except ValueError as error:
        raise ConfigError(f"`tpaw_vllm_command: {command}` is no command: {error}. Close the quotes.") from error
    own_folder = [] if command else [str(Path(sys.executable).parent)]
    places = os.pathsep.join([*own_folder, os.environ.get("PATH", os.defpath)])
    found = shutil.which(os.path.expanduser(words[0]), path=places)
    if found is not None:
        return [os.path.abspath(found), *words[1:]]
    raise EnvironmentProblem(
        f"`tpaw_engine: vllm` needs the program `{words[0]}`, which is not here. Install vLLM into an environment for "
        "it alone (`python -m venv vllm-env`, then `vllm-env/bin/pip install vllm`) and set `tpaw_vllm_command: "
        "vllm-env/bin/vllm`."
    )


def served_rank(adapters: Sequence[Path]) -> int:
    """For which rank vLLM must make room to serve θ_t's adapter, if it can serve it; 0 where there is none."""
    if not adapters:
        return 0
    if len(adapters) > 1:
        raise ConfigError(
            f"theta_t has {len(adapters)} adapters ({', '.join(map(str, adapters))}), but `tpaw_engine: vllm` serves "
            "one at a time. Merge all but the last into the model (`llamafactory-cli export`) and start from that, or "
            "use `tpaw_engine: hf`."
        )
    config = read_json(adapters[0] / "adapter_config.json")
    odd = [f"{key}: {config[key]}" for key, plain in PLAIN_ADAPTER.items() if config.get(key) and config[key] != plain]
    rank = max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()])
    if odd or rank > LORA_RANKS[-1]:
        raise ConfigError(
            f"{adapters[0]} has {', '.join(odd) or f'rank {rank}'}, but vLLM serves plain LoRA adapters up to rank "
            f"{LORA_RANKS[-1]}. Merge it into the model (`llamafactory-cli export`), or use `tpaw_engine: hf`."
        )
    return next(room for room in LORA_RANKS if room >= rank)
