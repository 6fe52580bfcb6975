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
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe, wait

import numpy as np

from ..errors import GenerationError
from ..lf.signals import end_like_child, exit_code, started_child
from .base import Answers, PromptRequests, Request, Response, ignore, units_left


# Writes the plan for a process that is to call `answer_parent`, and returns its file.
Hand = Callable[..., contextlib.AbstractContextManager[str]]


@dataclass(frozen=True)
class Share:
    """What a process that generates a part of a round is told: the round's file and an open pipe to its parent."""

    file: str
    channel: int


def devices_in_sight(environment: Mapping[str, str]) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` would name to choose each device in sight; empty where there is none."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        return [str(number) for number in range(torch.cuda.device_count())]
    names = (name.strip() for name in visible.split(","))
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))


class DeviceEngine:
    r"""Samples with a process for each device.

    Args:
        version: Of the engine in the processes.
        hand: Hands the plan over.
        file: The round's file, by which the process knows its round.
        job: Digest of what is generated, in which the processes must agree with this one.
        devices: A value of `CUDA_VISIBLE_DEVICES` for each process.
        batch_tokens: Most tokens in a batch.
    """

    name = "hf"

    def __init__(
        self, version: str, hand: Hand, file: str, job: str, devices: Sequence[str], batch_tokens: int
    ) -> None:
        self.version, self.hand, self.file, self.job = version, hand, file, job
        self.devices, self.batch_tokens = devices, batch_tokens

    def answer(
        self, requests: PromptRequests, left: np.ndarray, finished: Callable[[int], object] = ignore
    ) -> Iterator[Answers]:
        r"""Hand out units until all are answered.

        Raises:
            KeyboardInterrupt: If a process was interrupted.
            SystemExit: With the code of a process that failed, which has said why; the others are ended.
            GenerationError: If a process sees other prompts or settings than this one.
        """
        units = units_left(requests, left, self.batch_tokens)
        needed = len(list(itertools.islice(units_left(requests, left, self.batch_tokens), len(self.devices))))
        with contextlib.ExitStack() as stack:
            children = dict(self._start(stack, device) for device in self.devices[:needed])
            stack.callback(_terminate, list(children.values()))
            busy = set(children)
            while children:
                for channel in wait(list(children)):
                    try:
                        kind, content = channel.recv()
                    except (EOFError, ConnectionError):
                        _check_end(children.pop(channel), channel in busy)
                        continue
                    if kind == "finished":
                        finished(content)
                        continue
                    if kind == "job" and content != self.job:
                        raise GenerationError(
                            "A process found other prompts, settings or weights than the one that started it: they "
                            "were changed meanwhile. Leave them as they are and start again: what is done is kept."
                        )
                    unit = next(units, None)
                    if unit is None:
                        busy.discard(channel)
                    with contextlib.suppress(ConnectionError):  # one that is gone is noticed when it is read from
                        channel.send(unit)
                    if kind == "answers":
                        yield content

    def _start(self, stack: contextlib.ExitStack, device: str) -> tuple[Connection, subprocess.Popen[bytes]]:
        own, others = Pipe()
        stack.callback(own.close)
        with others:
            plan_file = stack.enter_context(self.hand(share=asdict(Share(self.file, others.fileno()))))
            command = [sys.executable, "-m", "llamafactory_tpaw", "generate", plan_file]
            # One progress bar is enough.
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": device, "TQDM_DISABLE": "1"}
            return own, stack.enter_context(started_child(command, environment, pass_fds=[others.fileno()]))


def _check_end(process: subprocess.Popen[bytes], busy: bool) -> None:
    """Wait for a process and end as it did, unless it was done."""
    end_like_child(exit_code(process), "generates")
    if busy:
        raise GenerationError(
            "A process ended before it had answered. What is done is kept: the same command continues."
        )


def _terminate(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all at once to end, so that they need not be waited for one after another."""
    for process in processes:
        if process.poll() is None:
            process.terminate()


def answer_parent(
    share: Share,
    job: str,
    requests: PromptRequests,
    make_generate: Callable[[], Callable[[list[Request], Callable[[int], object]], list[Response]]],
) -> None:
    r"""In a process for one device: answer the units that the parent sends, until it sends no more.

    Args:
        share: What this process was told.
        job: Digest of what is generated.
        requests: All requests.
        make_generate: Loads the model and returns what answers a unit; called when there is one.
    """
    generate = None
    with Connection(share.channel) as channel:
        channel.send(("job", job))
        while (unit := channel.recv()) is not None:
            generate = generate or make_generate()
            responses = generate([requests[index] for index in unit], lambda count: channel.send(("finished", count)))
            channel.send(("answers", list(zip(unit, responses, strict=True))))
