# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw check`: everything that can be known of an iteration before it runs, every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..arguments.parsed import RunArguments, parse_single_process
from ..data.files import readable_bytes
from ..errors import EXIT_CODES, ConfigError, EnvironmentProblem, Findings
from ..lf.failures import explained
from ..lf.given import is_true, read_given
from ..team.members import Member, check_tokenizers, load_encoder
from .checks import check_data, check_engine, check_rounds, refuse_engine
from .estimates import check_disk, check_schedule, estimate_hours, estimate_memory, steps_of
from .guard import guard
from .plan import make_plan, refuse_other_stage, with_defaults


SCHEMA = 3
ROWS = 512
# What the driver, kernels and the allocator's rounding leave of a device's memory.
DEVICE_SHARE = 0.9
BEYOND = 1.3  # estimates are right within 30 %
LOWER = {
    "generation": "`tpaw_generate_batch_tokens`",
    "scoring": "`tpaw_score_batch_tokens`",
    "training": "`per_device_train_batch_size` or `cutoff_len`",
}


def check(
    argv: list[str] | dict[str, Any],
    *,
    with_model: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Check an iteration, by a run file with overrides or by its settings.

    With `with_model` θ_t is loaded, too: its fingerprint again, its zero reward, one batch of each step. `say` is told
    what is being done. Returned are findings and estimates as `--json` prints them, see docs/estimates.md; nothing is
    raised that a user can cause, but for a run file that cannot be read.
    """
    given, findings = read_given(argv), Findings()
    found: dict[str, Any] = {"device": None, "memory": {}, "disk": {}, "time": {}, "step_zero": None}
    with findings.note():
        _look(given, with_model, say, findings, found)
    lines = [("error", EXIT_CODES[code].partition(":")[0], text) for text, code in findings.problems.items()]
    lines += [("warning", "warning", text) for text in dict.fromkeys(findings.warnings)]
    lines += [("note", "note", text) for text in dict.fromkeys(findings.remarks)]
    listed = [dict(zip(("level", "kind", "message"), line, strict=True)) for line in lines]
    return {"schema": SCHEMA, "exit_code": findings.exit_code, "findings": listed, **found}


def _look(
    given: dict[str, Any], with_model: bool, say: Callable[[str], object], findings: Findings, found: dict[str, Any]
) -> None:
    """Fill in what is found, as far as the settings let it be known."""
    say("settings")
    refuse_other_stage(given, "check")
    with findings.note():
        refuse_engine(given)
    plan = make_plan(given)
    if plan.is_finished:
        findings.remarks.append(
            f"{given['output_dir']} holds theta_{plan.earlier.produces}, finished with these settings: `train` has "
            "nothing to do."
        )
        return
    with findings.note():
        guard(plan, findings.warnings.append)
    say("engine")
    with findings.note():
        check_engine(plan, findings)
    try:
        run = parse_single_process(given)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:  # LlamaFactory's own checks
        kind = EnvironmentProblem if isinstance(error, ImportError) else ConfigError
        raise kind(f"LlamaFactory refuses the settings: {' '.join(str(error).split())}") from error
    say("tokenizers and data")
    sample = None
    with findings.note():
        encoder = load_encoder(run)[2]
        # The team's checkpoints that are folders here; a hub's are not fetched for this.
        team = [player for player in plan.players[-plan.tpaw_args.candidates :] if player.is_local]
        members = [Member(each, Path(each.base), "", tuple(map(Path, each.parts[1:]))) for each in team]
        with findings.note():
            check_tokenizers(members, run, encoder)
        check_rounds(plan, encoder, str(run.data.template), findings)
        sample = check_data(run, plan, encoder, ROWS, findings)
    found["disk"] = check_disk(plan, sample, findings)
    if sample is None:
        return
    if is_true(given, "do_train"):
        steps = steps_of(with_defaults(given), (sample.total or ROWS) * sample.responses)
        with findings.note():
            check_schedule(run.training, steps, findings)
    say("memory and time")
    found["device"], found["memory"] = _device_of(run), estimate_memory(run, plan, sample)
    found["time"] = estimate_hours(plan, sample)
    for part, figures in found["memory"].items():
        peak, most = figures["peak"], found["device"]["bytes"]
        text = (
            f"{part.capitalize()} needs about {readable_bytes(peak)} at its peak, but {found['device']['name']} has "
            f"{readable_bytes(most)}. Lower {LOWER[part]}, or use a larger device or a smaller model."
        )
        if peak > BEYOND * most:
            findings.refuse(EnvironmentProblem, [text])
        elif peak > DEVICE_SHARE * most:
            findings.warnings.append(text)
    if with_model and not findings.errors:
        from .measure import measure

        with findings.note(), explained(given):
            measure(plan, sample, found, say)
    if found["time"]:
        found["time"]["total"] = sum(found["time"].values())


def _device_of(run: RunArguments) -> dict[str, Any]:
    """The device that the run computes on, with its memory."""
    import psutil
    import torch

    if run.training.device.type == "cuda":
        properties = torch.cuda.get_device_properties(run.training.device)
        return {"name": properties.name, "bytes": properties.total_memory}
    return {"name": "the CPU", "bytes": psutil.virtual_memory().total}
