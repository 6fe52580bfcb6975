# SPDX-License-Identifier: Apache-2.0
"""Draws a report's pictures as PNG bytes; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple


# Told apart without colours, too: with lengths without a common divisor, 70 lines look different.
COLORS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b4fa3", "#8a6d00", "#5f6b7a", "#b03a7e")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES = ((5, 1, 1, 1, 1, 1), (8, 2), (1, 1), (3, 1, 1, 1), (6, 3, 2, 3))
STYLES = ("-", "--", "-.", ":", *((0, dashes) for dashes in DASHES))
SIZE, DPI = (4.8, 3.9), 150


class Line(NamedTuple):
    """What is drawn in one look: the curve of each seed as points (x, y), and intervals of their means, by x."""

    label: str
    seeds: Sequence[Sequence[tuple[float, float]]]
    intervals: Mapping[float, tuple[float, float] | None] = {}

    def mean(self) -> list[tuple[float, float]]:
        """Return the mean over the seeds at every x that all of them have; what is not finite is a gap."""
        curves = [dict(curve) for curve in self.seeds if curve]
        shared = sorted(set.intersection(*map(set, curves))) if curves else []
        means = [(x, sum(curve[x] for curve in curves) / len(curves)) for x in shared]
        return [(x, y if math.isfinite(y) else math.nan) for x, y in means]


def draw(title: str, across: str, lines: Sequence[Line], marks: Sequence[float] = ()) -> bytes:
    """Draw a mean over seeds for each line, each seed faint behind it, as a PNG; `marks` are x of dotted lines.

    Lines have their looks by their order, so that those without points keep them for other pictures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_title(_plain(title), loc="left", fontsize=10.5)
    axis.set_xlabel(_plain(across))
    for x in marks:
        axis.axvline(x, color="#777777", linewidth=0.8, linestyle=":")
    drawn = [(index, line, mean) for index, line in enumerate(lines) if (mean := line.mean())]
    ticks = sorted({x for _, _, mean in drawn for x, _ in mean})
    heights = [y for _, _, mean in drawn for _, y in mean]
    if any(y < 0 for y in heights) and any(y > 0 for y in heights):
        axis.axhline(0, color="#222222", linewidth=0.8)
    for place, (index, line, mean) in enumerate(drawn):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        # Beside each other, so that intervals at the same x do not hide one another.
        shift = (place - (len(drawn) - 1) / 2) * (ticks[-1] - ticks[0]) * 0.015 if line.intervals else 0.0
        faint = {"linestyle": "", "marker": marker, "markersize": 4} if line.intervals else {"linewidth": 0.8}
        for curve in line.seeds if len(line.seeds) > 1 else ():
            axis.plot([x + shift for x, _ in curve], [y for _, y in curve], color=color, alpha=0.25, **faint)
        for x, ends in line.intervals.items():
            axis.plot([x + shift] * 2, ends or [math.nan] * 2, color=color, linewidth=1.5)
        look = {"color": color, "marker": marker, "linestyle": STYLES[index % len(STYLES)], "linewidth": 1.7}
        xs, ys = [x + shift for x, _ in mean], [y for _, y in mean]
        axis.plot(xs, ys, markevery=max(1, len(mean) // 8), label=_plain(line.label), **look)
    if len(ticks) < 8:
        spread = 0.05 * (ticks[-1] - ticks[0])
        axis.set_xticks([x for before, x in itertools.pairwise([-math.inf, *ticks]) if x - before > spread])
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5, handlelength=3.2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _plain(text: str) -> str:
    """Take from a text what matplotlib would read as a formula, and write `theta_2` as one."""
    parts = re.split(r"\btheta_(\w)\b", text)
    return "".join(
        f"$\\theta_{{{part}}}$" if index % 2 else part.replace("$", "\\$") for index, part in enumerate(parts)
    )
