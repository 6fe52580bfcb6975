# SPDX-License-Identifier: Apache-2.0
"""Options that the benchmarks of training share. Imports nothing heavy."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .workload import PRECISIONS, RESULTS, SIZES, Data, Workload, processors


FAILED = 1


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options of model, batch, device and output."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help="model (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp32 on the CPU, bf16 with a GPU")
    parser.add_argument("--untied", action="store_true", help="input and output embeddings are two")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, for all")
    parser.add_argument("--micro", type=count, default=3, help="triplets of a micro-batch (default: %(default)s)")
    parser.add_argument("--accumulation", type=count, default=1, help="micro-batches a step (default: %(default)s)")
    parser.add_argument("--response-tokens", type=count, default=192, help="default: %(default)s")
    parser.add_argument(
        "--spread",
        type=share,
        default=0.0,
        help="lengths of responses are drawn from (1 - this) times the longest on (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=count, default=5, help="measured, after one to warm up (default: %(default)s)"
    )
    parser.add_argument("--threads", type=count, default=processors(), help="default: all processors (%(default)s)")
    parser.add_argument("--folder", type=Path, help="for models and data; kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{name}.json", help="default: %(default)s")


def count(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def share(text: str) -> float:
    """A number from 0, below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value:g} is not from 0 to below 1")
    return value


@contextlib.contextmanager
def workload_of(options: argparse.Namespace, datasets: tuple[Data, ...], **changes: Any) -> Iterator[Workload]:
    """Make the workload of the options, in a folder that is removed afterwards unless it was named."""
    with contextlib.ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tpaw-bench-", ignore_cleanup_errors=True))
        values = {
            "size": options.size,
            "device": options.device,
            "precision": options.precision or ("fp32" if options.device == "cpu" else "bf16"),
            "micro_triplets": options.micro,
            "accumulation": options.accumulation,
            "checkpointing": options.checkpointing,
            "tied": not options.untied,
            "threads": options.threads,
        }
        yield Workload(folder=str(Path(folder).resolve()), datasets=datasets, **{**values, **changes})


@contextlib.contextmanager
def progress_of(total: int) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is running; nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(total=total, disable=not sys.stderr.isatty(), unit="run") as bar:
        started = False

        def tell(text: str) -> None:
            nonlocal started
            bar.update(1 if started else 0)
            started = True
            bar.set_description(text)

        yield tell
