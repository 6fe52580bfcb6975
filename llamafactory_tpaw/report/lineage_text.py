# SPDX-License-Identifier: Apache-2.0
"""The graph of a run as a tree for the terminal, and as the text of a Mermaid diagram."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.text import Text
from rich.tree import Tree

from .lineage import ABSENT, EXPECTED_CHANGES, FOREIGN, OPPONENT, SERVED, START, Graph, ModelNode, TripletsNode


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
    "foreign": "other preference data",
}
# What says how something was sampled, in this order, where it was recorded.
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")
# Settings that the lines above them say, or that every iteration has.
OF_EVERY_RUN = EXPECTED_CHANGES | {"stage", "do_train"}
ARROWS = {"policy": "==>", "player": "-.->", "data": "-->", "generated": "-->"}


def as_trees(graph: Graph) -> list[Tree]:
    """Return one tree a root. A chain of iterations stays on one level; each of several children gets its own."""
    trees = []
    for root in graph.roots():
        trees.append(Tree(_checkpoint(graph, root)))
        _add_what_followed(graph, root, trees[-1])
    orphans = [node for node in graph.triplets.values() if node.generator is None and node.state != FOREIGN]
    if orphans:
        trees.append(Tree(Text("triplets whose generator is not known", style="bold")))
        for node in orphans:
            trees[-1].add(_triplets(graph, node))
    return trees


def as_mermaid(graph: Graph) -> str:
    """Return a Mermaid flowchart: thick arrows for what was trained from what, dotted ones for players."""
    nodes = [*graph.checkpoints.values(), *graph.triplets.values()]
    numbers = {node.key: f"n{index}" for index, node in enumerate(nodes)}
    lines = ["flowchart LR"]
    for node in nodes:
        texts = (node.name, node.path, node.state)
        lines.append(f'  {numbers[node.key]}["{"<br>".join(map(_escaped, texts))}"]')
    lines += [f"  {numbers[start]} {ARROWS[kind]} {numbers[end]}" for start, end, kind in graph.edges()]
    return "\n".join(lines)


def printable(text: str) -> str:
    """Write control characters, which could rule a terminal, as their numbers."""
    return "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in text)


def _escaped(text: str) -> str:
    """Write what Mermaid or HTML would read as more than text as its number."""
    return "".join(sign if sign.isalnum() or sign in " _-./" else f"#{ord(sign)};" for sign in text)


def _add_what_followed(graph: Graph, node: ModelNode, tree: Tree) -> None:
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


def _checkpoint(graph: Graph, node: ModelNode) -> Text:
    parent = graph.checkpoints.get(node.parent or "")
    name = f"{node.name} at step {node.manifest.step}" if node.manifest and node.manifest.step else node.name
    state = OPPONENT if node.name == OPPONENT and node.state == START else node.state
    return _node(f"{name} <- {parent.name}" if parent else name, node, state, _lines_of(graph, node))


def _lines_of(graph: Graph, node: ModelNode) -> Iterator[str]:
    """Yield what a checkpoint's `tpaw.json` says of its iteration."""
    manifest = node.manifest
    if manifest is None:
        return
    if manifest.finished or manifest.started:
        yield f"finished {manifest.finished}" if manifest.finished else f"begun {manifest.started}"
    scores = (f" ({player['score']:.4g})" if "score" in player else "" for player in manifest.players)
    against = ", ".join(graph.checkpoints[key].name + score for key, score in zip(node.players, scores, strict=True))
    data = ", ".join(graph.triplets[key].name for key in node.triplets) or "nothing"
    yield f"iteration {manifest.iteration}, {manifest.objective}{against and f' against {against}'}, on {data}"
    parent = graph.checkpoints.get(node.parent or "")
    if changes := graph.changed_settings(node):
        yield f"changed: {'; '.join(changes)}"
    elif parent is None or parent.manifest is None:
        yield f"settings: {_listed({k: v for k, v in manifest.settings.items() if k not in OF_EVERY_RUN})}"
    # What sampling took is said of the triplets: several trainings may share them.
    did = {"score": f"scoring {manifest.counts.get('scored_tokens', 0)} tokens"}
    seconds = {part: value for part, value in manifest.seconds.items() if part != "generate"}
    spent = [f"{value:.1f} s {did.get(part, part)}" for part, value in seconds.items()]
    if spent:
        machine = manifest.hardware
        on = f"; {machine['processes']} x {machine['name']} ({machine['device']})" if machine else ""
        yield f"spent: {', '.join(spent)}{on}"


def _triplets(graph: Graph, node: TripletsNode) -> Text:
    title = node.name if node.iteration is None else f"D_{node.iteration} {node.name}"
    meta = node.meta
    if meta is None:
        lines = [f"{node.rows} triplets{f' of an {OPPONENT}' if node.by_opponent else ''}"]
        return _node(title, node, node.state, lines)
    generator = graph.checkpoints[node.generator]
    by = generator.name
    if node.by_opponent:  # which may be a θ of another number
        name = "" if generator.name == OPPONENT else f"{generator.name}, "
        by = f"the {OPPONENT} {name}{generator.path} (in place of theta_{node.iteration})"
    tokens = f"{meta.counts.get('generated_tokens', 0)} tokens in {meta.seconds:.1f} s"
    facts = [f"{node.rows} triplets of {by}", meta.created and f"generated {meta.created}, {tokens}"]
    facts += [f"{meta.samples} a prompt"] * (meta.samples > 1) + [f"{len(meta.failed)} failed"] * bool(meta.failed)
    sampling = {key: meta.sampling[key] for key in SAMPLING if key in meta.sampling}
    engine = f"{meta.engine.get('name')} {meta.engine.get('version')}: {_listed(sampling)}"
    lines = [", ".join(filter(None, [*facts, f"prompts of {meta.prompts_entry}"])), engine]
    return _node(title, node, node.state, lines)


def _node(title: str, node: ModelNode | TripletsNode, state: str, lines: Iterable[str]) -> Text:
    text = Text.assemble((printable(title), "bold"), f"  {printable(node.path)}")
    if ":" not in node.key:
        text.append(f"  {node.key[:DIGITS]}", style="dim")
    if state in STATES:
        text.append(f"  {STATES[state]}", style="red" if state in ABSENT - {SERVED} else "yellow")
    for line in lines:
        text.append(f"\n  {printable(line)}")
    return text


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
