# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw check`: everything that can be known of an iteration before it runs, every problem at once."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..arguments.parsed import RunArguments, parse_reading, parse_single_process
from ..data.opponents import encoding_problems
from ..data.rounds import prompts_problems
from ..data.triplets import read_meta
from ..errors import ConfigError, DataError, EnvironmentProblem
from ..lf.given import read_given
from ..lf.logs import get_logger
from ..team.members import Member, check_tokenizers, load_encoder
from ..team.players import team_of
from .engine_check import check_engine
from .estimates.disk import check_disk, disk_spaces, nearest_folder, saved_bytes
from .estimates.figures import Figure, readable_bytes
from .estimates.hours import Basis, describe_measured, measure_speed, time_figures
from .estimates.lacking import count_lacking
from .estimates.memory import DEVICE_SHARE, Device, Traced, device_of, memory_figures, trace_run
from .estimates.storage import measure_storage
from .estimates.workload import Sample, Workload, describe_workload, take_sample
from .findings import Report
from .preflight import Plan, finished_manifest, key_problems, make_plan, refuse_other_stage, with_defaults
from .round_trip import round_trip_problems


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..data.encoding import TurnEncoder
    from ..data.prompts import BadRow
    from .step_zero import StepZero

SCHEMA = 1
# Rows that `check` looks at, and those at the start of `train`.
ROWS, FEW_ROWS = 512, 8
ROUND_TRIPS = 32
# At the start of `train` a larger set is not opened: generation, which comes next, reads it whole.
QUICK_BYTES = 64 << 20


@dataclass
class CheckResult:
    r"""What `check` found.

    Attributes:
        report: Findings.
        device: Where the run computes; None where it did not come to that.
        memory: Figures for `generation`, `scoring` and `training`.
        disk: Figures of what is written.
        time: Figures of how long it takes.
        step_zero: What `--model` showed, or None.
    """

    report: Report = field(default_factory=Report)
    device: Device | None = None
    memory: dict[str, list[Figure]] = field(default_factory=dict)
    disk: list[Figure] = field(default_factory=list)
    time: list[Figure] = field(default_factory=list)
    step_zero: StepZero | None = None

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints; docs/estimates.md describes it."""
        return {
            "schema": SCHEMA,
            "exit_code": self.report.exit_code,
            "findings": [finding.as_dict() for finding in self.report.findings],
            "device": self.device and {"name": self.device.name, "bytes": self.device.total},
            "memory": {part: [figure.as_dict() for figure in figures] for part, figures in self.memory.items()},
            "disk": [figure.as_dict() for figure in self.disk],
            "time": [figure.as_dict() for figure in self.time],
            "step_zero": self.step_zero and self.step_zero.as_dict(),
        }


def check(
    argv: list[str] | dict[str, Any],
    *,
    with_model: bool = False,
    started: float | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> CheckResult:
    r"""Check an iteration.

    Args:
        argv: A run file and overrides, or the settings.
        with_model: Load θ_t, too: fingerprints anew, its zero reward, a warm-up sample.
        started: When this process started, in seconds since 1970; now by default.
        say: Told what is being done.

    Returns:
        Findings and estimates; nothing is raised that a user can cause, but for a run file that cannot be read.
    """
    started = time.time() if started is None else started
    given = read_given(argv)
    result = CheckResult()
    report = result.report
    say("settings")
    with report.collect():
        refuse_other_stage(given, "check")
    if report.errors:
        return result
    plan = _plan(given, report)
    from .launcher import refuse_start  # which imports this module

    with report.collect():
        refuse_start(given)
    if plan is not None:
        say("engine")
        check_engine(plan, report)
    run = _parse(given, report) if plan is not None else None
    if plan is None or run is None:
        return result
    say("tokenizers and data")
    found = _read_data(run, plan, report, ROWS)
    startup = time.time() - started
    workload = found.workload if found else None
    keys = with_defaults(given) | vars(plan.tpaw_args)
    spaces = disk_spaces(plan, keys, workload)
    result.disk = [space.figure for space in spaces]
    check_disk(spaces, report)
    if found is None or workload is None:
        return result
    say("memory and time")
    traced = _trace(run, plan, found, report)
    if traced is None:
        return result
    result.device = device_of(run)
    result.memory = memory_figures(run, traced, len(found.encoder.tokenizer))
    _check_memory(result)
    measured = None
    if with_model and not report.errors:
        from .step_zero import examine

        with report.collect():
            result.step_zero = examine(run, plan, workload, traced, found.sample, say)
            measured = result.step_zero.measured
            report.note(describe_measured(measured))
    speed = measure_speed(run.training.device, run.model.compute_dtype)
    storage = measure_storage(nearest_folder(Path(run.training.output_dir)))
    basis = Basis(traced, speed, storage, startup, measured)
    result.time = time_figures(run, workload, basis, saved_bytes(plan, keys, workload))
    return result


def check_start(plan: Plan) -> None:
    r"""Do at the start of `train` what costs a few seconds: the round trip of some rows, and disk.

    Warnings are logged.

    Raises:
        TpawError: With every problem found.
    """
    report = Report()
    with report.collect():
        model_args, data_args = parse_reading(plan.given)
        workload = None
        if _is_quick(plan, data_args.dataset_dir):
            # Stands in for the training arguments, whose parsing would occupy the device.
            alone = SimpleNamespace(local_process_index=0, seed=0, dataloader_num_workers=0)
            run = RunArguments(model_args, data_args, alone, plan.tpaw_args, None)
            encoder = load_encoder(run)[2]
            sample = take_sample(plan, encoder, model_args, data_args, alone, FEW_ROWS)
            _check_sample(sample, plan, encoder, data_args.template, report)
            if sample.prompts:
                workload = describe_workload(plan, encoder, sample, data_args)
        check_disk(disk_spaces(plan, with_defaults(plan.given) | vars(plan.tpaw_args), workload), report)
    logger = get_logger(__name__)
    for finding in report.warnings:
        logger.warning_rank0(finding.message)
    report.raise_errors()


@dataclass(frozen=True)
class _Found:
    """What reading tokenizers and data gave."""

    tokenizer: Any
    encoder: TurnEncoder
    sample: Sample
    workload: Workload


def _plan(given: dict[str, Any], report: Report) -> Plan | None:
    with report.collect():
        if not key_problems(given):
            manifest = finished_manifest(given)
            if manifest is not None and manifest.status == "finished":
                report.note(
                    f"{given['output_dir']} holds theta_{manifest.produces}, finished with these settings: `train` "
                    "has nothing to do."
                )
    with report.collect():
        return make_plan(given)
    return None


def _parse(given: dict[str, Any], report: Report) -> RunArguments | None:
    try:
        return parse_single_process(given)
    except ImportError as error:
        report.error(EnvironmentProblem, f"LlamaFactory refuses the settings: {_one_line(error)}")
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        report.error(ConfigError, f"LlamaFactory refuses the settings: {_one_line(error)} Correct the key it names.")
    return None


def _read_data(run: RunArguments, plan: Plan, report: Report, rows: int) -> _Found | None:
    with report.collect():
        tokenizer, _, encoder = load_encoder(run)
        with report.collect():
            check_tokenizers(_local_members(plan), run, encoder)
        _check_rounds(plan, encoder, run, report)
        sample = take_sample(plan, encoder, run.model, run.data, run.training, rows)
        _check_sample(sample, plan, encoder, run.data.template, report)
        if sample.prompts or sample.triplets:
            lacking = None
            if plan.tpaw_args.tpaw_objective == "tpaw" and plan.tpaw_args.tpaw_reference == "cached":
                lacking = count_lacking(run, plan, encoder, sample, rows)
            return _Found(tokenizer, encoder, sample, describe_workload(plan, encoder, sample, run.data, lacking))
    return None


def _local_members(plan: Plan) -> list[Member]:
    """The team's checkpoints that are folders here, without their fingerprints; a hub's are not fetched."""
    team = team_of(plan.players, plan.tpaw_args.rounds_played)
    return [
        Member(player, Path(player.base), "", tuple(Path(part) for part in player.parts[1:]))
        for player in team
        if player.is_local
    ]


def _check_rounds(plan: Plan, encoder: TurnEncoder, run: RunArguments, report: Report) -> None:
    """Hold the rounds that are there to one another and to the run's tokenizer and template, by their metas."""
    metas = [(round_, read_meta(round_.path)) for round_ in plan.opponents.rounds if round_.complete]
    problems = prompts_problems({round_.entry.name: (meta.prompts_digest, meta.prompts) for round_, meta in metas})
    if plan.tpaw_args.tpaw_prompts:
        files = [(round_.path, meta) for round_, meta in metas]
        problems += encoding_problems(files, encoder, str(run.data.template))
    for problem in problems:
        report.error(DataError, problem)


def _check_sample(sample: Sample, plan: Plan, encoder: TurnEncoder, template: str, report: Report) -> None:
    if sample.bad_rows:
        _report_bad_rows(sample, plan, report)
    for problem in round_trip_problems(_spread(sample.prompts, ROUND_TRIPS), encoder, template):
        report.error(ConfigError, problem)
    if plan.tpaw_args.tpaw_prompts and not sample.prompts and not report.errors:
        report.error(
            DataError,
            f"`tpaw_prompts: {plan.tpaw_args.tpaw_prompts}`: no row can be used among {sample.how}. Correct the rows.",
        )


def _report_bad_rows(sample: Sample, plan: Plan, report: Report) -> None:
    """Refuse what training would refuse; which rows `tpaw_max_prompts` chooses is not looked at here."""
    args = plan.tpaw_args
    first: BadRow = sample.bad_rows[0]
    path = sample.path or "its file"
    text = (
        f"`tpaw_prompts: {args.tpaw_prompts}`: {len(sample.bad_rows)} bad among {sample.how}, and `tpaw_max_bad_rows` "
        f"allows {args.tpaw_max_bad_rows}. First: {path}, row {first.row}, because {first.reason}."
    )
    if len(sample.bad_rows) <= args.tpaw_max_bad_rows or args.tpaw_max_prompts is not None:
        report.warn(f"{text} Bad rows are dropped.")
    else:
        report.error(DataError, f"{text} Correct the rows, or raise `tpaw_max_bad_rows` to drop them.")


def _trace(run: RunArguments, plan: Plan, found: _Found, report: Report) -> Traced | None:
    """Trace the passes; an architecture that cannot be traced has no estimates, which is no problem of the run."""
    try:
        return trace_run(run, plan, found.tokenizer, found.workload)
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError, ImportError) as error:
        report.warn(
            "Memory and time cannot be estimated: the model's passes cannot be traced without data "
            f"({type(error).__name__}: {_one_line(error)}). Watch the first steps of the run."
        )
    return None


def _check_memory(result: CheckResult) -> None:
    device, report = result.device, result.report
    for part, figures in result.memory.items():
        peak = figures[-1].amount
        fixed = sum(figure.amount for figure in figures[:-1] if figure.name in ("weights", "optimizer"))
        keys = {"generation": "`tpaw_generate_batch_tokens`", "scoring": "`tpaw_score_batch_tokens`"}
        text = (
            f"{part.capitalize()} needs about {readable_bytes(peak)} at its peak, but {device.name} has "
            f"{readable_bytes(device.total)}."
        )
        lower = keys.get(part, "`per_device_train_batch_size` or `cutoff_len`")
        if fixed > device.total:
            report.error(
                EnvironmentProblem,
                f"{text} {readable_bytes(fixed)} of it are weights and optimizer, so no smaller batch helps. Use a "
                "larger device, a smaller model, `pure_bf16: true`, or an `optim` that keeps less.",
            )
        elif peak > DEVICE_SHARE * device.total:
            report.warn(f"{text} It may run out of memory: lower {lower}.")


def _is_quick(plan: Plan, dataset_dir: str) -> bool:
    from ..data.source import find_entry

    if not plan.tpaw_args.tpaw_prompts:
        return False
    path: Path | None = find_entry(plan.tpaw_args.tpaw_prompts, dataset_dir).path
    return path is not None and path.is_file() and path.stat().st_size <= QUICK_BYTES


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Take at most `count` items, evenly."""
    return list(items[:: max(math.ceil(len(items) / count), 1)])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
