# SPDX-License-Identifier: Apache-2.0
"""Draws a report's pictures as PNG bytes; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .collect import Method, series


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHOD_COLORS = ("#1b6ca8", "#c8553d", "#6b7280", "#3a7d44", "#7b4fa3")
METHOD_MARKERS = ("o", "s", "^", "D", "v")
PLAYER_COLORS = ("#9ecae1", "#4292c6", "#08519c", "#54278f", "#238b45")
PLAYER_STYLES = ("-", "--", "-.", ":")
REWARD_PANELS = (
    ("rewards/target", "target reward"),
    ("rewards/generated", "generated reward"),
    ("rewards/margin", "margin: target minus generated"),
    ("logps/target", "log-prob of the target, nats"),
)


def draw_accuracy(methods: Sequence[Method], what: str) -> bytes:
    r"""Draw the accuracy of every measured checkpoint over the optimizer steps since theta_0.

    Args:
        methods: In the order of their colours.
        what: What was measured, for the axis.

    Returns:
        A PNG.
    """
    figure, axes = _figure(1, 1, height=4.4)
    _accuracy_panel(axes[0], methods, what)
    return _png(figure)


def draw_rewards(methods: Sequence[Method]) -> bytes:
    """Draw target reward, generated reward, margin and target log-prob over the steps of all iterations, as a PNG."""
    played = [(index, method) for index, method in enumerate(methods) if series(method.runs, "rewards/target")]
    figure, axes = _figure(2, 2, height=6.6)
    for axis, (key, title) in zip(axes, REWARD_PANELS, strict=True):
        for index, method in played:
            _line(axis, method, key, index)
        if key.startswith("rewards/"):
            axis.axhline(0, color="#222222", linewidth=0.8)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("optimizer steps since $\\theta_0$")
    if played:
        axes[0].legend(frameon=False, fontsize=9)
    return _png(figure)


def draw_weights(method: Method) -> bytes:
    r"""Draw one method's player weights and how often a target is weighted by eta, over the steps of all iterations.

    Returns:
        A PNG.
    """
    figure, axes = _figure(1, 2, height=3.6)
    names = list(dict.fromkeys(name for run in method.runs for name in run.players))
    for index, name in enumerate(names):
        for number, run in enumerate(method.runs):
            points = _shifted(method, number, series([run], f"weights/player/{name}"))
            label = _theta(name) if run is next(r for r in method.runs if name in r.players) else None
            style = PLAYER_STYLES[index % len(PLAYER_STYLES)]
            color = PLAYER_COLORS[index % len(PLAYER_COLORS)]
            axes[0].plot(*_columns(points), color=color, linestyle=style, linewidth=2, label=label)
    axes[0].set_ylim(0, 1.05)
    axes[0].set_title("mean weight of each player", loc="left", fontsize=10)
    if names:
        axes[0].legend(frameon=False, fontsize=9, loc="upper right")
    for number, run in enumerate(method.runs):
        points = _shifted(method, number, series([run], "weights/target_eta_fraction"))
        axes[1].plot(*_columns(points), color=METHOD_COLORS[0], linewidth=2)
    axes[1].set_ylim(0, 1.05)
    axes[1].set_title("share of target weights that are eta", loc="left", fontsize=10)
    for axis in axes:
        _mark_iterations(axis, method)
        axis.set_xlabel("optimizer steps since $\\theta_0$")
    return _png(figure)


def draw_summary(methods: Sequence[Method], what: str) -> bytes:
    """Draw the accuracy and the target reward side by side, small enough for a README, as a PNG."""
    figure, axes = _figure(1, 2, height=3.7)
    _accuracy_panel(axes[0], methods, what)
    axes[0].set_title("accuracy", loc="left", fontsize=10)
    for index, method in enumerate(methods):
        if series(method.runs, "rewards/target"):
            _line(axes[1], method, "rewards/target", index)
    axes[1].axhline(0, color="#222222", linewidth=0.8)
    axes[1].set_title("target reward", loc="left", fontsize=10)
    axes[1].set_xlabel("optimizer steps since $\\theta_0$")
    axes[1].legend(frameon=False, fontsize=9)
    return _png(figure, dpi=110)


def _accuracy_panel(axis: Axes, methods: Sequence[Method], what: str) -> None:
    span = max((method.steps for method in methods), default=1)
    for index, method in enumerate(methods):
        shift = (index - (len(methods) - 1) / 2) * span * 0.006
        color, marker = METHOD_COLORS[index % len(METHOD_COLORS)], METHOD_MARKERS[index % len(METHOD_MARKERS)]
        at = [point.steps + (shift if point.steps else 0) for point in method.points]
        shares = [100 * point.accuracy.share for point in method.points]
        below = [100 * (point.accuracy.share - point.accuracy.interval[0]) for point in method.points]
        above = [100 * (point.accuracy.interval[1] - point.accuracy.share) for point in method.points]
        axis.errorbar(
            at, shares, [below, above], color=color, marker=marker, markersize=6, linewidth=1.8,
            elinewidth=1, capsize=3, label=_plain(method.label),
        )  # fmt: skip
        _name_thetas(axis, method, at, color, above=index == 0)
    axis.set_xlabel("optimizer steps since $\\theta_0$")
    axis.set_ylabel(f"{what}, %")
    axis.set_ylim(bottom=0)
    axis.margins(x=0.09)
    axis.legend(frameon=False, fontsize=9, loc="best")


def _name_thetas(axis: Axes, method: Method, at: Sequence[float], color: str, above: bool) -> None:
    """Write the name of each theta at the end of its interval; theta_0, which all share, only once."""
    from matplotlib.patheffects import withStroke

    for point, x in zip(method.points, at, strict=True):
        if point.label.startswith("theta_") and (point.steps or above):
            axis.annotate(
                _theta(point.label),
                (x, 100 * point.accuracy.interval[above]),
                (-3, 1) if above else (4, -1),
                textcoords="offset points",
                ha="right" if above else "left",
                va="bottom" if above else "top",
                color=color,
                fontsize=10,
                zorder=10,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )


def _line(axis: Axes, method: Method, key: str, index: int) -> None:
    color = METHOD_COLORS[index % len(METHOD_COLORS)]
    for number, run in enumerate(method.runs):
        points = _shifted(method, number, series([run], key))
        axis.plot(*_columns(points), color=color, linewidth=2, label=_plain(method.label) if number == 0 else None)
    _mark_iterations(axis, method, color)


def _mark_iterations(axis: Axes, method: Method, color: str = "#888888") -> None:
    before = 0
    for run in method.runs[:-1]:
        before += run.steps
        axis.axvline(before, color=color, linewidth=0.8, linestyle=":", alpha=0.7)


def _shifted(method: Method, number: int, points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    before = sum(run.steps for run in method.runs[:number])
    return [(before + step, value) for step, value in points]


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Split points into the two columns that are drawn; what is not finite leaves a gap."""
    return [step for step, _ in points], [value if math.isfinite(value) else math.nan for _, value in points]


def _theta(name: str) -> str:
    """Write `theta_2` as a formula; other names as plain text."""
    index = name.removeprefix("theta_")
    return f"$\\theta_{{{index}}}$" if name.startswith("theta_") and index.isdigit() else _plain(name)


def _plain(text: str) -> str:
    return text.replace("$", "\\$")


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
    return figure, axes


def _png(figure: Figure, dpi: int = 130) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
