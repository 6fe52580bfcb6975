# SPDX-License-Identifier: Apache-2.0
"""Recomputes every digest that `tpaw.json` and meta files recorded, whatever size and time of the files say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..data.files import digest_file
from ..data.triplets import meta_path
from ..errors import DataError
from ..team.checkpoint import STATE
from ..team.fingerprint import digest_other_files, hash_weights, identity, record_of
from ..team.manifest import MANIFEST
from .lineage import FOREIGN, HUB, MISSING, PRUNED, REPLACED, SERVED, Graph, ModelNode, TripletsNode, in_order


OK, CHANGED = "ok", "changed"
# Why weights are not read, by the state of the checkpoint.
NOT_READ = {
    MISSING: "are not here",
    HUB: "are on a hub and not looked at",
    SERVED: "were on a server and cannot be looked at",
    PRUNED: "were pruned and are not here",
}


class Check(NamedTuple):
    """One thing that was recorded of `theta_2` or `D_2`: `ok`, `changed`, or `missing` where it is not here."""

    state: str
    name: str
    path: str
    what: str
    detail: str = ""
    advice: str = ""

    @property
    def message(self) -> str:
        """What is wrong in one sentence and what to do in another."""
        return f"{self.name} ({self.path}): {self.what} {self.detail}. {self.advice}"


def verify(graph: Graph) -> Iterator[Check]:
    """Recompute the digests of a graph's checkpoints and triplets; yield a check for each thing that was recorded.

    Fingerprints found are kept beside the cache: the next training refuses a change that kept a file's size and time.
    """
    for node in in_order(graph.checkpoints.values()):
        advice = "Restore it from a copy: what came of it says that other weights were there."
        if node.manifest is not None:
            repeat = f"repeat iteration {node.manifest.iteration} with `overwrite_output_dir: true`"
            advice = f"Restore it from a copy, or {repeat}."
        for state, what, detail in _verify_model(graph, node):
            yield Check(state, node.name, node.path, what, detail, advice if state == CHANGED else "")
    for node in sorted(graph.triplets.values(), key=lambda node: (node.iteration or 0, node.path)):
        name = node.name if node.iteration is None else f"D_{node.iteration}"
        advice = "Restore it from a copy, or generate it again and repeat what was trained on it."
        for state, what, detail in _verify_triplets(node):
            yield Check(state, name, node.path, what, detail, advice if state == CHANGED else "")


def _verify_model(graph: Graph, node: ModelNode) -> Iterator[tuple[str, str, str]]:
    if node.state in NOT_READ:
        yield MISSING, "weights", NOT_READ[node.state]
    elif node.state == REPLACED:
        yield CHANGED, "weights", "are those of another checkpoint than recorded"
    elif ":" not in node.key:  # Nothing is recorded before training is finished.
        users = [user for user in [node, *graph.children(node.key)] if user.manifest and user.place]
        stores = (Path(os.path.normpath(user.place / user.manifest.cache)) for user in users if user.manifest.cache)
        # The cache that keeps its fingerprint: of the run that made it or trains from it.
        store = next((store for store in stores if record_of(node.place, store).parent.is_dir()), None)
        for what, detail in _compare(node, store):
            yield CHANGED if detail else OK, what, detail


def _compare(node: ModelNode, store: Path | None) -> Iterator[tuple[str, str]]:
    """Yield each recorded file with what is wrong with it, empty where it is as it was."""
    recorded = [node.recorded.get("files", {}), node.manifest.result.get("files", {}) if node.manifest else {}]
    names = {name for files in recorded for name in files}
    now, weights = digest_other_files(node.place), None
    now |= {name: digest_file(node.place / name) for name in (MANIFEST, STATE) if (node.place / name).is_file()}
    try:
        weights = hash_weights(node.place, store, trust_stat=False)
        now |= weights.files
    except DataError as error:
        yield "weights", f"cannot be used: {str(error).partition('. ')[0]}"
    if weights and not names & weights.files.keys():  # the fingerprint alone was recorded
        whole = identity(weights.fingerprint, node.recorded)
        yield "weights", "" if whole == node.key else _changed(whole, {node.key})
    for name in sorted(names | now.keys() if names else ()):
        known = {files[name] for files in recorded if name in files}
        if name in now and known:
            yield name, "" if known == {now[name]} else _changed(now[name], known)
        elif name in now and name not in (MANIFEST, STATE):  # not recorded of the newest one, of θ_0
            yield name, "was not there when it was recorded"
        elif name not in now and (weights or not name.endswith((".safetensors", ".bin", ".index.json"))):
            yield name, "is not there any more"
    for part in node.recorded.get("below", ())[:1]:  # the model that an adapter was put on
        name = f"the model below ({part['path']})"
        try:
            found = hash_weights(Path(part["path"]), None).fingerprint
            yield name, "" if found == part["fingerprint"] else _changed(found, {part["fingerprint"]})
        except DataError as error:
            yield name, f"cannot be used: {str(error).partition('. ')[0]}"


def _changed(now: str, known: set[str]) -> str:
    then = " and ".join(sorted(digest[:12] for digest in known))
    return f"was changed: its digest is {now[:12]}, but {then} was recorded"


def _verify_triplets(node: TripletsNode) -> Iterator[tuple[str, str, str]]:
    if node.state == MISSING:
        yield MISSING, "rows", "are not here"
    elif node.state == REPLACED:
        yield CHANGED, "rows", "are others than recorded: its meta file has another digest"
    elif ":" not in node.key:  # of foreign data the digest may not be recorded
        now = digest_file(node.place)
        yield (OK, "rows", "") if now == node.key else (CHANGED, "rows", _changed(now, {node.key}))
        if node.state != FOREIGN and node.recorded.get("meta"):
            same = digest_file(meta_path(node.place)) == node.recorded["meta"]
            yield (OK, "meta file", "") if same else (CHANGED, "meta file", "was changed since it was trained on")
