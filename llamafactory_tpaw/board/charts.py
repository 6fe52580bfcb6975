# SPDX-License-Identifier: Apache-2.0
"""Live charts of a run: loss, target reward, margin and player weights over the iterations played so far."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report.plots import METHOD_COLORS, PLAYER_STYLES
from .locales import FALLBACK, say
from .summary import earlier_iterations
from .training_log import WEIGHT, TrainingLog


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .play import Play

# Metric, message with its name, whether 0 is worth a line.
PANELS = (
    ("loss", "column_loss", False),
    ("rewards/target", "column_target_reward", True),
    ("rewards/margin", "column_margin", True),
)
ACCURACY = ("rewards/accuracy", "column_reward_accuracy", False)
# Dark enough for white, apart also without colours; as many as teams have players, and then again.
PLAYER_COLORS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b4fa3", "#8a6d00", "#0f7c85")
INK, QUIET, PAPER = "#1f2933", "#52606d", "#ffffff"
MOST_POINTS = 400
PANEL_INCHES = (4.5, 2.9)
# Gradio lays the label of a plot over its upper left corner.
LABEL_INCHES = 0.3
DPI = 140
# Fonts with the signs of languages that matplotlib's own font lacks, as systems name them.
FONTS = {
    "zh": ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    "ja": ("Noto Sans CJK JP", "Noto Sans JP", "Source Han Sans JP", "IPAexGothic", "IPAGothic", "TakaoGothic"),
    "ko": ("Noto Sans CJK KR", "Noto Sans KR", "Source Han Sans KR", "NanumGothic", "UnDotum"),
}
OTHER_FONTS = {
    "zh": ("PingFang SC", "Heiti SC", "Microsoft YaHei", "SimHei", "Arial Unicode MS"),
    "ja": ("Hiragino Sans", "Yu Gothic", "Meiryo", "MS Gothic", "Arial Unicode MS"),
    "ko": ("Apple SD Gothic Neo", "AppleGothic", "Malgun Gothic", "Gulim", "Arial Unicode MS"),
}


class Charts:
    r"""The charts of iterations that follow each other; what is drawn again reads only what their logs gained.

    Args:
        folders: Output folders, in the order in which they are played.
        iterations: Number of the iteration of each; None for one of another stage.
    """

    def __init__(self, folders: Sequence[str | Path], iterations: Sequence[int | None]) -> None:
        self.iterations = list(iterations)
        self._logs = [TrainingLog(folder) for folder in folders]
        self._lock = threading.Lock()
        self._drawn: tuple[Any, Figure] | None = None

    @classmethod
    def of(cls, play: Play) -> Charts:
        """The charts of a run that was started, and of the iterations that its first model came from."""
        model = play.settings[0].get("adapter_name_or_path") or play.settings[0].get("model_name_or_path")
        before = earlier_iterations(str(model or ""))
        return cls([*before.values(), *play.folders], [*before, *play.iterations])

    def figure(self, lang: str | None, columns: int = 2) -> Figure:
        r"""Draw them; the same figure again where nothing was logged since.

        Args:
            lang: Language of the page. One whose signs no font of the machine has is drawn in English.
            columns: Panels side by side: 2 for a whole page, 1 for a narrow column.

        Returns:
            A figure on white, legible on a light and a dark page. Show it, do not change it.
        """
        with self._lock:
            state = tuple((len(log.read().series), log.last_step, log.entries) for log in self._logs), lang, columns
            if self._drawn is None or self._drawn[0] != state:
                self._drawn = state, self._draw(lang, columns)
            return self._drawn[1]

    def _draw(self, lang: str | None, columns: int) -> Figure:
        import matplotlib

        language, fonts = _language_and_fonts(lang or FALLBACK)
        with matplotlib.rc_context({"font.family": fonts, "font.size": 11}):
            if not any(log.series for log in self._logs):
                return _empty(say("chart_empty", language), columns)
            has_players = any(log.players for log in self._logs)
            panels = [*PANELS] if has_players else [*PANELS, ACCURACY]
            figure, axes = _figure(len(panels) + has_players, columns)
            for axis, (key, message, marks_zero) in zip(axes, panels, strict=False):
                for start, log in self._spans():
                    _line(axis, log, key, start, color=METHOD_COLORS[0])
                if marks_zero:
                    axis.axhline(0, color=INK, linewidth=0.8)
                self._finish(axis, say(message, language), language)
            if has_players:
                self._draw_weights(axes[-1])
                self._finish(axes[-1], say("column_player_weight", language), language)
        return figure

    def _draw_weights(self, axis: Axes) -> None:
        names = list(dict.fromkeys(name for log in self._logs for name in log.players))
        for index, name in enumerate(names):
            look = {"color": PLAYER_COLORS[index % len(PLAYER_COLORS)]}
            look["linestyle"] = PLAYER_STYLES[index % len(PLAYER_STYLES)]
            label = name.replace("$", "")
            label = f"$\\theta_{{{label[6:]}}}$" if label.startswith("theta_") else label
            for start, log in self._spans():
                if f"{WEIGHT}{name}" in log.series:
                    _line(axis, log, f"{WEIGHT}{name}", start, label=label, **look)
                    label = None
        axis.set_ylim(-0.03, 1.15)
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
        close = {"borderpad": 0, "borderaxespad": 0.4, "columnspacing": 1, "handlelength": 1.6}
        axis.legend(
            frameon=False, fontsize=10, ncols=min(len(names), 3), loc="lower right", bbox_to_anchor=(1, 1), **close
        )

    def _spans(self) -> Iterator[tuple[int, TrainingLog]]:
        """Each log with the optimizer steps before it."""
        before = 0
        for log in self._logs:
            yield before, log
            before += log.last_step

    def _finish(self, axis: Axes, title: str, language: str) -> None:
        """Name a panel and mark where its iterations begin."""
        axis.set_title(title, loc="left", fontsize=12, color=INK)
        begun = [
            (start, number)
            for (start, log), number in zip(self._spans(), self.iterations, strict=True)
            if log.last_step and number is not None
        ]
        several = len(begun) > 1
        legend = f"      ┊ {say('column_iteration', language)}" if several else ""
        axis.set_xlabel(say("chart_step", language) + legend, color=INK)
        if several:
            axis.set_xlim(left=begun[0][0])
        for index, (start, number) in enumerate(begun if several else []):
            if index:
                axis.axvline(start, color=QUIET, linewidth=1, linestyle=":")
            place = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points", "va": "top"}
            axis.annotate(str(number), (start, 1), (4, -1), fontsize=10, color=QUIET, fontweight="bold", **place)


def _line(axis: Axes, log: TrainingLog, key: str, start: int, **look: Any) -> None:
    if key in log.series:
        steps, values = log.series[key].thinned(MOST_POINTS)
        marker = "o" if len(steps) < 3 else None
        axis.plot(start + steps, values, linewidth=1.8, marker=marker, markersize=4, **look)


def _figure(panels: int, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-panels // columns)
    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + LABEL_INCHES)
    figure = Figure(figsize=size, dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes: list[Any] = list(figure.subplots(rows, columns, squeeze=False).flat)
    # Fixed margins: fitting them to the text takes longer than all the rest.
    (width, height), inner = size, {"wspace": 0.19, "hspace": 0.48}
    figure.subplots_adjust(0.7 / width, 0.55 / height, 1 - 0.12 / width, 1 - (0.35 + LABEL_INCHES) / height, **inner)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(QUIET)
        axis.tick_params(colors=INK)
        axis.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.margins(x=0.02, y=0.12)
    return figure, axes


def _empty(text: str, columns: int) -> Figure:
    figure, (axis,) = _figure(1, 1)
    figure.set_size_inches(PANEL_INCHES[0] * columns, 1.2)
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", color=INK, transform=axis.transAxes)
    return figure


@functools.cache
def _language_and_fonts(lang: str) -> tuple[str, list[str]]:
    """The language to draw in, and fonts that have its signs."""
    from matplotlib import font_manager

    wanted = [*FONTS.get(lang, ()), *OTHER_FONTS.get(lang, ())]
    present = {font.name for font in font_manager.fontManager.ttflist}
    found = [name for name in wanted if name in present]
    return (lang, ["DejaVu Sans", *found[:1]]) if found or not wanted else (FALLBACK, ["DejaVu Sans"])
