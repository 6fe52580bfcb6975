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
from typing import Any, NamedTuple

from ..data.files import read_json
from ..errors import ConfigError, EnvironmentProblem
from ..lf.logs import get_logger
from ..team.checkpoint import read_tensors
from .base import EngineContext
from .process import HOST, ServerProcess


PYTHON = "{python}"
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# What the run file's other keys settle, or what holds for each server of a run; `tpaw_vllm_args` would win.
OWN_OPTIONS = (
    *("--model", "--tokenizer", "--revision", "--served-model-name", "--dtype", "--max-model-len", "--seed"),
    *("--host", "--port", "--uds", "--root-path", "--ssl-keyfile", "--ssl-certfile", "--api-key"),
    *("--generation-config", "--override-generation-config", "--enable-prefix-caching", "--chat-template"),
    *("--enable-lora", "--lora-modules", "--max-lora-rank", "--trust-remote-code"),
)
# How a user settles which GPUs work together.
PARALLEL = re.compile(r"--?(tp|pp|dp|(tensor|pipeline|data)[-_]parallel[-_]size)(=|$)")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A GPU has to hold the weights and, of its memory, this much more: activations, CUDA graphs, and keys and values of
# enough sequences at once. vLLM itself takes 0.9 of the memory.
ROOM = 1.4
# What the training launcher means for its own processes.
DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")

logger = get_logger(__name__)


class Adapter(NamedTuple):
    """A LoRA adapter: its folder, and the rank that vLLM must make room for."""

    folder: Path
    rank: int


def start_vllm(context: EngineContext, beside: Path) -> ServerProcess:
    r"""Start vLLM on the GPUs in sight and wait until it answers; its log lies beside the triplet file.

    Raises:
        ConfigError: If `tpaw_vllm_args` sets what is ours to set, or the model cannot be served by vLLM.
        EnvironmentProblem: If there is no such program.
        GenerationError: If the server does not come up.
    """
    keys = context.run.finetuning
    extra = split_arguments(keys.tpaw_vllm_args)
    program = find_program(keys.tpaw_vllm_command)
    refuse_unsupported(context.run.model)
    adapter = served_adapter(context.adapters)
    if not any(map(PARALLEL.match, extra)):
        extra = [*parallel_arguments(Path(context.model), context.dtype, len(context.devices)), *extra]
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        port = holder.getsockname()[1]
    api_key = secrets.token_hex(16)
    return ServerProcess(
        [*program, *serve_arguments(context, adapter, port, extra)],
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
    needed = ROOM * BYTES[dtype] * sum(math.prod(tensor.shape) for tensor in tensors)
    heads = int({**config.get("text_config", {}), **config}.get("num_attention_heads") or 0)  # 0 by any number
    sizes = [1 << power for power in range(gpus.bit_length()) if 1 << power <= gpus and heads % (1 << power) == 0]
    size = next((size for size in sizes if size * memory >= needed), sizes[-1])
    if gpus % size:
        logger.info_rank0(f"{gpus % size} of the {gpus} GPUs in sight stay idle: each copy of the model takes {size}.")
    arguments = ["--tensor-parallel-size", str(size)] if size > 1 else []
    return arguments + (["--data-parallel-size", str(gpus // size)] if gpus // size > 1 else [])


def serve_arguments(context: EngineContext, adapter: Adapter | None, port: int, extra: Sequence[str]) -> list[str]:
    """Return the arguments of the server; `extra` are further ones, which come last."""
    name = context.name
    arguments = ["serve", str(context.model), "--served-model-name", name if adapter is None else f"{name}-base"]
    # The run's compute dtype: LlamaFactory saves bf16 training as float32, which vLLM would turn into float16.
    arguments += ["--host", HOST, "--port", str(port), "--dtype", context.dtype]
    arguments += ["--max-model-len", str(context.run.data.cutoff_len)]
    # The checkpoint's own sampling defaults must not fill in what a request leaves out.
    arguments += ["--generation-config", "vllm", "--enable-prefix-caching", "--uvicorn-log-level", "warning"]
    if adapter is not None:
        rank = next(rank for rank in LORA_RANKS if rank >= adapter.rank)
        arguments += ["--enable-lora", "--lora-modules", f"{name}={adapter.folder}", "--max-lora-rank", str(rank)]
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
    r"""Return the words that start vLLM.

    Args:
        command: `tpaw_vllm_command`: a program with arguments in front, as a shell reads them; `{python}` is this
            interpreter. None is the `vllm` of this environment.

    Raises:
        ConfigError: If it is not quoted as a shell wants it.
        EnvironmentProblem: If there is no such program.
    """
    words = _split("tpaw_vllm_command", command or "vllm")
    first = sys.executable if words[0] == PYTHON else os.path.expanduser(words[0])
    own_folder = [str(Path(sys.executable).parent)] if command is None else []
    found = shutil.which(first, path=os.pathsep.join([*own_folder, os.environ.get("PATH", os.defpath)]))
    if found is not None:
        return [os.path.abspath(found), *(sys.executable if word == PYTHON else word for word in words[1:])]
    raise EnvironmentProblem(
        "`tpaw_engine: vllm` needs the program `vllm`, which is not installed here. Install it into an environment of "
        "its own (`python -m venv vllm-env`, then `vllm-env/bin/pip install vllm`) and set "
        "`tpaw_vllm_command: vllm-env/bin/vllm`."
        if command is None
        else f"`tpaw_vllm_command: {command}` begins with {words[0]}, which is no program here. Give the path of a "
        "`vllm`, for example `vllm-env/bin/vllm`, or of a Python with `-m`."
    )


def split_arguments(text: str | None) -> list[str]:
    r"""Split `tpaw_vllm_args` as a shell does.

    Raises:
        ConfigError: If it is not quoted as a shell wants it, or sets what this package sets.
    """
    words = _split("tpaw_vllm_args", text) if text else []
    found = []
    for word in words:
        option = word.partition("=")[0].replace("_", "-")
        plain = "--" + option.removeprefix("--no-") if option.startswith("--no-") else option
        # argparse takes the beginning of an option for the option.
        if plain in OWN_OPTIONS or (len(plain) > 4 and any(own.startswith(plain) for own in OWN_OPTIONS)):
            found.append(option)
    if found:
        raise ConfigError(
            f"`tpaw_vllm_args` has {', '.join(found)}, which is set here already, by other keys of the run file or "
            "for this run alone. Remove it from `tpaw_vllm_args`."
        )
    return words


def _split(key: str, text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"`{key}: {text}` cannot be split into words: {error}. Close the quotes.") from error
    if not words:
        raise ConfigError(f"`{key}` is blank. Give a value or leave the key out.")
    return words


def refuse_unsupported(model_args: Any) -> None:
    r"""Refuse what changes θ_t when LlamaFactory loads it, since vLLM reads the checkpoint as it is.

    Raises:
        ConfigError: With each such key.
    """
    given = {key: getattr(model_args, key, None) for key in ("rope_scaling", "quantization_bit", "shift_attn")}
    if any(given.values()):
        listed = ", ".join(f"`{key}: {getattr(value, 'value', value)}`" for key, value in given.items() if value)
        raise ConfigError(
            f"{listed} changes the model when LlamaFactory loads it, but `tpaw_engine: vllm` serves the checkpoint as "
            "it is, so another model would generate than is trained. Use `tpaw_engine: hf`, or remove the key."
        )


def served_adapter(folders: Sequence[Path]) -> Adapter | None:
    r"""Return the one adapter that is served on the model, of all those of θ_t; None for none.

    Raises:
        ConfigError: If vLLM cannot serve what they make of the model.
    """
    if not folders:
        return None
    if len(folders) > 1:
        raise ConfigError(
            f"theta_t has {len(folders)} adapters ({', '.join(map(str, folders))}), but `tpaw_engine: vllm` serves "
            "one at a time. Merge all but the last into the model (`llamafactory-cli export`) and start from that, or "
            "use `tpaw_engine: hf`."
        )
    config = read_json(folders[0] / "adapter_config.json")
    kind, rank = config.get("peft_type", "LORA"), config.get("r", 8)
    rank = max([rank, *(config.get("rank_pattern") or {}).values()])
    unserved = {
        f"is an adapter of kind {kind}": kind != "LORA",
        "is a DoRA adapter (`use_dora`)": config.get("use_dora"),
        "trains biases": config.get("bias", "none") != "none",
        f"trains whole modules, {config.get('modules_to_save')}": config.get("modules_to_save"),
        f"has rank {rank}, above {LORA_RANKS[-1]}": rank > LORA_RANKS[-1],
    }
    if any(unserved.values()):
        raise ConfigError(
            f"{folders[0]} {' and '.join(what for what, found in unserved.items() if found)}, which vLLM does not "
            "serve. Merge it into the model (`llamafactory-cli export`), or use `tpaw_engine: hf`."
        )
    return Adapter(folders[0], rank)
