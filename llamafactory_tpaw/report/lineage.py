# SPDX-License-Identifier: Apache-2.0
"""Where checkpoints come from: the graph of checkpoints and triplets that `tpaw.json` and meta files describe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..arguments.fields import FIELDS
from ..arguments.recorded import different_settings
from ..data.triplets import TripletMeta
from ..team.manifest import Manifest


# What a checkpoint or triplet file is to the graph.
FINISHED, TRAINING, ON_THE_WAY, START = "finished", "training", "checkpoint", "start"
HERE, FOREIGN = "here", "foreign"
MISSING, REPLACED, HUB, DAMAGED, SERVED = "missing", "replaced", "hub", "damaged", "served"
PRUNED = "pruned"
ABSENT = frozenset({MISSING, REPLACED, HUB, SERVED})
# The name of a model that generated triplets in place of θ and is no θ of the graph.
OPPONENT = "opponent"

# Keys that differ in every iteration.
EXPECTED_CHANGES = frozenset({"tpaw_iteration", "dataset"})


@dataclass
class Checkpoint:
    r"""A checkpoint of the graph.

    Attributes:
        key: Fingerprint of its weights; `folder:...` while it has none, in training; `served:...` where only a server
            had them.
        name: `theta_k`, or `opponent`.
        path: Where it is or was, as seen from the working folder.
        folder: Its folder, None where it is not here.
        state: `finished`, `training`, `checkpoint` (saved on the way), `start` (no `tpaw.json`), `missing`,
            `replaced` (other weights are in its place), `pruned` (its weights were removed on purpose), `hub`,
            `served`, or `damaged` (its `tpaw.json` is).
        manifest: Its `tpaw.json`.
        parent: Key of the checkpoint it was trained from.
        players: Keys of its team, oldest first.
        triplets: Keys of what it was trained on.
        recorded: What its children know of it: `files`, where there are any; and what is `below` an adapter.
    """

    key: str
    name: str
    path: str
    folder: Path | None
    state: str
    manifest: Manifest | None = None
    parent: str | None = None
    players: list[str] = field(default_factory=list)
    triplets: list[str] = field(default_factory=list)
    recorded: dict[str, Any] = field(default_factory=dict)

    @property
    def theta(self) -> int:
        """Its number."""
        number = self.name.removeprefix("theta_")
        return int(number) if number.isdigit() else 0

    @property
    def is_opponent(self) -> bool:
        """Whether all that is known of it is that it generated triplets in place of a θ."""
        return self.name == OPPONENT


@dataclass
class Triplets:
    r"""A set of triplets of the graph.

    Attributes:
        key: SHA-256 of the file; `entry:...` of foreign data whose digest is not known.
        name: Its entry in `dataset_info.json`, or the file's name.
        path: Where it is or was, as seen from the working folder.
        file: The file, None where it is not here.
        state: `here`, `missing`, `replaced` (the file in its place is another), `foreign`, or `damaged` (its meta is).
        iteration: Which theta generated it; None for foreign data.
        rows: Number of rows.
        generator: Key of the checkpoint that generated it.
        by_opponent: Whether that was an opponent model in place of its theta.
        meta: Its meta file.
        recorded: What `tpaw.json` says of it; empty where only the file was given.
    """

    key: str
    name: str
    path: str
    file: Path | None
    state: str
    iteration: int | None
    rows: int
    generator: str | None = None
    by_opponent: bool = False
    meta: TripletMeta | None = None
    recorded: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """Checkpoints and triplets by key, in the order in which they were found, and what could not be read."""

    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    triplets: dict[str, Triplets] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def roots(self) -> list[Checkpoint]:
        """Checkpoints whose parent is not known, oldest first, and after them the opponents."""
        roots = self._ordered(node for node in self.checkpoints.values() if node.parent is None)
        return sorted(roots, key=lambda node: node.is_opponent)

    def children(self, key: str) -> list[Checkpoint]:
        """Checkpoints that were trained from this one, by path."""
        return self._ordered(node for node in self.checkpoints.values() if node.parent == key)

    def generated(self, key: str) -> list[Triplets]:
        """Triplets that a checkpoint generated, by path."""
        return sorted((node for node in self.triplets.values() if node.generator == key), key=lambda node: node.path)

    def edges(self) -> Iterator[tuple[str, str, str]]:
        """Yield (from, to, kind): `policy` it was trained from, `player`, `data`; `generated` from a checkpoint."""
        for node in self.checkpoints.values():
            if node.parent is not None:
                yield node.parent, node.key, "policy"
            yield from ((player, node.key, "player") for player in node.players)
            yield from ((triplets, node.key, "data") for triplets in node.triplets)
        for triplets in self.triplets.values():
            if triplets.generator is not None:
                yield triplets.generator, triplets.key, "generated"

    @staticmethod
    def _ordered(nodes: Iterator[Checkpoint]) -> list[Checkpoint]:
        return sorted(nodes, key=lambda node: (node.theta, node.path))


def changed_settings(graph: Graph, node: Checkpoint) -> list[str]:
    """What was set otherwise than in the iteration before, and which versions changed: a text each."""
    parent = graph.checkpoints.get(node.parent or "")
    if node.manifest is None or parent is None or parent.manifest is None:
        return []
    before, now = parent.manifest, node.manifest
    defaults = {name: spec.default for name, spec in FIELDS.items()}
    settings = [{key: item for key, item in part.items() if key not in EXPECTED_CHANGES}
                for part in (before.settings, now.settings)]  # fmt: skip
    texts = [text.removesuffix(" now") for text in different_settings(*settings, defaults)]
    for name in sorted({*before.versions, *now.versions}):
        versions = before.versions.get(name, "none"), now.versions.get(name, "none")
        if versions[0] != versions[1]:
            texts.append(f"{name} {versions[0]} -> {versions[1]}")
    return texts


def as_json(graph: Graph) -> dict[str, Any]:
    """The graph as plain values: nodes with what was recorded, and edges by key."""
    return {
        "schema": 1,
        "checkpoints": [
            {
                "key": node.key,
                "name": node.name,
                "role": OPPONENT if node.is_opponent else "theta",
                "path": node.path,
                "state": node.state,
                "parent": node.parent,
                "players": node.players,
                "triplets": node.triplets,
                "changed_settings": changed_settings(graph, node),
                "manifest": vars(node.manifest) if node.manifest else None,
            }
            for node in graph.checkpoints.values()
        ],
        "triplets": [
            {
                "key": node.key,
                "name": node.name,
                "path": node.path,
                "state": node.state,
                "iteration": node.iteration,
                "rows": node.rows,
                "generator": node.generator,
                "by_opponent": node.by_opponent,
                "meta": vars(node.meta) if node.meta else None,
            }
            for node in graph.triplets.values()
        ],
        "edges": [{"from": start, "to": end, "kind": kind} for start, end, kind in graph.edges()],
        "notes": graph.notes,
    }


def shown(path: str | Path) -> str:
    """A path as seen from the working folder; absolute where it lies elsewhere."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative
