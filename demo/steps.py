# SPDX-License-Identifier: Apache-2.0
"""The demo's trainings: which run file, with which overrides for another seed, and where the result goes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


ITERATIONS = (0, 1, 2)
RUNS = ("sft", *(f"{method}_iter{t}" for method in ("tpaw", "spin") for t in ITERATIONS), "sft_more")
SAVES = Path("saves/Tiny")
DATA = Path("data")


@dataclass(frozen=True)
class Layout:
    r"""Folders of one demo.

    Args:
        seed: Of problems, weights, sampling and order of training; 0 is the committed run files as they are.
        saves: Checkpoints and logs.
        data: LlamaFactory's `dataset_dir`; the problems are in its folder `demo`.
        report: The report.
    """

    seed: int
    saves: Path
    data: Path
    report: Path

    @property
    def base(self) -> Path:
        """The untrained checkpoint."""
        return self.saves / "base"

    @property
    def problems(self) -> Path:
        """Folder of train.jsonl, validation.jsonl and test.jsonl."""
        return self.data / "demo"

    def output(self, run: str) -> Path:
        """The output folder of a run, e.g. `tpaw_iter0`."""
        return self.saves / "full" / run


def layout(seed: int) -> Layout:
    """Return the folders of a seed: those of the committed run files for 0, otherwise its own folders."""
    if seed == 0:
        return Layout(0, SAVES, DATA, Path("demo_report"))
    saves = SAVES.with_name(f"{SAVES.name}-seed{seed}")
    return Layout(seed, saves, saves / "data", Path("demo_report") / f"seed{seed}")


def prepare_data_folder(place: Layout) -> None:
    """Give a further seed its own `dataset_dir`, with the committed entries of the demo."""
    if place.data == DATA:
        return
    entries = json.loads((DATA / "dataset_info.json").read_text(encoding="utf-8"))
    entries = {name: entry for name, entry in entries.items() if name.startswith("tiny_")}
    place.data.mkdir(parents=True, exist_ok=True)
    (place.data / "dataset_info.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def command(place: Layout, run: str) -> list[str]:
    """Return the command of a run: the committed run file, and overrides where the seed is not its own."""
    return ["llamafactory-cli", "train", f"yaml/tiny_{run}.yaml", *_overrides(place, run)]


def _overrides(place: Layout, run: str) -> list[str]:
    if place.seed == 0:
        return []
    method, _, number = run.partition("_iter")
    players = [place.output("sft" if t == 0 else f"{method}_iter{t - 1}") for t in range(int(number or 0) + 1)]
    model = place.base if run == "sft" else players[-1]
    keys = [
        f"model_name_or_path={model}",
        f"output_dir={place.output(run)}",
        f"dataset_dir={place.data}",
        f"seed={place.seed}",
    ]
    return [*keys, f"tpaw_players={','.join(map(str, players))}"] if number else keys
