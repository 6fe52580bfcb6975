# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw run`: run files are read and checked together, then played one after the other.

A run file is read once, at the beginning; each is played in a process that is handed its settings.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ..arguments.start import Start
from ..data.files import read_json
from ..data.rounds import split_names
from ..data.source import find_entry
from ..errors import ConfigError, DataError, Findings, TpawError
from ..lf.given import YAML_ENDINGS, handed_file, is_true, read_given, unknown_key_problems, value_problems
from ..lf.signals import SAVING_S, run_child
from ..team.checkpoint import check_checkpoint_complete, find_resume_point, is_pruned
from ..team.manifest import read_manifest
from .plan import key_problems, make_plan


STAGES = ("tpaw", "sft")
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
STDERR = 2  # the descriptor: what a child can write to
Status = Literal["skipped", "finished", "continued", "failed", "interrupted", "waiting"]


@dataclass
class Item:
    r"""One run file of the list, and what became of it.

    Attributes:
        file: Its path as given.
        given: Its settings with the overrides.
        status: `skipped` was finished before, `continued` finished after an interruption; `waiting` was not begun.
        seconds: How long it took now.
        exit_code: Of its process; 0 where none was needed.
        reason: Why it failed, where its process did not say so itself.
    """

    file: str
    given: dict[str, Any]
    status: Status = "waiting"
    seconds: float = 0.0
    exit_code: int = 0
    reason: str = ""

    @property
    def is_iteration(self) -> bool:
        """Whether it is an iteration of self-play, not the training of its first model."""
        return self.given["stage"] == "tpaw"

    @property
    def is_done(self) -> bool:
        """Whether the output folder holds the result."""
        return self.status in ("skipped", "finished", "continued")

    @property
    def folder(self) -> Path:
        """Its output folder."""
        return Path(str(self.given["output_dir"]))

    @property
    def produces(self) -> str:
        """What its output folder holds in the end."""
        return f"theta_{int(self.given['tpaw_iteration']) + 1}" if self.is_iteration else "the model of stage sft"

    @property
    def triplets(self) -> Path | None:
        """The file of the triplets that it generates."""
        names = split_names(self.given.get("dataset"))
        if not names or not self.given.get("tpaw_prompts"):
            return None
        return find_entry(names[-1], str(self.given.get("dataset_dir", "data"))).path


class Progress(NamedTuple):
    """How far a run is: what is there or is to be done, in words, and what stage sft must be given to go on."""

    state: Literal["finished", "begun", "new"]
    detail: str
    resume: Mapping[str, Any] = MappingProxyType({})


# -- reading and checking


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sort the command line into run files and overrides; a file's name may hold a `=`."""
    files = [word for word in words if not OVERRIDE.match(word) or Path(word).is_file()]
    return files, [word for word in words if word not in files]


def read_items(files: Sequence[str], overrides: Sequence[str]) -> list[Item]:
    r"""Read all run files and check what can be checked before the first one starts.

    Raises:
        TpawError: With every problem of every file, each with the file named.
    """
    with Findings() as findings:
        items = []
        for file in files:
            with findings.note(), _named(file):
                items.append(_read_item(file, overrides))
        with findings.note():
            check_items(items, complete=len(items) == len(files))
    return items


def check_items(items: Sequence[Item], *, complete: bool = True) -> None:
    r"""Check runs that are to be played one after the other.

    Args:
        items: The runs; `file` is what messages call each.
        complete: Whether they are all; where one is missing, what will be there when a later one starts is not known.

    Raises:
        TpawError: With every problem of every run, each with its name.
    """
    with Findings() as findings:
        findings.refuse(ConfigError, _list_problems(items))
        expected: set[Path] = set()
        for item in items:
            finished = False
            with findings.note(), _named(item.file):
                finished = _check(item, expected if complete else None)
            if not finished:
                expected.add(item.folder.resolve())
                with contextlib.suppress(TpawError):  # what is wrong with the entry is said by the check of this run
                    expected |= {item.triplets.resolve()} if item.triplets else set()


def _read_item(file: str, overrides: Sequence[str]) -> Item:
    if not file.endswith(YAML_ENDINGS):
        raise ConfigError("A run file's name ends with `.yaml` or `.yml`; an override is written `key=value`.")
    given = read_given([file, *overrides])
    problems = []
    if given.get("stage") is None:
        problems.append(f"`stage` is missing. `run` plays run files of the stages {' and '.join(STAGES)}.")
    elif given["stage"] not in STAGES:
        problems.append(
            f"`stage: {given['stage']}` is none that `run` plays: {' and '.join(STAGES)}. Train it with "
            f"`llamafactory-cli train {file}`."
        )
    if not given.get("output_dir"):
        problems.append("`output_dir` is missing. Name the folder in which the result is saved.")
    if problems:
        raise ConfigError(problems)
    return Item(file, given)


def _list_problems(items: Sequence[Item]) -> list[str]:
    """Name run files with one folder, and those that start or sample from a model that only a later one makes."""
    makers: dict[Path, Item] = {}
    problems = []
    for item in items:
        before = makers.setdefault(item.folder.resolve(), item)
        if before is not item and Path(before.file).resolve() == Path(item.file).resolve():
            problems.append(f"{item.file} is given twice. Name each run file once.")
        elif before is not item:
            problems.append(
                f"{item.file}: `output_dir: {item.folder}` is that of {before.file}, too. Give each run its own "
                "folder."
            )
    for index, item in enumerate(items):
        start = Start.of(item.given)
        needed = dict.fromkeys((str(item.given.get("model_name_or_path") or ""), *start.adapters), "starts from")
        if item.given.get("tpaw_opponent_model"):
            needed.setdefault(str(item.given["tpaw_opponent_model"]), "samples from")
        for model, what in needed.items():
            maker = makers.get(Path(model).resolve())
            if maker in items[index + 1 :] and check_checkpoint_complete(maker.folder):
                problems.append(
                    f"{item.file} {what} {model}, which {maker.file} makes later in the list. Name {maker.file} first."
                )
    return problems


def _check(item: Item, expected: set[Path] | None) -> bool:
    """Refuse what cannot work, from the keys alone where `expected` is None, and say whether the run is finished."""
    with Findings() as findings:
        if not is_true(item.given, "do_train"):
            findings.refuse(ConfigError, ["`do_train` is not true, but `run` trains. Set `do_train: true`."])
        if item.is_iteration and expected is not None:
            return make_plan(item.given, expected).is_finished
        if item.is_iteration:
            findings.refuse(ConfigError, key_problems(item.given))
            return False
        findings.refuse(ConfigError, unknown_key_problems(item.given) + value_problems(item.given))
        findings.raise_noted()
        return find_progress(item).state == "finished"


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Put a run file's name before each problem found in it."""
    try:
        yield
    except TpawError as error:
        raise type(error)([f"{file}: {problem}" for problem in error.problems]) from error


# -- how far a run is


def find_progress(item: Item) -> Progress:
    r"""Look how far a run is, without loading anything that takes time.

    Raises:
        TpawError: If its folder holds a run with other settings, its result is damaged, or it cannot work.
    """
    return _iteration_progress(item) if item.is_iteration else _sft_progress(item)


def _iteration_progress(item: Item) -> Progress:
    plan = make_plan(item.given)
    if plan.is_finished:
        pruned = ", its weights pruned since" if is_pruned(item.folder) else ""
        return Progress("finished", f"{item.folder} holds {item.produces}, finished with these settings{pruned}")
    if plan.earlier is not None:
        return _training_progress(item)
    path, round_ = item.triplets, f"D_{plan.tpaw_args.tpaw_iteration}"
    if path is None:
        return Progress("new", f"trains {item.produces}")
    samples, opponent = plan.tpaw_args.tpaw_samples_per_prompt, plan.tpaw_args.tpaw_opponent_model
    how = f"{round_}{f' with {samples} responses a prompt' if samples > 1 else ''}"
    how += f" from the opponent {opponent}" if opponent else ""
    if path.with_name(f"{path.name}.partial").is_file():
        return Progress("begun", f"continues to sample {how}, then trains {item.produces}")
    if path.is_file():
        return Progress("begun", f"{round_} is there; trains {item.produces}")
    return Progress("new", f"samples {how}, then trains {item.produces}")


def _sft_progress(item: Item) -> Progress:
    if is_true(item.given, "overwrite_output_dir"):
        return Progress("new", f"trains {item.produces} again")
    if _is_finished_sft(item):
        return Progress("finished", f"{item.folder} holds a finished model")
    if any(item.folder.glob("checkpoint-*")):
        return _training_progress(item)
    return Progress("new", f"trains {item.produces}")


def _training_progress(item: Item) -> Progress:
    """LlamaFactory itself would continue from the newest checkpoint, whole or not."""
    checkpoint = find_resume_point(item.folder)
    asked = item.given.get("resume_from_checkpoint")
    if checkpoint is None:
        resume = {} if asked else {"overwrite_output_dir": True}
        return Progress("begun", f"trains {item.produces} again: no checkpoint was saved on the way", resume)
    resume = {} if asked else {"resume_from_checkpoint": str(checkpoint)}
    return Progress("begun", f"continues to train {item.produces} from {checkpoint}", resume)


def _is_finished_sft(item: Item) -> bool:
    """Whether all that LlamaFactory writes at the end of training is there, weights first and its state last."""
    if not (item.folder / "train_results.json").is_file() or check_checkpoint_complete(item.folder):
        return False
    try:
        state = read_json(item.folder / "trainer_state.json")
        # LlamaBoard's abort writes all of it, too, before the last step.
        return state["global_step"] >= state["max_steps"] or bool(item.given.get("early_stopping_steps"))
    except (DataError, KeyError, TypeError):
        return False


# -- playing


def play(items: Sequence[Item], tell: Callable[[int, str], None], to_stderr: bool = False) -> int:
    r"""Play what is not finished; stop at the first failure.

    Args:
        items: The run files, in order.
        tell: Called with a run file's index and what happens to it now, in words.
        to_stderr: Whether the children's output goes to stderr, so that stdout stays free.

    Returns:
        The exit code of the failure; 0 where there was none.

    Raises:
        KeyboardInterrupt: If this process is interrupted; its child is ended before.
    """
    for index, item in enumerate(items):
        started = time.monotonic()
        try:
            progress = find_progress(item)
            finished = progress.state == "finished"
            tell(index, f"{'skipped: ' if finished else ''}{progress.detail}.")
            if not finished:
                item.exit_code = _play_one(item, progress, to_stderr)
            item.status = "skipped" if finished else "continued" if progress.state == "begun" else "finished"
        except TpawError as error:
            item.exit_code, item.reason = error.exit_code, " ".join(error.problems)
        except KeyboardInterrupt:
            item.status = "interrupted"
            raise
        finally:
            item.seconds = time.monotonic() - started
        if item.exit_code:
            item.status = "failed"
            return item.exit_code
        if not finished:
            tell(index, f"{item.status}: {item.folder} holds {item.produces}.")
    return 0


def _play_one(item: Item, progress: Progress, to_stderr: bool) -> int:
    handed = {"run_file": item.file} if item.is_iteration else {}
    settings = item.given | ({} if item.is_iteration else progress.resume)
    with handed_file(settings, **handed) as file:
        command = [sys.executable, "-m", "llamafactory_tpaw", "train", file]
        code = run_child(command, patience_s=SAVING_S, **({"stdout": STDERR} if to_stderr else {}))
    # With `overwrite_output_dir` a result never counts as finished beforehand.
    again = Item(item.file, item.given | {"overwrite_output_dir": False})
    if code == 0 and find_progress(again).state != "finished":
        raise DataError(
            f"Its process ended without an error, but {item.folder} holds no finished result. Start the same command "
            "again: it continues."
        )
    return code


def summarize(item: Item) -> dict[str, Any]:
    r"""Return what a finished run says of itself, as the summary and `--json` show it.

    Returns:
        `file`, `stage`, `output_dir`, `status`, `wall_seconds`; of a finished one also `result`, `seconds` by part,
        `counts` (iterations only), and of the last logged step `loss`, `target_reward` and `margin` where they
        exist.
    """
    row: dict[str, Any] = {
        "file": item.file,
        "stage": item.given["stage"],
        "output_dir": str(item.folder),
        "status": item.status,
        "wall_seconds": round(item.seconds, 1),
    }
    if item.exit_code:
        row |= {"exit_code": item.exit_code, "reason": item.reason}
    return row | (_result(item.folder) if item.is_done else {})


def _result(folder: Path) -> dict[str, Any]:
    state = folder / "trainer_state.json"
    logged = read_json(state).get("log_history", []) if state.is_file() else []
    manifest = read_manifest(folder)
    if manifest is None:
        total = next((entry for entry in reversed(logged) if "train_runtime" in entry), {})
        found = {"seconds": {"train": total.get("train_runtime", 0.0)}}
    else:
        found = {"result": f"theta_{manifest.produces}", "seconds": manifest.seconds, "counts": manifest.counts}
    last = next((entry for entry in reversed(logged) if "loss" in entry), {})
    metrics = {"loss": "loss", "target_reward": "rewards/target", "margin": "rewards/margin"}
    return found | {name: last[key] for name, key in metrics.items() if key in last}
