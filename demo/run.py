# SPDX-License-Identifier: Apache-2.0
"""The whole demo, as `make demo` calls it: `python -m demo.run`. What is finished is not done again."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from . import make_task, problems, tokenizer
from .page import LABELS, METHODS, build_report
from .steps import RUNS, Layout, command, layout, prepare_data_folder


LOG_TAIL_LINES = 25
PERCENT = re.compile(rb"(\d+)%\|")
# One thread: for so small a model more only wait for each other, and the numbers do not depend on the number of cores.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DISABLE_VERSION_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class DemoError(Exception):
    """The demo cannot go on."""


def prepare(place: Layout, progress: dict[str, str]) -> None:
    """Write problems and base model, unless they are there."""
    modules = (problems, tokenizer, make_task)
    digest = _digest("".join(Path(module.__file__).read_text(encoding="utf-8") for module in modules))
    if _is_done(place, progress, "task", digest, place.base / "model.safetensors", "demo/"):
        return
    prepare_data_folder(place)
    make_task.write_problems(place.problems, place.seed)
    make_task.write_base_model(place.base, place.seed)
    _record(place, progress, "task", digest)


def train(place: Layout, run: str, number: int, progress: dict[str, str]) -> float:
    r"""Run one training in a child process; its output goes to a log.

    Returns:
        Seconds that it took; 0 where it was done before.

    Raises:
        DemoError: If it fails, with the command and the end of the log.
    """
    parts = command(place, run)
    digest = _digest(Path(parts[2]).read_text(encoding="utf-8") + " ".join(parts))
    title = f"[{number}/{len(RUNS)}] {LABELS[run]}"
    if _is_done(place, progress, run, digest, place.output(run) / "trainer_state.json", parts[2]):
        print(f"{title}: there already", flush=True)
        return 0.0
    log = place.saves / "logs" / f"{run}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{title}: {shlex.join(parts)}", flush=True)
    start = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(_executable(parts), stdout=stream, stderr=subprocess.STDOUT, env=_environment())
        try:
            _watch(process, log)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])
        raise DemoError(f"{tail}\n\n{shlex.join(parts)}\nended with status {process.returncode}; its log is {log}.")
    _record(place, progress, run, digest)
    return time.monotonic() - start


def measure(place: Layout, split: str, folders: list[Path]) -> list[dict[str, Any]]:
    """Measure the checkpoints whose weights were not measured yet, and write and return the results of all."""
    from .evaluate import evaluate_checkpoints

    rows = evaluate_checkpoints(folders, place.problems / f"{split}.jsonl")
    _write(place.saves / f"accuracy_{split}.json", json.dumps(rows, indent=1) + "\n")
    return rows


def checkpoints(place: Layout) -> list[Path]:
    """Every checkpoint to measure that exists: the results of the runs, and those on the way of continued SFT."""
    folders = [place.output(run) for run in RUNS]
    on_the_way = sorted(place.output("sft_more").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return [folder for folder in [*folders, *on_the_way] if (folder / "model.safetensors").is_file()]


def play(place: Layout, split: str) -> Path:
    """Do everything that is not done yet and return the path of the report."""
    progress_file = _progress_path(place)
    progress = json.loads(progress_file.read_text(encoding="utf-8")) if progress_file.is_file() else {}
    prepare(place, progress)
    for number, run in enumerate(RUNS, start=1):
        seconds = train(place, run, number, progress)
        rows = measure(place, split, checkpoints(place))
        accuracy = next(row for row in rows if row["checkpoint"] == str(place.output(run)))["accuracy"]
        duration = f"{seconds:.0f} s, " if seconds else ""
        print(f"      {duration}{split} accuracy {100 * accuracy:.1f} %", flush=True)
    return build_report(place, split, place.saves / f"accuracy_{split}.json")


def print_table(place: Layout, split: str) -> None:
    """Print the accuracy of every theta."""
    rows = {row["checkpoint"]: row for row in json.loads((place.saves / f"accuracy_{split}.json").read_text())}
    print(f"\n{'accuracy, ' + split:22} theta_0  theta_1  theta_2  theta_3")
    for label, runs in METHODS.items():
        shares = [rows[str(place.output(run))]["accuracy"] for run in ("sft", *runs)]
        cells = [f"{100 * share:5.1f} %" for share in shares]
        if len(runs) == 1:
            cells = [cells[0], "", "", cells[1]]
        print(f"{label:22}" + " ".join(f"{cell:>8}" for cell in cells))


def main() -> int:
    """Play the demo; say where the report is."""
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of everything; 0 is the committed demo (%(default)s)")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="problems (%(default)s)")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    place, start = layout(arguments.seed), time.monotonic()
    try:
        page = play(place, arguments.split)
    except DemoError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    print_table(place, arguments.split)
    print(f"\nReport: {page.resolve()}  ({(time.monotonic() - start) / 60:.1f} minutes)")
    return 0


def _is_done(place: Layout, progress: dict[str, str], step: str, digest: str, result: Path, source: str) -> bool:
    if step not in progress or not result.is_file():
        return False
    if progress[step] != digest:
        raise DemoError(
            f"{source} changed since {place.saves} was made. Delete {place.saves} and {place.data / 'tpaw'}/tiny_*, "
            "then start again."
        )
    return True


def _record(place: Layout, progress: dict[str, str], step: str, digest: str) -> None:
    progress[step] = digest
    _write(_progress_path(place), json.dumps(progress, indent=1) + "\n")


def _watch(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the end; on a terminal, show how far the current progress bar of the log is."""
    while process.poll() is None:
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            if sys.stdout.isatty():
                found = PERCENT.findall(log.read_bytes()[-4000:])
                print(f"\r      {int(found[-1]) if found else 0} %  ", end="\r", flush=True)


def _executable(parts: list[str]) -> list[str]:
    """Use the command of this interpreter's environment, also where that is not on the PATH."""
    script = Path(sysconfig.get_path("scripts")) / parts[0]
    return [str(script) if script.is_file() else parts[0], *parts[1:]]


def _environment() -> dict[str, str]:
    return os.environ | ENVIRONMENT


def _progress_path(place: Layout) -> Path:
    return place.saves / "demo.json"


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


if __name__ == "__main__":
    sys.exit(main())
