# SPDX-License-Identifier: Apache-2.0
"""The graph of a run as a tree for the terminal: each checkpoint below the one it was trained from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.padding import Padding
from rich.text import Text
from rich.tree import Tree

from .lineage import (
    ABSENT,
    DAMAGED,
    EXPECTED_CHANGES,
    FOREIGN,
    ON_THE_WAY,
    OPPONENT,
    SERVED,
    START,
    TRAINING,
    Checkpoint,
    Graph,
    Triplets,
    changed_settings,
)


if TYPE_CHECKING:
    from collections.abc import Mapping

DIGITS = 12
STATES = {
    "start": "the start: no tpaw.json",
    "training": "training, not finished",
    "missing": "missing",
    "replaced": "missing: another one is in its place now",
    "hub": "on a hub",
    "served": "on a server",
    "pruned": "weights pruned",
    "opponent": "generated in place of a theta",
    "damaged": "its description cannot be read",
    "foreign": "other preference data",
}
# What says how something was sampled, in this order, where it was recorded.
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")
# Settings that the lines above them say, or that every iteration has.
OF_EVERY_RUN = EXPECTED_CHANGES | {"stage", "do_train"}
SPENT = (
    ("generate", "generated_tokens", "generating"),
    ("score", "scored_tokens", "scoring"),
    ("train", None, "training"),
)


def as_trees(graph: Graph) -> list[Tree]:
    """One tree a root. A chain of iterations stays on one level; each of several children has a level of its own."""
    trees = []
    for root in graph.roots():
        tree = Tree(_checkpoint(graph, root))
        _add_what_followed(graph, root, tree)
        trees.append(tree)
    orphans = [node for node in graph.triplets.values() if node.generator is None and node.state != FOREIGN]
    if orphans:
        tree = Tree(Text("triplets whose generator is not known", style="bold"))
        for node in orphans:
            tree.add(_triplets(graph, node))
        trees.append(tree)
    return trees


def _add_what_followed(graph: Graph, node: Checkpoint, tree: Tree) -> None:
    while True:
        for triplets in graph.generated(node.key):
            tree.add(_triplets(graph, triplets))
        children = graph.children(node.key)
        if len(children) != 1:
            break
        (node,) = children
        tree.add(_checkpoint(graph, node))
    for child in children:
        _add_what_followed(graph, child, tree.add(_checkpoint(graph, child)))


def _checkpoint(graph: Graph, node: Checkpoint) -> Group:
    parent = graph.checkpoints.get(node.parent or "")
    name = (
        node.name
        if node.manifest is None or node.manifest.step is None
        else f"{node.name} at step {node.manifest.step}"
    )
    state = OPPONENT if node.is_opponent and node.state == START else node.state
    title = _title(f"{name} <- {parent.name}" if parent else name, node.path, node.key, state)
    manifest = node.manifest
    if manifest is None:
        return Group(title)
    when = manifest.finished or manifest.started
    lines = []
    if when:
        lines.append(
            f"{'saved' if node.state == ON_THE_WAY else 'begun' if node.state == TRAINING else 'finished'} "
            f"{_time(when)}"
        )
    against = ", ".join(graph.checkpoints[key].name for key in node.players)
    data = ", ".join(graph.triplets[key].name for key in node.triplets)
    played = f"iteration {manifest.iteration}, {manifest.objective}"
    lines.append(f"{played}{f' against {against}' if against else ''}, on {data or 'nothing'}")
    changes = changed_settings(graph, node)
    if changes:
        lines.append(f"changed: {'; '.join(changes)}")
    elif parent is None or parent.manifest is None:
        settings = {key: value for key, value in manifest.settings.items() if key not in OF_EVERY_RUN}
        lines.append(f"settings: {_listed(settings)}")
    spent = _spent(manifest.seconds, manifest.counts)
    if spent:
        lines.append(f"spent: {spent}{_on(manifest.hardware)}")
    return _with(title, lines)


def _triplets(graph: Graph, node: Triplets) -> Group:
    title = _title(f"D_{node.iteration} {node.name}", node.path, node.key, node.state)
    meta = node.meta
    if meta is None:
        return _with(title, [f"{node.rows} triplets{f' of an {OPPONENT}' if node.by_opponent else ''}"])
    samples = f"{meta.samples} a prompt, " if meta.samples > 1 else ""
    failed = f"{len(meta.failed)} failed, " if meta.failed else ""
    lines = [
        f"{node.rows} triplets of {_generator(graph, node)}"
        f"{f', generated {_time(meta.created)}' if meta.created else ''}, {samples}{failed}"
        f"prompts of {meta.prompts_entry}"
    ]
    settings = {key: meta.sampling[key] for key in SAMPLING if key in meta.sampling}
    lines.append(f"{meta.engine.get('name')} {meta.engine.get('version')}: {_listed(settings)}")
    return _with(title, lines)


def _generator(graph: Graph, node: Triplets) -> str:
    """Who generated triplets: θ of their iteration, or an opponent, which may be a θ of another number."""
    generator = graph.checkpoints.get(node.generator or "")
    if generator is None:
        return f"theta_{node.iteration}"
    if not node.by_opponent:
        return generator.name
    name = "" if generator.is_opponent else f"{generator.name}, "
    return f"the {OPPONENT} {name}{generator.path} (in place of theta_{node.iteration})"


def _title(name: str, path: str, key: str, state: str) -> Text:
    title = Text(name, style="bold")
    title.append(f"  {path}", style="not bold")
    if ":" not in key:
        title.append(f"  {key[:DIGITS]}", style="not bold dim")
    if state in STATES:
        gone = state in (ABSENT | {DAMAGED}) - {SERVED}
        title.append(f"  {STATES[state]}", style=f"not bold {'red' if gone else 'yellow'}")
    return title


def _with(title: Text, lines: list[str]) -> Group:
    return Group(title, *(Padding(Text(line), (0, 0, 0, 2), expand=False) for line in lines))


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _spent(seconds: Mapping[str, float], counts: Mapping[str, int]) -> str:
    parts = []
    for part, tokens, doing in SPENT:
        if part in seconds:
            count = f" {counts[tokens]} tokens" if tokens in counts else ""
            parts.append(f"{seconds[part]:.1f} s {doing}{count}")
    return ", ".join(parts)


def _on(hardware: Mapping[str, Any]) -> str:
    return f"; {hardware['processes']} x {hardware['name']} ({hardware['device']})" if hardware else ""


def _time(text: str) -> str:
    """`2026-05-01T12:00:00Z` as people read it."""
    return text.replace("T", " ").replace("Z", " UTC")
