# SPDX-License-Identifier: Apache-2.0
"""What a run with DeepSpeed or FSDP needs, checked before an hour of generation is spent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.version import Version

from ..data.files import read_json
from ..errors import ConfigError, EnvironmentProblem, Findings
from ..lf.given import is_on, is_true


# Of those before, 0.18.4 was seen to load corrupted weights under ZeRO-3 over gloo.
DEEPSPEED = "0.19.8"
INSTALL = f"`pip install 'deepspeed>={DEEPSPEED}'`"
GATHERS = "stage3_gather_16bit_weights_on_model_save"


def refuse_engine(given: Mapping[str, Any]) -> None:
    r"""Refuse DeepSpeed and FSDP where they cannot work.

    Raises:
        TpawError: With every problem found.
    """
    if not is_true(given, "do_train") and not is_true(given, "do_eval"):
        return
    with Findings() as findings:
        if given.get("deepspeed"):
            with findings.note():
                _check_installed()
            findings.refuse(ConfigError, _start_problems())
            with findings.note():
                findings.refuse(ConfigError, _config_problems(given, _read(given["deepspeed"])))
        if given.get("fsdp") and is_true(given, "use_cpu"):
            findings.refuse(
                ConfigError,
                [
                    "`fsdp` is set with `use_cpu`, where accelerate leaves FSDP out without a word and every process "
                    "holds the whole model. Remove `fsdp`, or train on GPUs."
                ],
            )


def deepspeed_version() -> str | None:
    """The version of DeepSpeed that is installed, None for none."""
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None


def zero_stage(config: Mapping[str, Any]) -> int:
    """Stage of ZeRO that a DeepSpeed config asks for; 0 for none."""
    return int((config.get("zero_optimization") or {}).get("stage", 0))


def _check_installed() -> None:
    if deepspeed_version() is None:
        raise EnvironmentProblem(f"`deepspeed` is set, but DeepSpeed is not installed here. Install it ({INSTALL}).")


def _start_problems() -> list[str]:
    """LlamaFactory starts torchrun by itself only where it sees several devices."""
    import torch

    started = is_on("FORCE_TORCHRUN") or is_on("USE_RAY") or "LOCAL_RANK" in os.environ
    if started or torch.cuda.device_count() > 1:
        return []
    return [
        "`deepspeed` is set, but LlamaFactory would not start torchrun, which DeepSpeed needs. Put FORCE_TORCHRUN=1 "
        "before the command, or switch it off on the command line (`deepspeed=null`)."
    ]


def _read(given: Any) -> dict[str, Any]:
    """Read the config; it may be written out in the run file."""
    if isinstance(given, Mapping):
        return dict(given)
    path = Path(str(given))
    config = read_json(path)
    if not isinstance(config, dict):
        raise ConfigError(f"`deepspeed: {path}` must hold a JSON object with DeepSpeed's settings.")
    return config


def _config_problems(given: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    problems, stage, installed = [], zero_stage(config), deepspeed_version()
    where = given["deepspeed"] if isinstance(given["deepspeed"], str) else "the config of `deepspeed`"
    if stage == 3 and not config["zero_optimization"].get(GATHERS) and is_true(given, "do_train"):
        problems.append(
            f"{where} asks for ZeRO-3 without `{GATHERS}: true`, so theta_{{t+1}} would not be saved as a model. Set "
            "it under `zero_optimization`."
        )
    if 0 < stage < 3 and not is_true(given, "do_train"):
        problems.append(
            f"{where} asks for ZeRO-{stage}, which DeepSpeed cannot evaluate with unless it trains. Switch it off on "
            "the command line (`deepspeed=null`)."
        )
    if is_true(given, "use_cpu"):
        problems.append(
            "`deepspeed` is set with `use_cpu`, where accelerate leaves DeepSpeed's start out. Remove `use_cpu`; with "
            "DS_ACCELERATOR=cpu and an empty CUDA_VISIBLE_DEVICES, DeepSpeed trains on the CPU."
        )
    if stage == 3 and _on_cpu() and installed and Version(installed) < Version(DEEPSPEED):
        problems.append(
            f"DeepSpeed {installed} is installed, and ZeRO-3 on the CPU (gloo) needs {DEEPSPEED} or later: 0.18.4 was "
            f"seen to load corrupted weights there. Install it ({INSTALL})."
        )
    return problems


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()
