# SPDX-License-Identifier: Apache-2.0
"""What the demo's report says before the figures: what was found, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llamafactory_tpaw.report.collect import Method, collect
from llamafactory_tpaw.report.page import blocks_of
from llamafactory_tpaw.report.render import Block, Heading, Table, write_page
from llamafactory_tpaw.report.statistics import ItemDifference, holm, paired_difference

from .make_task import PLAYED, SIZES


TASK = "word_problems"
INTRODUCTION = (
    "A tiny model of the Qwen2 architecture learned {train:,} word problems by supervised fine-tuning from random "
    "weights (θ₀). With {played} of these problems it then played three iterations: by TPAW and by SPIN it answers "
    "them, and learns to prefer the given answers to its own. Beside these are the baselines on the same {played}: "
    "supervised fine-tuning by as many optimizer steps as TPAW takes, and by as many epochs.",
    "Accuracy is the share of {test:,} new problems whose final number is right when the model answers greedily. No "
    "calculation of a test problem appears in training.",
)
RESTARTS = (
    "More supervised fine-tuning on all {train:,} problems, from θ₀ with a new optimizer. If θ₀ is at its optimum, no "
    "restart gains more than the noise of which problems are asked."
)
NOISE = (
    "All differences of this page are of one seed, with the noise of which problems are asked; docs/reproduction.md "
    "has eight seeds of a smaller model. A tiny model on one synthetic task does not rank methods."
)


def differences(methods: Sequence[Method]) -> dict[str, tuple[ItemDifference, float]]:
    """Compare each method's last checkpoint with its θ₀ on the same problems, by label, with p corrected by Holm."""
    found = {}
    for method in methods:
        scores = method.scores(TASK)
        (last,), (first,) = (scores[name].values() for name in (method.last(TASK), "theta_0"))
        found[method.label] = paired_difference(last["items"], first["items"])
    return dict(zip(found, zip(found.values(), holm([each.p for each in found.values()]), strict=True), strict=True))


def what_was_found(found: Mapping[str, tuple[ItemDifference, float]], start: float) -> str:
    """Say in one sentence which methods gain on a θ₀ of accuracy `start`, which lose, and by how much."""
    shown = {label: each.mean for label, (each, p) in found.items() if p < 0.05}
    words = []
    for name, labels in (
        ("gains", [label for label, mean in shown.items() if mean > 0]),
        ("loses", [label for label, mean in shown.items() if mean < 0]),
    ):
        words.append(f"{' and '.join(labels) or 'nothing'} {name if len(labels) < 2 else name.removesuffix('s')}")
    amounts = "; ".join(f"{label} {_points(each)}" for label, (each, _) in found.items())
    n = next(iter(found.values()))[0].n
    text = (
        f"{words[0]} more than the noise here, and {words[1]}: θ₀ solves {100 * start:.1f} % of {n:,} new problems. "
        f"After three iterations it is in points, with 95 % intervals over the same problems: {amounts}."
    )
    return text[0].upper() + text[1:]


def _points(found: ItemDifference) -> str:
    low, high = found.interval
    return f"{100 * found.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")


def restart_blocks(restarts: Sequence[Method]) -> list[Block]:
    """List what more supervised fine-tuning on all problems changed."""
    rows = []
    for (label, (found, p)), method in zip(differences(restarts).items(), restarts, strict=True):
        (point,) = method.points()[method.last(TASK)].values()
        rows.append([label, f"{100 * point.evaluations[TASK]['value']:.1f}", _points(found), f"{p:.2f}"])
    head = ("from θ₀", "accuracy, %", "minus θ₀, points", "McNemar p (Holm)")
    return [Heading("Is θ₀ at its optimum?"), RESTARTS.format(**SIZES), Table(head, rows)]


def build_report(played: Path, restarted: Path, folder: Path) -> tuple[Path, str]:
    """Write the page on the results of both studies, and return its path and its first sentence."""
    methods = collect([played])
    (start,) = methods[0].scores(TASK)["theta_0"].values()
    first = what_was_found(differences(methods), start["value"])
    texts = [text.format(**SIZES, played=PLAYED) for text in INTRODUCTION]
    blocks = blocks_of(methods, [*texts, *restart_blocks(collect([restarted]))], [NOISE])
    return write_page("Self-play of a tiny model on word problems", [first, *blocks], folder), first
