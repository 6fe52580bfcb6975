# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw run`: run files are read and checked together, then played one after the other.

A run file is read once, at the beginning; each is played in a process that is handed its settings.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from ..data.files import read_json
from ..data.rounds import split_names
from ..data.source import find_entry
from ..errors import ConfigError, DataError, Findings, TpawError
from ..lf.given import YAML_ENDINGS, handed_file, is_true, read_given, unknown_key_problems, value_problems
from ..lf.signals import SAVING_S, run_child
from ..team.checkpoint import check_checkpoint_complete
from .plan import make_plan


STAGES = ("tpaw", "sft")
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


class Item(NamedTuple):
    """One run file of the list: its path as given, and its settings with the overrides."""

    file: str
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
        makers: dict[Path, Item] = {}
        expected: set[Path] = set()
        for item in items:
            finished = False
            with findings.note(), _named(item.file):
                if (maker := makers.setdefault(item.folder.resolve(), item)) is not item:
                    raise ConfigError(
                        f"`output_dir: {item.folder}` is that of {maker.file}, too. Give each run its own folder."
                    )
                finished = _check(item, expected)
            if not finished:
                expected |= _made_by(item)
    return items


def _read_item(file: str, overrides: Sequence[str]) -> Item:
    if not file.endswith(YAML_ENDINGS):
        raise ConfigError("A run file's name ends with `.yaml` or `.yml`; an override is written `key=value`.")
    given = read_given([file, *overrides])
    if given.get("stage") not in STAGES:
        raise ConfigError(
            f"`stage` is {given.get('stage') or 'missing'}, but `run` plays the stages {' and '.join(STAGES)}. Train "
            f"others with `llamafactory-cli train {file}`."
        )
    if not given.get("output_dir"):
        raise ConfigError("`output_dir` is missing. Name the folder in which the result is saved.")
    return Item(file, given)


def _check(item: Item, expected: set[Path]) -> bool:
    """Refuse what cannot work, and say whether the run is finished."""
    with Findings() as findings:
        if not is_true(item.given, "do_train"):
            findings.refuse(ConfigError, ["`do_train` is not true, but `run` trains. Set `do_train: true`."])
        if item.is_iteration:
            return make_plan(item.given, expected).is_finished
        findings.refuse(ConfigError, unknown_key_problems(item.given) + value_problems(item.given))
    return is_finished(item)


def _made_by(item: Item) -> set[Path]:
    """Where a run saves its model and its triplets."""
    made, names = {item.folder.resolve()}, split_names(item.given.get("dataset"))
    if names and item.given.get("tpaw_prompts"):
        with contextlib.suppress(TpawError):  # what is wrong with the entry is said by the check of this run
            path = find_entry(names[-1], str(item.given.get("dataset_dir", "data"))).path
            made |= {path.resolve()} if path else set()
    return made


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Put a run file's name before each problem found in it."""
    try:
        yield
    except TpawError as error:
        raise type(error)([f"{file}: {problem}" for problem in error.problems]) from error


# -- playing


def is_finished(item: Item) -> bool:
    r"""Whether a run's folder holds its result, without loading anything that takes time.

    Raises:
        TpawError: If the folder holds a run with other settings, its result is damaged, or the run cannot work.
    """
    if item.is_iteration:
        return make_plan(item.given).is_finished
    # LlamaFactory writes weights first and its state last, and LlamaBoard's abort all of it before the last step.
    state = item.folder / "trainer_state.json"
    files = (item.folder / "train_results.json", state)
    if is_true(item.given, "overwrite_output_dir") or not all(file.is_file() for file in files):
        return False
    try:
        steps = read_json(state)
        reached = steps["global_step"] >= steps["max_steps"] or bool(item.given.get("early_stopping_steps"))
    except (DataError, KeyError, TypeError):
        return False
    return reached and not check_checkpoint_complete(item.folder)


def play(items: Sequence[Item], tell: Callable[[str], None]) -> int:
    r"""Play what is not finished; stop at the first failure.

    Args:
        items: The runs, in order.
        tell: Called with a line where one starts or ends.

    Returns:
        The exit code of the process that failed, which has told why; 0 where none did.

    Raises:
        TpawError: If one cannot be played any more, though it could be when all were checked.
        KeyboardInterrupt: If this process is interrupted; its child is ended before.
    """
    for number, item in enumerate(items, start=1):
        started, name = time.monotonic(), f"[{number}/{len(items)}] {item.file}:"
        with _named(item.file):
            if is_finished(item):
                tell(f"{name} skipped: {item.folder} holds {item.produces}.")
                continue
            tell(f"{name} makes {item.produces}.")
            code = _play_one(item)
        took = timedelta(seconds=round(time.monotonic() - started))
        if code:
            tell(f"{name} failed with exit code {code} after {took}. Mend it: the same command continues.")
            return code
        tell(f"{name} finished after {took}: {item.folder} holds {item.produces}.")
    return 0


def _play_one(item: Item) -> int:
    with handed_file(item.given, **({"run_file": item.file} if item.is_iteration else {})) as file:
        command = [sys.executable, "-m", "llamafactory_tpaw", "train", file]
        code = run_child(command, patience_s=SAVING_S)
    # With `overwrite_output_dir` a result never counts as finished beforehand.
    if code == 0 and not is_finished(item._replace(given=item.given | {"overwrite_output_dir": False})):
        raise DataError(
            f"Its process ended without an error, but {item.folder} holds no finished result. Start the same command "
            "again: it continues."
        )
    return code
