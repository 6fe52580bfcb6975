# SPDX-License-Identifier: Apache-2.0
"""vLLM's own server, `vllm serve`: its command line, its environment, and which GPUs each server has."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.files import read_json
from ..errors import ConfigError, EnvironmentProblem
from .managed import HOST, ManagedServers, ServerCommand
from .placement import gpus_in_sight, place


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .base import EngineContext

DEFAULT_COMMAND = "vllm"
PYTHON = "{python}"
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# What we set, and by which key of the run file, or to what; `tpaw_vllm_args` comes last, so it would win.
OWN_OPTIONS = {
    "--model": "by `model_name_or_path`",
    "--tokenizer": "by `model_name_or_path`",
    "--revision": "by `model_revision`",
    "--served-model-name": "it is only a name between this run and its servers",
    "--host": "the servers are for this machine alone",
    "--port": "a free one is taken",
    "--uds": "a free port is taken",
    "--root-path": "the servers are for this run alone",
    "--ssl-keyfile": "the servers are for this machine alone",
    "--ssl-certfile": "the servers are for this machine alone",
    "--dtype": "by `bf16`, `fp16` or `pure_bf16`",
    "--max-model-len": "by `cutoff_len`",
    "--enable-prefix-caching": "it is on and changes no response",
    "--generation-config": "by `temperature`, `top_p`, `top_k`, `repetition_penalty`, `max_new_tokens`",
    "--override-generation-config": "by `temperature`, `top_p`, `top_k`, `repetition_penalty`, `max_new_tokens`",
    "--seed": "by `seed`",
    "--enable-lora": "by `adapter_name_or_path`",
    "--lora-modules": "by `adapter_name_or_path`",
    "--max-lora-rank": "by `adapter_name_or_path`",
    "--trust-remote-code": "by `trust_remote_code`",
    "--api-key": "each run makes a key of its own",
    "--chat-template": "by `template`",
}
# What the training launcher means for its own processes.
DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
ADVICE = (
    "Mend what it says; `tpaw_vllm_args` takes further arguments of `vllm serve` (`--gpu-memory-utilization 0.8`, for "
    "example), `tpaw_vllm_command` names the vLLM of another environment."
)


class Adapter(NamedTuple):
    """A LoRA adapter: its folder, and the rank that vLLM must make room for."""

    folder: Path
    rank: int


@dataclass(frozen=True)
class ServedModel:
    r"""What all servers of a run serve.

    Attributes:
        name: The name that requests use.
        model: Checkpoint folder or hub name of a whole model.
        adapter: What is added to it, or None.
        dtype: What it computes in: the run's compute dtype. LlamaFactory saves bf16 training as float32, which vLLM
            would turn into float16, so the file's dtype is no guide.
        cutoff_len: Most tokens of prompt and response together.
        seed: Of what a request's own seed does not cover.
        trust_remote_code: LlamaFactory's key.
    """

    name: str
    model: str
    adapter: Adapter | None
    dtype: str
    cutoff_len: int
    seed: int
    trust_remote_code: bool = False

    @classmethod
    def of(cls, context: EngineContext) -> ServedModel:
        """Read it from an engine's context."""
        return cls(
            name=context.name,
            model=str(context.model),
            adapter=served_adapter(context.adapters),
            dtype=context.dtype,
            cutoff_len=context.run.data.cutoff_len,
            seed=context.settings.seed,
            trust_remote_code=bool(getattr(context.run.model, "trust_remote_code", False)),
        )


def start_vllm(
    context: EngineContext,
    beside: Path,
    say: Callable[[str], object] = lambda _: None,
) -> ManagedServers:
    r"""Start vLLM on every GPU in sight and wait until all servers answer.

    Args:
        context: The engine's.
        beside: The triplet file; the servers' logs lie beside it, `<its name>.server-0.log` and so on.
        say: Is told what is started on which GPUs, and how a long start goes on.

    Returns:
        The running servers: `urls`, `revive`, `close`, `model` (what requests must name), `api_key`.

    Raises:
        ConfigError: If `tpaw_vllm_args` sets what is ours to set, or the model cannot be served by vLLM.
        EnvironmentProblem: If there is no such program.
        GenerationError: If a server does not come up.
    """
    keys = context.run.finetuning
    extra = split_arguments(keys.tpaw_vllm_args)
    program = find_program(keys.tpaw_vllm_command)
    refuse_unsupported(context.run.model)
    served = ServedModel.of(context)
    groups, tensor_parallel = place(served.model, served.dtype, gpus_in_sight(context.devices), extra, say)
    api_key = secrets.token_hex(16)
    name = "vLLM" if not keys.tpaw_vllm_command else f"`{keys.tpaw_vllm_command}`"
    commands = [
        ServerCommand(
            name=f"{name} (server {index} of {len(groups)})" if len(groups) > 1 else name,
            arguments=lambda port: [*program, *serve_arguments(served, port, tensor_parallel, extra)],
            environment=server_environment(os.environ, group, api_key),
            log=beside.with_name(f"{beside.stem}.server-{index}.log"),
            advice=ADVICE,
        )
        for index, group in enumerate(groups)
    ]
    say(f"{name} is started: {_described(groups)}. Log: {', '.join(str(command.log) for command in commands)}.")
    return ManagedServers(commands, keys.tpaw_engine_startup, api_key, served.name, say).start()


def serve_arguments(served: ServedModel, port: int, tensor_parallel: int | None, extra: Sequence[str]) -> list[str]:
    r"""Return the arguments of one server.

    Args:
        served: What it serves.
        port: Where.
        tensor_parallel: Over how many GPUs; None leaves it to `extra`.
        extra: Further arguments, which come last.
    """
    base = served.name if served.adapter is None else f"{served.name}-base"
    arguments = ["serve", served.model, "--served-model-name", base, "--host", HOST, "--port", str(port)]
    arguments += ["--dtype", served.dtype, "--max-model-len", str(served.cutoff_len)]
    # The checkpoint's own sampling defaults must not fill in what a request leaves out.
    arguments += ["--generation-config", "vllm", "--enable-prefix-caching", "--uvicorn-log-level", "warning"]
    if served.adapter is not None:
        rank = next(rank for rank in LORA_RANKS if rank >= served.adapter.rank)
        arguments += ["--enable-lora", "--lora-modules", f"{served.name}={served.adapter.folder}"]
        arguments += ["--max-lora-rank", str(rank)]
    if served.trust_remote_code:
        arguments.append("--trust-remote-code")
    if tensor_parallel is not None:
        arguments += ["--tensor-parallel-size", str(tensor_parallel)]
    return [*arguments, "--seed", str(served.seed), *extra]


def server_environment(inherited: Mapping[str, str], gpus: Sequence[str], api_key: str) -> dict[str, str]:
    r"""Return the environment of one server.

    Args:
        inherited: This process's environment.
        gpus: What `CUDA_VISIBLE_DEVICES` shall list; empty leaves it as it is.
        api_key: What requests must show. A command line could be read by every user of the machine.
    """
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
    words = _split("tpaw_vllm_command", command or DEFAULT_COMMAND)
    first = sys.executable if words[0] == PYTHON else os.path.expanduser(words[0])
    own_folder = [str(Path(sys.executable).parent)] if command is None else []
    found = shutil.which(first, path=os.pathsep.join([*own_folder, os.environ.get("PATH", os.defpath)]))
    if found is None and command is None:
        raise EnvironmentProblem(
            "`tpaw_engine: vllm` needs the program `vllm`, which is not installed here. Install it into an "
            "environment of its own (`python -m venv vllm-env`, then `vllm-env/bin/pip install vllm`) and set "
            "`tpaw_vllm_command: vllm-env/bin/vllm`."
        )
    if found is None:
        raise EnvironmentProblem(
            f"`tpaw_vllm_command: {command}` begins with {words[0]}, which is no program here. Give the path of a "
            "`vllm`, for example `vllm-env/bin/vllm`, or of a Python with `-m`."
        )
    return [os.path.abspath(found), *(sys.executable if word == PYTHON else word for word in words[1:])]


def split_arguments(text: str | None) -> list[str]:
    r"""Split `tpaw_vllm_args` as a shell does.

    Raises:
        ConfigError: If it is not quoted as a shell wants it, or sets what this package sets.
    """
    words = _split("tpaw_vllm_args", text) if text else []
    problems = []
    for word in words:
        option = word.partition("=")[0].replace("_", "-")
        plain = "--" + option.removeprefix("--no-") if option.startswith("--no-") else option
        # argparse takes the beginning of an option for the option.
        owned = [own for own in OWN_OPTIONS if own == plain or (len(plain) > 4 and own.startswith(plain))]
        if option.startswith("--") and owned:
            problems.append(
                f"`tpaw_vllm_args` has {option}, which is set here already: {OWN_OPTIONS[owned[0]]}. "
                "Remove it from `tpaw_vllm_args`."
            )
    if problems:
        raise ConfigError(problems)
    return words


def refuse_unsupported(model_args: Any) -> None:
    r"""Refuse what changes θ_t when LlamaFactory loads it, since vLLM reads the checkpoint as it is.

    Raises:
        ConfigError: With each such key.
    """
    keys = [key for key in ("rope_scaling", "quantization_bit", "shift_attn") if getattr(model_args, key, None)]
    if keys:
        listed = ", ".join(f"`{key}: {_plain(getattr(model_args, key))}`" for key in keys)
        raise ConfigError(
            f"{listed} changes the model when LlamaFactory loads it, but `tpaw_engine: vllm` serves the checkpoint as "
            "it is, so another model would generate than is trained. Use `tpaw_engine: hf`, or remove the key."
        )


def served_adapter(folders: Sequence[Path]) -> Adapter | None:
    r"""Return the adapter that is served upon the model, or None for none.

    Args:
        folders: All adapters of θ_t, in order.

    Raises:
        ConfigError: If vLLM cannot serve what they make of the model.
    """
    if len(folders) > 1:
        raise ConfigError(
            f"theta_t has {len(folders)} adapters ({', '.join(str(folder) for folder in folders)}), but "
            "`tpaw_engine: vllm` serves one at a time. Merge all but the last into the model (`llamafactory-cli "
            "export`) and start from that, or use `tpaw_engine: hf`."
        )
    return _adapter(folders[0]) if folders else None


def _adapter(folder: Path) -> Adapter:
    config = read_json(folder / "adapter_config.json")
    kind, rank = (
        config.get("peft_type", "LORA"),
        max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()]),
    )
    problems = [
        f"{folder} {what}, which vLLM does not serve. Merge it into the model (`llamafactory-cli export`), or use "
        "`tpaw_engine: hf`."
        for what, found in {
            f"is an adapter of kind {kind}": kind != "LORA",
            "is a DoRA adapter (`use_dora`)": config.get("use_dora"),
            "trains biases": config.get("bias", "none") != "none",
            f"trains whole modules, {config.get('modules_to_save')}": config.get("modules_to_save"),
            f"has rank {rank}, above {LORA_RANKS[-1]}": rank > LORA_RANKS[-1],
        }.items()
        if found
    ]
    if problems:
        raise ConfigError(problems)
    return Adapter(folder, rank)


def _split(key: str, text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"`{key}: {text}` cannot be split into words: {error}. Close the quotes.") from error
    if not words:
        raise ConfigError(f"`{key}` is blank. Give a value or leave the key out.")
    return words


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(getattr(value, "value", value))


def _described(groups: Sequence[tuple[str, ...]]) -> str:
    if groups == [()]:
        return "one server, no GPU in sight"
    if len(groups[0]) == 1:
        return f"{len(groups)} server{'s' * (len(groups) > 1)}, one a GPU"
    return f"{len(groups)} server{'s' * (len(groups) > 1)} on {len(groups[0])} GPUs each"
