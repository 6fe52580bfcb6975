# SPDX-License-Identifier: Apache-2.0
"""What Start, Abort and Preview do for this stage: one run at a time, shown to every page that is open."""

from __future__ import annotations

import contextlib
import html
import json
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import gradio as gr

from ..data.rounds import split_names
from ..data.source import planned_entries, triplet_entry
from ..errors import ConfigError, Findings, TpawError
from ..iteration.engine_check import check_engine
from ..iteration.findings import Report
from ..iteration.playlist import Item, check_runs, find_progress
from ..iteration.preflight import make_plan
from ..iteration.succession import own_round
from ..plugin import facade
from ..plugin.logs import get_logger
from . import watch
from .arguments import STAGE, elements_from, settings_from
from .charts import Charts
from .locales import say
from .path_check import check_paths
from .places import Places, dataset_folder
from .play import Play
from .runs import following, write_run_files
from .summary import write_run_report


REFRESH_S = 0.7
# So long after a configuration was loaded, what it says of a model goes before what LlamaBoard knows of it.
RECALL_S = 30.0
OUTPUT, PROGRESS = "train.output_box", "train.progress_bar"


class Session:
    r"""The runs of one board. LlamaBoard's own runner is told that something runs, and that it ended.

    Args:
        runner: LlamaBoard's `Runner`.

    Attributes:
        play: The run that plays or played last; None before the first one.
        settings: Its iterations.
        charts: Of it.
        report: Its report, when it has ended and an iteration is finished.
    """

    def __init__(self, runner: Any) -> None:
        self.runner, self.manager = runner, runner.manager
        self.play: Play | None = None
        self.settings: list[dict[str, Any]] = []
        self.charts: Charts | None = None
        self.report: Path | None = None
        # Cleared while a start is being checked, and while a run plays and its report is written.
        self._ready, self._ended = threading.Event(), threading.Event()
        self._ready.set()
        self._ended.set()

    @property
    def active(self) -> bool:
        """Whether a run is being started, plays, or still ends."""
        return not (self._ready.is_set() and self._ended.is_set())

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
        """Show in the page why nothing is started."""
        gr.Warning(text)
        return {self._output: text}

    def complaint(self, problems: Sequence[str], heading: str = "") -> str:
        """Show messages as a warning, and return them for the output box."""
        gr.Warning("<br>".join(html.escape(line) for line in (heading, *problems) if line))
        return f"{heading}\n\n{as_markdown(problems)}".strip()

    def preview(self, data: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Show the command of each iteration that Start would play."""
        values = self.values(data)
        try:
            runs = following(places_of(values), settings_from(values), iterations_of(values))
        except TpawError as error:
            yield self._refuse(error.problems, values)
            return
        commands = "\n\n".join(command(run) for run in runs)
        yield {self._output: f"```bash\n{commands}\n```"}

    def launch(self, data: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Check, write the run files, start the process and show it; start and write nothing where a check fails."""
        values = self.values(data)
        self._ready.clear()
        self.runner.running, self.runner.running_data, self.runner.do_train = True, dict(data), True
        problems: Sequence[str] = ()
        try:
            yield {self._output: say("phase_check", values.get("top.lang"))}
            self._start(data, values)
        except TpawError as error:
            problems = error.problems
        finally:
            self._ready.set()
            if not self.active:
                self._become_idle()
        if problems:
            yield self._refuse(problems, values)
        else:
            yield from self.follow(values.get("top.lang"))

    def follow(self, lang: str | None = None) -> Iterator[dict[Any, Any]]:
        """Show the run until it has ended."""
        lang = lang or self._language()
        while not self._ready.wait(REFRESH_S):
            yield {self._output: say("phase_check", lang)}
        play = self.play
        if play is None:
            return
        while play.running:
            yield self._show(watch.snapshot(play), lang)
            play.wait(REFRESH_S)
        while not self._ended.wait(REFRESH_S):
            yield {self._output: say("phase_report", lang)}
        last = watch.snapshot(play)
        text = last.label(lang)
        (gr.Warning if last.state == "failed" else gr.Info)(text)
        yield {self._output: f"{text}\n\n{last.markdown}", self._progress: gr.Slider(visible=False)}

    def abort(self) -> None:
        """Ask the run to end."""
        self._ready.wait()
        if self.play is not None:
            self.runner.aborted = True
            self.play.abort()

    def _start(self, data: Mapping[Any, Any], values: dict[str, Any]) -> None:
        places = places_of(values)
        self.settings = runs = following(places, settings_from(values), iterations_of(values))
        check(runs, places)
        files = write_run_files(places, runs)
        shown = self.runner._build_config_dict(dict(data))
        for settings in runs:
            changed = elements_from(settings, values)
            config = {name: changed.get(name, value) for name, value in shown.items()}
            config["train.tpaw_iterations"] = 1
            facade.save_board_config(str(Path(settings["output_dir"], facade.BOARD_CONFIG)), config)
        distributed = any(settings.get("deepspeed") for settings in runs)
        folders = [settings["output_dir"] for settings in runs]
        play = Play(files, folders, {"FORCE_TORCHRUN": "1"} if distributed else None).start()
        self._ended.clear()
        self.play, self.charts, self.report = play, Charts.of(play), None
        threading.Thread(target=self._wait, args=(self.play,), name="tpaw-session", daemon=True).start()

    def _wait(self, play: Play) -> None:
        """LlamaBoard's other stages can start when the run has ended, whether a page is open or not."""
        play.wait()
        try:
            self.report = write_run_report(play.folders)
        except TpawError as error:
            get_logger(__name__).warning_rank0(f"There is no report of the run: {error}")
        finally:
            self._become_idle()
            self._ended.set()

    def _become_idle(self) -> None:
        self.runner.running, self.runner.aborted, self.runner.running_data = False, False, None

    def _show(self, snapshot: watch.Snapshot, lang: str) -> dict[Any, Any]:
        label = snapshot.label(lang)
        bar = gr.Slider(label=label, value=snapshot.fraction, minimum=0, maximum=100, visible=True)
        return {self._output: f"{html.escape(label)}\n\n{snapshot.markdown}", self._progress: bar}

    def _refuse(self, problems: Sequence[str], values: Mapping[str, Any]) -> dict[Any, Any]:
        text = self.complaint(problems, say("refused", values.get("top.lang")))
        return {self._output: text, self._progress: gr.Slider(visible=False)}

    def _language(self) -> str:
        data = self.runner.running_data or {}
        return data.get(self.manager.get_elem_by_id("top.lang")) or "en"

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


def check(runs: Sequence[dict[str, Any]], places: Places) -> None:
    r"""Check iterations that are to be played, without writing anything.

    Raises:
        TpawError: With every problem of every iteration.
    """
    items = [Item(f"Iteration {settings.get('tpaw_iteration', 0)}", (), settings) for settings in runs]
    with Findings() as findings, planned_entries(_planned(runs)):
        with findings.note():
            check_paths(places, runs)
        with findings.note():
            check_runs(items)
        findings.raise_noted()
        _check_engine(items)


def _planned(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Entries of the triplets that these runs generate."""
    names = [
        own_round(settings) for settings in runs if settings.get("tpaw_prompts") and split_names(settings["dataset"])
    ]
    return {name: triplet_entry(name) for name in names if name}


def _check_engine(items: Sequence[Item]) -> None:
    """Ask the engine of the iteration that is played first; later ones start from a model that is not there yet."""
    first = next((item for item in items if find_progress(item).state != "finished"), None)
    if first is None:
        return
    report = Report()
    check_engine(make_plan(first.given), report)
    problems = [finding.message for finding in report.errors]
    if problems:
        raise ConfigError(problems)


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
        lines.append(f"    --{key} {shlex.quote(str(value))}")
    return " \\\n".join(lines)


def as_markdown(problems: Sequence[str]) -> str:
    """List messages for LlamaBoard's Markdown; what a user typed does not become HTML or a formula."""
    lines = [" ".join(problem.split()) for problem in problems]
    return "\n".join(f"- {watch.FORMULA.sub(_apart, html.escape(line, quote=False))}" for line in lines)


def _apart(sign: Any) -> str:
    return sign.group() + watch.ZERO_WIDTH


class Recall:
    r"""Model path and template of a model whose configuration was just loaded, or that plays.

    LlamaBoard fills both in itself whenever the model's name changes, also when a configuration has just set them.
    """

    def __init__(self) -> None:
        self.sessions: WeakSet[Session] = WeakSet()
        self._known: dict[str, tuple[float, tuple[str, str]]] = {}

    def note(self, config: Mapping[str, Any]) -> None:
        """Keep what a configuration of this stage says."""
        name, path = config.get("top.model_name"), config.get("top.model_path")
        if name and path and is_our_stage(config.get("train.training_stage")):
            self._known[name] = time.monotonic() + RECALL_S, (path, config.get("top.template") or "default")

    def take(self, model_name: str | None) -> tuple[str, str] | None:
        """Return what was noted of a model, once and not for long, or what plays; None where nothing was."""
        for session in self.sessions:
            if session.active and (shown := session.values(session.runner.running_data or {})):
                self.note(shown)
        until, found = self._known.pop(model_name or "", (0.0, None))
        return found if time.monotonic() < until else None


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
