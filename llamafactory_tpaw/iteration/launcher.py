# SPDX-License-Identifier: Apache-2.0
"""One command an iteration: skip what is finished, generate what is missing, choose where training continues."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ..arguments.parsed import DISTRIBUTED_KEYS
from ..data.files import read_json
from ..errors import ConfigError, DataError
from ..plugin.given import read_given
from ..plugin.logs import get_logger
from ..team.fingerprint import check_checkpoint_complete
from ..team.manifest import Manifest
from .preflight import Plan, finished_manifest, key_problems, make_plan


# Set for the generating child: the process that waits for it and without which it has nothing to do.
PARENT = "LLAMAFACTORY_TPAW_PARENT"
PR_SET_PDEATHSIG = 1
SIGKILL = 9

logger = get_logger(__name__)


def prepare(argv: list[str]) -> None:
    r"""Do before `llamafactory-cli train` starts training what must be done before.

    Args:
        argv: What stands after `train` on the command line.

    Raises:
        TpawError: If the iteration cannot work.
        SystemExit: With 0 if it is finished; with the code of the generating process if that failed.
    """
    given = read_given(argv)
    _stop_if_finished(given)
    plan = make_plan(given)
    _refuse_idle(given)
    _refuse_distributed(given)
    _refuse_several_processes()
    if plan.to_generate and _trains(given):
        _generate_in_child(argv)


def before_parse(args: list[str] | dict[str, Any] | None) -> dict[str, Any]:
    r"""Check an iteration in the training process and settle where training continues.

    Args:
        args: What LlamaFactory was given: flags, or a dict.

    Returns:
        The settings as a dict, with `resume_from_checkpoint` or `overwrite_output_dir` filled in where the iteration
        was interrupted.

    Raises:
        TpawError: If the iteration cannot work, or its triplets are missing.
        SystemExit: With 0 if it is finished.
    """
    given = read_given(args)
    manifest = _stop_if_finished(given)
    plan = make_plan(given)
    _refuse_distributed(given)
    if plan.to_generate and _trains(given):
        missing = ", ".join(str(round_.path) for round_ in plan.to_generate)
        raise DataError(
            f"{missing} is not there yet. `llamafactory-cli train` generates it before it starts training; where "
            "training is started otherwise (Python, torchrun, Ray), run `llamafactory-tpaw generate` with the same "
            "settings first."
        )
    return given | _where_to_continue(given, manifest) if _trains(given) else given


def generate(argv: list[str]) -> int:
    """Generate the triplets that an iteration lacks, in this process."""
    _die_with_parent()
    _use_one_device(os.environ)
    plan = make_plan(read_given(argv))
    if plan.tpaw_args.tpaw_prompts is None:
        raise ConfigError(
            "`tpaw_prompts` is missing, so there is nothing to generate. Name the SFT set with the prompts."
        )
    if not plan.to_generate:
        logger.info_rank0("The triplets of this iteration are there already.")
        return 0
    from ..arguments.parsed import parse_single_process
    from ..generation.local import generate_round

    run = parse_single_process(plan.given)
    for round_ in plan.to_generate:
        generate_round(run, round_)
    return 0


def score(argv: list[str]) -> int:
    """Score the players' log-probs that an iteration lacks, in this process."""
    _use_one_device(os.environ)
    plan = make_plan(read_given(argv))
    _require_triplets(plan)
    from ..arguments.parsed import parse_single_process
    from ..train.workflow import score_tpaw

    score_tpaw(parse_single_process(plan.given))
    return 0


def _stop_if_finished(given: dict[str, Any]) -> Manifest | None:
    if not _trains(given) or key_problems(given):
        return None  # `make_plan` says what is wrong with the keys, together with everything else.
    manifest = finished_manifest(given)
    if manifest is not None and manifest.status == "finished":
        logger.info_rank0(
            f"{given['output_dir']} holds theta_{manifest.produces}, finished with these settings: nothing to do."
        )
        raise SystemExit(0)
    return manifest


def _refuse_distributed(given: dict[str, Any]) -> None:
    """Players are loaded without an engine for several processes, so the policy may not have one either."""
    keys = [f"`{key}`" for key in DISTRIBUTED_KEYS if given.get(key)]
    if keys and _trains(given):
        raise ConfigError(
            f"{', '.join(keys)} is for training in several processes, but this version of stage `tpaw` trains in one. "
            "Remove it, or switch it off on the command line (`deepspeed=null`)."
        )


def _refuse_idle(given: dict[str, Any]) -> None:
    if not _trains(given) and str(given.get("do_eval", False)).lower() != "true":
        raise ConfigError("Neither `do_train` nor `do_eval` is true, so there is nothing to do. Set `do_train: true`.")


def _refuse_several_processes() -> None:
    """Count the training processes that LlamaFactory would start, before an hour of generation is spent."""
    import torch

    devices = torch.cuda.device_count()
    if not _is_on("FORCE_TORCHRUN") and (devices <= 1 or _is_on("USE_RAY") or _is_on("USE_KT")):
        return
    nodes, per_node = os.environ.get("NNODES", "1"), os.environ.get("NPROC_PER_NODE", str(devices))
    if nodes.isdigit() and per_node.isdigit() and int(nodes) * int(per_node) > 1:
        raise ConfigError(
            f"LlamaFactory would start {nodes} x {per_node} training processes (NNODES x NPROC_PER_NODE, by default "
            "one for each device in sight), but this version of stage `tpaw` trains in one. Set "
            "`CUDA_VISIBLE_DEVICES=0`, or `NPROC_PER_NODE=1` and `NNODES=1` with FORCE_TORCHRUN."
        )


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "0").lower() in ("true", "y", "1")


def _trains(given: dict[str, Any]) -> bool:
    return str(given.get("do_train", False)).lower() == "true"


def _require_triplets(plan: Plan) -> None:
    if plan.to_generate:
        missing = ", ".join(str(round_.path) for round_ in plan.to_generate)
        raise DataError(f"{missing} is not there yet. Run `llamafactory-tpaw generate` with the same settings first.")


def _generate_in_child(argv: list[str]) -> None:
    """Generate in a process of its own, so that its memory on the device is free again before training."""
    command = [sys.executable, "-m", "llamafactory_tpaw", "generate", *argv]
    environment = os.environ | {PARENT: str(os.getpid())}
    _use_one_device(environment)
    code = subprocess.run(command, env=environment, check=False).returncode
    if code != 0:
        raise SystemExit(code if code > 0 else 128 - code)


def _use_one_device(environment: MutableMapping[str, str]) -> None:
    """One process samples or scores on one device; with several in sight LlamaFactory would ask for torchrun."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    environment["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]


def _die_with_parent() -> None:
    """Let the kernel end this process when the one that waits for it is killed, so that none generates unseen."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != int(parent):
        raise SystemExit(128 + SIGKILL)


def _where_to_continue(given: dict[str, Any], manifest: Manifest | None) -> dict[str, Any]:
    """Resume from the newest checkpoint that is whole; without one an interrupted run begins again."""
    if manifest is None or given.get("resume_from_checkpoint"):
        return {}
    checkpoints = [path for path in Path(given["output_dir"]).glob("checkpoint-*") if path.name[11:].isdigit()]
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name[11:]), reverse=True):
        if not _is_whole(checkpoint):
            logger.warning_rank0(f"{checkpoint} was being written when the run was interrupted: it is removed.")
            shutil.rmtree(checkpoint)
        elif _has_optimizer(checkpoint):
            return {"resume_from_checkpoint": str(checkpoint)}
    logger.info_rank0(f"{given['output_dir']} has no checkpoint with an optimizer's state: training begins again.")
    return {"overwrite_output_dir": True}


def _is_whole(checkpoint: Path) -> bool:
    """Weights, and the Trainer's state, which is written last."""
    if check_checkpoint_complete(checkpoint):
        return False
    try:
        read_json(checkpoint / "trainer_state.json")
    except DataError:
        return False
    return True


def _has_optimizer(checkpoint: Path) -> bool:
    """Whether training can continue exactly; with `save_only_model` it cannot."""
    deepspeed = any(checkpoint.glob("global_step*"))
    return deepspeed or all((checkpoint / name).is_file() for name in ("optimizer.pt", "scheduler.pt"))
