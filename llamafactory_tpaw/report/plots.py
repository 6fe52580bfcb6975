# SPDX-License-Identifier: Apache-2.0
"""Draws a report's pictures as PNG bytes; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .collect import Method


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHOD_COLORS = ("#1b6ca8", "#c8553d", "#6b7280", "#3a7d44", "#7b4fa3")
PLAYER_STYLES = ("-", "--", "-.", ":")
REWARD_PANELS = (
    ("rewards/target", "target reward"),
    ("rewards/generated", "generated reward"),
    ("rewards/margin", "margin: target minus generated"),
    ("logps/target", "log-prob of the target, nats"),
)


def draw_rewards(methods: Sequence[Method]) -> bytes:
    """Draw target reward, generated reward, margin and target log-prob over the steps of all iterations, as a PNG."""
    figure, axes = _figure(2, 2, height=6.6)
    for axis, (key, title) in zip(axes, REWARD_PANELS, strict=True):
        for index, method in enumerate(methods):
            color = METHOD_COLORS[index % len(METHOD_COLORS)]
            _draw_lines(axis, method, key, color=color, label=_plain(method.label))
        if key.startswith("rewards/"):
            axis.axhline(0, color="#222222", linewidth=0.8)
        axis.set_title(title, loc="left", fontsize=10)
    axes[0].legend(frameon=False, fontsize=9)
    return _png(figure)


def draw_weights(method: Method) -> bytes:
    """Draw one method's player weights and the share of target weights that are eta, as a PNG."""
    figure, axes = _figure(1, 2, height=3.6)
    names = list(dict.fromkeys(name for run in method.runs for name in run.players))
    for index, name in enumerate(names):
        look = {"color": METHOD_COLORS[index % len(METHOD_COLORS)], "linestyle": PLAYER_STYLES[index % 4]}
        _draw_lines(axes[0], method, f"weights/player/{name}", label=_plain(name), **look)
    _draw_lines(axes[1], method, "weights/target_eta_fraction", color=METHOD_COLORS[0])
    for axis, title in zip(axes, ("mean weight of each player", "share of target weights that are eta"), strict=True):
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylim(0, 1.05)
    if names:
        axes[0].legend(frameon=False, fontsize=9, loc="upper right")
    return _png(figure)


def draw_accuracy(methods: Sequence[Method], what: str) -> bytes:
    """Draw the accuracy, `what` names it, of every measured checkpoint over the optimizer steps, as a PNG."""
    figure, (axis,) = _figure(1, 1, height=4.4)
    span = max((method.steps for method in methods), default=1)
    for index, method in enumerate(methods):
        # Beside each other, so that intervals at the same step do not hide one another.
        shift = (index - (len(methods) - 1) / 2) * span * 0.006
        look = {"color": METHOD_COLORS[index % len(METHOD_COLORS)], "marker": "os^Dv"[index % 5]}
        at = [point.steps + (shift if point.steps else 0) for point in method.points]
        found = [point.accuracy for point in method.points]
        below = [100 * (accuracy.share - accuracy.interval[0]) for accuracy in found]
        above = [100 * (accuracy.interval[1] - accuracy.share) for accuracy in found]
        shares = [100 * accuracy.share for accuracy in found]
        axis.errorbar(at, shares, [below, above], **look, linewidth=1.8, capsize=3, label=_plain(method.label))
        for point, x in zip(method.points, at, strict=True):
            if point.label.startswith("theta_") and (point.steps or index == 0):  # theta_0, which all share, once
                place, name = (x, 100 * point.accuracy.interval[index == 0]), _plain(point.label)
                axis.annotate(name, place, ha="right", va="top" if index else "bottom", color=look["color"])
    axis.set_ylabel(f"{_plain(what)}, %")
    axis.set_ylim(bottom=0)
    axis.margins(x=0.09)
    axis.legend(frameon=False, fontsize=9, loc="best")
    return _png(figure)


def _draw_lines(axis: Axes, method: Method, key: str, label: str | None = None, **look: Any) -> None:
    """Draw a metric's line of each run, and a dotted one where an iteration ends; what is not finite leaves a gap."""
    before = 0
    for run, points in zip(method.runs, method.series(key), strict=False):
        if points:
            steps, values = zip(*points, strict=True)
            shown = [value if math.isfinite(value) else math.nan for value in values]
            axis.plot(steps, shown, linewidth=2, label=label, **look)
            label = None
        before += run.steps
        if run is not method.runs[-1]:
            axis.axvline(before, color=look["color"], linewidth=0.8, linestyle=":", alpha=0.7)


def _plain(text: str) -> str:
    """Take from a text what matplotlib would read as a formula, and write `theta_2` as one."""
    index = text.removeprefix("theta_")
    is_theta = text.startswith("theta_") and index.isdigit()
    return f"$\\theta_{{{index}}}$" if is_theta else text.replace("$", "\\$")


def _figure(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.set_xlabel("optimizer steps since $\\theta_0$")
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
