# SPDX-License-Identifier: Apache-2.0
"""How much slower the import hook makes the start of every interpreter: `python -c pass` with and without it.

Two bare virtual environments are made in a temporary folder, one with the package as pip would install it and one
without, and their interpreters are started in turn, so that a change of the machine's load meets both. Run it on an
idle machine. `LLAMAFACTORY_TPAW=0` is measured too: it still reads the `.pth` line.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
STARTUP_FILES = ("llamafactory_tpaw.pth", "llamafactory_tpaw.start")
LIMIT_MS = 2.0
SWITCH = "LLAMAFACTORY_TPAW"


def make_environment(folder: Path, *, hook: bool) -> Path:
    """Make a bare virtual environment, with the package in it where `hook` is true; return its python."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    (site,) = folder.rglob("site-packages")
    if hook:
        shutil.copytree(ROOT / "llamafactory_tpaw", site / "llamafactory_tpaw")
        compileall.compile_dir(site / "llamafactory_tpaw", quiet=1)  # as pip does
        for name in STARTUP_FILES:
            shutil.copy(ROOT / name, site)
    return next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())


def start_ms(python: Path, environment: dict[str, str]) -> float:
    """Return how long `python -c pass` takes, in milliseconds."""
    begin = time.perf_counter()
    subprocess.run([str(python), "-c", "pass"], env=environment, check=True)
    return 1000 * (time.perf_counter() - begin)


def measure(rounds: int) -> dict[str, list[float]]:
    """Time each variant `rounds` times, in turn, the order reversed every other round."""
    plain = {key: value for key, value in os.environ.items() if key not in (SWITCH, "PYTHONPATH")}
    with tempfile.TemporaryDirectory() as folder:
        without = make_environment(Path(folder) / "without", hook=False)
        hooked = make_environment(Path(folder) / "hooked", hook=True)
        variants = {
            "without": (without, plain),
            "hook": (hooked, plain),
            "hook, switched off": (hooked, plain | {SWITCH: "0"}),
        }
        for python, environment in variants.values():
            start_ms(python, environment)  # warm the file cache
        times: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds):
            for name in list(variants)[:: -1 if number % 2 else 1]:
                times[name].append(start_ms(*variants[name]))
    return times


def summarize(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return median, quartiles and the median difference to `without`, in milliseconds."""
    summary = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        differences = [value - base for value, base in zip(values, times["without"], strict=True)]
        summary[name] = {
            "median_ms": round(median, 3),
            "quartile_1_ms": round(low, 3),
            "quartile_3_ms": round(high, 3),
            "median_difference_ms": round(statistics.median(differences), 3),
        }
    return summary


def main() -> int:
    """Measure, print a table and one line of JSON, and end with 1 where the hook costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help="starts of each variant (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds is {options.rounds}, but must be 2 or more")
    summary = summarize(measure(options.rounds))
    print(f"{'python -c pass':<20}{'median':>10}{'quartiles':>20}{'difference':>12}   (ms, {options.rounds} rounds)")
    for name, row in summary.items():
        quartiles = f"{row['quartile_1_ms']:.2f} to {row['quartile_3_ms']:.2f}"
        print(f"{name:<20}{row['median_ms']:>10.2f}{quartiles:>20}{row['median_difference_ms']:>+12.2f}")
    cost = summary["hook"]["median_difference_ms"]
    result = {
        "benchmark": "startup",
        "rounds": options.rounds,
        "limit_ms": LIMIT_MS,
        "within_limit": cost <= LIMIT_MS,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "variants": summary,
    }
    text = json.dumps(result)
    print(text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0 if cost <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
