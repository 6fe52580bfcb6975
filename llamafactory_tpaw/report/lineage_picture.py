# SPDX-License-Identifier: Apache-2.0
"""The graph of a run as a picture: checkpoints from left to right, a row for each branch, triplets below them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.files import write_atomic
from ..errors import EnvironmentProblem
from .lineage import ABSENT, DAMAGED, ON_THE_WAY, OPPONENT, SERVED, TRAINING, Checkpoint, Graph, Triplets


if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = 1.15  # of one unit of the drawing
STEP = 2.3  # from a checkpoint to its children
ROW = 2.7
RISE = 1.28  # triplets stand above the gap between the checkpoint that generated them and its children
WIDTH, HEIGHT, LOW_HEIGHT = 1.62, 1.08, 0.7
LONGEST = 23
MANY = 4
DPI = 150
CHECKPOINT, TRIPLETS, OTHER, GONE = "#dcebf7", "#f7ead7", "#e9dff2", "#f2f2f2"
# Shapes of boxes: opponents are no checkpoints of the run.
ROUND, PILLOW = "round,pad=0,rounding_size=0.08", "round4,pad=0,rounding_size=0.12"
POLICY, GENERATED, DATA, FRAME, FAINT = "#1b4965", "#777777", "#b9772a", "#222222", "#555555"


class _Place(NamedTuple):
    """Centre of a box."""

    x: float
    y: float


def draw(graph: Graph, path: Path) -> None:
    r"""Draw the graph into a file of the kind that its name ends with.

    Raises:
        EnvironmentProblem: If the file cannot be written.
    """
    from matplotlib.figure import Figure

    places = place(graph)
    xs, ys = [spot.x for spot in places.values()], [spot.y for spot in places.values()]
    left, right, low, high = min(xs) - 1.0, max(xs) + 1.0, min(ys) - 1.25, max(ys) + 0.75
    figure = Figure(figsize=((right - left) * INCHES, (high - low) * INCHES))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.axis("off")
    _draw_edges(axes, graph, places)
    for node in graph.checkpoints.values():
        gone = _is_gone(node)
        color, shape, height = (OTHER, PILLOW, LOW_HEIGHT) if node.is_opponent else (CHECKPOINT, ROUND, HEIGHT)
        lines = _checkpoint_lines(graph, node)
        _box(axes, places[node.key], height, lines, GONE if gone else color, dashed=gone, shape=shape)
    for triplets in graph.triplets.values():
        gone = triplets.state in ABSENT | {DAMAGED}
        lines = [_symbol(triplets), _short(triplets.name), "not here" if gone else f"{triplets.rows} triplets"]
        _box(axes, places[triplets.key], LOW_HEIGHT, lines, GONE if gone else TRIPLETS, dashed=gone)
    _legend(axes)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=DPI)
    try:
        write_atomic(path, content.getvalue())
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be written: {error.strerror or error}. Choose another file."
        ) from error


def place(graph: Graph) -> dict[str, _Place]:
    r"""Put every node on its layer and row.

    Returns:
        Centres by key. A checkpoint is a step right of its parent, a first child in its parent's row, every other one
        in a row of its own. Triplets are half a step right of what generated them, above the row of the first
        checkpoint that was trained on them when they were new. Opponents are above the first triplets of theirs.
    """
    places: dict[str, _Place] = {}
    rows = 0

    def put(node: Checkpoint, depth: int, row: int) -> None:
        nonlocal rows
        places[node.key] = _Place(STEP * depth, -ROW * row)
        for index, child in enumerate(graph.children(node.key)):
            if index:
                rows += 1
            put(child, depth + 1, row if index == 0 else rows)

    for index, root in enumerate(root for root in graph.roots() if not root.is_opponent):
        if index:
            rows += 1
        put(root, 0, rows)
    for triplets in graph.triplets.values():
        spot = _above(graph, triplets, places)
        while any(abs(spot.x - other.x) < WIDTH and abs(spot.y - other.y) < LOW_HEIGHT for other in places.values()):
            spot = _Place(spot.x, spot.y + LOW_HEIGHT + 0.1)
        places[triplets.key] = spot
    _put_opponents(graph, places)
    return places


def _put_opponents(graph: Graph, places: dict[str, _Place]) -> None:
    for node in graph.checkpoints.values():
        if node.key in places:
            continue
        spot = min((places[triplets.key] for triplets in graph.generated(node.key)), default=_Place(0.0, 0.0))
        while any(abs(spot.x - other.x) < WIDTH and abs(spot.y - other.y) < HEIGHT for other in places.values()):
            spot = _Place(spot.x, spot.y + HEIGHT + 0.1)
        places[node.key] = spot


def _above(graph: Graph, triplets: Triplets, places: dict[str, _Place]) -> _Place:
    users = [node for node in graph.checkpoints.values() if triplets.key in node.triplets]
    if triplets.generator is not None and not triplets.by_opponent:
        source = places[triplets.generator]
        new_to = [places[user.key].y for user in users if user.parent == triplets.generator]
        return _Place(source.x + STEP / 2, max(new_to, default=source.y) + RISE)
    # Not from the line of checkpoints: before the first that was trained on them.
    first = min((places[user.key] for user in users), default=_Place(STEP, 0.0))
    return _Place(first.x - STEP / 2, first.y + RISE)


def _draw_edges(axes: Axes, graph: Graph, places: dict[str, _Place]) -> None:
    """Draw who was trained from whom, who generated what, and what was new to whom; boxes name the rest."""
    for start, end, kind in graph.edges():
        first, last = places[start], places[end]
        if kind == "policy":
            level = last.y == first.y
            way = [(first.x + WIDTH / 2, first.y)] if level else [(first.x + 0.1, first.y), (first.x + 0.1, last.y)]
            _arrow(axes, [*way, (last.x - WIDTH / 2, last.y)], POLICY, width=2.4)
        elif kind == "generated":
            way = [(first.x + 0.1, first.y), (first.x + 0.1, last.y), (last.x - WIDTH / 2, last.y)]
            if start in graph.checkpoints and graph.checkpoints[start].is_opponent:
                corner = [] if first.x == last.x else [(last.x, first.y)]
                way = [(first.x, first.y), *corner, (last.x, last.y + LOW_HEIGHT / 2)]
            _arrow(axes, way, GENERATED, style=":")
        elif kind == "data" and last.x - first.x <= STEP / 2:
            if last.y < first.y - RISE:
                x, y = first.x + 0.1, last.y + HEIGHT / 4
                way = [(x, first.y), (x, y), (last.x - WIDTH / 2, y)]
            else:
                way = [(first.x, first.y), (last.x - 0.15, first.y), (last.x - 0.15, last.y + HEIGHT / 2)]
            _arrow(axes, way, DATA)


def _arrow(axes: Axes, way: list[tuple[float, float]], color: str, *, width: float = 1.2, style: str = "-") -> None:
    """Draw a line through the points, behind the boxes, with a head at its end."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    line = FancyArrowPatch(path=Line(way), arrowstyle="-", linestyle=style, linewidth=width, color=color, zorder=1)
    axes.add_patch(line)
    (x, y), end = way[-2], way[-1]
    length = max(abs(end[0] - x), abs(end[1] - y))
    start = end[0] - 0.15 * (end[0] - x) / length, end[1] - 0.15 * (end[1] - y) / length
    head = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0, "linewidth": width}
    axes.add_patch(FancyArrowPatch(start, end, color=color, zorder=1, **head))


def _box(
    axes: Axes, spot: _Place, height: float, lines: list[str], color: str, *, dashed: bool, shape: str = ROUND
) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = spot.x - WIDTH / 2, spot.y - height / 2
    style: dict[str, Any] = {"facecolor": color, "edgecolor": FRAME, "linestyle": "--" if dashed else "-"}
    axes.add_patch(FancyBboxPatch(corner, WIDTH, height, boxstyle=shape, zorder=2, linewidth=1.0, **style))
    y = spot.y + height / 2 - 0.17
    for number, line in enumerate(lines):
        size, shade = ((11, FRAME), (7.5, FRAME))[number] if number < 2 else (7, FAINT)
        axes.text(spot.x, y, line, ha="center", va="center", fontsize=size, color=shade, zorder=3)
        y -= 0.22 if number == 0 else 0.18


def _checkpoint_lines(graph: Graph, node: Checkpoint) -> list[str]:
    name = OPPONENT if node.is_opponent else rf"$\theta_{{{node.theta}}}$"
    if node.manifest is not None and node.manifest.step is not None:
        name += f" at step {node.manifest.step}"
    known = "" if ":" in node.key else node.key[:12]
    if node.state == SERVED:
        known = "on a server"
    elif _is_gone(node):
        known = f"{known} {'damaged' if node.state == DAMAGED else 'not here'}"
    elif node.state in (TRAINING, ON_THE_WAY):
        known = "training" if node.state == TRAINING else "saved on the way"
    lines = [name, _short(Path(node.path).name), known]
    if node.manifest is not None:
        players = [rf"$\theta_{{{graph.checkpoints[key].theta}}}$" for key in node.players]
        data = [_symbol(graph.triplets[key]) for key in node.triplets]
        lines.append(f"{node.manifest.objective} against {_several(players)}" if players else node.manifest.objective)
        lines.append(f"on {_several(data)}" if data else "")
    return lines


def _is_gone(node: Checkpoint) -> bool:
    return node.state in (ABSENT | {DAMAGED}) - {SERVED}


def _symbol(triplets: Triplets) -> str:
    return "other data" if triplets.iteration is None else rf"$D_{{{triplets.iteration}}}$"


def _several(names: list[str]) -> str:
    return ", ".join(names if len(names) <= MANY else [names[0], names[1], "…", names[-1]])


def _short(text: str) -> str:
    """Cut the middle of a long name, and keep matplotlib from reading it as a formula."""
    half = LONGEST // 2
    cut = text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"
    return cut.replace("$", r"\$")


def _legend(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    kinds = {
        "trained from": {"color": POLICY, "linewidth": 2.4},
        "generated": {"color": GENERATED, "linestyle": ":"},
        "trained on, as the newest triplets": {"color": DATA},
    }
    handles = [Line2D([], [], **style) for style in kinds.values()]
    axes.legend(handles, list(kinds), loc="lower left", ncol=1, frameon=False, fontsize=8)
