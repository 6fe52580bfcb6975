# SPDX-License-Identifier: Apache-2.0
"""What Start, Abort and Preview do for this stage: one run at a time, shown to every page that is open."""

from __future__ import annotations

import contextlib
import html
import json
import re
import shlex
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import gradio as gr

from ..errors import ConfigError, Findings, TpawError
from ..lf import facade
from ..lf.logs import get_logger
from . import watch
from .arguments import STAGE, elements_from, settings_from
from .charts import Charts
from .checks import check
from .locales import say
from .places import Places, dataset_folder
from .play import Play
from .runs import following
from .summary import write_run_report
from .text import escaped, plain
from .writing import write_run_files


REFRESH_S = 0.7
# After its first sign a formula, a link and a picture are none when something stands between.
MARKUP = re.compile(rf"{watch.FORMULA.pattern}|\](?=[(\[])")
# So long after a configuration was loaded, what it says of a model goes before what LlamaBoard knows of it.
RECALL_S = 30.0
# LlamaFactory starts one process a device then.
FORCED = {"FORCE_TORCHRUN": "1"}
OUTPUT, PROGRESS = "train.output_box", "train.progress_bar"


@dataclass
class Attempt:
    r"""One press of Start.

    Attributes:
        data: What the page showed.
        problems: Why nothing was started.
        told_to_end: Whether Abort was pressed.
        play: Its run, from the end of the checks on.
        ready: Set when the checks have ended, one way or another.
        ended: Set when all has ended, and the report is written.
    """

    data: dict[Any, Any]
    problems: Sequence[str] = ()
    told_to_end: bool = False
    play: Play | None = None
    ready: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


class Session:
    r"""The runs of one board. LlamaBoard's own runner is told that something runs, and that it ended.

    Args:
        runner: LlamaBoard's `Runner`.

    Attributes:
        play: The run that plays or played last; None before the first one.
        charts: Of it.
        report: Its report, when it has ended and an iteration is finished.
        attempt: The last press of Start; None before the first one.
    """

    def __init__(self, runner: Any) -> None:
        self.runner, self.manager = runner, runner.manager
        self.play: Play | None = None
        self.charts: Charts | None = None
        self.report: Path | None = None
        self.attempt: Attempt | None = None
        self._lock = threading.Lock()

    @property
    def active(self) -> bool:
        """Whether a run is being started, plays, or still ends."""
        return self.attempt is not None and not self.attempt.ended.is_set()

    def values(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        """What the page shows, by the elements' full ids."""
        return {self.manager.get_id_by_elem(element): value for element, value in data.items()}

    def is_ours(self, data: Mapping[Any, Any]) -> bool:
        """Whether the page shows this stage."""
        return is_our_stage(data[self.manager.get_elem_by_id("train.training_stage")])

    def note_loaded(self, shown: Mapping[Any, Any]) -> None:
        """Remember what a configuration that is being loaded says of its model."""
        known = {self.manager.get_id_by_elem(element): value for element, value in shown.items()}
        RECALL.note(known)

    def settings_of(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        r"""Return what the run file of the page's iteration says.

        Raises:
            ConfigError: With a message for each field that cannot be read.
        """
        return settings_from(self.values(data))

    def kept(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        """What a saved configuration of this stage says beside what LlamaBoard saves: theta_t and its folder."""
        values = self.values(data)
        return {name: values[name] for name in ("top.model_path", "train.output_dir") if name in values}

    def field_problems(self, data: Mapping[Any, Any]) -> str:
        """A message for each field that cannot be read, as Markdown; empty where all can."""
        values = self.values(data)
        with Findings() as findings:
            with findings.note():
                iterations_of(values)
            with findings.note():
                settings_from(values)
            with findings.note():
                places_of(values)
            problems = [problem for error in findings.errors for problem in error.problems]
            findings.errors.clear()
        return as_markdown(problems)

    def tell(self, text: str) -> dict[Any, Any]:
        """Show in the page why nothing is started: a list of messages as Markdown, or a sentence."""
        gr.Warning("<br>".join(line.removeprefix("- ") for line in text.splitlines()))
        return {self._output: text}

    def complaint(self, problems: Sequence[str], heading: str = "") -> str:
        """Show messages as a warning, and return them for the output box."""
        gr.Warning("<br>".join(escaped(line) for line in (heading, *problems) if line))
        return f"{heading}\n\n{as_markdown(problems)}".strip()

    def preview(self, data: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Show the command of each iteration that Start would play."""
        values = self.values(data)
        try:
            runs = following(places_of(values), settings_from(values), iterations_of(values))
        except TpawError as error:
            yield self._refuse(error.problems, values.get("top.lang"))
            return
        commands = "\n\n".join(command(run) for run in runs)
        yield {self._output: watch.code_block(commands, "bash")}

    def launch(self, data: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Check, write the run files, start the process and show it; start and write nothing where a check fails.

        All this goes on when the page is closed or loaded anew.
        """
        with self._lock:
            claimed = not self.active and not self.runner.running
            if claimed:
                self.attempt = attempt = Attempt(dict(data))
                self.runner.running, self.runner.running_data, self.runner.do_train = True, attempt.data, True
        if not claimed:
            # Another page was faster.
            yield self.tell(self.runner._initialize(data, True, from_preview=False))
            return
        threading.Thread(target=self._keep, args=(attempt,), name="tpaw-session", daemon=True).start()
        yield {self._output: say("phase_check", data.get(self.manager.get_elem_by_id("top.lang")))}
        yield from self.follow()

    def follow(self) -> Iterator[dict[Any, Any]]:
        """Show the run until it has ended."""
        attempt = self.attempt
        if attempt is None:
            return
        lang = attempt.data.get(self.manager.get_elem_by_id("top.lang")) or "en"
        while not attempt.ready.wait(REFRESH_S):
            yield {self._output: say("aborting" if attempt.told_to_end else "phase_check", lang)}
        play = attempt.play
        if play is None:
            yield self._nothing_started(attempt, lang)
            return
        while play.running:
            yield self._show(watch.snapshot(play), lang)
            play.wait(REFRESH_S)
        while not attempt.ended.wait(REFRESH_S):
            yield {self._output: say("phase_report", lang)}
        last = watch.snapshot(play)
        text = html.escape(last.label(lang))
        (gr.Warning if last.state == "failed" else gr.Info)(text)
        yield {self._output: f"{text}\n\n{last.markdown}", self._progress: gr.Slider(visible=False)}

    def abort(self) -> None:
        """Ask the run to end; one that is being checked is not started."""
        with self._lock:
            if self.active:
                self.runner.aborted = self.attempt.told_to_end = True
                if self.attempt.play is not None:
                    self.attempt.play.abort()

    def _keep(self, attempt: Attempt) -> None:
        """See a start through to its end, in a thread of its own."""
        try:
            self._begin(attempt)
        except TpawError as error:
            attempt.problems = error.problems
        except (Exception, SystemExit) as error:
            get_logger(__name__).warning_rank0(f"A start was not checked to its end:\n{traceback.format_exc()}")
            attempt.problems = [
                f"The checks failed with {type(error).__name__}: {error}. LlamaBoard's terminal says where. Check "
                "what was entered last."
            ]
        if attempt.play is None:
            self._become_idle(attempt)
        attempt.ready.set()
        if attempt.play is not None:
            self._see_out(attempt)

    def _begin(self, attempt: Attempt) -> None:
        """Check, write and start, as far as nobody says Abort."""
        values = self.values(attempt.data)
        places = places_of(values)
        runs = following(places, settings_from(values), iterations_of(values))
        check(runs, places)
        if attempt.told_to_end:
            return
        files = write_run_files(places, runs)
        shown = self.runner._build_config_dict(attempt.data)
        for settings in runs:
            changed = elements_from(settings, values)
            config = {name: changed.get(name, value) for name, value in shown.items()}
            config["train.tpaw_iterations"] = 1
            facade.save_board_config(str(Path(settings["output_dir"], facade.BOARD_CONFIG)), config)
        distributed = any(settings.get("deepspeed") for settings in runs)
        play = Play(files, [settings["output_dir"] for settings in runs], FORCED if distributed else None)
        with self._lock:
            if not attempt.told_to_end:
                attempt.play = self.play = play.start()
                self.charts, self.report = Charts.of(play), None

    def _see_out(self, attempt: Attempt) -> None:
        """LlamaBoard's other stages can start when the run has ended, whether a page is open or not."""
        attempt.play.wait()
        try:
            self.report = write_run_report(attempt.play.folders)
        except TpawError as error:
            get_logger(__name__).warning_rank0(f"There is no report of the run: {error}")
        finally:
            self._become_idle(attempt)

    def _become_idle(self, attempt: Attempt) -> None:
        self.runner.running, self.runner.aborted, self.runner.running_data = False, False, None
        attempt.ended.set()

    def _show(self, snapshot: watch.Snapshot, lang: str) -> dict[Any, Any]:
        label = snapshot.label(lang)
        bar = gr.Slider(label=label, value=snapshot.fraction, minimum=0, maximum=100, visible=True)
        return {self._output: f"{html.escape(label)}\n\n{snapshot.markdown}", self._progress: bar}

    def _nothing_started(self, attempt: Attempt, lang: str) -> dict[Any, Any]:
        if attempt.problems:
            return self._refuse(attempt.problems, lang)
        text = say("aborted", lang)
        gr.Info(text)
        return {self._output: text, self._progress: gr.Slider(visible=False)}

    def _refuse(self, problems: Sequence[str], lang: str | None) -> dict[Any, Any]:
        text = self.complaint(problems, say("refused", lang))
        return {self._output: text, self._progress: gr.Slider(visible=False)}

    @property
    def _output(self) -> Any:
        return self.manager.get_elem_by_id(OUTPUT)

    @property
    def _progress(self) -> Any:
        return self.manager.get_elem_by_id(PROGRESS)


def places_of(values: Mapping[str, Any]) -> Places:
    r"""Return where the page's runs are; LlamaBoard's folders are relative to where it was started.

    Raises:
        ConfigError: If the dataset folder lies elsewhere.
    """
    return Places(Path(facade.BOARD_SAVES), dataset_folder(values.get("train.dataset_dir")))


def iterations_of(values: Mapping[str, Any]) -> int:
    r"""Return how many iterations are to be played.

    Raises:
        ConfigError: If the field says no such number.
    """
    shown = values.get("train.tpaw_iterations")
    try:
        count = int(shown)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ConfigError(f"The number of iterations to play is {shown!r}, but must be a whole number >= 1.")
    return count


def command(settings: Mapping[str, Any]) -> str:
    """Return the command that trains with these settings, as a shell takes it."""
    lines = ["llamafactory-cli train"]
    for key, value in settings.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = json.dumps(value, ensure_ascii=False)
        elif isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        lines.append(f"    {shlex.quote(f'--{key}')} {shlex.quote(str(value))}")
    return " \\\n".join(lines)


def as_markdown(problems: Sequence[str]) -> str:
    """List messages for LlamaBoard's Markdown; what a user typed does not become HTML or a formula."""
    lines = [" ".join(plain(problem).split()) for problem in problems]
    return "\n".join(f"- {MARKUP.sub(_apart, html.escape(line, quote=False))}" for line in lines)


def _apart(sign: Any) -> str:
    return sign.group() + watch.ZERO_WIDTH


class Recall:
    r"""Model path, template and checkpoints of a model whose configuration was just loaded, or that plays.

    LlamaBoard fills them in itself whenever the model's name changes, also when a configuration has just set them.
    """

    def __init__(self) -> None:
        self.sessions: WeakSet[Session] = WeakSet()
        self._known: dict[str, tuple[float, tuple[str, str]]] = {}
        self._checkpoints: dict[tuple[str, Any], tuple[float, Any]] = {}

    def note(self, config: Mapping[str, Any]) -> None:
        """Keep what a configuration of this stage says."""
        name, path = config.get("top.model_name"), config.get("top.model_path")
        if name and path and is_our_stage(config.get("train.training_stage")):
            until = time.monotonic() + RECALL_S
            self._known[name] = until, (path, config.get("top.template") or "default")
            self._checkpoints[name, config.get("top.finetuning_type")] = until, config.get("top.checkpoint_path")

    def take(self, model_name: str | None) -> tuple[str, str] | None:
        """Return path and template of a model, once and not for long, or what plays; None where nothing was noted."""
        self._note_what_plays()
        until, found = self._known.pop(model_name or "", (0.0, None))
        return found if time.monotonic() < until else None

    def checkpoints(self, model_name: str | None, finetuning_type: str | None) -> Any:
        """Return what was noted of a model's checkpoints, not for long; LlamaBoard asks once for each field."""
        self._note_what_plays()
        until, found = self._checkpoints.get((model_name or "", finetuning_type), (0.0, None))
        return found if time.monotonic() < until else None

    def _note_what_plays(self) -> None:
        for session in self.sessions:
            if session.active and (shown := session.values(session.runner.running_data or {})):
                self.note(shown)


RECALL = Recall()


def is_our_stage(shown: str | None) -> bool:
    """Whether what LlamaBoard's list of stages shows is this stage."""
    return facade.TRAINING_STAGES.get(shown) == STAGE


def session_of(runner: Any) -> Session:
    """Return the session that belongs to LlamaBoard's runner."""
    with contextlib.suppress(AttributeError):
        return runner.tpaw_session
    runner.tpaw_session = Session(runner)
    RECALL.sessions.add(runner.tpaw_session)
    return runner.tpaw_session
