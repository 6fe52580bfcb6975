# SPDX-License-Identifier: Apache-2.0
"""Start, Abort and Preview for this stage, by LlamaBoard's runner; what plays is a `llamafactory-tpaw run`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import EnvironmentProblem, TpawError
from ..lf import facade
from ..lf.given import STAGE
from ..lf.signals import exit_code, started_child
from .charts import TRAINER_LOG, read_log
from .settings import add_entries, next_iteration, run_settings, status_of
from .words import as_shown, code_block, escaped, listed, say


COMMAND = (sys.executable, "-m", "llamafactory_tpaw", "run")
LOG = "tpaw_board.log"
REFRESH_S = 1.0
# Abort again after so long kills what did not end when it was asked to.
AGAIN_S = 10.0
TAIL_BYTES = 128 * 1024
LINES, LINES_AFTER_FAILURE = 30, 150
# A progress bar as `tqdm` writes it: `D_0: 40%|████      | 40/100 [00:10<00:15]`.
BAR = re.compile(r"(?P<what>[^|]*?):? *(?P<percent>\d+)%\|[^|]*\| *(?P<amount>.*)")


class Play:
    """A run that the page started; it ends with LlamaBoard, and can be continued.

    LLAMABOARD_ENABLED is not set for it: LlamaFactory would take SIGABRT for a stop after the next step, which neither
    generation nor scoring sees. Here SIGTERM ends all of them, with all that is done kept.
    """

    def __init__(self, files: Sequence[str], folders: Sequence[Path], environment: Mapping[str, str]) -> None:
        self.files, self.folders = list(files), list(folders)
        self.log = self.folders[0] / LOG
        self.returncode: int | None = None  # 128 + n where signal n ended it
        self.aborted = False
        self._environment = {**os.environ, **environment}
        self._asked_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._began = threading.Event()
        # A child ends with the thread that started it, and those that serve a page come and go.
        self._thread = threading.Thread(target=self._keep, name="tpaw-play", daemon=True)

    def start(self) -> Play:
        """Start the process; that it cannot be started is an `EnvironmentProblem`."""
        self._thread.start()
        self._began.wait()
        if self._error is not None:
            raise EnvironmentProblem(f"The run cannot be started: {self._error}. Free or open what it names.")
        return self

    def _keep(self) -> None:
        streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True}
        try:
            with (
                self.log.open("wb") as stream,
                started_child(
                    [*COMMAND, *self.files], env=self._environment, stdout=stream, **streams
                ) as self._process,
            ):
                self._began.set()
                self.returncode = exit_code(self._process)
        except OSError as error:
            self._error = error
        finally:
            self._began.set()

    @property
    def running(self) -> bool:
        """Whether its process still works, or still ends."""
        return self._thread.is_alive()

    @property
    def index(self) -> int:
        """Index of the run file that is played, or was played last."""
        finished = [status_of(folder) == "finished" for folder in self.folders]
        return min(finished.index(False) if False in finished else len(finished), len(finished) - 1)

    def tail(self) -> str:
        """Return the end of what was printed, as a terminal would show it."""
        with self.log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL_BYTES))
            return as_shown(stream.read().decode(errors="replace")).strip("\n")

    def abort(self) -> None:
        """Ask all of its processes to end; kill them when it is called again later."""
        if self.running and self._process is not None and self._process.poll() is None:
            if not self.aborted:
                self.aborted, self._asked_at = True, time.monotonic()
                self._process.terminate()  # which ends its children, each as is best for it
            elif time.monotonic() - self._asked_at > AGAIN_S:
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until the process has ended, at most so long."""
        self._thread.join(timeout_s)


def is_our_stage(shown: str | None) -> bool:
    """Whether what LlamaBoard's list of stages shows is this stage."""
    return facade.TRAINING_STAGES.get(shown) == STAGE


def is_ours(runner: Any, data: Mapping[Any, Any], do_train: bool = True) -> bool:
    """Whether the page shows this stage."""
    return do_train and is_our_stage(data[runner.manager.get_elem_by_id("train.training_stage")])


def _with_datasets(runner: Any, data: Mapping[Any, Any], least: Sequence[str] = ()) -> dict[Any, Any]:
    """The page's values with a list of datasets: LlamaBoard asks for one, but the run names its rounds itself."""
    element = runner.manager.get_elem_by_id("train.dataset")
    return {**data, element: data[element] or list(least)}


def initialize(original: Callable[..., str], runner: Any, data: Any, do_train: bool, from_preview: bool) -> str:
    """Return what is wrong with the page's fields, as LlamaBoard does, and for this stage all at once."""
    if not is_ours(runner, data, do_train):
        return original(runner, data, do_train, from_preview)
    error = original(runner, _with_datasets(runner, data, [STAGE]), do_train, from_preview)
    if error:
        return error
    try:
        runner._parse_train_args(data)
    except TpawError as problem:
        return listed(problem.problems)
    except (TypeError, ValueError) as problem:
        return listed([f"A field cannot be read: {problem}. Correct it."])
    return ""


def parse_train_args(original: Callable[..., dict[str, Any]], runner: Any, data: Any) -> dict[str, Any]:
    """Return the settings that LlamaBoard previews; for this stage those of the first iteration that is played."""
    return settings_of(original, runner, data)[0] if is_ours(runner, data) else original(runner, data)


def settings_of(original: Callable[..., dict[str, Any]], runner: Any, data: Any) -> list[dict[str, Any]]:
    """Return the settings of every iteration that Start plays; the errors are those of `run_settings`."""
    values = {runner.manager.get_id_by_elem(element): value for element, value in data.items()}
    return run_settings(original(runner, _with_datasets(runner, data)), values)


def launch(original: Callable[..., Iterator[Any]], runner: Any, data: Any, do_train: bool) -> Iterator[Any]:
    """Write the run files and start their run; start and write nothing where a field is wrong."""
    if not is_ours(runner, data, do_train):
        yield from original(runner, data, do_train)
        return
    output = runner.manager.get_elem_by_id("train.output_box")
    error = runner._initialize(data, do_train, from_preview=False)
    if not error:
        try:
            runner.trainer = _start(runner, data)
        except (TpawError, OSError) as problem:
            error = listed(getattr(problem, "problems", [str(problem)]))
    if error:
        gr.Warning(error)
        yield {output: error}
        return
    runner.do_train, runner.running_data, runner.running, runner.aborted = True, data, True, False
    yield from follow(runner)


def _start(runner: Any, data: Any) -> Play:
    """Write, into each output folder, the run file and what LlamaBoard shows for it; start the run."""
    parse = type(runner)._parse_train_args.__wrapped__
    played = settings_of(parse, runner, data)
    add_entries(played)
    files = []
    for settings in played:
        files.append(facade.save_run_file(settings))
        shown = runner._build_config_dict(data) | {"train.tpaw_iteration": settings["tpaw_iteration"]}
        facade.save_board_config(str(Path(settings["output_dir"], facade.BOARD_CONFIG)), shown)
    # LlamaFactory starts one process a device then.
    environment = {"FORCE_TORCHRUN": "1"} if played[0].get("deepspeed") else {}
    return Play(files, [Path(settings["output_dir"]) for settings in played], environment).start()


def follow(runner: Any) -> Iterator[dict[Any, Any]]:
    """Show a run until it has ended; a page that is loaded meanwhile shows it, too."""
    play, manager = runner.trainer, runner.manager
    names = ("output_box", "progress_bar", "loss_viewer")
    output, progress, loss = (manager.get_elem_by_id(f"train.{name}") for name in names)
    lang = runner.running_data[manager.get_elem_by_id("top.lang")]
    drawn = 0
    while play.running:
        log = play.tail()
        label, percent = _state(play, log, lang)
        bar = gr.Slider(label=label, value=percent, minimum=0, maximum=100, visible=True)
        logged = [entry for entry in read_log(play.folders[play.index] / TRAINER_LOG).values() if "loss" in entry]
        shown = {loss: gr.Plot(facade.gen_loss_plot(logged))} if len(logged) not in (0, drawn) else {}
        drawn = len(logged)
        yield {output: _block(log, LINES) or escaped(label), progress: bar, **shown}
        play.wait(REFRESH_S)
    ended = "finished" if play.returncode == 0 else "aborted" if play.aborted else "failed"
    text = say(ended, lang, code=play.returncode)
    if runner.trainer is play:
        runner.trainer, runner.running, runner.aborted, runner.running_data = None, False, False, None
        (gr.Warning if ended == "failed" else gr.Info)(text)
    lines = LINES_AFTER_FAILURE if ended == "failed" else LINES
    yield {output: f"{text}\n\n{_block(play.tail(), lines)}", progress: gr.Slider(visible=False)}


def _state(play: Play, log: str, lang: str) -> tuple[str, float]:
    """What happens now, and how much of it is done, in percent."""
    if play.aborted:
        return say("aborting", lang), 0.0
    bar = next(filter(None, map(BAR.fullmatch, reversed(log.split("\n")))), None)
    percent = float(bar["percent"]) if bar is not None else 100.0
    amount = [bar["what"].strip(), bar["amount"]] if percent < 100 else [say("running", lang)]
    iteration = play.folders[play.index].name.rpartition("_iter")[2]
    label = say("iteration_phase", lang, iteration=iteration, phase=" · ".join(filter(None, amount)))
    return label, percent % 100


def _block(log: str, lines: int) -> str:
    return code_block("\n".join(log.split("\n")[-lines:]))


def monitor(original: Callable[..., Iterator[Any]], runner: Any) -> Iterator[Any]:
    """Follow what runs, of whichever stage, in a page that was loaded meanwhile."""
    yield from follow(runner) if isinstance(runner.trainer, Play) else original(runner)


def set_abort(original: Callable[..., None], runner: Any) -> None:
    """End what runs: of this stage with all that is done kept."""
    if isinstance(runner.trainer, Play):
        runner.aborted = True
        runner.trainer.abort()
    else:
        original(runner)


def check_output_dir(original: Callable[..., Any], runner: Any, *where: str) -> Any:
    """Fill in what an output folder was trained with, as LlamaBoard does; here for the iteration that comes next."""
    shown = original(runner, *where)
    get = runner.manager.get_elem_by_id
    if is_our_stage(shown.get(get("train.training_stage"))):
        _, model_name, finetuning_type, output_dir = where
        folder = Path(facade.get_save_dir(model_name, finetuning_type, output_dir))
        shown[get("train.tpaw_iteration")] = next_iteration(folder)
    return shown
