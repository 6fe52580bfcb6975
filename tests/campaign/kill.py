# SPDX-License-Identifier: Apache-2.0
"""A small run, killed or refused by the disk at a random moment: the same command then ends as if nothing had been.

`python -m tests.campaign.kill SEED NUMBER` repeats one of them.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.numpy import load_file

from llamafactory_tpaw.board.charts import read_log
from tests import tiny
from tests.processes import Started, members_of
from tests.runs import Project

from .faults import FORK, KILLS, STOPS, Command, Fault, preload
from .ledger import Outcome


# Several commits of rows, parts of the cache and checkpoints an iteration, and the removal of old ones.
SETTINGS = {
    "per_device_train_batch_size": 8,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "tpaw_keep_checkpoints": "needed",
    "tpaw_generate_batch_tokens": 1024,
    "tpaw_score_batch_tokens": 1024,
}
PROMPTS = 40
FILES = [f"iter{iteration}.yaml" for iteration in range(3)]
# What a run does when it changes a file, by a part of the path; the rest is training and what ends an iteration.
PHASES = {"generating": "data/", "scoring": "saves/.tpaw_cache", "saving a checkpoint": "/checkpoint-", "training": ""}
# Times, digests of files with times, and what counts only the last attempt.
TIMES = re.compile(
    r"seconds|started|finished|created|.*_time|.*runtime|.*_per_second|meta|own_digest|.*(tpaw|trainer_state)\.json"
    r"|.*\.(bin|pth?)|train_loss|scored_.*"
)
# Locks, what commands printed, the cache, of which the log-probs are compared, and pickles with times and paths.
UNCOMPARED = re.compile(r"\.lock$|^log\d|_cache/(fingerprints|tokens|logps)/[^.]|\.(bin|pth?)$")


class Campaign:
    """An undisturbed run, and copies of it as it was before each iteration, of which further copies are disturbed."""

    def __init__(self, folder: Path, seed: int, iterations: int = len(FILES)) -> None:
        preload()
        self.folder, self.seed, self.iterations = folder, seed, iterations
        self.disk, self.seconds = False, 0.0
        calm = Project(folder / "calm", tiny.save_model(folder / "theta_0"))
        pairs = [(first, second) for first in range(8) for second in range(PROMPTS // 8)]
        rows = [{"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}."} for a, b in pairs]
        calm.add_dataset("additions", rows[:-1] + rows[:1], columns={"prompt": "question", "response": "answer"})
        for iteration, file in enumerate(FILES[:iterations]):
            calm.write(file, calm.settings(iteration, **SETTINGS))
        self.states: list[dict[str, Any]] = []  # after each iteration
        self.places: list[dict[str, list[tuple[int, str]]]] = []  # an iteration's operations, numbered, by phase
        (folder / "runs").mkdir()
        for number in range(iterations):
            shutil.copytree(calm.root, folder / f"before{number}")
            done = [*enumerate(self.finish(calm.root, FILES[: number + 1]), start=1)]
            self.states.append(state_of(calm.root))
            self.places.append({phase: [each for each in done if phase_of(each[1]) == phase] for phase in PHASES})

    def has_disk(self) -> bool:
        """Have the copies on a disk of their own, where this is allowed."""
        self.disk = mount("-t", "tmpfs", "-o", "size=1g", "tmpfs", self.folder / "runs")
        return self.disk

    def copy(self, before: int, name: str) -> Path:
        """Return a new copy of the run as it was before an iteration."""
        return Path(shutil.copytree(self.folder / f"before{before}", self.folder / "runs" / name))

    def start(self, root: Path, files: list[str], *fault: Fault) -> Command:
        """Start `run`."""
        return Command(root, ["run", *files], Path(tempfile.mkstemp(".log", root.name, self.folder)[1]), *fault)

    def finish(self, root: Path, files: list[str]) -> list[str]:
        """Play to the end, and return what was done to files."""
        wait()
        command = self.start(root, files)
        assert (code := command.wait()) == 0, f"the same command ends with {code}: {command.output[-3000:]}"
        return command.operations()

    def problems(self, root: Path, last: int) -> list[str]:
        """Play a copy to the end of an iteration, and say what is not as it would be without a fault."""
        try:
            self.finish(root, FILES[: last + 1])
        except AssertionError as error:
            return [str(error)]
        with ProcessPoolExecutor(1, mp_context=FORK) as pool:
            return differences(state_of(root), self.states[last]) + pool.submit(audit, root, last).result()

    def one(self, number: int) -> tuple[Counter[str], list[str]]:
        """Disturb a copy once or several times, and return how and what is wrong in the end."""
        chosen, tried, problems = random.Random(f"{self.seed} {number}"), Counter(), []
        before = chosen.randrange(self.iterations)
        last = chosen.choice((before, self.iterations - 1))
        root = self.copy(before, f"run{number}")
        special = {1: self.full, 3: self.read_only} if self.disk else {}
        disturb = self.real if number % 4 == 0 else (special | {9: self.twice}).get(number % 10, self.fault)
        for _ in range(chosen.choice((1, 1, 2, 3))):
            wait()
            what, *wrong = disturb(root, FILES[: last + 1], chosen)
            tried[what] += 1
            problems += wrong
        problems += self.problems(root, last)
        shutil.rmtree(root)
        del tried[""]  # it had ended before
        return tried, [
            f"`python -m tests.campaign.kill {self.seed} {number}`: {dict(tried)}: {each}" for each in problems
        ]

    def fault(self, root: Path, files: list[str], chosen: random.Random) -> list[str]:
        """At a file of some phase a kill, or an error once or from then on; return which, and what is wrong."""
        at, what = chosen.choice(self.places[len(files) - 1][chosen.choice([*PHASES])])
        # A right is asked for when a file is opened, and a broken disk shows when it is written. An error where an
        # old checkpoint is removed is passed over by Hugging Face's Trainer.
        errors = ("ENOSPC", "EIO" if what.startswith(("write", "fsync")) else "EACCES") * (
            what[:3] not in ("rem", "rmd")
        )
        kind = chosen.choice((*KILLS, *KILLS, *STOPS, *errors))
        command = self.start(root, files, Fault(at, kind, chosen.choice((0.0, 0.5, 0.99, 1.0)), chosen.random() < 0.5))
        wrong, done = said(command, {0, 3, 5, 130, 143}), command.operations()
        return [f"{kind} while {phase_of(done[at - 1])}", *wrong * (kind not in KILLS)] if len(done) >= at else [""]

    def real(self, root: Path, files: list[str], chosen: random.Random) -> list[str]:
        """Kill a command of the shell, or one of its processes, at some moment."""
        words = chosen.choice((["llamafactory-tpaw", "run", *files], ["llamafactory-cli", "train", files[-1]]))
        command, end = Started(SimpleNamespace(root=root), *words), time.monotonic() + chosen.uniform(0, self.seconds)
        while command.process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        if not (running := members_of(command.process.pid)):
            return [""]
        for pid in chosen.choice((running, [command.process.pid], [chosen.choice(running)])):
            os.kill(pid, signal.SIGKILL)
        command.wait()
        return [f"SIGKILL of {' '.join(words[:2])}", *(["it left processes"] * (not command.leaves_nothing()))]

    def twice(self, root: Path, files: list[str], chosen: random.Random) -> list[str]:
        """Start the same command again while it runs."""
        first = self.start(root, files)
        time.sleep(chosen.uniform(0, 3))
        return ["two of the same command", *said(self.start(root, files), {0, 3}), *said(first, {0, 3})]

    def full(self, root: Path, files: list[str], chosen: random.Random) -> list[str]:
        """Leave some of the space that it needs."""
        size = shutil.disk_usage(root).used + chosen.randrange(1 << 20)
        mount("-o", f"remount,size={size}", self.folder / "runs")
        wrong = said(self.start(root, files), {0, 5})
        mount("-o", "remount,size=1g", self.folder / "runs")
        return ["a full disk", *wrong]

    def read_only(self, root: Path, files: list[str], chosen: random.Random) -> list[str]:
        """Have a folder that cannot be written."""
        place = chosen.choice([each for each in (root, root / "data" / "tpaw", root / "saves") if each.is_dir()])
        mount("--bind", place, place)
        mount("-o", "remount,ro,bind", place)
        wrong = said(self.start(root, files), {3, 5})
        subprocess.run(["umount", place], check=True)
        return ["a read-only folder", *wrong]


def wait() -> None:
    """Start no earlier than a real command would: temporary files that are younger may be another process's."""
    time.sleep(1.1)


def said(command: Command, codes: set[int]) -> list[str]:
    """Say what is wrong where a command does not end with one of these codes, or with a traceback."""
    code, output = command.wait(), command.output
    return [] if code in codes and "Traceback" not in output else [f"it ends with {code}: {output[-3000:]}"]


def mount(*words: Any) -> bool:
    """Mount something, and say whether that was allowed."""
    return subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode == 0


def phase_of(operation: str) -> str:
    """What a run does that changes this file."""
    return next(phase for phase, part in PHASES.items() if part in operation)


def state_of(root: Path) -> dict[str, Any]:
    """All that a run leaves, but for times: the content of files by path, and the log-probs by player and sequence."""
    state: dict[str, Any] = {}
    for path in sorted(each for each in root.rglob("*") if each.is_file()):
        name = path.relative_to(root).as_posix()
        if path.name.startswith("part-"):
            part = load_file(path)
            entries = zip(part["keys"], part["logps"].tolist(), part["tokens"].tolist(), strict=True)
            state |= {f"{path.parent.name} {bytes(key).hex()}": rest for key, *rest in entries}
        if UNCOMPARED.search(name):
            continue
        content: Any = path.read_bytes()
        if path.suffix == ".json":
            content = timeless(json.loads(content))
        elif path.name == "trainer_log.jsonl":  # to which LlamaFactory adds steps again after an interruption
            content = timeless(read_log(path))
        state[name] = content
    return state


def timeless(value: Any) -> Any:
    """Return what JSON holds without times."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if not TIMES.fullmatch(str(key))}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def differences(state: dict[str, Any], calm: dict[str, Any]) -> list[str]:
    """Say in what two runs differ."""
    names = sorted(name for name in state.keys() | calm.keys() if state.get(name) != calm.get(name))
    return [f"{each} is {('changed', 'new', 'lost')[(each not in calm) + 2 * (each not in state)]}" for each in names]


def audit(root: Path, last: int) -> list[str]:
    """Account for every prompt, once in each round, for every cached log-prob, and for every digest."""
    from llamafactory_tpaw.arguments.parsed import parse_single_process
    from llamafactory_tpaw.data.triplets import read_meta
    from llamafactory_tpaw.lf.given import read_given
    from llamafactory_tpaw.report.lineage import trace
    from llamafactory_tpaw.report.verify import CHANGED, verify
    from llamafactory_tpaw.team.cache import sequence_key
    from llamafactory_tpaw.train.setup import load_setup

    os.chdir(root)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    setup, problems = load_setup(parse_single_process(read_given([FILES[last]]))), []
    rounds = [[(each.id, each.sample) for each in setup.train if each.iteration == t] for t in range(last + 1)]
    for iteration, seen in enumerate(rounds):
        meta = read_meta(Path(f"data/tpaw/play_iter{iteration}.jsonl"))
        counted = meta.rows, meta.counts["stop"] + meta.counts["length"], meta.failed
        if not len(seen) == len(set(seen)) == PROMPTS or seen != rounds[0] or counted != (PROMPTS, PROMPTS, []):
            problems.append(f"D_{iteration}: {len(seen)} triplets of {len(set(seen))} prompts, counted: {counted}")
    wanted = {sequence_key(*pair) for block in setup.blocks() for pair in block.pairs}
    scored: dict[str, list[bytes]] = {}
    for path in Path("saves/.tpaw_cache/logps").rglob("part-*"):
        scored.setdefault(path.parent.name, []).extend(map(bytes, load_file(path)["keys"]))
    if len(scored) != last + 1 or any(sorted(keys) != sorted(wanted) for keys in scored.values()):
        problems.append(f"log-probs: {[*map(len, scored.values())]} by player, of {len(wanted)} sequences")
    return problems + [check.message for check in verify(trace([Path("saves")])) if check.state == CHANGED]


def run(count: int, seed: int, folder: Path, number: int = 0) -> Outcome:
    """Disturb copies so many times, from the one with this number on."""
    campaign, outcome = Campaign(folder, seed), Outcome()
    if not campaign.has_disk():
        print("No tmpfs can be mounted, which needs root: neither a full disk nor a read-only folder is tried.")
    try:
        root, started = campaign.copy(0, "real"), time.monotonic()
        command = Started(SimpleNamespace(root=root), "llamafactory-tpaw", "run", FILES[0])
        assert command.wait() == 0, command.output
        campaign.seconds = time.monotonic() - started
        outcome.failures += [f"the command of the shell: {each}" for each in campaign.problems(root, 0)]
        while outcome.tried.total() < count:
            tried, failures = campaign.one(number)
            outcome.tried += tried
            outcome.failures += failures
            print(number, dict(tried), *failures, flush=True)
            number += 1
    finally:
        if campaign.disk:
            subprocess.run(["umount", "--lazy", folder / "runs"], check=True)
    return outcome


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(run(1, int(sys.argv[1]), Path(place), int(sys.argv[2])))
