# SPDX-License-Identifier: Apache-2.0
"""Which GPUs each of vLLM's servers has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory_tpaw.errors import ConfigError
from llamafactory_tpaw.generation import placement
from llamafactory_tpaw.generation.placement import Gpu


GB = 10**9


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of 16 GB in bfloat16 with 12 heads."""
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 12}))
    monkeypatch.setattr(placement, "weight_bytes", lambda folder, dtype: 8 * GB * placement.BYTES[dtype])
    return str(tmp_path)


def gpus(count: int, gigabytes: int) -> list[Gpu]:
    return [Gpu(f"GPU-{index}", gigabytes * GB) for index in range(count)]


def test_one_server_a_gpu_where_one_holds_the_model(model: str) -> None:
    assert placement.place(model, "bfloat16", gpus(3, 24), []) == ([("GPU-0",), ("GPU-1",), ("GPU-2",)], 1)


def test_as_few_as_hold_it_otherwise(model: str) -> None:
    said: list[str] = []
    groups, size = placement.place(model, "float32", gpus(5, 24), [], said.append)
    assert (groups, size) == ([("GPU-0", "GPU-1"), ("GPU-2", "GPU-3")], 2)
    assert said == ["The GPUs GPU-4 stay idle: each server takes 2."]


def test_a_size_divides_the_heads_and_a_too_large_model_is_tried(model: str) -> None:
    said: list[str] = []
    groups, size = placement.place(model, "bfloat16", gpus(8, 4), [], said.append)
    assert size == 4, "12 heads cannot be split into 8 parts"
    assert len(groups) == 2
    assert said[0].endswith(
        "about 22 GB are wanted in bfloat16, and 4 of the GPUs in sight have 16 GB. vLLM is asked all the same."
    )


def test_what_the_user_asks_for_counts(model: str) -> None:
    four = gpus(4, 80)
    assert placement.place(model, "bfloat16", four, ["-tp", "2"]) == ([("GPU-0", "GPU-1"), ("GPU-2", "GPU-3")], None)
    groups, size = placement.place(
        model, "bfloat16", four, ["--tensor_parallel_size", "2", "--pipeline-parallel-size=2"]
    )
    assert (groups, size) == ([("GPU-0", "GPU-1", "GPU-2", "GPU-3")], None)
    with pytest.raises(
        ConfigError, match=r"asks for 8 GPUs a server \(--tensor-parallel-size 8\), but 4 are in sight"
    ):
        placement.place(model, "bfloat16", four, ["-tp", "8"])
    with pytest.raises(ConfigError, match=r"invalid int value: 'two'"):
        placement.place(model, "bfloat16", four, ["-tp", "two"])


@pytest.mark.parametrize(
    "backend", [["--distributed-executor-backend", "ray"], ["--distributed-executor-backend=ray"]]
)
def test_a_server_on_ray_may_have_more_gpus_than_are_here(model: str, backend: list[str]) -> None:
    two = gpus(2, 80)
    asked = ["--tensor-parallel-size", "2", "--pipeline-parallel-size", "2"]
    assert placement.place(model, "bfloat16", two, [*asked, *backend]) == ([("GPU-0", "GPU-1")], None)
    with pytest.raises(
        ConfigError, match=r"asks for 4 GPUs .* but 2 are in sight.*--distributed-executor-backend ray"
    ):
        placement.place(model, "bfloat16", two, [*asked, "--distributed-executor-backend", "mp"])


def test_without_a_gpu_there_is_one_server(model: str) -> None:
    assert placement.place(model, "float32", [], []) == ([()], 1)


def test_weights_are_counted_in_the_computing_dtype(tiny_model: Path) -> None:
    stored = (tiny_model / "model.safetensors").stat().st_size
    full, half = (placement.weight_bytes(tiny_model, dtype) for dtype in ("float32", "bfloat16"))
    assert full == 2 * half
    assert 0.8 * stored < full <= stored
    assert placement.weight_bytes(Path("org/name-of-a-hub"), "bfloat16") == 0


def test_memory_of_the_gpus_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Properties:
        total_memory = 80 * GB

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    # As many as were named, though this process sees one of them.
    assert placement.gpus_in_sight(["MIG-a", "MIG-b"]) == [Gpu("MIG-a", 80 * GB), Gpu("MIG-b", 80 * GB)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert placement.gpus_in_sight([]) == []
