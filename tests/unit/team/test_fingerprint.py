# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of weights, when a kept one is trusted, and digests of configs; tests/gate holds their values."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.team import fingerprint
from llamafactory_tpaw.team.fingerprint import (
    chain_fingerprints,
    config_digest,
    fingerprint_checkpoint,
    hash_weights,
    record_of,
)

from .checkpoints import CONFIG, flip, make_tensors, save_adapter, save_sharded, save_single, shard, write_config


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_chunks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    expected = hash_weights(folder, None)
    monkeypatch.setattr(fingerprint, "CHUNK_BYTES", 3)
    assert hash_weights(folder, None) == expected


def test_only_the_weights_matter(tmp_path: Path, store: Path) -> None:
    tensors = make_tensors()
    folder = save_single(tmp_path / "a", tensors)
    before = fingerprint_checkpoint(folder, store)
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors", metadata={"other": "metadata"})
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    # Transformers loads the single file, too.
    save_sharded(folder, {name: tensor + 1 for name, tensor in tensors.items()})
    assert hash_weights(folder, None).fingerprint == before


def test_a_tensor_in_two_shards_counts_once_if_it_is_the_same(tmp_path: Path, store: Path) -> None:
    tensors = make_tensors()
    expected = fingerprint_checkpoint(save_single(tmp_path / "single", tensors), store)
    folder, files = save_sharded(tmp_path / "sharded", tensors), shard(tensors)
    name, other = files
    twice = next(iter(files[other]))
    save_file(files[name] | {twice: tensors[twice]}, folder / name)
    assert fingerprint_checkpoint(folder, store) == expected
    save_file(files[name] | {twice: tensors[twice] + 1}, folder / name)
    with pytest.raises(DataError, match=f"two different tensors `{twice}`"):
        fingerprint_checkpoint(folder, store)


@pytest.mark.parametrize("save", [save_single, save_sharded])
def test_a_kept_result_is_trusted_while_the_files_are_the_same(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, save: Callable
) -> None:
    hashed, original = [], fingerprint._hash_weights
    monkeypatch.setattr(fingerprint, "_hash_weights", lambda folder: (hashed.append(folder), original(folder))[1])
    folder = save(tmp_path / "a", make_tensors())
    first = hash_weights(folder, store)
    assert [hash_weights(folder, store) for _ in range(2)] == [first, first]
    assert len(hashed) == 1
    for number, path in enumerate(sorted(folder.glob("model*"))):
        os.utime(path, ns=(1, number))
        assert hash_weights(folder, store) == first
        assert len(hashed) == number + 2, "every weight file is watched"
    folder.rename(tmp_path / "moved")
    assert hash_weights(tmp_path / "moved", store) == first
    assert len(hashed) == number + 3, "a record belongs to its path"
    path = min((tmp_path / "moved").glob("*.safetensors"))
    stat = path.stat()
    flip(path, -1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_weights(tmp_path / "moved", store) == first
    assert hash_weights(tmp_path / "moved", store, trust_stat=False) != first


OLD = {"own_digest": None}
RECORDS = ["{", "[]", '{"fingerprint": "0"}', OLD | {"schema": 1}, OLD | {"path": "/b"}, {"fingerprint": "0" * 64}]


@pytest.mark.parametrize("content", RECORDS)
def test_other_records_are_computed_again(tmp_path: Path, store: Path, content: str | dict[str, Any]) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    expected, record = fingerprint_checkpoint(folder, store), record_of(folder, store)
    good = record.read_text()
    record.write_text(content if isinstance(content, str) else json.dumps(json.loads(good) | content))
    assert fingerprint_checkpoint(folder, store) == expected
    assert record.read_text() == good


def test_weights_that_change_meanwhile_are_refused(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = save_single(tmp_path / "a", make_tensors()) / "model.safetensors", fingerprint._hash_weights
    monkeypatch.setattr(fingerprint, "_hash_weights", lambda each: (os.utime(path, ns=(1, 1)), original(each))[1])
    with pytest.raises(DataError, match="changed while they were read"):
        fingerprint_checkpoint(path.parent, store)
    assert not store.exists()


def test_adapters(tmp_path: Path, store: Path) -> None:
    model = save_single(tmp_path / "m", make_tensors())
    first, second = save_adapter(tmp_path / "a"), save_adapter(tmp_path / "b", fill=2.0)
    orders = [chain_fingerprints([model, *chain], store) for chain in ([first, second], [second, first])]
    assert len({fingerprint for chain in orders for fingerprint in chain}) == 5
    own = fingerprint_checkpoint(first, store)
    same = {"target_modules": ["q_proj", "up_proj"], "peft_version": "99", "base_model_name_or_path": "x"}
    assert fingerprint_checkpoint(save_adapter(tmp_path / "same", **same), store) == own
    for number, change in enumerate([{"lora_alpha": 8}, {"use_rslora": True}, {"use_dora": True}, {"fill": 3.0}]):
        assert fingerprint_checkpoint(save_adapter(tmp_path / f"other{number}", **change), store) != own
    config = json.loads((first / "adapter_config.json").read_text())
    (first / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 16}))
    assert fingerprint_checkpoint(first, store) != own, "what is kept is of these files only"
    (first / "adapter_config.json").write_text("[]")
    with pytest.raises(DataError, match="must hold a JSON object"):
        fingerprint_checkpoint(first, store)


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({"transformers_version": "5.6.0", "_name_or_path": "/somewhere", "use_cache": False}, False),
        ({"torch_dtype": "bfloat16", "dtype": "bfloat16"}, False),
        ({"rope": {"theta": 1e4, "torch_dtype": "float32"}}, False),
        ({"architectures": ["B", "Qwen2ForCausalLM"]}, True),
        ({"rope": {"theta": 1e6}}, True),
        ({"sliding_window": None}, True),
    ],
)
def test_what_of_a_config_matters(tmp_path: Path, change: dict[str, Any], matters: bool) -> None:
    before = config_digest(write_config(tmp_path / "a"))
    changed = dict(reversed((CONFIG | change).items()))
    assert (config_digest(write_config(tmp_path / "b", changed)) != before) is matters
