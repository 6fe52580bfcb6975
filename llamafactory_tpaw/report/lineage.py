# SPDX-License-Identifier: Apache-2.0
"""Where checkpoints come from: the graph of checkpoints and triplets that `tpaw.json` and meta files describe."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..arguments.fields import FIELDS
from ..arguments.recorded import different_settings
from ..data.triplets import SERVED as SERVED_KEY
from ..data.triplets import TripletMeta, meta_path, read_meta
from ..errors import DataError
from ..team.checkpoint import is_pruned
from ..team.manifest import MANIFEST, Manifest, path_from, read_manifest
from ..team.players import HUB_NAME


# What a node is. `finished`, `training` and `checkpoint` are the status of its `tpaw.json`; `start`: weights without
# one; `replaced`: other content is in its place; `served`: only a server had it; `here`, `foreign`: triplets.
FINISHED, TRAINING, ON_THE_WAY, START, PRUNED = "finished", "training", "checkpoint", "start", "pruned"
HERE, FOREIGN = "here", "foreign"
MISSING, REPLACED, HUB, SERVED = "missing", "replaced", "hub", "served"
ABSENT = frozenset({MISSING, REPLACED, HUB, SERVED})
# The name of a model that generated triplets in place of θ and is no θ of the graph.
OPPONENT = "opponent"
# Keys that differ in every iteration.
EXPECTED_CHANGES = frozenset({"tpaw_iteration", "dataset"})
RECORDS = (Manifest, TripletMeta)


@dataclass
class Node:
    """A checkpoint or a set of triplets."""

    # The fingerprint of weights, the SHA-256 of triplets; `folder:...` in training, `served:...` where only a server
    # had them, `entry:...` of foreign data whose digest is not known.
    key: str
    name: str  # `theta_k` or `opponent`; of triplets their entry in `dataset_info.json`, or the file's name
    path: str  # where it is or was, as seen from the working folder
    place: Path | None  # its folder or file, None where it is not here
    state: str  # see the constants above
    # What `tpaw.json` of its children says of it; of a checkpoint `files`, and what is `below` an adapter.
    recorded: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelNode(Node):
    """A checkpoint with its `tpaw.json`, and by key: its parent, its team, oldest first, and its triplets."""

    manifest: Manifest | None = None
    parent: str | None = None
    players: list[str] = field(default_factory=list)
    triplets: list[str] = field(default_factory=list)

    @property
    def theta(self) -> int:
        """Its number; 0 for an opponent."""
        number = self.name.removeprefix("theta_")
        return int(number) if number.isdigit() else 0


@dataclass
class TripletsNode(Node):
    """Triplets with their meta file: `generator` is the key of θ of this iteration, or of an opponent in its place."""

    iteration: int | None = None
    rows: int = 0
    generator: str | None = None
    by_opponent: bool = False
    meta: TripletMeta | None = None


@dataclass
class Graph:
    """Checkpoints and triplets by key, in the order in which they were found."""

    checkpoints: dict[str, ModelNode] = field(default_factory=dict)
    triplets: dict[str, TripletsNode] = field(default_factory=dict)

    def roots(self) -> list[ModelNode]:
        """Checkpoints whose parent is not known, oldest first, and after them the opponents."""
        roots = in_order(node for node in self.checkpoints.values() if node.parent is None)
        return sorted(roots, key=lambda node: node.name == OPPONENT)

    def children(self, key: str) -> list[ModelNode]:
        """Checkpoints that were trained from this one."""
        return in_order(node for node in self.checkpoints.values() if node.parent == key)

    def generated(self, key: str) -> list[TripletsNode]:
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

    def changed_settings(self, node: ModelNode) -> list[str]:
        """Say which settings and versions differ from those of the iteration before: a text each."""
        parent = self.checkpoints.get(node.parent or "")
        if node.manifest is None or parent is None or parent.manifest is None:
            return []
        before, now = (each.settings | each.versions for each in (parent.manifest, node.manifest))
        differing = different_settings(before, now, {name: spec.default for name, spec in FIELDS.items()})
        return [text.removesuffix(" now") for text in differing if text.split("`")[1] not in EXPECTED_CHANGES]

    def as_json(self) -> dict[str, Any]:
        """Return the graph as plain values: nodes with what was recorded, and edges by key."""

        def plain(node: Node) -> dict[str, Any]:
            shown = {name: value for name, value in vars(node).items() if name not in ("place", "recorded")}
            return {name: vars(value) if isinstance(value, RECORDS) else value for name, value in shown.items()}

        return {
            "schema": 1,
            "checkpoints": [
                plain(node)
                | {"role": OPPONENT if node.name == OPPONENT else "theta"}
                | {"changed_settings": self.changed_settings(node)}
                for node in self.checkpoints.values()
            ],
            "triplets": [plain(node) for node in self.triplets.values()],
            "edges": [{"from": start, "to": end, "kind": kind} for start, end, kind in self.edges()],
        }


def trace(places: Sequence[Path]) -> Graph:
    """Walk from output folders, folders of such, or triplet files to the checkpoints that everything started from.

    What is missing further up is in the graph as missing; what is damaged, or an empty place, is a `DataError`.
    """
    outputs: list[Path] = []
    for place in places:
        found = _outputs(place)
        if not found and not (place.is_file() and meta_path(place).is_file()):
            what = f"holds no {MANIFEST}" if place.is_dir() else "does not exist, or has no meta file beside it"
            raise DataError(f"{place} {what}. Give an `output_dir`, a folder that holds some, or a triplet file.")
        outputs += found
    walk = _Walk(outputs)
    for output in outputs:
        walk.add_output(output)
    for place in filter(Path.is_file, places):
        meta = read_meta(place)
        present = walk.graph.triplets.get(meta.rows_digest)
        if present is None or present.place is None:
            source = {"entry": place.stem, "iteration": meta.iteration, "rows": meta.rows, "digest": meta.rows_digest}
            walk.add_triplets(source, place).recorded = {}
    return walk.graph


class _Walk:
    """Adds what a manifest names, then what that names, up to the roots."""

    def __init__(self, outputs: Sequence[Path]) -> None:
        self.graph = Graph()
        # Folders by what they hold, so that a renamed one is found: those beside the given ones, which count last.
        beside = (path.parent for output in outputs for path in sorted(output.parent.glob(f"*/{MANIFEST}")))
        self.known = {key: folder for folder in [*beside, *outputs] if (key := _result_of(folder))}

    def add_output(self, folder: Path, key: str | None = None) -> str:
        """Add the checkpoint of an output folder, and all that it came from; `key` is its fingerprint if known."""
        manifest = read_manifest(folder)
        key = key or manifest.result.get("fingerprint") or f"folder:{folder.resolve()}"
        present = self.graph.checkpoints.get(key)
        if present is not None and present.manifest is not None:
            return key
        state = PRUNED if manifest.status == FINISHED and is_pruned(folder) else manifest.status
        node = ModelNode(key, f"theta_{manifest.produces}", shown(folder), folder, state, manifest=manifest)
        node.recorded = (present.recorded if present is not None else {}) | _below(manifest.result, folder)
        self.graph.checkpoints[key] = node
        parent = self._refer(manifest.policy, folder)
        node.parent = parent if parent != key else None  # of a training that changed no weight
        node.players = [self._refer(player, folder) for player in manifest.players]
        is_chain = not any("score" in player for player in manifest.players)  # a chosen team may leave some out
        for older, newer in itertools.pairwise(node.players) if is_chain else ():
            # It was checked when the team played: each player was trained from the one before.
            child = self.graph.checkpoints[newer]
            if child.manifest is None and child.parent is None:
                child.parent = older
        node.triplets = [self._add_source(source, folder) for source in manifest.triplets]
        return key

    def _refer(self, described: dict[str, Any], base: Path) -> str:
        """Add a checkpoint that a manifest or a meta file in `base` names."""
        key, path = described["fingerprint"], str(described.get("path", ""))
        name = described.get("name", OPPONENT)
        folder = _at(base, path) if path and _at(base, path).is_dir() else None
        node = self.graph.checkpoints.get(key)
        if node is None and key.startswith(SERVED_KEY):
            self.graph.checkpoints[key] = ModelNode(key, name, path, None, SERVED)
        elif node is None or node.state in ABSENT - {SERVED}:
            self._look_for(key, name, path, folder, base)
        elif folder and node.place and folder.resolve() != node.place.resolve() and _result_of(folder) == key:
            # Of several folders with one result, only the one that is trained from is what was recorded.
            node.place, node.path, node.manifest = folder, shown(folder), read_manifest(folder)
        node = self.graph.checkpoints[key]
        if node.name == OPPONENT:  # A θ of the run may be an opponent, too.
            node.name = name
        node.recorded |= {part: described[part] for part in ("files",) if part in described} | _below(described, base)
        return key

    def _look_for(self, key: str, name: str, path: str, folder: Path | None, base: Path) -> None:
        """Add the checkpoint with the fingerprint `key`, from where it was recorded or from a renamed folder."""
        state = HUB if HUB_NAME.fullmatch(path) and not path.startswith(".") else MISSING
        for candidate in filter(None, (folder, self.known.get(key))):
            manifest = read_manifest(candidate)
            if manifest is None:
                folder, state = candidate, START
                break
            if manifest.status == ON_THE_WAY or manifest.result.get("fingerprint") == key:
                self.add_output(candidate, key)
                return
            state = REPLACED
        place = path if state == HUB else shown(folder or _at(base, path))
        folder = None if state in ABSENT else folder
        self.graph.checkpoints[key] = ModelNode(key, name, place, folder, state)

    def _add_source(self, source: dict[str, Any], base: Path) -> str:
        """Add what a manifest in `base` lists under `triplets`."""
        present = self.graph.triplets.get(source["digest"] or f"entry:{source['entry']}")
        if present is None or present.state in ABSENT:
            file = _at(base, source["path"]) if source.get("path") else None
            present = self.add_triplets(source, file)
        present.recorded = present.recorded or source
        return present.key

    def add_triplets(self, source: dict[str, Any], file: Path | None) -> TripletsNode:
        """Add triplets as a manifest describes them, and what generated them."""
        foreign = bool(source.get("foreign"))
        key, path = source["digest"] or f"entry:{source['entry']}", shown(file) if file else source["entry"]
        file = file if file and file.is_file() else None
        iteration = None if foreign else source["iteration"]
        node = TripletsNode(key, source["entry"], path, file, MISSING, source, iteration, source["rows"])
        node.generator = source.get("generator") if source.get("generator") in self.graph.checkpoints else None
        node.by_opponent = bool(source.get("opponent"))
        self.graph.triplets[key] = node
        if foreign or file is None or not meta_path(file).is_file():
            node.state = FOREIGN if foreign and file else MISSING
            return node
        meta = read_meta(file)
        if meta.rows_digest != node.key:
            node.place, node.state = None, REPLACED
            return node
        node.state, node.meta, node.by_opponent = HERE, meta, bool(meta.opponent)
        described = {"name": f"theta_{meta.iteration}", "path": meta.generator_path, "fingerprint": meta.generator}
        if meta.opponent:
            described |= {"name": OPPONENT, "path": meta.opponent}
        node.generator = self._refer(described, file.parent)
        return node


def in_order(nodes: Iterable[ModelNode]) -> list[ModelNode]:
    """Sort checkpoints by their number, then by path."""
    return sorted(nodes, key=lambda node: (node.theta, node.path))


def shown(path: str | Path) -> str:
    """Return a path as seen from the working folder; absolute where it lies elsewhere."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative


def _below(described: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return what is below an adapter that a manifest in `base` describes, as seen from the working folder."""
    parts = [part | {"path": path_from(part["path"], base)} for part in described.get("below", ())]
    return {"below": parts} if parts else {}


def _at(base: Path, path: str) -> Path:
    return Path(os.path.normpath(base / path))


def _outputs(place: Path) -> list[Path]:
    """Return the folder itself where it holds a manifest, else those in it, at any depth; not the parts of a run."""
    if (place / MANIFEST).is_file():
        return [place]
    return [
        path.parent
        for path in sorted(place.rglob(MANIFEST))
        if not any(part.startswith((".", "checkpoint-")) for part in path.relative_to(place).parts)
    ]


def _result_of(folder: Path) -> str | None:
    manifest = read_manifest(folder)
    return manifest.result.get("fingerprint") if manifest else None
