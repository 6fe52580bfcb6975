# SPDX-License-Identifier: Apache-2.0
"""Results of a study, written by hand: two methods from one theta_0 a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


# Of ten items, how many theta_0, theta_1 and theta_2 have right, by method and seed.
RIGHT = {
    "tpaw": [(2, 3, 7), (3, 3, 6), (1, 4, 5), (2, 2, 8), (4, 5, 9), (3, 4, 8)],
    "sft_steps": [(2, 2, 3), (3, 2, 4), (1, 2, 3), (2, 4, 5), (4, 5, 6), (3, 3, 6)],
}
EXAMPLE = {"prompt": "2 + 2?", "target": "4", "generated": "<script>window.hacked = 1</script> | 数学 🙂"}


def part(method: str, seed: int, **changes: Any) -> dict[str, Any]:
    points: list[dict[str, Any]] = []
    for theta, right in enumerate(RIGHT[method][seed]):
        entry = {"metric": "exact_match,none", "value": right / 10, "n": 10, "items": "1" * right + "0" * (10 - right)}
        points.append({"theta": theta, "steps": 10 * theta, "fingerprint": f"{method}{seed}{theta}"})
        points[-1]["evaluations"] = {"words": entry | {"stderr": None, "lm_eval": "0.4.13"}}
        points[-1]["evaluations"] |= {} if theta else {"search": entry}  # of theta_0 alone
        if theta:
            metrics = {"rewards/target": 0.1 * theta, "logps/target": -4.0, "logps/generated": -4.5 - seed}
            metrics |= {"weights/player/theta_0": 1 / theta, "weights/target_eta_fraction": 0.5}
            points[-1] |= {"seconds": {"train": 8.0 + seed, "score": 1.0}, "triplets": 100 * theta, "tokens": None}
            points[-1]["logs"] = [{"step": step, **(metrics if method == "tpaw" else {})} for step in (5, 10)]
            points[-1]["round"] = {"equal": 0.25 * theta, "truncated": None} if method == "tpaw" else None
    content = {
        "schema": 1,
        "study": "words",
        "method": method,
        "label": method.upper(),
        "seed": seed,
        "points": points,
    }
    environment, examples = {"torch": "2.9"}, [EXAMPLE] if method == "tpaw" else []
    return content | {"overrides": {"tpaw_eta": 6}, "environment": environment, "examples": examples} | changes


def write_results(folder: Path, seeds: int = 6) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for method in RIGHT:
        for seed in range(seeds):
            (folder / f"{method}_seed{seed}.json").write_text(json.dumps(part(method, seed)), encoding="utf-8")
    return folder
