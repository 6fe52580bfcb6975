# SPDX-License-Identifier: Apache-2.0
"""A file of a run is damaged: what reads it back says so and names it, or ends as if nothing had been.

`python -m tests.campaign.corruption SEED NUMBER` repeats one of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from llamafactory_tpaw.report import page
from llamafactory_tpaw.report.evaluate import Evaluation, write_evaluations
from llamafactory_tpaw.team.checkpoint import MODEL_FILE
from llamafactory_tpaw.team.fingerprint import fingerprint_checkpoint
from llamafactory_tpaw.team.manifest import MANIFEST, read_manifest

from .faults import Command, Fault
from .kill import FILES, Campaign, differences, state_of
from .ledger import Outcome


CODES = {2, 3, 4, 5}
# What nothing reads back, and what is the user's own: run files, the SFT set and the list of datasets.
LEFT_OUT = re.compile(r"\.lock$|\.yaml$|^data/[^/]*$|^report/")
VARYING = re.compile(r"(?<=logps/)..|[0-9a-f]{32,}|\d+")
SENTENCE = re.compile(r"[.!?] +(?=[A-Z`])")
REPORT, VERIFY = ("report", "saves"), ("lineage", "--verify", "saves")
SCENES = {"interrupted": 12, "before": 2, "half done": 1, "report": 3, "lineage": 2, "finished": 1}
WAYS = ("bit", "byte", "digit", "cut", "emptied", "swapped")


class Scene(NamedTuple):
    """A run as some moment left it, the command that reads it, and what that comes to."""

    root: Path
    words: tuple[str, ...]
    before: dict[str, Any]
    after: Any


class Corruptions:
    """Copies of a run, finished or not, in which a file each is damaged."""

    def __init__(self, campaign: Campaign) -> None:
        self.folder, self.theta_0, last = campaign.folder, campaign.folder / "theta_0", campaign.iterations - 1
        run, finished = ("run", *FILES[: last + 1]), campaign.folder / "finished"
        shutil.copytree(campaign.folder / "calm", finished)
        manifests = {folder: read_manifest(folder) for folder in sorted(finished.glob("saves/play_iter*"))}
        fingerprints = {self.theta_0: manifests[finished / "saves/play_iter0"].policy["fingerprint"]}
        fingerprints |= {folder: manifest.result["fingerprint"] for folder, manifest in manifests.items()}
        for number, (folder, fingerprint) in enumerate(fingerprints.items()):
            right = "1" * number + "0" * (8 - number)
            found = Evaluation("acc", number / 8, 0.1, 8, right, {}, "1", 0, None, "hf", "", None, "", 1.0)
            write_evaluations(folder, fingerprint, {"sums": found})
        after = campaign.states[last]
        roots = {"before": campaign.folder / f"before{last}", "finished": finished}
        done = self.started(campaign, last, run, "interrupted", Fault(0, ""))  # a copy makes fingerprints anew
        partial = next(at for at, what in enumerate(done, start=1) if re.match("fsync .*partial", what))
        saving = {what: at for at, what in enumerate(done, start=1) if re.match(r"mkdir .*/checkpoint-\d+$", what)}
        faults = {"interrupted": Fault([*saving.values()][-3], "SIGTERM"), "half done": Fault(partial, "kill")}
        for name, fault in faults.items():
            self.started(campaign, last, run, name, fault)
            roots[name] = campaign.folder / "runs" / name
        assert read_manifest(roots["interrupted"] / f"saves/play_iter{last}").status == "training"
        self.scenes = {name: Scene(root, run, state_of(root), after) for name, root in roots.items()}
        self.scenes["finished"] = Scene(finished, run, state_of(finished), state_of(finished))
        for words in (REPORT, VERIFY):
            code, text = self.read(root := self.copy(finished), words)
            assert code == 0, text
            self.scenes[words[0]] = Scene(finished, words, state_of(finished), self.shown(root, text))

    def started(self, campaign: Campaign, last: int, run: tuple[str, ...], name: str, fault: Fault) -> list[str]:
        """Play the last iteration up to a fault in a copy, and return what was done to files."""
        shutil.rmtree(campaign.folder / "runs" / name, ignore_errors=True)
        command = campaign.start(campaign.copy(last, name), [*run[1:]], fault)
        assert command.wait() == {"": 0, "SIGTERM": 128 + signal.SIGTERM, "kill": 128 + signal.SIGKILL}[fault.kind]
        return command.operations()

    def copy(self, root: Path) -> Path:
        """Return a copy in the place of the last one, with fingerprints that are believed there."""
        copy, store = self.folder / "copy", self.folder / "copy/saves/.tpaw_cache"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns("fingerprints"))
        for weights in (self.theta_0 / MODEL_FILE, *copy.glob(f"saves/play_iter*/{MODEL_FILE}")):
            fingerprint_checkpoint(weights.parent, store)
        return copy

    def read(self, root: Path, words: tuple[str, ...]) -> tuple[int, str]:
        """Give a command, whose report holds numbers in the place of pictures; return its exit code and its output."""
        log = self.folder / "corrupted.log"
        log.write_text("")
        log.with_suffix(".seen").unlink(missing_ok=True)
        with mock.patch.object(page, "draw", lambda *given: repr(given).encode()):
            command = Command(root, [*words], log)
            return command.wait(), command.output

    def shown(self, root: Path, text: str) -> Any:
        """What a command that changes no run shows."""
        return text, {path.name: path.read_bytes() for path in sorted(root.glob("report/*"))}

    def files(self, root: Path) -> dict[str, list[Path]]:
        """What may be damaged, by kind."""
        kinds: dict[str, list[Path]] = {}
        for base in (root, self.theta_0):
            for path in sorted(each for each in base.rglob("*") if each.is_file()):
                name = path.relative_to(root if base == root else self.folder).as_posix()
                if not LEFT_OUT.search(name):
                    kinds.setdefault(VARYING.sub("*", name), []).append(path)
        return kinds

    def one(self, chosen: random.Random, scene: str = "", kind: str = "", way: str = "") -> tuple[str, list[str]]:
        """Damage a file, and return how and what came of it that should not; some of the choices may be made."""
        root, words, before, after = self.scenes[scene or chosen.choices([*SCENES], [*SCENES.values()])[0]]
        kinds = self.files(root := self.copy(root))
        kind = kind or chosen.choice([*kinds])
        path, way = chosen.choice(kinds[kind]), way or chosen.choice(WAYS)
        way = "digit" if way == "swapped" and words == REPORT and path.name == MANIFEST else way  # not promised
        alike = [file for name, files in kinds.items() if Path(name).name == Path(kind).name for file in files]
        with damaged(path, way, [file.read_bytes() for file in alike], chosen, keep_time=words == VERIFY):
            code, text = self.read(root, words)
            shown = self.shown(root, text)
        name = path.relative_to(root if path.is_relative_to(root) else self.folder).as_posix()
        problems = ["a traceback"] * ("Traceback (most" in text)
        if code == 0 and words[0] == "run":
            problems += [each for each in differences(state_of(root), after) if not each.startswith(f"{name} is ")]
        elif code == 0:
            problems += ["it shows something else"] * (shown != after)
        else:
            work_done = ("is new", ".partial is lost")  # before it came to that file
            problems += self.wrong(code, text, path, name)
            problems += [each for each in differences(state_of(root), before) if not each.endswith(work_done)]
        said = f"{' '.join(words[:1])} of {name}, {way}: "
        return kind, [f"{said}{each} ({code}): {text[-2000:]}" for each in problems]

    def wrong(self, code: int, text: str, path: Path, name: str) -> list[str]:
        """Say what is wrong with how a command refuses a file."""
        errors = re.findall(r"^llamafactory-tpaw: error: (.*)", text, re.MULTILINE)
        place = str(path.parent) if path.is_relative_to(self.theta_0) else str(Path(name).parent)
        # What a folder holds is said of the folder, and of rows with their meta file together.
        is_all = path.name in (MODEL_FILE, MANIFEST)
        named = [each for each in errors if place in each and (path.name.partition(".")[0] in each or is_all)]
        wrong = {
            f"exit code {code}": code not in CODES,
            "it does not name the file": not named,
            "too many sentences": any(len(SENTENCE.findall(each.rstrip("."))) > 1 for each in errors),
        }
        return [what for what, holds in wrong.items() if holds]


@contextlib.contextmanager
def damaged(path: Path, way: str, alike: list[bytes], chosen: random.Random, keep_time: bool) -> Iterator[None]:
    """Damage a file, if need be without a trace in its time, and put the old content back where it still stands."""
    old, stat = path.read_bytes(), path.stat()
    others = sorted({*alike} - {old})
    digits = [at for at, byte in enumerate(old) if 48 <= byte < 58]
    way = {"swapped": way if others else "bit", "digit": way if digits else "bit"}.get(way, way)
    at = chosen.choice(digits) if way == "digit" else chosen.randrange(max(len(old), 1))
    new = {
        "bit": lambda: old[:at] + bytes([old[at] ^ 1 << chosen.randrange(8)]) + old[at + 1 :],
        "byte": lambda: old[:at] + bytes([(old[at] + chosen.randrange(1, 256)) % 256]) + old[at + 1 :],
        "digit": lambda: old[:at] + b"%d" % ((int(old[at : at + 1]) + chosen.randrange(1, 10)) % 10) + old[at + 1 :],
        "cut": lambda: old[:at],
        "emptied": lambda: b"",
        "swapped": lambda: chosen.choice(others),
    }[way if old else "cut"]()
    path.write_bytes(new)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    try:
        yield
    finally:
        if path.exists():
            path.write_bytes(old)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def run(count: int, seed: int, folder: Path, number: int = 0) -> Outcome:
    """Damage so many files, from the one with this number on."""
    outcome = Outcome()
    corruptions = Corruptions(Campaign(folder, seed))
    for each in range(number, number + count):
        what, failures = corruptions.one(random.Random(f"{seed} {each}"))
        outcome.tried[what] += 1
        outcome.failures += [f"`python -m tests.campaign.corruption {seed} {each}`: {failure}" for failure in failures]
        print(each, what, *failures, flush=True)
    return outcome


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(run(1, int(sys.argv[1]), Path(place), int(sys.argv[2])))
