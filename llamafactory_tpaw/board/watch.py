# SPDX-License-Identifier: Apache-2.0
"""How far a run of the board is: what it does now, of which iteration, and what it printed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data.progress import BYTES, Phase
from .locales import say
from .training_log import TRAINER_LOG, last_entries


if TYPE_CHECKING:
    from .play import Play

BACKTICKS = re.compile(r"`+")
# LlamaBoard's Markdown takes what stands between two of them for a formula, in code, too, and before it escapes it.
FORMULA = re.compile(r"\$(?=\$)|%(?=%)")
ZERO_WIDTH = "\u200b"
# What stands below the log in the page should not be a long way off; after a failure the reason counts.
LINES, LINES_AFTER_FAILURE = 30, 150
# A value of a JSON object a line, or the end of one, six and more of them.
DUMPED = re.compile(r"(?:^[ \t]+(?:\"[^\n]*|[^\n]*,|[\]}])\n){6,}", re.MULTILINE)
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
UNITS = {"step": "unit_steps", "sequence": "unit_sequences", "token": "unit_tokens"}
GIB = 1024**3

State = Literal["running", "aborting", "aborted", "finished", "failed"]


@dataclass(frozen=True)
class Snapshot:
    r"""A run at one moment.

    Attributes:
        state: Whether it works, and how it ended.
        phase: What it does; what it did last once it has ended.
        index: Which of its run files it plays, counted from 0.
        iteration: The iteration of that file; None for another stage.
        iterations: Those of all its files.
        what: What is worked on: `D_0`, `theta_1`, a folder's name.
        done: How much of the phase is done.
        total: How much there is; 0 while unknown.
        unit: What is counted, in the singular; `B` for bytes.
        per_second: Speed; None while unknown.
        seconds_left: What the phase still takes; None while unknown.
        phase_ended: Whether the phase is over and the next one has not begun.
        log: The end of what it printed, as plain text.
        returncode: Exit code of its process; None while it runs.
    """

    state: State
    phase: Phase = "preparing"
    index: int = 0
    iteration: int | None = None
    iterations: tuple[int | None, ...] = ()
    what: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    per_second: float | None = None
    seconds_left: float | None = None
    phase_ended: bool = False
    log: str = ""
    returncode: int | None = None

    @property
    def fraction(self) -> float:
        """How much of the phase is done, from 0 to 100."""
        if self.state == "finished":
            return 100.0
        return min(100.0, 100 * self.done / self.total) if self.total else 0.0

    @property
    def markdown(self) -> str:
        """The end of the log as a Markdown block, which nothing in it ends or runs; empty without a log."""
        return code_block(condensed(self.log, LINES_AFTER_FAILURE if self.state == "failed" else LINES))

    def label(self, lang: str | None) -> str:
        """What happens now, in a language of the page: `Iteration 1 (0–2): Generation · 12 of 50 rows · …`."""
        if self.state == "failed":
            return say("failed", lang, code=self.returncode)
        if self.state != "running":
            return say(self.state, lang)
        parts = [self._phase(lang)]
        if self.iteration is not None:
            parts = [say("iteration_phase", lang, iteration=self._which(), phase=parts[0])]
        if self.total and not self.phase_ended:
            parts += self._amounts(lang)
        return " · ".join(parts)

    def _which(self) -> str:
        played = [number for number in self.iterations if number is not None]
        return str(self.iteration) if len(played) < 2 else f"{self.iteration} ({played[0]}–{played[-1]})"

    def _phase(self, lang: str | None) -> str:
        if self.phase == "scoring" and self.phase_ended:
            return say("phase_loading", lang)
        if self.phase == "scoring":
            return say("phase_scoring", lang, player=self.what.replace("theta_", "θ_"))
        names = {"generation": "phase_generation", "training": "phase_training", "reading": "phase_check"}
        return say(names.get(self.phase, "starting"), lang)

    def _amounts(self, lang: str | None) -> list[str]:
        if self.unit == BYTES:
            done, total, unit = f"{self.done / GIB:.1f}", f"{self.total / GIB:.1f}", "GiB"
        else:
            done, total, unit = f"{self.done:,}", f"{self.total:,}", say(UNITS.get(self.unit, "unit_rows"), lang)
        parts = [say("done_of_total", lang, done=done, total=total, unit=unit)]
        if self.per_second and self.unit != BYTES:
            rate = f"{self.per_second:,.0f}" if self.per_second >= 100 else f"{self.per_second:.3g}"
            parts.append(say("per_second", lang, rate=rate))
        if self.seconds_left is not None:
            parts.append(say("remaining", lang, time=duration(self.seconds_left)))
        return parts


def snapshot(play: Play) -> Snapshot:
    """Look how far a run is; cheap, and never an error because a file is missing or half-written."""
    # Whether it runs is asked first: what it wrote before it ended is there then.
    state = _state(play)
    record = read_progress(play.progress_file)
    index = min(record.get("playing") or 0, len(play.folders) - 1)
    record = _with_training(record, play.folders[index], play.progress_file)
    fields = ("what", "unit", "per_second", "seconds_left")
    return Snapshot(
        state=state,
        phase=record.get("phase", "preparing"),
        index=index,
        iteration=play.iterations[index],
        iterations=tuple(play.iterations),
        done=int(record.get("done") or 0),
        total=int(record.get("total") or 0),
        phase_ended=bool(record.get("ended")),
        log=play.tail,
        returncode=play.returncode,
        **{name: record[name] for name in fields if record.get(name) is not None},
    )


def _state(play: Play) -> State:
    if play.running:
        return "aborting" if play.aborted else "running"
    if play.returncode == 0:
        return "finished"
    return "aborted" if play.aborted else "failed"


def read_progress(path: Path) -> dict[str, Any]:
    """Read what `data.progress.Report` wrote; empty where there is nothing yet."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _with_training(record: dict[str, Any], folder: Path, progress_file: Path) -> dict[str, Any]:
    """Take the steps from the log of training where that is newer: only stage `tpaw` reports them itself."""
    log = folder / TRAINER_LOG
    if record.get("phase") not in ("preparing", "training") or _changed(log) < _changed(progress_file):
        return record
    last = next(iter(reversed(last_entries(log))), None)
    if last is None:
        return record
    steps = {"phase": "training", "unit": "step", "done": last["current_steps"], "total": last.get("total_steps", 0)}
    if record.get("phase") == "training" and (record.get("done") or 0) >= steps["done"]:
        return record
    return record | steps | {"seconds_left": _seconds(last.get("remaining_time")), "ended": False}


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _seconds(text: Any) -> float | None:
    """Seconds of `1 day, 2:03:04`, as LlamaFactory writes what remains; None where it is something else."""
    found = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", text) if isinstance(text, str) else None
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def duration(seconds: float) -> str:
    """`0:05`, `12:34`, `3:25:45`, the same in every language."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def condensed(log: str, lines: int) -> str:
    """The last lines of a log, with `…` for what libraries print of their configurations."""
    short = BLANK_LINES.sub("\n", DUMPED.sub("  …\n", log))
    return "\n".join(short.rstrip().split("\n")[-lines:])


def code_block(text: str, language: str = "") -> str:
    """Fence a text for LlamaBoard's Markdown, so that it is shown as it is: no fence, formula or tag in it counts."""
    if not text.strip():
        return ""
    longest = max((len(run) for run in BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{FORMULA.sub(lambda sign: sign.group() + ZERO_WIDTH, text)}\n{fence}\n"
