# SPDX-License-Identifier: Apache-2.0
"""The run files of `llamafactory-tpaw run`: read and checked together, and how far each one is."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..arguments.checks import SAMPLING_NUMBERS
from ..arguments.start import Start
from ..data.files import read_json
from ..data.rounds import split_names
from ..data.source import find_entry
from ..errors import ConfigError, DataError, Findings, TpawError
from ..lf.given import YAML_ENDINGS, is_true, read_given, unknown_key_problems, value_problems
from ..team.checkpoint import ResumePoint, check_checkpoint_complete, find_resume_point, read_pruned
from .preflight import finished_manifest, key_problems, make_plan


STAGES = ("tpaw", "sft")
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


@dataclass(frozen=True)
class Item:
    r"""One run file of the list.

    Attributes:
        file: Its path as given.
        overrides: `key=value` words that hold for every file.
        given: Its settings with the overrides.
    """

    file: str
    overrides: tuple[str, ...]
    given: dict[str, Any]

    @property
    def is_iteration(self) -> bool:
        """Whether it is an iteration of self-play, not the training of its first model."""
        return self.given["stage"] == "tpaw"

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


@dataclass(frozen=True)
class Progress:
    r"""How far a run is.

    Attributes:
        state: `begun` where an interruption left something to continue.
        detail: What is there, or what is to be done, in words.
        resume: From where training goes on.
    """

    state: Literal["finished", "begun", "new"]
    detail: str
    resume: ResumePoint | None = None


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sort the command line into run files and overrides; a file's name may hold a `=`."""
    files = [word for word in words if not OVERRIDE.match(word) or Path(word).is_file()]
    return files, [word for word in words if word not in files]


def read_playlist(files: Sequence[str], overrides: Sequence[str]) -> list[Item]:
    r"""Read all run files and check what can be checked before the first one starts.

    Raises:
        TpawError: With every problem of every file, each with the file named.
    """
    with Findings() as findings:
        items = []
        for file in files:
            with findings.note(), _named(file):
                items.append(_read_item(file, overrides))
        _check_together(items, findings, complete=len(items) == len(files))
    return items


def check_runs(items: Sequence[Item]) -> None:
    r"""Check runs that are to be played one after the other, before their files are written.

    Args:
        items: The runs; `file` is what messages call each.

    Raises:
        TpawError: With every problem of every run, each with its name.
    """
    with Findings() as findings:
        _check_together(items, findings, complete=True)


def _check_together(items: Sequence[Item], findings: Findings, *, complete: bool) -> None:
    """Note the problems of each run; where one is missing, nobody knows what will be there when a later one starts."""
    findings.refuse(ConfigError, _folder_problems(items) + _order_problems(items))
    expected: set[Path] = set()
    for item in items:
        finished = False
        with findings.note(), _named(item.file):
            finished = _check(item, expected if complete else None)
        expected |= set() if finished else _makes(item)


def find_progress(item: Item) -> Progress:
    r"""Look how far a run is, without importing or loading anything that takes time.

    Raises:
        ConfigError: If its folder holds a run with other settings.
        DataError: If its result is damaged.
    """
    return _iteration_progress(item) if item.is_iteration else _sft_progress(item)


def _iteration_progress(item: Item) -> Progress:
    manifest = finished_manifest(item.given)
    if manifest is not None and manifest.status == "finished":
        pruned = ", its weights pruned since" if read_pruned(item.folder) else ""
        return Progress("finished", f"{item.folder} holds {item.produces}, finished with these settings{pruned}")
    if manifest is not None:
        return _training_progress(item)
    path, round_ = item.triplets, f"D_{item.given['tpaw_iteration']}"
    if path is None:
        return Progress("new", f"trains {item.produces}")
    samples = item.given.get("tpaw_samples_per_prompt") or 1
    opponent = item.given.get("tpaw_opponent_model")
    how = f"{round_}{f' with {samples} responses a prompt' if int(samples) > 1 else ''}"
    how += f" from the opponent {opponent}" if opponent else ""
    if path.with_name(f"{path.name}.partial").is_file():
        return Progress("begun", f"continues to sample {how}, then trains {item.produces}")
    if path.is_file():
        return Progress("begun", f"{round_} is there; trains {item.produces}")
    return Progress("new", f"samples {how}, then trains {item.produces}")


def _sft_progress(item: Item) -> Progress:
    if is_true(item.given, "overwrite_output_dir"):
        return Progress("new", f"trains {item.produces} anew")
    if _is_finished_sft(item):
        return Progress("finished", f"{item.folder} holds a finished model")
    if any(item.folder.glob("checkpoint-*")):
        return _training_progress(item)
    return Progress("new", f"trains {item.produces}")


def _training_progress(item: Item) -> Progress:
    point = find_resume_point(item.folder)
    if point.checkpoint is None:
        return Progress("begun", f"trains {item.produces} again: no checkpoint was saved on the way", point)
    return Progress("begun", f"continues to train {item.produces} from {point.checkpoint}", point)


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
    return Item(file, tuple(overrides), given)


def _folder_problems(items: Sequence[Item]) -> list[str]:
    first: dict[Path, Item] = {}
    problems = []
    for item in items:
        before = first.setdefault(item.folder.resolve(), item)
        if before is item:
            continue
        if Path(before.file).resolve() == Path(item.file).resolve():
            problems.append(f"{item.file} is given twice. Name each run file once.")
        else:
            problems.append(
                f"{item.file}: `output_dir: {item.folder}` is that of {before.file}, too. Each run has a folder of "
                "its own."
            )
    return problems


def _order_problems(items: Sequence[Item]) -> list[str]:
    """Name what starts from a model, or samples from an opponent, that only a later file makes."""
    problems = []
    for index, item in enumerate(items):
        start = Start.of(item.given)
        needed = [("starts from", name) for name in (item.given.get("model_name_or_path") or "", *start.adapters)]
        if item.given.get("tpaw_opponent_model"):
            needed.append(("samples from", item.given["tpaw_opponent_model"]))
        for what, named in needed:
            model = Path(str(named))
            maker = next((later for later in items[index + 1 :] if later.folder.resolve() == model.resolve()), None)
            if maker is not None and check_checkpoint_complete(maker.folder):
                problems.append(
                    f"{item.file} {what} {model}, which {maker.file} makes later in the list. Name {maker.file} first."
                )
    return problems


def _makes(item: Item) -> set[Path]:
    """Resolved paths of what will be there when a run is finished."""
    made = {item.folder.resolve()}
    with contextlib.suppress(TpawError):  # what is wrong with the entry is said by the check of this run
        made |= {item.triplets.resolve()} if item.triplets else set()
    return made


def _check(item: Item, expected: set[Path] | None) -> bool:
    """Refuse what cannot work, from the keys alone where `expected` is None, and say whether the run is finished."""
    if item.is_iteration:
        problems = key_problems(item.given)
    else:
        problems = unknown_key_problems(item.given) + value_problems(item.given, SAMPLING_NUMBERS)
    if not is_true(item.given, "do_train"):
        problems.append("`do_train` is not true, but `run` trains. Set `do_train: true`.")
    with Findings() as findings:
        findings.refuse(ConfigError, problems)
        if not problems and expected is not None and find_progress(item).state == "finished":
            return True
        if item.is_iteration and expected is not None:
            make_plan(item.given, expected)
    return False


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Put a run file's name before each problem found in it."""
    try:
        yield
    except TpawError as error:
        raise type(error)([f"{file}: {problem}" for problem in error.problems]) from error
