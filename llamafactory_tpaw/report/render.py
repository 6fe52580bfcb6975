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
from .collect import Accuracy, Method, Point, Run, compare, mean, series


STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2933 }
body { max-width: 60rem; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin: 0 0 .4rem } h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem }
p { margin: .5rem 0 } .lead { font-size: 1.1rem } .quiet, figcaption { color: #52606d; font-size: .92rem }
table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem; width: 100% }
th:last-child, td:last-child { padding-right: 0 } th:first-child, td:first-child { padding-left: 0 }
td.text:first-child, td:last-child { white-space: nowrap }
th, td { text-align: right; padding: .32rem .6rem; border-bottom: 1px solid #e4e7eb; vertical-align: top }
th { font-weight: 600; border-bottom-color: #9aa5b1 } td { font-variant-numeric: tabular-nums }
th.text, td.text { text-align: left; font-variant-numeric: normal } .best { font-weight: 600 }
figure { margin: 1rem 0 } img { width: 100%; height: auto } code { font-size: .92em }
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
    r"""What a report says beside its numbers.

    Args:
        title: Heading of the page.
        introduction: Paragraphs of plain text on what was done.
        what: What the accuracy measures, e.g. `exact answers on 1,000 test problems`.
        noise: Paragraphs of plain text on what the numbers cannot tell.
        methods: The methods; the first is compared with the others.
    """

    title: str
    introduction: tuple[str, ...]
    what: str
    noise: tuple[str, ...]
    methods: tuple[Method, ...]


def write_report(page: Page, folder: Path) -> Path:
    r"""Draw the pictures and write them and `index.html` to a folder, each file whole or not at all.

    Returns:
        The path of `index.html`.
    """
    pictures = draw_pictures(page)
    for name, picture in pictures.items():
        write_atomic(folder / f"{name}.png", picture)
    path = folder / "index.html"
    write_atomic(path, render_page(page, pictures))
    return path


def draw_pictures(page: Page) -> dict[str, bytes]:
    """Draw every picture of a page, by name; those of what no run has logged, or nobody measured, are left out."""
    main, pictures = page.methods[0], {}
    is_measured = any(method.points for method in page.methods)
    if is_measured:
        pictures["accuracy"] = plots.draw_accuracy(page.methods, page.what)
    if any(series(method.runs, "rewards/target") for method in page.methods):
        pictures["rewards"] = plots.draw_rewards(page.methods)
    if is_measured and "rewards" in pictures:
        pictures["summary"] = plots.draw_summary(page.methods, page.what)
    if any(run.players for run in main.runs):
        pictures["weights"] = plots.draw_weights(main)
    return pictures


def render_page(page: Page, pictures: Mapping[str, bytes]) -> str:
    """Return the page's HTML: no scripts, no links, pictures inside, every text escaped."""
    main = page.methods[0]
    is_measured = "accuracy" in pictures
    lead = f'<p class="lead">{_headline(page)}</p>' if is_measured else ""
    parts = [f"<h1>{escape(page.title)}</h1>", lead, *_paragraphs(page.introduction)]
    parts += _accuracy_parts(page, pictures) if is_measured else []
    if "rewards" in pictures:
        parts += ["<h2>Rewards</h2>", _figure(pictures, "rewards", "Dotted lines: a new iteration begins.")]
        parts += _paragraphs([REWARD_HELP])
    if "weights" in pictures:
        parts += [f"<h2>Weights of {escape(main.label)}</h2>", _figure(pictures, "weights", "")]
        parts += _paragraphs([WEIGHTS_HELP])
    parts += ["<h2>Runs</h2>", _runs_table(page.methods)]
    head = f'<meta charset="utf-8"><title>{escape(page.title)}</title><style>{STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en"><head>{view}{head}</head>\n<body>\n{body}\n</body></html>\n'


def _accuracy_parts(page: Page, pictures: Mapping[str, bytes]) -> list[str]:
    return [
        "<h2>Accuracy</h2>",
        _figure(pictures, "accuracy", f"{_capital(page.what)}; the bars are 95 % intervals (Wilson)."),
        _accuracy_table(page.methods),
        "<h2>What was compared</h2>",
        _methods_table(page.methods),
        "<h2>How sure that is</h2>",
        _comparison_table(page.methods[0], page.methods[1:]),
        *_paragraphs(page.noise),
    ]


def _headline(page: Page) -> str:
    gains = []
    for method in page.methods:
        if method.last is not None:
            first, last = method.points[0].accuracy, method.last.accuracy
            gains.append(f"{escape(method.label)} {_percent(first.share)} → <b>{_percent(last.share)}</b>")
    return f"{escape(_capital(page.what))}: {'; '.join(gains)}."


def _accuracy_table(methods: Sequence[Method]) -> str:
    rows = []
    for method in methods:
        best = max((point.accuracy.share for point in method.points), default=None)
        for point in method.points:
            cells = [escape(method.label), _theta(point.label), f"{point.steps:,}", *_accuracy_cells(point.accuracy)]
            rows.append(_row(cells, text=2, marked=point.accuracy.share == best))
    head = ("method", "checkpoint", "optimizer steps since θ<sub>0</sub>", "correct", "accuracy", "95 % interval")
    return _table(head, rows, text=2)


def _accuracy_cells(accuracy: Accuracy) -> list[str]:
    low, high = accuracy.interval
    return [
        f"{accuracy.correct:,} of {accuracy.n:,}",
        _percent(accuracy.share),
        f"{_percent(low)} to {_percent(high)}",
    ]


def _methods_table(methods: Sequence[Method]) -> str:
    rows = []
    for method in methods:
        seconds = sum(sum(run.seconds.values()) for run in method.runs)
        seen = sum(run.seen for run in method.runs)
        kind = "triplets" if any(run.players for run in method.runs) else "examples"
        cells = [escape(method.label), escape(method.note), f"{method.steps:,}", f"{seen:,} {kind}", f"{seconds:,.0f}"]
        rows.append(_row(cells, text=2))
    return _table(("method", "what it is", "optimizer steps", "seen, with repeats", "seconds"), rows, text=2)


def _comparison_table(main: Method, others: Iterable[Method]) -> str:
    if main.last is None:
        return ""
    rivals: list[tuple[str, Point]] = [("θ<sub>0</sub>, its start", main.points[0])]
    rivals += [(f"{escape(other.label)}, {_theta(other.last.label)}", other.last) for other in others if other.last]
    rows = []
    for name, point in rivals:
        difference = compare(main.last.accuracy, point.accuracy)
        if difference is None:
            continue
        low, high = difference.interval
        sure = "<0.0001" if difference.p < 1e-4 else f"{difference.p:.4f}"
        cells = [name, _points(difference.share), f"{_points(low)} to {_points(high)}", escape(sure)]
        rows.append(_row(cells, text=1))
    if not rows:
        return ""
    lead = f"<p>{escape(main.label)}, {_theta(main.last.label)}, minus each of the others on the same problems:</p>"
    return lead + _table(("compared with", "difference, points", "95 % interval", "McNemar p"), rows, text=1)


def _runs_table(methods: Sequence[Method]) -> str:
    rows = []
    for method in methods:
        for run in method.runs:
            equal, flipped = mean(run, "generated/equal_fraction"), mean(run, "weights/step0_flipped_fraction")
            cells = [escape(method.label), _theta(run.produces), f"{run.steps:,}", _triplets(run)]
            cells += ["–" if equal is None else _percent(equal), "–" if flipped is None else _percent(flipped)]
            rows.append(_row([*cells, _seconds(run)], text=2))
    head = ("method", "produced", "steps", "distinct triplets", "generated = target", "α flipped at step 0", "seconds")
    return _table(head, rows, text=2)


def _triplets(run: Run) -> str:
    return "–" if run.distinct is None else f"{run.distinct:,}"


def _seconds(run: Run) -> str:
    return escape(", ".join(f"{name} {value:,.0f}" for name, value in run.seconds.items()))


def _figure(pictures: Mapping[str, bytes], name: str, caption: str) -> str:
    data = base64.b64encode(pictures[name]).decode("ascii")
    picture = f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"


def _table(head: Sequence[str], rows: Sequence[str], text: int) -> str:
    cells = "".join(f"<th{_kind(index < text)}>{name}</th>" for index, name in enumerate(head))
    return f"<table><tr>{cells}</tr>\n" + "\n".join(rows) + "</table>"


def _row(cells: Sequence[str], text: int, marked: bool = False) -> str:
    body = "".join(f"<td{_kind(index < text)}>{cell}</td>" for index, cell in enumerate(cells))
    return f'<tr class="best">{body}</tr>' if marked else f"<tr>{body}</tr>"


def _kind(is_text: bool) -> str:
    return ' class="text"' if is_text else ""


def _paragraphs(texts: Iterable[str]) -> list[str]:
    return [f"<p>{escape(text)}</p>" for text in texts]


def _theta(label: str) -> str:
    index = label.removeprefix("theta_")
    return f"θ<sub>{index}</sub>" if label.startswith("theta_") and index.isdigit() else escape(label)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")
