# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw check`: everything that can be known of an iteration before it runs, every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..arguments.parsed import RunArguments, parse_single_process
from ..errors import EXIT_CODES, ConfigError, EnvironmentProblem, Findings, TpawError
from ..lf.given import read_given
from ..team.members import Member, check_tokenizers, load_encoder
from ..team.players import team_of
from .checks import check_engine, check_rounds, check_sample
from .estimates import Figure, check_disk, estimate_hours, estimate_memory, readable_bytes
from .launcher import refuse_start
from .plan import Plan, make_plan, refuse_other_stage
from .sample import Sample, take_sample


if TYPE_CHECKING:
    from .measure import Measured

SCHEMA = 2
ROWS = 512
# What the driver, kernels and the allocator's rounding leave of a device's memory.
DEVICE_SHARE = 0.9
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
LOWER = {"generation": "`tpaw_generate_batch_tokens`", "scoring": "`tpaw_score_batch_tokens`"}


class Device(NamedTuple):
    """Where the run computes: what it is called and how many bytes it has."""

    name: str
    total: int


@dataclass
class CheckResult:
    r"""What `check` found.

    Attributes:
        findings: Problems, warnings and remarks.
        device: Where the run computes; None where it did not come to that.
        memory: Figures for `generation`, `scoring` and `training`.
        disk: Figures of what is written.
        time: Figures of how long it takes.
        measured: What `--model` showed, or None.
    """

    findings: Findings = field(default_factory=Findings)
    device: Device | None = None
    memory: dict[str, list[Figure]] = field(default_factory=dict)
    disk: list[Figure] = field(default_factory=list)
    time: list[Figure] = field(default_factory=list)
    measured: Measured | None = None

    @property
    def lines(self) -> list[tuple[str, str, str]]:
        """Level, kind and message of each finding: errors first, then warnings and remarks."""
        found = [
            ("error", EXIT_CODES[code].partition(":")[0], problem) for problem, code in self.findings.problems.items()
        ]
        found += [("warning", "warning", text) for text in dict.fromkeys(self.findings.warnings)]
        return found + [("note", "note", text) for text in dict.fromkeys(self.findings.remarks)]

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        zero = self.measured and {"reward": self.measured.reward, "fingerprints": self.measured.fingerprints}
        return {
            "schema": SCHEMA,
            "exit_code": self.findings.exit_code,
            "findings": [dict(zip(("level", "kind", "message"), line, strict=True)) for line in self.lines],
            "device": self.device and {"name": self.device.name, "bytes": self.device.total},
            "memory": {part: [figure.as_dict() for figure in figures] for part, figures in self.memory.items()},
            "disk": [figure.as_dict() for figure in self.disk],
            "time": [figure.as_dict() for figure in self.time],
            "step_zero": zero,
        }


def check(
    argv: list[str] | dict[str, Any],
    *,
    with_model: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> CheckResult:
    r"""Check an iteration.

    Args:
        argv: A run file and overrides, or the settings.
        with_model: Load θ_t, too: its fingerprint again, its zero reward, one batch of each step.
        say: Told what is being done.

    Returns:
        Findings and estimates; nothing is raised that a user can cause, but for a run file that cannot be read.
    """
    given = read_given(argv)
    result = CheckResult()
    findings = result.findings
    try:
        say("settings")
        refuse_other_stage(given, "check")
        with findings.note():
            refuse_start(given)
        plan = make_plan(given)
        if plan.is_finished:
            findings.remarks.append(
                f"{given['output_dir']} holds theta_{plan.earlier.produces}, finished with these settings: `train` "
                "has nothing to do."
            )
            return result
        say("engine")
        with findings.note():
            check_engine(plan, findings)
        run = _parse(given)
        say("tokenizers and data")
        sample = None
        with findings.note():
            sample = _read_data(run, plan, findings)
        result.disk = check_disk(plan, sample, findings)
        if sample is None or not sample.triplets:
            return result
        say("memory and time")
        result.device, result.memory = _device_of(run), estimate_memory(run, plan, sample)
        result.time = estimate_hours(plan, sample)
        if with_model and not findings.errors:
            from .measure import measure

            with findings.note():
                result.measured = measure(run, plan, sample, say)
                result.time = result.measured.hours
                for part, peak in result.measured.peaks.items():
                    result.memory[part].insert(-1, peak)
        _check_memory(result)
    except TpawError as error:
        findings.errors.append(error)
    return result


def _parse(given: dict[str, Any]) -> RunArguments:
    """Let LlamaFactory parse the settings, whose own checks have no kind of error that is ours."""
    try:
        return parse_single_process(given)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        text = f"LlamaFactory refuses the settings: {' '.join(str(error).split())}"
        if isinstance(error, ImportError):
            raise EnvironmentProblem(text) from error
        raise ConfigError(f"{text} Correct the key it names.") from error


def _read_data(run: RunArguments, plan: Plan, findings: Findings) -> Sample:
    encoder = load_encoder(run)[2]
    # The team's checkpoints that are folders here; a hub's are not fetched for this.
    team = [player for player in team_of(plan.players, plan.tpaw_args.rounds_played) if player.is_local]
    members = [Member(each, Path(each.base), "", tuple(map(Path, each.parts[1:]))) for each in team]
    with findings.note():
        check_tokenizers(members, run, encoder)
    template = str(run.data.template)
    check_rounds(plan, encoder, template, findings)
    sample = take_sample(plan, encoder, run.model, run.data, run.training, ROWS)
    check_sample(sample, plan, encoder, template, findings)
    return sample


def _device_of(run: RunArguments) -> Device:
    """The device that the run computes on, with its memory."""
    import psutil
    import torch

    if run.training.device.type == "cuda":
        properties = torch.cuda.get_device_properties(run.training.device)
        return Device(properties.name, properties.total_memory)
    total = psutil.virtual_memory().total
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return Device("the CPU", min(total, int(limit)) if limit.isdigit() else total)


def _check_memory(result: CheckResult) -> None:
    """Refuse what cannot fit, and warn of what may not."""
    device, findings = result.device, result.findings
    for part, figures in result.memory.items():
        peak = figures[-1].amount
        fixed = sum(figure.amount for figure in figures[:-1] if figure.name in ("process", "weights", "optimizer"))
        text = (
            f"{part.capitalize()} needs about {readable_bytes(peak)} at its peak, but {device.name} has "
            f"{readable_bytes(device.total)}"
        )
        if fixed > device.total:
            findings.refuse(
                EnvironmentProblem,
                [
                    f"{text}, and {readable_bytes(fixed)} of it are weights and optimizer, which no smaller "
                    "batch makes less. Use a larger device, a smaller model, `pure_bf16: true`, or another `optim`."
                ],
            )
        elif peak > DEVICE_SHARE * device.total:
            lower = LOWER.get(part, "`per_device_train_batch_size` or `cutoff_len`")
            findings.warnings.append(f"{text}. It may run out of memory: lower {lower}.")
