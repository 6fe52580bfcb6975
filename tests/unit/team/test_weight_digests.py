# SPDX-License-Identifier: Apache-2.0
"""The digest of each file of a checkpoint: it names the one that changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llamafactory_tpaw.data.progress import BYTES
from llamafactory_tpaw.team import fingerprint
from llamafactory_tpaw.team.fingerprint import Weights, digest_other_files, hash_weights, record_of
from tests.unit.team.checkpoints import make_tensors, save_bin, save_sharded, save_sharded_bin, save_single


def flip(path: Path, position: int) -> None:
    """Change one byte; a negative position counts from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def changed(before: Weights, after: Weights) -> list[str]:
    return [name for name in before.files if before.files[name] != after.files[name]]


@pytest.mark.parametrize("save", [save_single, save_sharded, save_bin, save_sharded_bin])
def test_every_weight_file_has_a_digest(tmp_path: Path, save: Callable[..., Path]) -> None:
    folder = save(tmp_path / "a", make_tensors())
    files = sorted(path.name for path in folder.iterdir() if path.name != "config.json")
    weights = hash_weights(folder, None)
    assert sorted(weights.files) == files
    assert len({weights.fingerprint, *weights.files.values()}) == len(files) + 1
    assert hash_weights(save(tmp_path / "b", make_tensors()), None).files == weights.files


def test_the_changed_shard_is_named(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "a", make_tensors())
    before = hash_weights(folder, None)
    flip(folder / "model-2-of-2.safetensors", -1)
    after = hash_weights(folder, None)
    assert changed(before, after) == ["model-2-of-2.safetensors"]
    assert after.fingerprint != before.fingerprint


def test_a_changed_header_is_seen_although_the_tensors_are_the_same(tmp_path: Path) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    before = hash_weights(folder, None)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"format":"pt"', b'"format":"tf"'))
    after = hash_weights(folder, None)
    assert changed(before, after) == ["model.safetensors"]
    assert after.fingerprint == before.fingerprint


def test_a_changed_index_is_seen(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "a", make_tensors())
    before = hash_weights(folder, None)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text() + " ")
    assert changed(before, hash_weights(folder, None)) == [index.name]


def test_what_is_kept_has_the_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = save_single(tmp_path / "a", make_tensors()), tmp_path / "store"
    weights = hash_weights(folder, store)
    monkeypatch.setattr(fingerprint, "_hash_weights", lambda folder: pytest.fail("hashed again"))
    assert hash_weights(folder, store) == weights


@pytest.mark.parametrize("change", [{"schema": 1}, {"digests": None}, {"digests": {}}, {"fingerprint": "f"}])
def test_other_records_are_computed_anew(tmp_path: Path, change: dict[str, object]) -> None:
    folder, store = save_single(tmp_path / "a", make_tensors()), tmp_path / "store"
    weights = hash_weights(folder, store)
    record = record_of(folder, store)
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | change))
    assert hash_weights(folder, store) == weights
    assert json.loads(record.read_text()) == content


def test_nothing_is_kept_without_a_store(tmp_path: Path) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    before = sorted(tmp_path.rglob("*"))
    hash_weights(folder, None)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_files_that_make_a_model(tmp_path: Path) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    for name in ("tokenizer.json", "modeling_own.py", "chat_template.jinja", "README.md", "trainer_log.jsonl"):
        (folder / name).write_text(name)
    digests = digest_other_files(folder)
    assert list(digests) == ["chat_template.jinja", "config.json", "modeling_own.py", "tokenizer.json"]
    (folder / "tokenizer.json").write_text("other")
    after = digest_other_files(folder)
    assert [name for name in digests if digests[name] != after[name]] == ["tokenizer.json"]


def test_progress_counts_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    class Bar(fingerprint.Progress):
        def __init__(self, *settings: object) -> None:
            bars.append(self)
            super().__init__(*settings)

    monkeypatch.setattr(fingerprint, "Progress", Bar)
    folder = save_sharded(tmp_path / "a", make_tensors())
    hash_weights(folder, None)
    (bar,) = bars
    tensors = sum(tensor.numel() * tensor.element_size() for tensor in make_tensors().values())
    assert bar.n == tensors <= bar.total
    assert (bar.what, bar.unit) == ("reading a", BYTES)
