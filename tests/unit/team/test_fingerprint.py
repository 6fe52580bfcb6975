# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of weights, when a kept one is trusted, and digests of configs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.team import fingerprint, hashing
from llamafactory_tpaw.team.fingerprint import check_checkpoint_complete, config_digest, fingerprint_checkpoint

from .checkpoints import (
    CONFIG,
    make_tensors,
    save_bin,
    save_old_bin,
    save_sharded,
    save_sharded_bin,
    save_single,
    shard,
    write_config,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def count_hashing(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were really hashed."""
    folders: list[Path] = []
    original = fingerprint._hash_weights
    monkeypatch.setattr(fingerprint, "_hash_weights", lambda folder: (folders.append(folder), original(folder))[1])
    return folders


@pytest.mark.parametrize("save", [save_sharded, save_bin, save_old_bin, save_sharded_bin])
def test_the_files_do_not_matter(tmp_path: Path, store: Path, save: Callable[[Path, dict[str, Tensor]], Path]) -> None:
    expected = fingerprint_checkpoint(save_single(tmp_path / "single", make_tensors()), store)
    assert len(expected) == 64
    assert fingerprint_checkpoint(save(tmp_path / "other", make_tensors()), store) == expected


def test_small_chunks_change_nothing(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    other = save_bin(tmp_path / "b", make_tensors())
    expected = fingerprint_checkpoint(folder, store)
    monkeypatch.setattr(hashing, "CHUNK_BYTES", 3)
    assert fingerprint_checkpoint(folder, store, trust_stat=False) == expected
    assert fingerprint_checkpoint(other, store, trust_stat=False) == expected


def changed_byte(tensors: dict[str, Tensor]) -> None:
    tensors["model.embed.weight"].view(torch.uint8)[6, 19] ^= 1


def changed_name(tensors: dict[str, Tensor]) -> None:
    tensors["model.embed.weights"] = tensors.pop("model.embed.weight")


def swapped_names(tensors: dict[str, Tensor]) -> None:
    tensors["model.embed.weight"], tensors["model.mask"] = tensors["model.mask"], tensors["model.embed.weight"]


def changed_shape(tensors: dict[str, Tensor]) -> None:
    tensors["model.embed.weight"] = tensors["model.embed.weight"].reshape(5, 7)


def changed_dtype(tensors: dict[str, Tensor]) -> None:
    tensors["model.layer.10.weight"] = tensors["model.layer.10.weight"].view(torch.float16)


def dropped_tensor(tensors: dict[str, Tensor]) -> None:
    del tensors["model.empty"]


@pytest.mark.parametrize(
    "change", [changed_byte, changed_name, swapped_names, changed_shape, changed_dtype, dropped_tensor]
)
@pytest.mark.parametrize("save", [save_single, save_bin])
def test_every_change_of_a_tensor_matters(
    tmp_path: Path, store: Path, save: Callable, change: Callable[[dict[str, Tensor]], None]
) -> None:
    tensors = make_tensors()
    before = fingerprint_checkpoint(save(tmp_path / "before", tensors), store)
    change(tensors)
    assert fingerprint_checkpoint(save(tmp_path / "after", tensors), store) != before


def test_only_the_weights_matter(tmp_path: Path, store: Path) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    before = fingerprint_checkpoint(folder, store)
    (folder / "config.json").write_text("{}")
    save_file(make_tensors(), folder / "model.safetensors", metadata={"other": "metadata"})
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert fingerprint_checkpoint(folder, store, trust_stat=False) == before


def test_a_real_checkpoint(tiny_model: Path, store: Path) -> None:
    assert check_checkpoint_complete(tiny_model) == []
    assert fingerprint_checkpoint(tiny_model, store) == fingerprint_checkpoint(tiny_model, store, trust_stat=False)


def test_single_file_wins_over_an_index_as_in_transformers(tmp_path: Path, store: Path) -> None:
    tensors = make_tensors()
    folder = save_single(tmp_path / "a", tensors)
    expected = fingerprint_checkpoint(folder, store)
    changed_byte(tensors)
    save_sharded(folder, tensors)
    assert fingerprint_checkpoint(folder, store, trust_stat=False) == expected


def test_a_tensor_in_two_shards_counts_once_if_it_is_the_same(tmp_path: Path, store: Path) -> None:
    tensors = make_tensors()
    expected = fingerprint_checkpoint(save_single(tmp_path / "single", tensors), store)
    folder = save_sharded(tmp_path / "sharded", tensors)
    files, _ = shard(tensors, "safetensors")
    name, other = files
    twice = next(iter(files[other]))
    save_file(files[name] | {twice: tensors[twice]}, folder / name)
    assert fingerprint_checkpoint(folder, store) == expected
    save_file(files[name] | {twice: tensors[twice] + 1}, folder / name)
    with pytest.raises(DataError, match=f"two different tensors `{twice}`"):
        fingerprint_checkpoint(folder, store)


@pytest.mark.parametrize("save", [save_single, save_sharded, save_bin])
def test_kept_result_is_trusted_while_the_files_are_the_same(
    tmp_path: Path, store: Path, count_hashing: list[Path], save: Callable
) -> None:
    folder = save(tmp_path / "a", make_tensors())
    results = [fingerprint_checkpoint(folder, store) for _ in range(3)]
    assert len(count_hashing) == 1
    results.append(fingerprint_checkpoint(folder, store, trust_stat=False))
    assert len(count_hashing) == 2
    assert len(set(results)) == 1
    record = json.loads(next((store / "fingerprints").iterdir()).read_text())
    assert record["path"] == str(folder.resolve())
    assert all(set(stat) == {"size", "mtime_ns", "inode"} for stat in record["files"].values())


def test_every_weight_file_is_watched(tmp_path: Path, store: Path, count_hashing: list[Path]) -> None:
    folder = save_sharded(tmp_path / "a", make_tensors())
    before = fingerprint_checkpoint(folder, store)
    for number, path in enumerate(sorted(folder.glob("model*"))):
        os.utime(path, ns=(1, number))
        assert fingerprint_checkpoint(folder, store) == before
        assert len(count_hashing) == number + 2
    assert number == 2


def test_same_size_edit_is_seen(tmp_path: Path, store: Path) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    path = folder / "model.safetensors"
    before, stat = fingerprint_checkpoint(folder, store), path.stat()
    with open(path, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert path.stat().st_size == stat.st_size
    assert fingerprint_checkpoint(folder, store) != before


def test_edit_under_the_same_stat_is_seen_without_trust(tmp_path: Path, store: Path) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    path = folder / "model.safetensors"
    before, stat = fingerprint_checkpoint(folder, store), path.stat()
    with open(path, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint_checkpoint(folder, store) == before
    after = fingerprint_checkpoint(folder, store, trust_stat=False)
    assert after != before
    assert fingerprint_checkpoint(folder, store) == after


def test_replaced_file_with_the_same_stat_is_seen_by_its_inode(tmp_path: Path, store: Path) -> None:
    tensors = make_tensors()
    folder = save_single(tmp_path / "a", tensors)
    path = folder / "model.safetensors"
    before, stat = fingerprint_checkpoint(folder, store), path.stat()
    changed_byte(tensors)
    os.replace(save_single(tmp_path / "b", tensors) / "model.safetensors", path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint_checkpoint(folder, store) != before


@pytest.mark.parametrize("content", ["{", "[]", '{"fingerprint": "0"}', ""])
def test_damaged_record_is_computed_again(tmp_path: Path, store: Path, content: str) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    expected = fingerprint_checkpoint(folder, store)
    record = next((store / "fingerprints").iterdir())
    good = record.read_text()
    record.write_text(content)
    assert fingerprint_checkpoint(folder, store) == expected
    assert record.read_text() == good


def test_a_record_belongs_to_its_path(tmp_path: Path, store: Path, count_hashing: list[Path]) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert fingerprint_checkpoint(folder, store) == fingerprint_checkpoint(link, store)
    assert len(count_hashing) == 1
    folder.rename(tmp_path / "moved")
    fingerprint_checkpoint(tmp_path / "moved", store)
    assert len(count_hashing) == 2


def test_weights_that_change_meanwhile_are_refused(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_single(tmp_path / "a", make_tensors())
    original = fingerprint._hash_weights

    def hash_and_touch(path: Path) -> str:
        result = original(path)
        os.utime(path / "model.safetensors", ns=(1, 1))
        return result

    monkeypatch.setattr(fingerprint, "_hash_weights", hash_and_touch)
    with pytest.raises(DataError, match="changed while they were read"):
        fingerprint_checkpoint(folder, store)
    assert not store.exists()


def test_a_bin_is_never_executed(tmp_path: Path, store: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = write_config(tmp_path / "a")
    torch.save({"weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin cannot be loaded"):
        fingerprint_checkpoint(folder, store)
    assert not (tmp_path / "executed").exists()


def test_a_bin_of_something_else_is_refused(tmp_path: Path, store: Path) -> None:
    folder = write_config(tmp_path / "a")
    torch.save({"model": {"weight": torch.zeros(1)}}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="must hold tensors by name"):
        fingerprint_checkpoint(folder, store)


@pytest.mark.parametrize(
    "change",
    [
        {"transformers_version": "5.6.0"},
        {"_name_or_path": "/somewhere"},
        {"torch_dtype": "bfloat16"},
        {"dtype": "bfloat16"},
        {"use_cache": False},
        {"rope": {"theta": 1e4, "torch_dtype": "float32"}},
    ],
)
def test_config_digest_leaves_out_what_is_volatile(tmp_path: Path, change: dict) -> None:
    before = config_digest(write_config(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(dict(reversed((CONFIG | change).items()))))
    assert config_digest(tmp_path) == before


def test_config_digest_sorts_architectures_only(tmp_path: Path) -> None:
    digests = []
    for lists in (
        {"architectures": ["A", "B"]},
        {"architectures": ["B", "A"]},
        {"types": ["A", "B"]},
        {"types": ["B", "A"]},
    ):
        (tmp_path / "config.json").write_text(json.dumps(lists))
        digests.append(config_digest(tmp_path))
    assert digests[0] == digests[1]
    assert digests[2] != digests[3]


@pytest.mark.parametrize("change", [{"hidden_size": 33}, {"rope": {"theta": 1e6}}, {"sliding_window": None}])
def test_config_digest_sees_the_rest(tmp_path: Path, change: dict) -> None:
    before = config_digest(write_config(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    assert config_digest(tmp_path) != before


def test_config_digest_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        config_digest(tmp_path)
