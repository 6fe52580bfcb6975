# SPDX-License-Identifier: Apache-2.0
"""Recomputes every digest that `tpaw.json` and meta files recorded, whatever size and time of the files say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..arguments.fields import FIELDS
from ..data.files import digest_file
from ..data.triplets import meta_path
from ..errors import DataError
from ..team.fingerprint import digest_other_files, hash_weights, identity
from ..team.manifest import MANIFEST
from .lineage import DAMAGED, FOREIGN, HUB, MISSING, PRUNED, REPLACED, SERVED, Checkpoint, Graph, Triplets, shown


OK, CHANGED = "ok", "changed"
CACHE_NAME = Path(FIELDS["tpaw_cache_dir"].default).name
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json")
# Why weights are not read, by the state of the checkpoint.
NOT_LOOKED_AT = {
    MISSING: "are not here",
    HUB: "are on a hub and not looked at",
    SERVED: "were on a server and cannot be looked at",
    PRUNED: "were pruned and are not here",
}
# How far up from an output folder a cache is looked for where `tpaw.json` does not name it.
LEVELS_UP = 4


@dataclass(frozen=True)
class Check:
    r"""One thing that was recorded.

    Attributes:
        state: `ok`, `changed`, or `missing` where it is not here, so that nobody knows.
        name: `theta_2` or `D_2`.
        path: Folder or file, as seen from the working folder.
        what: Which file or part of it.
        detail: What is wrong with it.
        advice: What to do.
    """

    state: str
    name: str
    path: str
    what: str
    detail: str = ""
    advice: str = ""

    @property
    def message(self) -> str:
        """The whole of it in a sentence or two."""
        return f"{self.name} ({self.path}): {self.what} {self.detail}. {self.advice}"


def verify(graph: Graph) -> Iterator[Check]:
    r"""Recompute the digests of a graph's checkpoints and triplets, one after the other.

    What is found of weights is kept beside the cache, so that the next training refuses what was changed in secret.

    Yields:
        A check for each thing that was recorded, parents before children.
    """
    for node in sorted(graph.checkpoints.values(), key=lambda node: (node.theta, node.path)):
        yield from _verify_checkpoint(graph, node)
    for triplets in sorted(graph.triplets.values(), key=lambda node: (node.iteration or 0, node.path)):
        yield from _verify_triplets(triplets)


def _verify_checkpoint(graph: Graph, node: Checkpoint) -> Iterator[Check]:
    iteration = node.theta - 1
    advice = (
        f"Restore it from a copy, or repeat iteration {iteration} with `overwrite_output_dir: true`."
        if node.manifest is not None
        else "Restore it from a copy: what was trained from it says another one."
    )
    if node.is_opponent:
        advice = "Restore it from a copy: the triplets say that another one generated them."
    if node.state in NOT_LOOKED_AT:
        yield Check(MISSING, node.name, node.path, "weights", NOT_LOOKED_AT[node.state])
        return
    if node.state in (REPLACED, DAMAGED):
        what, detail = ("weights", "are those of another checkpoint than recorded")
        if node.state == DAMAGED:
            what, detail = MANIFEST, "cannot be read"
        yield Check(CHANGED, node.name, node.path, what, detail, advice)
        return
    if ":" in node.key:
        return  # Nothing is recorded before training is finished.
    for what, detail in _compare(node, _store_of(graph, node)):
        yield Check(CHANGED if detail else OK, node.name, node.path, what, detail, advice if detail else "")


def _compare(node: Checkpoint, store: Path | None) -> Iterator[tuple[str, str]]:
    """Yield each recorded file with what is wrong with it, empty where it is as it was."""
    recorded = [node.recorded.get("files", {}), node.manifest.result.get("files", {}) if node.manifest else {}]
    names = {name for files in recorded for name in files}
    weights = None
    try:
        weights = hash_weights(node.folder, store, trust_stat=False)
    except DataError as error:
        yield "weights", f"cannot be used: {str(error).rstrip('.')}"
    whole = weights and identity(weights.fingerprint, node.recorded)
    now = digest_other_files(node.folder) | (weights.files if weights else {})
    if (node.folder / MANIFEST).is_file():
        now[MANIFEST] = digest_file(node.folder / MANIFEST)
    if weights and whole != node.key and not names & weights.files.keys():
        yield "weights", f"have fingerprint {whole[:12]}, but {node.key[:12]} was recorded"
    elif weights and not names:
        yield "weights", ""
    for name in sorted(names | now.keys() if names else ()):
        known = {files[name] for files in recorded if name in files}
        if name not in now:
            if weights is not None or not name.endswith(WEIGHT_SUFFIXES):
                yield name, "is not there any more"
        elif not known:
            if name != MANIFEST:  # the newest one is recorded by nobody yet
                yield name, "was not there when it was recorded"
        else:
            same = weights is not None and name in weights.files and whole == node.key
            yield name, "" if known == {now[name]} else _difference(now[name], known, same)
    yield from _compare_model(node)


def _compare_model(node: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield whether the model below an adapter is still the one that the adapter was put on."""
    for part in node.recorded.get("below", ())[:1]:
        name = f"the model below ({part['path']})"
        try:
            now, then = hash_weights(Path(part["path"]), None).fingerprint, part["fingerprint"]
            yield name, "" if now == then else f"has fingerprint {now[:12]}, but {then[:12]} was recorded"
        except DataError as error:
            yield name, f"cannot be used: {str(error).rstrip('.')}"


def _difference(now: str, known: set[str], same_tensors: bool) -> str:
    then = " and ".join(sorted(digest[:12] for digest in known))
    hint = ", in its header; the tensors are the same" if same_tensors else ""
    return f"was changed: its digest is {now[:12]}, but {then} was recorded{hint}"


def _verify_triplets(node: Triplets) -> Iterator[Check]:
    name = node.name if node.iteration is None else f"D_{node.iteration}"
    advice = "Restore it from a copy, or generate it anew and repeat what was trained on it."
    if node.state == MISSING or (node.file is None and node.state != REPLACED):
        yield Check(MISSING, name, node.path, "rows", "are not here")
        return
    if node.state in (REPLACED, DAMAGED):
        what, detail = ("rows", "are others than recorded: its meta file has another digest")
        if node.state == DAMAGED:
            what, detail = ("meta file", "cannot be read")
        yield Check(CHANGED, name, node.path, what, detail, advice)
        return
    if ":" in node.key:
        return  # Foreign data whose digest was not recorded.
    now = digest_file(node.file)
    detail = "" if now == node.key else f"were changed: their digest is {now[:12]}, but {node.key[:12]} was recorded"
    yield Check(CHANGED if detail else OK, name, node.path, "rows", detail, advice if detail else "")
    if node.state != FOREIGN and node.recorded:
        detail = _meta_difference(node)
        yield Check(CHANGED if detail else OK, name, node.path, "meta file", detail, advice if detail else "")


def _meta_difference(node: Triplets) -> str:
    """Compare the meta file with what a training on it recorded."""
    expected = node.recorded.get("meta")
    if expected is not None:
        return "" if digest_file(meta_path(node.file)) == expected else "was changed since it was trained on"
    now = {"iteration": node.meta.iteration, "rows": node.meta.rows, "generator": node.meta.generator}
    different = [key for key in now if now[key] != node.recorded.get(key)]
    return f"was changed since it was trained on: {', '.join(different)}" if different else ""


def _store_of(graph: Graph, node: Checkpoint) -> Path | None:
    """The cache that keeps the checkpoint's fingerprint: of the run that made it or trains from it."""
    for user in [node, *graph.children(node.key)]:
        if user.manifest is not None and user.folder is not None and user.manifest.cache:
            store = Path(os.path.normpath(user.folder / user.manifest.cache))
            if store.is_dir():
                return store
    for user in [node, *graph.children(node.key)]:
        above = [*user.folder.absolute().parents][:LEVELS_UP] if user.folder is not None else []
        for folder in above:
            if (folder / CACHE_NAME).is_dir():
                return Path(shown(folder / CACHE_NAME))
    return None
