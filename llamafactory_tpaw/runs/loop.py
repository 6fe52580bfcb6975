# SPDX-License-Identifier: Apache-2.0
"""`llamafactory-tpaw run`: run files are read and checked together, then played one after the other.

A run file is read once, at the beginning; each is played in a process that is handed its settings. This process only
waits: what loads LlamaFactory, and holds 0.9 GiB from then on, is done in others.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from ..arguments.recorded import different_settings
from ..data.prompts import SELECTION
from ..errors import ConfigError, DataError, Findings, TpawError
from ..generation.base import SamplingSettings
from ..lf.given import YAML_ENDINGS, handed_file, is_true, read_given, unknown_key_problems, value_problems
from ..lf.logs import get_logger
from ..lf.signals import SAVING_S, end_with_parent, run_child
from ..team.checkpoint import check_checkpoint_complete, read_state
from ..team.manifest import read_manifest
from .plan import Plan, handed_plan, make_plan, with_defaults


STAGES = ("tpaw", "sft", "dpo")
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
# What all rounds of a run have in common, and what they usually have.
PROMPT_KEYS = (*SELECTION, "tpaw_prompts", "cutoff_len", "template", "default_system", "enable_thinking")
SAMPLING_KEYS = (*SamplingSettings.__dataclass_fields__, "do_sample", "tpaw_samples_per_prompt")


class Item(NamedTuple):
    """One run file of the list: its path as given, and its settings with the overrides."""

    file: str
    given: dict[str, Any]
    finished: bool = False  # when all were checked

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
        theta = int(self.given.get("tpaw_iteration", 0)) + 1
        return f"theta_{theta}" if self.is_iteration else f"the model of stage {self.given['stage']}"


# -- reading and checking


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sort the command line into run files and overrides; a file's name may hold a `=`."""
    files = [word for word in words if not OVERRIDE.match(word) or Path(word).is_file()]
    return files, [word for word in words if word not in files]


def checked_items(files: Sequence[str], overrides: Sequence[str]) -> list[Item]:
    """Do what `read_items` does in a process that ends with it."""
    with ProcessPoolExecutor(1, initializer=end_with_parent, initargs=(os.getpid(),)) as pool:
        return pool.submit(read_items, files, overrides).result()


def read_items(files: Sequence[str], overrides: Sequence[str]) -> list[Item]:
    """Read all run files and check each, and one against another; problems are raised with the files' names."""
    with Findings() as findings:
        items = []
        for file in files:
            with findings.note(), _named(file):
                items.append(_read_item(file, overrides))
        makers: dict[Path, Item] = {}
        expected: set[Path] = set()
        earlier: dict[str, Plan] = {}
        for number, item in enumerate(items):
            plan = None
            with contextlib.suppress(KeyError, TpawError):  # what keeps it from being made is found by the check
                plan = handed_plan(item.given) if item.is_iteration else None
            with findings.note(), _named(item.file):
                if (maker := makers.setdefault(item.folder.resolve(), item)) is not item:
                    raise ConfigError(
                        f"`output_dir: {item.folder}` is that of {maker.file}, too. Give each run its own folder."
                    )
                items[number] = item._replace(finished=_check(item, expected))
                before, earlier = earlier, earlier | ({item.file: plan} if plan else {})
                for file, other in before.items() if plan else ():
                    _compare(item.file, plan, file, other)
            if items[number].finished and item.is_iteration:
                from .pruning import prune  # imports LlamaFactory

                prune(item.given, item.file)  # which an interruption may have kept from being done
            if not items[number].finished:
                sampled = plan.to_generate if plan else ()
                expected |= {item.folder.resolve(), *(round_.path.resolve() for round_ in sampled)}
    return items


def _read_item(file: str, overrides: Sequence[str]) -> Item:
    if not file.endswith(YAML_ENDINGS):
        raise ConfigError("A run file's name ends with `.yaml` or `.yml`; an override is written `key=value`.")
    given = read_given([file, *overrides])
    if given.get("stage") not in STAGES:
        raise ConfigError(
            f"`stage` is {given.get('stage') or 'missing'}, but `run` plays the stages {', '.join(STAGES)}. Train "
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
    return not is_true(item.given, "overwrite_output_dir") and is_finished(item)


def _compare(own: str, plan: Plan, file: str, other: Plan) -> None:
    """Refuse an iteration that plays with the θ or the triplets of an earlier file, and asks for others than it."""
    t, place = other.tpaw_args.tpaw_iteration, os.path.realpath
    made = {place(each.path): f"D_{t}" for each in other.opponents.rounds if each.iteration == t}
    played = {place(each.path): f"D_{each.iteration}" for each in plan.opponents.used}
    one_set = made.keys() <= played.keys() and plan.tpaw_args.tpaw_prompts and other.tpaw_args.tpaw_prompts
    made[place(other.given["output_dir"])] = f"theta_{t + 1}"
    played |= {place(player.path): player.name for player in plan.players if player.theta}
    if not made.keys() & played.keys():
        return
    for names, one in ((made, other), (played, plan)):
        known = with_defaults(one.given) | vars(one.tpaw_args)
        names |= {each.name: "+".join(map(place, each.parts)) for each in one.players if each.theta <= t}
        names |= {key: known[key] for key in (*PROMPT_KEYS, *SAMPLING_KEYS)} if one_set else {}
    differing = different_settings(made, played, made | played)  # of what both of them name
    # Rounds may be sampled otherwise, which training does not mind, but not one round by two files.
    free = SAMPLING_KEYS if plan.tpaw_args.tpaw_iteration != t else ()
    if refused := [text for text in differing if text.split("`")[1] not in free]:
        raise ConfigError(
            f"It plays with what {file} makes, but otherwise than there {'; '.join(refused)}. Give both files the "
            "same, or this one other players and rounds."
        )
    if unusual := [text for text in differing if "`seed`" not in text]:
        get_logger(__name__).warning_rank0(f"{own} samples otherwise than {file}: {'; '.join(unusual)}.")


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Put a run file's name before each problem found in it."""
    try:
        yield
    except TpawError as error:
        raise type(error)([f"{file}: {problem}" for problem in error.problems]) from error


# -- playing


def is_finished(item: Item) -> bool:
    """Whether a run's folder holds its result, whole, by what is written last."""
    if item.is_iteration:
        manifest = read_manifest(item.folder)
        return manifest is not None and manifest.status == "finished" and not check_checkpoint_complete(item.folder)
    # LlamaFactory writes weights first and its state last, and LlamaBoard's abort all of it before the last step.
    with contextlib.suppress(DataError):
        state, ended = read_state(item.folder), (item.folder / "train_results.json").is_file()
        steps, early = state["global_step"], bool(item.given.get("early_stopping_steps"))
        reached = steps >= state["max_steps"] or (steps > 0 and early)
        return ended and reached and not check_checkpoint_complete(item.folder)
    return False


def play_cold(item: Item) -> int:
    """Play a run in a process of its own, and return its exit code."""
    with handed_file(item.given, **({"run_file": item.file} if item.is_iteration else {})) as file:
        return run_child([sys.executable, "-m", "llamafactory_tpaw", "train", file], patience_s=SAVING_S)


def play(items: Sequence[Item], tell: Callable[[str], None], play_one: Callable[[Item], int] = play_cold) -> int:
    """Play what is not finished, telling of each, and stop at the first failure; return its exit code or 0."""
    unchanged = True
    for number, item in enumerate(items, start=1):
        started, name = time.monotonic(), f"[{number}/{len(items)}] {item.file}:"
        # What an iteration was made of may be another one since; then its own process sees whether it is finished.
        if item.finished and (unchanged or not item.is_iteration):
            tell(f"{name} skipped: {item.folder} holds {item.produces}.")
            continue
        unchanged = False
        tell(f"{name} makes {item.produces}.")
        code = play_one(item)
        if code == 0 and not is_finished(item):
            raise DataError(
                f"{item.file}: Its process ended without an error, but {item.folder} holds no finished result. Start "
                "the same command again: it continues."
            )
        took = timedelta(seconds=round(time.monotonic() - started))
        if code:
            tell(f"{name} failed with exit code {code} after {took}. Mend it: the same command continues.")
            return code
        tell(f"{name} finished after {took}: {item.folder} holds {item.produces}.")
    return 0
