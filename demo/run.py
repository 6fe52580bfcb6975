# SPDX-License-Identifier: Apache-2.0
"""The whole demo, as `make demo` calls it: `python -m demo.run`. What is finished is not done again."""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

from llamafactory_tpaw.lf.signals import end_with_parent

from .make_task import write_base_model, write_problems


# One thread: for so small a model more only wait for each other, and the numbers do not depend on the number of cores.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
PLAYED, LAST, RESTARTS = "study demo/study.yaml", "study demo/study.yaml --only 3", "study demo/restarts.yaml"
BASE, REPORT = Path("saves/Tiny/base"), Path("demo_report")


def start(command: str) -> subprocess.Popen[bytes]:
    """Say and start a command of the package."""
    print(f"$ llamafactory-tpaw {command}", flush=True)
    words = [sys.executable, "-m", "llamafactory_tpaw", *command.split()]
    return subprocess.Popen(words, preexec_fn=functools.partial(end_with_parent, os.getpid()))


def play() -> int:
    """Play both studies, two processes at a time; return the first exit code that is not 0.

    The second one waits while the first one trains theta_0; then each passes over the parts at which the other works.
    """
    with start(PLAYED) as other:
        code = start(LAST).wait() or start(RESTARTS).wait() or start(PLAYED).wait()
        return code or other.wait()


def main() -> int:
    """Play the demo; say what was found and where the report is."""
    argparse.ArgumentParser(prog="python -m demo.run", description=__doc__).parse_args()
    os.environ.update(ENVIRONMENT)
    began = time.monotonic()
    write_problems(Path("data/demo"), seed=0)
    if not (BASE / "model.safetensors").is_file():
        write_base_model(BASE, seed=0)
    try:
        if code := play():
            print("\nThe demo is not finished. The same command goes on from here.", file=sys.stderr)
            return code
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    from .page import build_report

    page, found = build_report(Path("saves/Tiny/results"), Path("saves/Tiny/restarts/results"), REPORT)
    print(f"\n{found}\n\nReport: {page.resolve()}  ({(time.monotonic() - began) / 60:.1f} minutes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
