# SPDX-License-Identifier: Apache-2.0
"""Run the long form of the campaigns, and add what they tried to docs/trust.json."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
from pathlib import Path

from .ledger import record


# What each tries and how often in its long form: `run(count, seed, folder)` of the module returns an `Outcome`.
CAMPAIGNS = {
    "kill": ("a run of three iterations, killed or out of space at a random moment, and started again", 200),
    "bad_input": ("made-up run files, rows, entries, answers and meta files", 20_000),
    "numbers": ("extreme log-probs, and models of each dtype with and without NaN and inf", 300),
    "corruption": ("files of a run with other bits, bytes or digits, cut, emptied, or another in their place", 1_000),
    "peers": ("LlamaFactory's own tests with and without the package, TRL's DPO beside SPIN", 1),
    "versions": ("both ends of what is supported, in fresh environments", 1),
    "long_run": ("iterations in a row", 12),
}


def main() -> int:
    """Run the campaigns that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("campaigns", nargs="*", choices=[*CAMPAIGNS, []], help=", ".join(CAMPAIGNS))
    parser.add_argument("--count", type=int, help="how often (default: each campaign's own)")
    parser.add_argument("--seed", type=int, default=0, help="what its random choices start from (%(default)s)")
    parser.add_argument("--list", action="store_true", help="say what each tries, and end")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    failed = False
    for name in arguments.campaigns or CAMPAIGNS:
        what, count = CAMPAIGNS[name]
        print(f"{name}: {what}, {arguments.count or count} times.", flush=True)
        if arguments.list:
            continue
        with tempfile.TemporaryDirectory(prefix=f"tpaw-{name}-") as folder:
            run = importlib.import_module(f".{name}", __package__).run
            outcome = run(arguments.count or count, arguments.seed, Path(folder))
        record(name, outcome, arguments.seed)
        print("\n".join(outcome.failures) or "All as promised.", dict(outcome.tried), sep="\n", flush=True)
        failed = failed or bool(outcome.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
