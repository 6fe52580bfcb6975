# SPDX-License-Identifier: Apache-2.0
"""One command an iteration: skip what is finished, generate what is missing, choose where training continues."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, MutableMapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.files import locked
from ..errors import ConfigError, DataError, EnvironmentProblem, Findings
from ..generation.devices import devices_in_sight
from ..generation.share import Share
from ..hook.ranks import decided_once
from ..lf.given import is_on, is_true, read_given
from ..lf.logs import get_logger
from ..lf.signals import end_like_child, end_with_parent, run_child
from ..team.checkpoint import find_resume_point, read_pruned
from ..team.manifest import Manifest
from .check import check_start
from .distributed import refuse_engine
from .nodes import node_rank, others_told, wait_for_triplets
from .preflight import Plan, finished_manifest, key_problems, make_plan, refuse_other_stage
from .pruning import prune


# Set while this process holds the lock of that output folder, for the training processes that it starts.
HELD = "LLAMAFACTORY_TPAW_HELD"
# The folder in which a command with USE_RAY was started. LlamaFactory hands the environment to its workers on Ray.
STARTED_IN = "LLAMAFACTORY_TPAW_STARTED_IN"

logger = get_logger(__name__)


@contextlib.contextmanager
def prepare(argv: list[str]) -> Iterator[None]:
    r"""Do before `llamafactory-cli train` starts training what must be done before, and hold the output folder.

    Args:
        argv: What stands after `train` on the command line.

    Raises:
        TpawError: If the iteration cannot work, or another process is at work on it.
        SystemExit: With 0 if it is finished; with the code of the generating process if that failed.
    """
    given = read_given(argv)
    run_file = Path(next(iter(argv), ""))
    try:
        _stop_if_finished(given)
    except SystemExit:
        prune(given, run_file)  # which an interruption may have kept from being done
        raise
    plan = make_plan(given)
    refuse_start(given)
    if is_true(given, "do_train"):
        check_start(plan)
    with _pruned_after(given, run_file), contextlib.ExitStack() as stack:
        stack.enter_context(hold_output(given))
        if plan.to_generate and is_true(given, "do_train"):
            _have_generated(plan, argv)
        if is_on("USE_RAY"):
            stack.close()  # Ray's workers do not know what this process holds: theirs takes the lock itself.
            os.environ[STARTED_IN] = os.getcwd()
            stack.callback(os.environ.pop, STARTED_IN, None)
        yield


@contextlib.contextmanager
def _pruned_after(given: dict[str, Any], run_file: Path) -> Iterator[None]:
    """Prune when training has ended well; LlamaFactory's launcher ends by an exit where it started torchrun."""
    try:
        yield
    except SystemExit as stop:
        if not stop.code:
            prune(given, run_file)
        raise
    prune(given, run_file)


def refuse_start(given: dict[str, Any]) -> None:
    r"""Refuse what `train` cannot be started with, whatever checkpoints and data there are.

    Raises:
        TpawError: With every problem found.
    """
    with Findings() as findings:
        for refuse in (_refuse_idle, refuse_engine, _refuse_ray):
            with findings.note():
                refuse(given)


@contextlib.contextmanager
def hold_output(given: dict[str, Any]) -> Iterator[None]:
    r"""Be the only process that works on an output folder; the training processes of one command count as one.

    Raises:
        InUseError: If another process does.
    """
    folder = Path(str(given.get("output_dir") or "")).resolve()
    others_task = any(os.environ.get(name, "0") != "0" for name in ("RANK", "NODE_RANK"))
    if (
        not given.get("output_dir")
        or not is_true(given, "do_train")
        or others_task
        or os.environ.get(HELD) == str(folder)
    ):
        yield
        return
    with locked(folder, f"`output_dir: {given['output_dir']}`"):
        os.environ[HELD] = str(folder)
        try:
            yield
        finally:
            del os.environ[HELD]


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
    _go_where_started()
    given = read_given(args)
    # Files may look different from another machine, or a moment later.
    return given | decided_once(lambda: _decide(given))


def _decide(given: dict[str, Any]) -> dict[str, Any]:
    manifest = _stop_if_finished(given)
    plan = make_plan(given)
    refuse_engine(given)
    if plan.to_generate and is_true(given, "do_train"):
        missing = ", ".join(str(round_.path) for round_ in plan.to_generate)
        raise DataError(
            f"{missing} is not there yet. `llamafactory-cli train` generates it before it starts training; where "
            "training is started otherwise (Python, torchrun, Ray), run `llamafactory-tpaw generate` with the same "
            "settings first."
        )
    if not is_true(given, "do_train"):
        return {}
    with hold_output(given):
        return _where_to_continue(given, manifest)


def generate(argv: list[str]) -> int:
    """Generate the triplets that an iteration lacks, in this process, or in one for each device in sight."""
    end_with_parent()
    share = Share.given(os.environ)
    devices = devices_in_sight(os.environ)
    _use_one_device(os.environ)
    given = read_given(argv)
    refuse_other_stage(given, "generate")
    plan = make_plan(given)
    if plan.tpaw_args.tpaw_prompts is None:
        raise ConfigError(
            "`tpaw_prompts` is missing, so there is nothing to generate. Name the SFT set with the prompts."
        )
    if not plan.to_generate:
        logger.info_rank0("The triplets of this iteration are there already.")
        return 0
    from ..arguments.parsed import parse_single_process
    from ..generation.local import answer_share, generate_round

    run = parse_single_process(plan.given)
    if run.training.device.type == "cpu":
        devices = []  # `use_cpu: true`
    for round_ in plan.to_generate:
        if share is None:
            generate_round(run, round_, argv, devices)
        elif share.file == str(round_.path):
            answer_share(run, round_, share)
    return 0


def score(argv: list[str]) -> int:
    """Score the players' log-probs that an iteration lacks, in this process."""
    _use_one_device(os.environ)
    given = read_given(argv)
    refuse_other_stage(given, "score")
    plan = make_plan(given)
    _require_triplets(plan)
    from ..arguments.parsed import parse_single_process
    from ..train.workflow import score_tpaw

    score_tpaw(parse_single_process(plan.given))
    return 0


def _stop_if_finished(given: dict[str, Any]) -> Manifest | None:
    if not is_true(given, "do_train") or key_problems(given):
        return None  # `make_plan` says what is wrong with the keys, together with everything else.
    manifest = finished_manifest(given)
    if manifest is not None and manifest.status == "finished":
        pruned = ", its weights pruned since" if read_pruned(Path(given["output_dir"])) else ""
        logger.info_rank0(
            f"{given['output_dir']} holds theta_{manifest.produces}, finished with these settings{pruned}: nothing to "
            "do."
        )
        raise SystemExit(0)
    return manifest


def _refuse_idle(given: dict[str, Any]) -> None:
    if not is_true(given, "do_train") and not is_true(given, "do_eval"):
        raise ConfigError("Neither `do_train` nor `do_eval` is true, so there is nothing to do. Set `do_train: true`.")


def _refuse_ray(_: dict[str, Any]) -> None:
    """LlamaFactory starts Ray only when the triplets are there; what cannot work then is told before."""
    if not is_on("USE_RAY"):
        return
    if find_spec("ray") is None:
        raise EnvironmentProblem(
            "USE_RAY is set, but Ray is not installed in this environment. Install it "
            "(`pip install 'ray[default]'`), or unset USE_RAY."
        )


def _go_where_started() -> None:
    """A Ray worker starts in the folder of `ray start`; the paths of the run file are meant from the command's."""
    folder = os.environ.get(STARTED_IN)
    if folder and os.path.isdir(folder):
        os.chdir(folder)


def _require_triplets(plan: Plan) -> None:
    if plan.to_generate:
        missing = ", ".join(str(round_.path) for round_ in plan.to_generate)
        raise DataError(f"{missing} is not there yet. Run `llamafactory-tpaw generate` with the same settings first.")


def _have_generated(plan: Plan, argv: list[str]) -> None:
    """Generate what is missing, on one node of several; the others wait for it."""
    node = node_rank()
    if node:
        wait_for_triplets(plan.to_generate)
        return
    files = ", ".join(str(round_.path) for round_ in plan.to_generate)
    logger.info_rank0(f"{files}: generated first, in a process of its own.")
    with contextlib.nullcontext() if node is None else others_told(plan.to_generate):
        _generate_in_child(argv)


def _generate_in_child(argv: list[str]) -> None:
    """Generate in a process of its own, so that its memory on the device is free again before training."""
    command = [sys.executable, "-m", "llamafactory_tpaw", "generate", *argv]
    end_like_child(run_child(command, os.environ), logger.warning_rank0)


def _use_one_device(environment: MutableMapping[str, str]) -> None:
    """One process samples or scores on one device; with several in sight LlamaFactory would ask for torchrun."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    environment["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]


def _where_to_continue(given: dict[str, Any], manifest: Manifest | None) -> dict[str, Any]:
    """Resume from the newest checkpoint that is whole; without one an interrupted run begins again."""
    if manifest is None or given.get("resume_from_checkpoint"):
        return {}
    point = find_resume_point(Path(given["output_dir"]))
    for checkpoint in point.torn if os.environ.get("RANK", "0") == "0" else ():
        logger.warning_rank0(f"{checkpoint} was being written when the run was interrupted: it is removed.")
        shutil.rmtree(checkpoint)
    if point.checkpoint is not None:
        return {"resume_from_checkpoint": str(point.checkpoint)}
    logger.info_rank0(f"{given['output_dir']} has no checkpoint with an optimizer's state: training begins again.")
    return {"overwrite_output_dir": True}
