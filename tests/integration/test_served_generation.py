# SPDX-License-Identifier: Apache-2.0
"""Engines `openai` and `vllm` with a real server: the same rows as the `hf` engine's, and nothing is left of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import transformers

from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.source import find_entry
from llamafactory_tpaw.data.triplets import TripletMeta, read_meta
from llamafactory_tpaw.generation.process import ServerProcess
from tests import encoders, tiny
from tests.processes import ends_soon, free_port
from tests.runs import ADDITIONS, TIMEOUT_S, Project


pytestmark = pytest.mark.integration

SECRET = "geheim-0123456789"
SYSTEM = "You are a helpful assistant."
SPEAKERS = (("human", "question"), ("gpt", "answer"))
TALKS = [
    {"conversations": [{"from": who, "value": ADDITIONS[row][column]} for row in rows for who, column in SPEAKERS]}
    for rows in ((0, 5), (7, 2), (3, 3), (12, 9))
]
GREEDY = {"temperature": 0.0, "cutoff_len": 160}
# The conversation as the model is taught it, for the chat API.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRANSFORMERS = str(Path(sys.executable).parent / "transformers")

# What `vllm serve` is told, for `transformers serve`; it fails where something that it needs is not said.
PROGRAM = """#!{python}
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("serve", choices=["serve"])
parser.add_argument("model")
for option in ("served-model-name", "host", "port", "dtype", "max-model-len", "generation-config", "seed"):
    parser.add_argument("--" + option, required=True)
given, _ = parser.parse_known_args()
assert os.environ["VLLM_API_KEY"] and os.environ["LLAMAFACTORY_TPAW"] == "0"
print("this is", os.getpid(), flush=True)
words = ["serve", given.model, "--host", given.host, "--port", given.port, "--dtype", given.dtype, "--device", "cpu"]
os.execv({program!r}, [{program!r}, *words])
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run whose model answers, stops and has a chat template; datasets of one turn and of several."""
    root = tmp_path_factory.mktemp("served")
    model = tiny.save_model(root / "theta_0")
    turn = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    start = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    texts = [start + turn.format(**first) + turn.format(**second) for first in ADDITIONS for second in ADDITIONS[::5]]
    tiny.teach(model, texts, steps=110)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHAT_TEMPLATE}))
    project = Project(root, model)
    project.add_dataset("talks", TALKS, formatting="sharegpt", columns={"messages": "conversations"})
    return project


@pytest.fixture(scope="module")
def url(project: Project) -> Iterator[str]:
    """The address of `transformers serve` with the model."""
    if "/v1/completions" not in (Path(transformers.__file__).parent / "cli/serving/server.py").read_text():
        pytest.skip(f"transformers {transformers.__version__} serves chats alone")
    port = free_port()
    words = [TRANSFORMERS, "serve", str(project.model), "--device", "cpu", "--port", str(port), "--host", "127.0.0.1"]
    hub = {"OMP_NUM_THREADS": "1", "LLAMAFACTORY_TPAW": "0", "HF_HOME": str(project.root / "hub")}
    server = ServerProcess(words, os.environ | hub, port, "no key", project.root / "serve.log", TIMEOUT_S)
    yield server.url
    server.close()


def generate(project: Project, name: str, **changes: Any) -> tuple[TripletMeta, list[dict[str, Any]]]:
    """Generate a round of its own in this process."""
    from llamafactory_tpaw.generation.local import generate_round

    settings = {"run": name, "tpaw_cache_dir": str(project.root / "cache")}
    run = encoders.parse(project, **(GREEDY | settings | changes))
    round_ = Round(0, find_entry(f"{name}_iter0", run.data.dataset_dir))
    return generate_round(run, round_), project.triplets(f"{name}_iter0")


@pytest.mark.parametrize("prompts", ["additions", "talks"])
def test_greedy_rows_are_those_of_the_hf_engine(project: Project, url: str, prompts: str) -> None:
    _, ours = generate(project, f"hf_{prompts}", tpaw_prompts=prompts)
    served = {"tpaw_engine": "openai", "tpaw_engine_url": url}
    meta, theirs = generate(project, f"openai_{prompts}", tpaw_prompts=prompts, **served)
    encoder = encoders.build_encoder(encoders.parse(project), tiny.build_tokenizer())
    assert [row["finish_reason"] for row in ours].count("stop") > len(ours) / 2
    for mine, other in zip(ours, theirs, strict=True):
        assert other["generated_ids"] == []
        encoded = encoder.encode_text(other["rejected"]["value"], other["finish_reason"]).tolist()
        assert encoded == encoder.finish(mine["generated_ids"], mine["finish_reason"]).tolist()
        assert {**other, "generated_ids": 0} == {**mine, "generated_ids": 0}
    engine = {"name": "openai", "version": "transformers serve", "served": str(project.model), "verified": True}
    assert meta.engine == engine | {"dtype": "not known", "prompts": "text", "responses": "text"}


def test_the_command_leaves_the_key_nowhere(project: Project, url: str) -> None:
    settings = project.settings(0, run="command", **GREEDY, tpaw_engine="openai", tpaw_engine_url=[url])
    name = project.write("command.yaml", settings)
    result = project.command("llamafactory-tpaw", "generate", name, TPAW_ENGINE_API_KEY=SECRET)
    assert result.code == 0, result.output
    _, ours = generate(project, "again")
    assert [row["rejected"] for row in project.triplets("command_iter0")] == [row["rejected"] for row in ours]
    assert read_meta(project.root / "data" / "tpaw" / "command_iter0.jsonl").engine["name"] == "openai"
    assert SECRET not in result.output
    files = [path for path in project.root.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    # The address is no part of the result either.
    port = url.split(":")[2].partition("/")[0]
    assert port not in Path(project.root / "data" / "tpaw" / "command_iter0.meta.json").read_text()


def test_a_server_is_started_asked_and_ended(project: Project, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(project.root / "hub"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    program = project.root / "vllm of another environment"
    program.write_text(PROGRAM.format(python=sys.executable, program=TRANSFORMERS), encoding="utf-8")
    program.chmod(0o755)
    before = set(psutil.Process().children(recursive=True))
    _, ours = generate(project, "asked", tpaw_engine="openai", tpaw_engine_url=url)
    meta, theirs = generate(project, "started", tpaw_engine="vllm", tpaw_vllm_command=f"'{program}'")
    assert [row["rejected"] for row in theirs] == [row["rejected"] for row in ours]
    known = {"name": "vllm", "version": "transformers serve", "verified": True}
    assert known.items() <= meta.engine.items()
    said = (project.root / "data" / "tpaw" / "started_iter0.server.log").read_text(encoding="utf-8")
    assert ends_soon(int(said.partition("this is")[2].split()[0]))
    assert set(psutil.Process().children(recursive=True)) <= before
