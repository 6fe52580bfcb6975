# SPDX-License-Identifier: Apache-2.0
"""Writes the report: a page that needs nothing but itself, and its pictures as files beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..data.files import write_atomic
from . import plots
from .collect import Method, Point, compare


STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2933; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.7rem; margin: 0 0 .4rem } h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem }
p { margin: .5rem 0 } figcaption { color: #52606d; font-size: .92rem }
table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem; width: 100% }
th, td { text-align: right; padding: .32rem .6rem; border-bottom: 1px solid #e4e7eb; vertical-align: top }
.text { text-align: left } th, .best { font-weight: 600 } td { font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 } img { width: 100%; height: auto }
"""
REWARD_HELP = (
    "A player's reward of a response is the reward scale times how much more likely the trained model finds it than "
    "that player does; the pictures show means over the players. The target reward falls below 0 where the model "
    "forgets the target to get away from what it generated, and ends above 0 where it learns the target. Read it "
    "together with the log-prob itself: every iteration measures from newer players, so the reward starts again."
)
WEIGHTS_HELP = (
    "Left: how much each past checkpoint counts in the loss; equal weights mean that all of them separate target and "
    "generated alike. Right: the share of target rewards, over triplets and players, that are not positive and so are "
    "weighted by eta. At the first step of an iteration the newest player is the model itself: its rewards are 0."
)


@dataclass(frozen=True)
class Page:
    """What a report says beside its numbers, as plain text; the first of the methods is compared with the others.

    `what` names what the accuracy measures, `noise` has paragraphs on what the numbers cannot tell.
    """

    title: str
    introduction: tuple[str, ...]
    what: str
    noise: tuple[str, ...]
    methods: tuple[Method, ...]


def write_report(page: Page, folder: Path) -> Path:
    """Write a page and its pictures to a folder, each file whole or not at all, and return the path of the page."""
    pictures = draw_pictures(page)
    for name, picture in pictures.items():
        write_atomic(folder / f"{name}.png", picture)
    write_atomic(folder / "index.html", render_page(page, pictures))
    return folder / "index.html"


def draw_pictures(page: Page) -> dict[str, bytes]:
    """Draw every picture of a page, by name; those of what no run has logged or measured are left out."""
    main, pictures = page.methods[0], {}
    if any(method.points for method in page.methods):
        pictures["accuracy"] = plots.draw_accuracy(page.methods, page.what)
    if any(method.series("rewards/target") for method in page.methods):
        pictures["rewards"] = plots.draw_rewards(page.methods)
    if any(run.players for run in main.runs):
        pictures["weights"] = plots.draw_weights(main)
    return pictures


def render_page(page: Page, pictures: Mapping[str, bytes]) -> str:
    """Return the page's HTML: no scripts, no links, pictures inside, every text escaped."""
    main = page.methods[0]
    parts = [_tag("h1", page.title), *_paragraphs(page.introduction)]
    if "accuracy" in pictures:
        caption = f"{page.what[:1].upper()}{page.what[1:]}; the bars are 95 % intervals (Wilson)."
        parts += [_tag("h2", "Accuracy"), *_paragraphs(map(_described, page.methods))]
        parts += [_picture(pictures, "accuracy", caption), _accuracy_table(page.methods)]
        parts += [_tag("h2", "How sure that is"), *_comparison(main, page.methods[1:]), *_paragraphs(page.noise)]
    if "rewards" in pictures:
        caption = "Dotted lines: a new iteration begins."
        parts += [_tag("h2", "Rewards"), _picture(pictures, "rewards", caption), _tag("p", REWARD_HELP)]
    if "weights" in pictures:
        parts += [_tag("h2", f"Weights of {main.label}"), _picture(pictures, "weights", ""), _tag("p", WEIGHTS_HELP)]
    parts += [_tag("h2", "Runs"), _runs_table(page.methods)]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"{_tag('title', page.title)}<style>{STYLE}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _accuracy_table(methods: Sequence[Method]) -> str:
    rows, best = [], set()
    for method in methods:
        most = max((point.accuracy.share for point in method.points), default=None)
        for point in method.points:
            if point.accuracy.share == most:
                best.add(len(rows))
            interval = " to ".join(_percent(end) for end in point.accuracy.interval)
            solved = f"{point.accuracy.correct:,} of {point.accuracy.n:,}"
            rows.append(
                [method.label, point.label, f"{point.steps:,}", solved, _percent(point.accuracy.share), interval]
            )
    head = ("method", "checkpoint", "optimizer steps since theta_0", "correct", "accuracy", "95 % interval")
    return _table(head, rows, text=2, best=best)


def _described(method: Method) -> str:
    seconds = sum(sum(run.seconds.values()) for run in method.runs)
    gain = ""
    if method.last is not None:
        gain = f"{_percent(method.points[0].accuracy.share)} → {_percent(method.last.accuracy.share)}, "
    return f"{method.label} ({gain}{method.steps:,} optimizer steps, {seconds:,.0f} seconds): {method.note}"


def _comparison(main: Method, others: Iterable[Method]) -> list[str]:
    if main.last is None:
        return []
    rivals: list[tuple[str, Point]] = [("theta_0, its start", main.points[0])]
    rivals += [(f"{other.label}, {other.last.label}", other.last) for other in others if other.last]
    rows = []
    for name, point in rivals:
        if difference := compare(main.last.accuracy, point.accuracy):
            interval = " to ".join(_points(end) for end in difference.interval)
            rows.append([name, _points(difference.share), interval])
    lead = f"{main.label}, {main.last.label}, minus each of the others on the same problems:"
    head = ("compared with", "difference, points", "95 % interval")
    return [_tag("p", lead), _table(head, rows, text=1)] if rows else []


def _runs_table(methods: Sequence[Method]) -> str:
    rows = []
    for method in methods:
        for run in method.runs:
            seconds = ", ".join(f"{name} {value:,.0f}" for name, value in run.seconds.items())
            triplets = "–" if run.triplets is None else f"{run.triplets:,}"
            rows.append([method.label, run.produces, f"{run.steps:,}", triplets, seconds])
    return _table(("method", "produced", "steps", "triplets", "seconds"), rows, text=2)


def _tag(name: str, text: str, kind: str = "") -> str:
    return f"<{name}{f' class={kind}' if kind else ''}>{escape(text)}</{name}>"


def _paragraphs(texts: Iterable[str]) -> list[str]:
    return [_tag("p", text) for text in texts]


def _picture(pictures: Mapping[str, bytes], name: str, caption: str) -> str:
    data = base64.b64encode(pictures[name]).decode("ascii")
    picture = f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}{_tag('figcaption', caption)}</figure>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text: int, best: Iterable[int] = ()) -> str:
    """Return a table whose first `text` columns are words and whose rows `best` are marked; cells are escaped."""

    def line(name: str, cells: Sequence[str]) -> str:
        return "".join(_tag(name, cell, "text" if index < text else "") for index, cell in enumerate(cells))

    body = [f"<tr{' class=best' if index in best else ''}>{line('td', row)}</tr>" for index, row in enumerate(rows)]
    return f"<table><tr>{line('th', head)}</tr>\n{chr(10).join(body)}</table>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")
