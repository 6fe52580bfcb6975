# SPDX-License-Identifier: Apache-2.0
"""What is found missing in a checkpoint, without reading a tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llamafactory_tpaw.errors import DataError
from llamafactory_tpaw.team.fingerprint import check_checkpoint_complete, fingerprint_checkpoint

from .checkpoints import (
    make_tensors,
    save_bin,
    save_old_bin,
    save_sharded,
    save_sharded_bin,
    save_single,
    write_config,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.parametrize("save", [save_single, save_sharded, save_bin, save_old_bin, save_sharded_bin])
def test_whole_checkpoints_have_no_problems(tmp_path: Path, save: Callable) -> None:
    assert check_checkpoint_complete(save(tmp_path / "a", make_tensors())) == []


def test_missing_folder_config_and_weights(tmp_path: Path, store: Path) -> None:
    assert "no does not exist" in check_checkpoint_complete(tmp_path / "no")[0]
    with pytest.raises(DataError, match="no does not exist"):
        fingerprint_checkpoint(tmp_path / "no", store)
    (tmp_path / "file").touch()
    assert "file is not a folder" in check_checkpoint_complete(tmp_path / "file")[0]
    (tmp_path / "empty").mkdir()
    config, weights = check_checkpoint_complete(tmp_path / "empty")
    assert "config.json cannot be read: No such file" in config
    assert "empty holds no weights: none of model.safetensors" in weights
    folder = save_single(tmp_path / "a", make_tensors())
    (folder / "config.json").write_text("[]")
    assert "must hold a JSON object" in check_checkpoint_complete(folder)[0]


def test_a_folder_that_is_only_prepared_is_to_be_played(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "training_args.yaml").write_text("stage: tpaw\n")
    (problem,) = check_checkpoint_complete(folder)
    assert problem.startswith(f"{folder} holds no checkpoint yet, only training_args.yaml")
    save_single(folder, make_tensors())
    assert check_checkpoint_complete(folder) == []


def test_shards_without_an_index_are_mentioned(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "a", make_tensors())
    (folder / "model.safetensors.index.json").unlink()
    (problem,) = check_checkpoint_complete(folder)
    assert "It has model-1-of-2.safetensors, model-2-of-2.safetensors, but no index" in problem


@pytest.mark.parametrize("save", [save_sharded, save_sharded_bin])
def test_absent_shard_is_named(tmp_path: Path, store: Path, save: Callable) -> None:
    folder = save(tmp_path / "a", make_tensors())
    path = next(folder.glob("model-2-of-2.*"))
    path.unlink()
    (problem,) = check_checkpoint_complete(folder)
    assert f"{path} is missing, but " in problem
    with pytest.raises(DataError, match="is missing, but"):
        fingerprint_checkpoint(folder, store)


def test_tensor_that_no_shard_holds_is_named(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "a", make_tensors())
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.more"] = "model-1-of-2.safetensors"
    index.write_text(json.dumps(content))
    (problem,) = check_checkpoint_complete(folder)
    assert "names 1 tensors that no shard holds, the first `model.more`" in problem


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_broken_index_is_named(tmp_path: Path, content: str) -> None:
    folder = save_sharded(tmp_path / "a", make_tensors())
    (folder / "model.safetensors.index.json").write_text(content)
    (problem,) = check_checkpoint_complete(folder)
    assert "model.safetensors.index.json" in problem


@pytest.mark.parametrize("save", [save_single, save_sharded])
def test_every_cut_of_a_safetensors_file_is_found(tmp_path: Path, save: Callable) -> None:
    folder = save(tmp_path / "a", make_tensors())
    path = sorted(folder.glob("*.safetensors"))[-1]
    content = path.read_bytes()
    for size in {0, 4, 8, 9, 50, len(content) // 2, len(content) - 1}:
        path.write_bytes(content[:size])
        (problem,) = check_checkpoint_complete(folder)
        assert f"{path} is cut off or damaged: it has {size} bytes" in problem
    path.write_bytes(content + b"\0")
    assert "its header says" in check_checkpoint_complete(folder)[0]
    path.write_bytes(content)
    assert check_checkpoint_complete(folder) == []


@pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b'{"a": {}}', b"\xff\xff", b'{"a": {"dtype": "F32"}}'])
def test_damaged_header_is_found(tmp_path: Path, store: Path, header: bytes) -> None:
    folder = write_config(tmp_path / "a")
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (problem,) = check_checkpoint_complete(folder)
    assert "model.safetensors is cut off or damaged" in problem
    with pytest.raises(DataError, match="is cut off or damaged"):
        fingerprint_checkpoint(folder, store)


def test_cut_bin_is_found(tmp_path: Path) -> None:
    folder = save_bin(tmp_path / "a", make_tensors())
    path = folder / "pytorch_model.bin"
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert f"cut off at {size} bytes" in check_checkpoint_complete(folder)[0]
