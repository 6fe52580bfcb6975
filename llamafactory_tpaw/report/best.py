# SPDX-License-Identifier: Apache-2.0
"""Which of a run's checkpoints is the best on a task, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, DataError
from ..team.manifest import read_manifest
from .evaluate import read_evaluations
from .statistics import paired_difference


LOWER_IS_BETTER = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}


def name_best(folders: Sequence[Path], task: str | None, metric: str | None = None) -> list[str]:
    """Say in lines which checkpoint is the best on a task, by a metric or its first one, and how sure that is."""
    results = {folder: manifest.result if (manifest := read_manifest(folder)) else {} for folder in folders}
    kept = {folder: read_evaluations(folder, results[folder].get("fingerprint")) for folder in folders}
    known = sorted({name for evaluations in kept.values() for name in evaluations})
    task = known[0] if task is None and len(known) == 1 else task
    ranked = [(folder, evaluations[task]) for folder, evaluations in kept.items() if task in evaluations]
    if not ranked:
        what = f"--task is {task}, but the checkpoints are evaluated on: {', '.join(known) or 'nothing'}."
        raise ConfigError(f"{what} Name one of these, or evaluate them first (`llamafactory-tpaw eval`).")
    if len({(each.version, each.num_fewshot, each.limit, each.chat_template) for _, each in ranked}) > 1:
        raise DataError(f"The checkpoints were asked {task} in different ways. Evaluate all of them by one command.")
    main, metrics = ranked[0][1].metric, ranked[0][1].metrics
    wanted = next((key for key in (main, *metrics) if metric in (None, key, key.partition(",")[0])), None)
    if wanted is None:
        raise ConfigError(f"--metric is {metric}, but {task} has {', '.join(metrics)}. Name one of these.")
    ranked.sort(key=lambda pair: pair[1].metrics[wanted], reverse=wanted.partition(",")[0] not in LOWER_IS_BETTER)
    names = {folder: f"{results[folder].get('name', folder.name)} ({folder})" for folder in folders}
    (folder, best), *others = ranked
    value = f"{wanted} {best.metrics[wanted]:.4f} ± {best.metrics.get(wanted.replace(',', '_stderr,'), math.nan):.4f}"
    lines = [f"{names[folder]} is the best of {len(ranked)} on {task}: {value} ({best.n} items)."]
    lines += [f"{names[folder]} is not evaluated on {task}." for folder in folders if task not in kept[folder]]
    if not others:
        return lines
    folder, other = others[0]
    text = f"The next is {names[folder]} with {other.metrics[wanted]:.4f}"
    if wanted != main or not best.items or len(best.items) != len(other.items):
        return [*lines, f"{text}; the metric is not known item by item, so the difference has no interval."]
    found = paired_difference(best.items, other.items)
    low, high = found.interval
    text += f": a difference of {found.mean:+.4f} on the same items, 95 % interval {low:+.4f} to {high:+.4f}"
    return [*lines, f"{text}, {'within' if low <= 0 <= high else 'more than'} the noise of which items were drawn."]
