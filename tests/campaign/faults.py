# SPDX-License-Identifier: Apache-2.0
"""Commands forked from a process that has imported all, with a fault at the n-th operation on a file of theirs."""

from __future__ import annotations

import _pyio
import builtins
import errno
import gc
import importlib
import io
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

from llamafactory_tpaw.runs import launcher, loop, study
from tests.processes import Started


KILLS, STOPS = ("kill", "kill all"), ("SIGTERM", "SIGINT")
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
RECORD = 256  # bytes of a line about an operation, so that the file's size tells its number
OPEN, FSYNC, FORK = open, os.fsync, multiprocessing.get_context("fork")


class Fault(NamedTuple):
    """What happens at an operation, counted from 1 over all processes of a command; of a write after a part of it."""

    at: int
    kind: str  # one of KILLS or STOPS, or the name of an error
    part: float = 0.0
    lasts: bool = False  # whether an error is met by all later operations, too


class Disk:
    """Watches the files below a folder, in this process and those that it forks."""

    root, fault, seen = "", Fault(0, ""), -1

    def due(self, name: str, path: Any, folder: int = -1) -> str:
        """Note an operation, and return its file where a fault is due."""
        place = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)
        place = os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd(), place)
        if not place.startswith(self.root):
            return ""
        os.write(self.seen, f"{name} {place[len(self.root) :]}".encode().ljust(RECORD - 1) + b"\n")
        number, (at, kind, _, lasts) = os.fstat(self.seen).st_size // RECORD, self.fault
        if kind in STOPS and number == at:
            os.killpg(os.getpgrp(), signal.Signals[kind])
        fits = kind not in STOPS and not (kind == "EACCES" and name in ("write", "fsync"))
        return place if fits and (number == at or (lasts and number > at > 0)) else ""

    def strike(self, *place: str) -> None:
        """Let the fault happen; an error of a write names no file."""
        if self.fault.kind in KILLS:
            os.kill(-os.getpgrp() if self.fault.kind == "kill all" else os.getpid(), signal.SIGKILL)
            signal.pause()
        number = getattr(errno, self.fault.kind)
        raise OSError(number, os.strerror(number), *place)


DISK = Disk()


class File(io.FileIO):
    """A file whose writes may fail."""

    short = False

    def write(self, data: Any) -> int:
        """Write all of it, or a part before the fault."""
        if not (self.short or DISK.due("write", self.fileno())):
            return super().write(data)
        data = memoryview(data).cast("B")
        written = 0 if self.short else super().write(data[: int(DISK.fault.part * len(data))])
        self.short = written > 0 and DISK.fault.kind not in KILLS  # a full disk says so with the next write
        return written if self.short else DISK.strike()


def _open(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
    return (_pyio.open if {*mode} & {*"wax+"} else OPEN)(file, mode, *rest, **named)


def _fsync(descriptor: int) -> None:
    if DISK.due("fsync", descriptor):
        DISK.strike()
    FSYNC(descriptor)


def _watch(event: str, given: tuple[Any, ...]) -> None:
    place = ""
    if event == "open" and (given[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        place = DISK.due("open", given[0])
    elif event in CHANGES:
        place = DISK.due(event[3:], given[0], given[-1])
    if place:
        DISK.strike(place)


def _install() -> None:
    """Watch this process, in which safetensors and torch write by Python from now on."""
    import safetensors.torch
    import torch

    def save_object(value: Any, path: Any, *rest: Any, save: Any = torch.save, **named: Any) -> None:
        save(value, content := io.BytesIO(), *rest, **named)
        Path(path).write_bytes(content.getvalue())

    def save_tensors(tensors: Any, path: Any, metadata: Any = None) -> None:
        Path(path).write_bytes(safetensors.serialize(tensors, metadata))

    for name in ("BufferedReader", "BufferedWriter", "BufferedRandom", "TextIOWrapper"):
        setattr(_pyio, name, getattr(io, name))
    _pyio.FileIO, builtins.open, io.open, os.fsync = File, _open, _open, _fsync
    safetensors.torch.serialize_file, torch.save = save_tensors, save_object
    sys.addaudithook(_watch)


def preload() -> None:
    """Import what the commands need, and do nothing with it."""
    study._preload()
    for name in ("llamafactory.cli", "torchdata.stateful_dataloader", "llamafactory_tpaw.report.verify"):
        importlib.import_module(name)
    transformers = importlib.import_module("transformers")
    for kind in ("ImageTextToText", "Seq2SeqLM", "TextToWaveform"):  # LlamaFactory looks through them for each model
        list(getattr(transformers, f"AutoModelFor{kind}")._model_mapping)


class Command(Started):
    """`llamafactory-tpaw` in a copy of this process; its children are copies, too."""

    def __init__(self, root: Path, words: list[str], log: Path, fault: Fault = Disk.fault) -> None:
        self.log, self.seen = log, log.with_suffix(".seen")
        self.process = FORK.Process(target=_become, args=(root, words, log, self.seen, fault))
        self.process.start()

    def wait(self) -> int:
        """Return its exit code, or minus the signal that killed it; what hangs or is left is an AssertionError."""
        self.process.join(300)
        assert self.leaves_nothing(), f"it hangs, or left processes: {self.output[-3000:]}"
        self.process.join()
        return self.process.exitcode

    def operations(self) -> list[str]:
        """What it did to files, up to the fault and after it."""
        return [line.rstrip() for line in self.seen.read_text(encoding="utf-8").splitlines()]


def _become(root: Path, words: list[str], log: Path, seen: Path, fault: Fault) -> None:
    import torch

    from llamafactory_tpaw.team import scorer

    gc.freeze()
    os.setsid()
    os.chdir(root)
    torch.set_num_threads(1)
    scorer.FLUSH_SECONDS = 0.0
    loop.run_child = launcher.run_child = lambda command, **_: study._start(command[3:], log, "fork")
    DISK.root, DISK.fault = os.path.realpath(root) + os.sep, fault
    DISK.seen = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _install()
    study._as_command(words, log)
