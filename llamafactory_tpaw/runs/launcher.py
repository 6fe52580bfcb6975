# SPDX-License-Identifier: Apache-2.0
"""One command an iteration: skip what is finished, generate what is missing, choose where training continues."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import locked
from ..errors import ConfigError, DataError, EnvironmentProblem, Findings
from ..lf import facade
from ..lf.failures import explained
from ..lf.given import handed_file, is_first_process, is_true, read_given, take_handed
from ..lf.logs import get_logger
from ..lf.signals import end_like_child, run_child
from ..team.checkpoint import check_unchanged, find_resume_point
from ..team.manifest import read_manifest
from .checks import check_first_rows, refuse_engine
from .estimates import check_disk
from .guard import guard
from .plan import Plan, handed_plan, make_plan, refuse_other_stage
from .pruning import prune


if TYPE_CHECKING:
    from ..data.rounds import Round

POLL_S = 1.0
# Node 0 is given up where no row comes for so long, beyond what its engine may take to start.
PATIENCE_S = 600.0

logger = get_logger(__name__)


@contextlib.contextmanager
def prepared(given: dict[str, Any], run_file: str = "") -> Iterator[str]:
    """Do before training starts what must be done before, and hold the output folder until it has ended.

    Yields the file with the plan, for the processes that train. `run_file` is where `given` was read; run files beside
    it may name checkpoints that must not be pruned. A finished iteration ends by SystemExit with 0, one whose
    generating process failed with that one's code.
    """
    given, handed = take_handed(given)
    run_file = handed["run_file"] if handed else run_file
    plan = make_plan(given)
    if plan.is_finished:
        prune(given, run_file)  # which an interruption may have kept from being done
        _evaluate(plan)
        _say_finished(plan)
        raise SystemExit(0)
    refuse_engine(given)
    with Findings() as findings:
        check_disk(plan, None, findings)
    guard(plan)
    with hold_output(given), handed_file(given, planned=True) as plan_file:
        for round_ in plan.opponents.rounds:
            if round_.complete:
                round_.partial.unlink(missing_ok=True)  # which a kill kept from being done
        if plan.to_generate and is_true(given, "do_train"):
            _have_generated(plan, plan_file)
            guard(plan)  # now by what was generated, too
        try:
            yield plan_file
        except SystemExit as stop:  # by which LlamaFactory's launcher ends where it started torchrun
            if stop.code:
                raise
        prune(given, run_file)
        _evaluate(plan)


@contextlib.contextmanager
def hold_output(given: Mapping[str, Any], handed: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Be the only command that works on an output folder, unless the command that `handed` this is."""
    if handed or not is_first_process() or not is_true(given, "do_train"):
        yield
        return
    with locked(Path(str(given["output_dir"])).resolve(), f"`output_dir: {given['output_dir']}`"):
        yield


def before_training(given: dict[str, Any], handed: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settle in a training process where training continues; each finds the same, since none has begun to write.

    What the command handed over was checked by it; without (a user's own torchrun, Python) the settings are checked
    here, and SystemExit with 0 is raised if the iteration is finished. Returned are the settings, with
    `resume_from_checkpoint` or `overwrite_output_dir` where it was interrupted.
    """
    if handed and os.path.isdir(handed["cwd"]):
        os.chdir(handed["cwd"])  # a Ray worker starts elsewhere
    plan = handed_plan(given) if handed else make_plan(given)
    if not handed:
        if plan.is_finished:
            _say_finished(plan)
            raise SystemExit(0)
        refuse_engine(given)
        guard(plan)
    if not is_true(given, "do_train"):
        return given
    _require_triplets(plan)
    with hold_output(given, handed):
        return given | _where_to_continue(plan)


def generate(argv: list[str]) -> int:
    """Generate the triplets that an iteration lacks, in this process, or in one for each device in sight."""
    from ..generation.devices import devices_in_sight

    devices = devices_in_sight(os.environ)
    _use_one_device()
    given, handed = take_handed(read_given(argv))
    refuse_other_stage(given, "generate")
    with explained(given):
        plan = handed_plan(given) if handed else make_plan(given)
        if plan.tpaw_args.tpaw_prompts is None:
            raise ConfigError(
                "`tpaw_prompts` is missing, so there is nothing to generate. Name the SFT set with the prompts."
            )
        if not plan.to_generate:
            logger.info_rank0("The triplets of this iteration are there already.")
            return 0
        if not handed:
            guard(plan)
        from ..arguments.parsed import parse_single_process
        from ..generation.local import generate_round

        run = parse_single_process(given)
        if run.training.device.type == "cpu":
            devices = []  # `use_cpu: true`
        check_first_rows(run, plan)
        for round_ in plan.to_generate:
            generate_round(run, round_, devices)
    return 0


def score(argv: list[str]) -> int:
    """Score the players' log-probs that an iteration lacks, in this process."""
    _use_one_device()
    given = read_given(argv)
    refuse_other_stage(given, "score")
    with explained(given):
        plan = make_plan(given)
        if plan.is_finished:
            _say_finished(plan)
            return 0
        guard(plan)
        _require_triplets(plan)
        from ..arguments.parsed import parse_single_process
        from ..train.workflow import score_tpaw

        score_tpaw(parse_single_process(given))
    return 0


def _say_finished(plan: Plan) -> None:
    theta = f"theta_{plan.earlier.produces}"
    logger.info_rank0(f"{plan.given['output_dir']} holds {theta}, finished with these settings: nothing to do.")


def _require_triplets(plan: Plan) -> None:
    if plan.to_generate:
        missing = ", ".join(str(round_.path) for round_ in plan.to_generate)
        raise DataError(
            f"{missing} is not there yet, and only `llamafactory-cli train` generates by itself. Run "
            "`llamafactory-tpaw generate` with the same settings first."
        )


def _have_generated(plan: Plan, plan_file: str) -> None:
    """Generate what is missing in a separate process, which frees its memory; of several nodes the others wait."""
    if not is_first_process():
        for round_ in plan.to_generate:
            _wait_for(round_, PATIENCE_S + plan.tpaw_args.tpaw_engine_startup)
        return
    files = ", ".join(str(round_.path) for round_ in plan.to_generate)
    logger.info_rank0(f"{files}: generated first, in a separate process.")
    end_like_child(run_child([sys.executable, "-m", "llamafactory_tpaw", "generate", plan_file]))


def _evaluate(plan: Plan) -> None:
    """Evaluate θ_{t+1} on `tpaw_eval_tasks`, in a separate process; where that fails, the iteration is finished."""
    tasks, folder = plan.tpaw_args.tpaw_eval_tasks, Path(plan.given["output_dir"])
    manifest = read_manifest(folder) if tasks and is_first_process() else None
    if manifest is None or manifest.status != "finished":
        return
    from ..report.evaluate import read_evaluations

    if set(map(_task_name, tasks)) <= read_evaluations(folder, manifest.result["fingerprint"]).keys():
        return
    facade.torch_gc()  # of a training in this process
    command = ["eval", str(folder), "--tasks", ",".join(tasks)]
    if code := run_child([sys.executable, "-m", "llamafactory_tpaw", *command]):
        logger.warning_rank0(
            f"The iteration is finished, but its evaluation ended with exit code {code}. Correct what it says above "
            f"and repeat it: llamafactory-tpaw {shlex.join(command)}"
        )


def _task_name(task: str) -> str:
    """The name that a task's YAML file gives it; a task's name is its own."""
    named = re.search(r"^task: *(\S+)", Path(task).read_text(encoding="utf-8"), re.M) if Path(task).is_file() else None
    return named[1] if named else task


def _wait_for(round_: Round, patience_s: float) -> None:
    """Wait until node 0 has made a round, while its rows become more."""
    logger.info_rank0(f"{round_.path}: node 0 generates it; this node waits for it on the shared file system.")
    seen, changed = 0, time.monotonic()
    while not round_.complete:
        size = round_.partial.stat().st_size if round_.partial.is_file() else 0
        if size != seen:
            seen, changed = size, time.monotonic()
        if time.monotonic() - changed > patience_s:
            raise EnvironmentProblem(
                f"{round_.path} has had no new row from node 0 for {patience_s:.0f} s. `dataset_dir` must be on a "
                "file system that all nodes share: look at the output of node 0, then start all nodes again."
            )
        time.sleep(POLL_S)


def _use_one_device() -> None:
    """One process samples or scores on one device; with several in sight LlamaFactory would ask for torchrun."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]


def _where_to_continue(plan: Plan) -> dict[str, Any]:
    """Resume from the newest checkpoint that is whole; without one an interrupted run begins again."""
    folder = plan.given["output_dir"]
    if asked := plan.given.get("resume_from_checkpoint"):
        check_unchanged(Path(str(asked)))
    if plan.earlier is None or asked:
        return {}
    checkpoint = find_resume_point(Path(folder))
    if checkpoint is not None:
        return {"resume_from_checkpoint": str(checkpoint)}
    logger.info_rank0(f"{folder} has no checkpoint with an optimizer's state: training begins again.")
    return {"overwrite_output_dir": True}
