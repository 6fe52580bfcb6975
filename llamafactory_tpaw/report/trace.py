# SPDX-License-Identifier: Apache-2.0
"""Walks from output folders and triplet files to the checkpoints that everything started from."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.files import read_json
from ..data.source import DATASET_INFO
from ..data.triplets import SERVED as SERVED_KEY
from ..data.triplets import meta_path, read_meta
from ..errors import DataError, TpawError
from ..team.checkpoint import read_pruned
from ..team.manifest import MANIFEST, Manifest, read_manifest
from ..team.players import HUB_NAME
from .lineage import (
    ABSENT,
    DAMAGED,
    FINISHED,
    FOREIGN,
    HERE,
    HUB,
    MISSING,
    ON_THE_WAY,
    OPPONENT,
    PRUNED,
    REPLACED,
    SERVED,
    START,
    Checkpoint,
    Graph,
    Triplets,
    shown,
)


PARTS_OF_A_RUN = (".", "checkpoint-")


def trace(places: Sequence[Path]) -> Graph:
    r"""Walk from output folders, folders of such, or triplet files to the checkpoints that everything started from.

    Args:
        places: Output folders, folders that hold some, triplet files.

    Raises:
        DataError: If a place holds nothing of stage `tpaw`; what is missing further up is in the graph as missing.
    """
    walk = _Walk()
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            outputs = _outputs(place)
            if not outputs:
                raise DataError(
                    f"{place} holds no {MANIFEST}, nor does a folder in it, so no iteration of stage `tpaw` wrote it. "
                    "Give an `output_dir`, a folder of such, or a triplet file."
                )
            found += outputs
        elif not place.is_file():
            raise DataError(f"{place} does not exist. Give an `output_dir`, a folder of such, or a triplet file.")
        elif not meta_path(place).is_file():
            raise DataError(
                f"{place} is no file of generated triplets, or has lost its meta file: {meta_path(place)} does not "
                "exist. Give a triplet file with its meta file, or an `output_dir`."
            )
    walk.known = {
        fingerprint: folder
        for output in found
        for folder in [*(path.parent for path in sorted(output.parent.glob(f"*/{MANIFEST}"))), output]
        if (fingerprint := _result_of(folder))
    }
    for output in found:
        walk.add_output(output)
    for place in places:
        if place.is_file():
            walk.add_file(place)
    return walk.graph


class _Walk:
    """Adds what a manifest names, then what that names, up to the roots."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.known: dict[str, Path] = {}

    def add_output(self, folder: Path, key: str | None = None) -> str:
        """Add the checkpoint of an output folder, and all that it came from; `key` is its fingerprint if known."""
        try:
            manifest = read_manifest(folder)
        except DataError as error:
            self.graph.notes += error.problems
            return self._add(Checkpoint(key or _folder_key(folder), folder.name, shown(folder), folder, DAMAGED))
        key = key or manifest.result.get("fingerprint") or _folder_key(folder)
        present = self.graph.checkpoints.get(key)
        if present is not None and present.manifest is not None:
            return key
        state = PRUNED if manifest.status == FINISHED and read_pruned(folder) else manifest.status
        node = Checkpoint(key, f"theta_{manifest.produces}", shown(folder), folder, state, manifest)
        node.recorded = (present.recorded if present is not None else {}) | _below(manifest.result, folder)
        self._add(node)
        node.parent = self._refer(manifest.policy, folder)
        node.players = [self._refer(player, folder) for player in manifest.players]
        for older, newer in itertools.pairwise(node.players):
            # It was checked when the team played: each player was trained from the one before.
            child = self.graph.checkpoints[newer]
            if child.manifest is None and child.parent is None:
                child.parent = older
        node.triplets = [self._add_source(source, folder, manifest) for source in manifest.triplets]
        return key

    def add_file(self, path: Path) -> str:
        """Add a triplet file and what generated it."""
        meta = read_meta(path)
        source = {"entry": path.stem, "iteration": meta.iteration, "rows": meta.rows, "digest": meta.rows_digest}
        present = self.graph.triplets.get(meta.rows_digest)
        if present is not None and present.file is not None:
            return present.key
        return self._add_file(path, source | {"generator": meta.generator}, recorded={})

    def _add(self, node: Checkpoint) -> str:
        self.graph.checkpoints[node.key] = node
        return node.key

    def _refer(self, described: dict[str, Any], base: Path) -> str:
        """Add a checkpoint that a manifest or a meta file in `base` names."""
        key, path = described["fingerprint"], str(described.get("path", ""))
        present = self.graph.checkpoints.get(key)
        if key.startswith(SERVED_KEY):
            self.graph.checkpoints.setdefault(key, Checkpoint(key, described["name"], path, None, SERVED))
        elif present is None or present.state in ABSENT:
            self._look_for(key, described.get("name", ""), path, base)
        else:
            self._prefer(present, _find(path, base, directory=True))
        node = self.graph.checkpoints[key]
        if node.is_opponent:  # Of one run the opponent may be a θ of it, too.
            node.name = described.get("name", OPPONENT)
        node.recorded |= {name: described[name] for name in ("files",) if name in described} | _below(described, base)
        return key

    def _prefer(self, node: Checkpoint, folder: Path | None) -> None:
        """Of several folders with one result, take the one that is trained from: only it is what was recorded."""
        if folder is None or node.folder is None or folder.resolve() == node.folder.resolve():
            return
        if _result_of(folder) == node.key:
            node.folder, node.path, node.manifest = folder, shown(folder), read_manifest(folder)

    def _look_for(self, key: str, name: str, path: str, base: Path) -> None:
        folder = _find(path, base, directory=True)
        state = HUB if HUB_NAME.fullmatch(path) and not path.startswith(".") else MISSING
        if folder is not None:
            state = self._try_folder(folder, key)
        if state in ABSENT and key in self.known:
            folder = self.known[key]
            state = self._try_folder(folder, key)
        if key not in self.graph.checkpoints or state in (START, DAMAGED):
            place = shown(folder) if folder else path if state == HUB else shown(base / path)
            self._add(Checkpoint(key, name, place, None if state in ABSENT else folder, state))

    def _try_folder(self, folder: Path, key: str) -> str:
        """Say what the folder is to the fingerprint `key`; its origin is added where it is that checkpoint."""
        try:
            manifest = read_manifest(folder)
        except DataError as error:
            self.graph.notes += error.problems
            return DAMAGED
        if manifest is None:
            return START
        if manifest.status != ON_THE_WAY and manifest.result.get("fingerprint") != key:
            return REPLACED
        self.add_output(folder, key)
        return manifest.status

    def _add_source(self, source: dict[str, Any], base: Path, manifest: Manifest) -> str:
        """Add what a manifest in `base` lists under `triplets`."""
        key = source["digest"] or f"entry:{source['entry']}"
        present = self.graph.triplets.get(key)
        if present is not None and present.state not in ABSENT:
            present.recorded = present.recorded or source
            return key
        path = source.get("path")
        file = _find(path, base) if path else _entry_file(source["entry"], base, manifest.settings)
        if file is not None and (source.get("foreign") or meta_path(file).is_file()):
            return self._add_file(file, source, recorded=source)
        place = shown(base / path) if path else source["entry"]
        self._add_triplets(key, place, None, MISSING, source, recorded=source)
        return key

    def _add_file(self, file: Path, source: dict[str, Any], recorded: dict[str, Any]) -> str:
        key = source["digest"] or f"entry:{source['entry']}"
        if source.get("foreign"):
            self._add_triplets(key, shown(file), file, FOREIGN, source, recorded)
            return key
        try:
            meta = read_meta(file)
        except DataError as error:
            self.graph.notes += error.problems
            self._add_triplets(key, shown(file), file, DAMAGED, source, recorded)
            return key
        same = meta.rows_digest == key
        node = self._add_triplets(
            key, shown(file), file if same else None, HERE if same else REPLACED, source, recorded
        )
        node.meta = meta if same else None
        if same:
            fingerprint = source.get("generator") or meta.generator
            name, path = (
                (OPPONENT, meta.opponent) if meta.opponent else (f"theta_{meta.iteration}", meta.generator_path)
            )
            node.by_opponent = bool(meta.opponent)
            node.generator = self._refer({"name": name, "path": path, "fingerprint": fingerprint}, file.parent)
        return key

    def _add_triplets(
        self, key: str, path: str, file: Path | None, state: str, source: dict[str, Any], recorded: dict[str, Any]
    ) -> Triplets:
        iteration = None if source.get("foreign") else source["iteration"]
        generator = source.get("generator") if source.get("generator") in self.graph.checkpoints else None
        node = Triplets(key, source["entry"], path, file, state, iteration, source["rows"], generator)
        node.by_opponent = bool(source.get("opponent"))
        node.recorded = recorded
        self.graph.triplets[key] = node
        return node


def _below(described: dict[str, Any], base: Path) -> dict[str, Any]:
    """What is below an adapter that a manifest in `base` describes, its places as seen from the working folder."""
    parts = [part | {"path": _shown_place(part["path"], base)} for part in described.get("below", ())]
    return {"below": parts} if parts else {}


def _shown_place(path: str, base: Path) -> str:
    found = _find(path, base, directory=True)
    return shown(found) if found else path


def _outputs(place: Path) -> list[Path]:
    """The folder itself where it holds a manifest, else those in it, at any depth; not the parts of a run."""
    if (place / MANIFEST).is_file():
        return [place]
    found = []
    for folder, names, files in os.walk(place):
        names[:] = sorted(name for name in names if not name.startswith(PARTS_OF_A_RUN))
        if MANIFEST in files:
            found.append(Path(folder))
    return found


def _result_of(folder: Path) -> str | None:
    try:
        manifest = read_manifest(folder)
    except DataError:
        return None  # It is named where it is needed.
    return manifest.result.get("fingerprint") if manifest else None


def _folder_key(folder: Path) -> str:
    return f"folder:{folder.resolve()}"


def _find(path: str, base: Path, *, directory: bool = False) -> Path | None:
    """Find what a file in `base` names: from there, or, as older meta files have it, from the run's folder."""
    if not path:
        return None
    above = [*Path(os.path.abspath(base)).parents][:4]
    for folder in [base] if os.path.isabs(path) or path.startswith(os.pardir) else [base, Path(), *above]:
        for place in (Path(os.path.normpath(folder / path)), folder / path):
            if place.is_dir() if directory else place.is_file():
                return place
    return None


def _entry_file(entry: str, base: Path, settings: dict[str, Any]) -> Path | None:
    """Find the file of an entry whose path was not recorded, in the run's `dataset_info.json`."""
    data = str(settings.get("dataset_dir", "data"))
    for folder in [Path(), *Path(os.path.abspath(base)).parents]:
        info = folder / data / DATASET_INFO
        if info.is_file():
            try:
                attributes = read_json(info).get(entry)
            except (TpawError, AttributeError):
                return None
            name = attributes.get("file_name") if isinstance(attributes, dict) else None
            if name and (folder / data / name).is_file():
                return folder / data / name
    return None
