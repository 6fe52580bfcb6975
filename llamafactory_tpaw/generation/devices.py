# SPDX-License-Identifier: Apache-2.0
r"""The `hf` engine on several devices: a process for each, which is handed a unit of requests after another.

The process that started them alone writes to the disk. What is answered together does not depend on who answers it,
so an interrupted round goes on with any number of devices, and the devices are done at nearly the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import numpy as np

from ..errors import TpawError
from ..lf.signals import end_like_child, exit_code, started_child
from .base import Answers, Finished, PromptRequests, ignore, units_left


# Loads the model and returns an engine, whose `generate` answers a unit and whose `facts` say what the model is.
Load = Callable[[], Any]


def devices_in_sight(environment: Mapping[str, str]) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` would name to choose each device in sight; empty where there is none."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        return [str(number) for number in range(torch.cuda.device_count())]
    names = (name.strip() for name in visible.split(","))
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))


class DeviceEngine:
    """Samples with a process for each device, a value of `CUDA_VISIBLE_DEVICES`; `load` is pickled for them."""

    name = "hf"

    def __init__(self, version: str, load: Load, devices: Sequence[str], batch_tokens: int) -> None:
        self.version, self.load, self.devices, self.batch_tokens = version, load, devices, batch_tokens
        self.facts: dict[str, str] = {}

    def answer(self, requests: PromptRequests, left: np.ndarray, finished: Finished = ignore) -> Iterator[Answers]:
        """Hand out units until all are answered; raise what a process raised or ended with, and end the others."""
        units = units_left(requests, left, self.batch_tokens)
        first = list(itertools.islice(units, len(self.devices)))
        asked: dict[Connection, list[int]] = {}

        def ask(channel: Connection, unit: list[int]) -> None:
            asked[channel] = unit
            with contextlib.suppress(ConnectionError):  # one that is gone is noticed when it is read from
                channel.send((self.load, [requests[index] for index in unit]))

        with contextlib.ExitStack() as stack:
            children = dict(_start(stack, device) for device, _ in zip(self.devices, first, strict=False))
            for channel, unit in zip(children, first, strict=True):
                ask(channel, unit)
            while asked:
                finished(0)
                for channel in wait(list(asked), timeout=5.0):
                    unit = asked.pop(channel)
                    try:
                        answers = channel.recv()
                    except (EOFError, ConnectionError):
                        end_like_child(exit_code(children[channel]))
                        continue
                    if isinstance(answers, TpawError):
                        raise answers
                    answers, self.facts = answers
                    following = next(units, None)
                    if following is not None:
                        ask(channel, following)
                    yield list(zip(unit, answers, strict=True))


def _start(stack: contextlib.ExitStack, device: str) -> tuple[Connection, subprocess.Popen[bytes]]:
    own, others = Pipe()
    stack.callback(own.close)
    with others:
        command = [sys.executable, "-m", __name__, str(others.fileno())]
        # One progress bar is enough, and a terminal's Ctrl-C is for this process, which then ends them.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": device, "TQDM_DISABLE": "1"}
        options = {"pass_fds": [others.fileno()], "start_new_session": True}
        return own, stack.enter_context(started_child(command, env=environment, **options))


def answer_parent(channel: Connection) -> None:
    """In a process for one device: answer the units that the parent sends, as long as it is there."""
    engine = None
    with contextlib.suppress(EOFError):
        while True:
            load, unit = channel.recv()
            try:
                engine = engine or load()
                channel.send((engine.generate(unit), engine.facts))
            except TpawError as error:
                channel.send(error)


if __name__ == "__main__":
    answer_parent(Connection(int(sys.argv[1])))
