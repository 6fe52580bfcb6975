# SPDX-License-Identifier: Apache-2.0
"""What the golden values are of: each function makes something by commands, and returns what it came to as JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from llamafactory_tpaw.cli import main as command
from llamafactory_tpaw.data.files import SEAL
from llamafactory_tpaw.team.cache import sequence_key
from llamafactory_tpaw.team.fingerprint import chain_fingerprints, fingerprint_checkpoint
from tests.unit.team.checkpoints import save_sharded, save_single


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# They say when, where and with which versions something was made, not what; `files` holds digests of trained weights.
VOLATILE = {"seconds", "created", "started", "finished", "versions", "version", "hardware", "files", "meta", SEAL}
# At the first step the newest player's rewards are 0 but for rounding, whose sign these follow.
BY_ROUNDING = ("rewards/accura", "weights/step0_flipped_fraction", "weights/target_eta_fraction")
# Dataset, overrides and template of sets of prompts.
PROMPTS = {
    "alpaca_last": ("alpaca", "tpaw_turn=last"),
    "alpaca_first": ("alpaca", "tpaw_turn=first", "template=default"),
    "sharegpt_last": ("sharegpt", "tpaw_turn=last", "template=qwen3"),
    "sharegpt_first": ("sharegpt", "tpaw_turn=first", "template=llama3"),
    "chosen": ("sharegpt", "tpaw_max_prompts=5", "tpaw_prompts_seed=3"),
    "chosen_of_few": ("additions", "tpaw_max_prompts=11", "tpaw_prompts_seed=1", "tpaw_turn=first"),
}
OF_PROMPTS = ("prompts_entry", "prompts_digest", "selection", "rows", "tokenizer", "template", "template_name")
INIT_KEYS = ("model_name_or_path", "stage", "do_train", "finetuning_type", "dataset", "template", "output_dir")


def unpack(root: Path) -> None:
    """Unpack the old run: θ_0, the prompts, the run files, and what was played before it was killed."""
    shutil.unpack_archive(HERE / "old_run" / "run.tar.gz", root)


def start(root: Path) -> None:
    """Unpack the old run as it was before iteration 0."""
    unpack(root)
    for folder in ("data/tpaw", "saves/.tpaw_cache", "saves/play_iter0", "saves/play_iter1"):
        shutil.rmtree(root / folder)


def run(*arguments: str) -> None:
    """Run `llamafactory-tpaw` in this process and in the working folder."""
    code = command(list(arguments))
    assert code == 0, f"llamafactory-tpaw {' '.join(arguments)} ended with {code}"


def train_here(run_file: Path) -> None:
    """Do what `llamafactory-cli train` does once the triplets are there, in this process and in the working folder."""
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from llamafactory.train.tuner import run_exp

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    run_exp(yaml.safe_load(run_file.read_text()))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fingerprints(root: Path) -> dict[str, Any]:
    """Fingerprints of a whole checkpoint, of the same in shards, of one with tied embeddings, and of adapters."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randint(-100, 100, shape, generator=generator) / 64  # the same on any machine

    module = "model.layers.2.up_proj"
    whole = {
        "model.embed_tokens.weight": numbers(7, 4),
        "model.layers.10.up_proj.weight": numbers(6, 4).to(torch.bfloat16),
        f"{module}.weight": numbers(6, 4).half(),
        "model.count": torch.tensor(3),
        "model.empty": torch.zeros(0, 4),
        "model.mask": torch.tensor([True, False, True]),
        "lm_head.weight": numbers(7, 4),
    }
    save_single(root / "full", whole)
    save_sharded(root / "sharded", whole)
    save_single(root / "tied", {name: whole[name] for name in whole if name != "lm_head.weight"})
    for name, alpha in (("adapter", 4), ("other_adapter", 8)):
        said = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "target_modules": ["up_proj"], "bias": "none"}
        write(root / name / "adapter_config.json", said)
        halves = {"lora_A": torch.arange(8.0).reshape(2, 4), "lora_B": torch.arange(12.0).reshape(6, 2)}
        named = {f"base_model.model.{module}.{half}.weight": tensor for half, tensor in halves.items()}
        save_file(named, root / name / "adapter_model.safetensors")
    store, folders = root / "store", ("full", "sharded", "tied", "adapter", "other_adapter")
    found: dict[str, Any] = {name: fingerprint_checkpoint(root / name, store) for name in folders}
    chain = [root / name for name in ("full", "adapter", "other_adapter")]
    return found | {"chain": chain_fingerprints(chain, store)}


def cache_keys(root: Path) -> dict[str, str]:
    """Keys of sequences in the log-prob cache."""
    pairs = {
        "usual": ([151644, 872, 198], [9707, 13, 151645]),
        "border moved": ([151644, 872], [198, 9707, 13, 151645]),
        "no response": ([1, 2], []),
        "no prompt": ([], [1, 2]),
        "large": ([2**31 + 5, 0], [2**40]),
    }
    return {name: sequence_key(*pair).hex() for name, pair in pairs.items()}


def prompts(root: Path) -> dict[str, Any]:
    """Prompts as generation writes them down: ids, texts, and what the meta file says of the whole set."""
    start(root)
    entries, found = read(root / "data/dataset_info.json"), {}
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    entries["alpaca"] = {"file_name": "alpaca.json", "columns": columns | {"history": "history"}}
    columns = {"messages": "conversations", "system": "system", "tools": "tools"}
    entries["sharegpt"] = {"file_name": "sharegpt.json", "formatting": "sharegpt", "columns": columns}
    entries |= {name: entries["play_iter0"] | {"file_name": f"tpaw/{name}.jsonl"} for name in PROMPTS}
    write(root / "data/dataset_info.json", entries)
    for name in ("alpaca", "sharegpt"):
        shutil.copy(HERE / f"{name}.json", root / "data")
    with contextlib.chdir(root):
        for name, (entry, *changes) in PROMPTS.items():
            given = [f"tpaw_prompts={entry}", f"dataset={name}", "tpaw_max_bad_rows=1", "cutoff_len=600"]
            run("generate", "iter0.yaml", "max_new_tokens=1", *given, *changes)
            rows, meta = triplets(Path(f"data/tpaw/{name}.jsonl"))
            texts = [{key: row[key] for key in ("id", "conversations", "system", "tools", "chosen")} for row in rows]
            of_set = {key: meta[key] for key in OF_PROMPTS}
            found[name] = {"rows": texts, "meta": of_set, "bad_rows": meta["counts"]["bad_rows"]}
    return found


def triplets(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and meta of a triplet file."""
    return [json.loads(line) for line in path.read_text().splitlines()], lasting(read(path.with_suffix(".meta.json")))


def lasting(value: Any) -> Any:
    """Leave out what is another time, machine or version's."""
    if isinstance(value, dict):
        return {key: lasting(item) for key, item in value.items() if key not in VOLATILE}
    return [lasting(item) for item in value] if isinstance(value, list) else value


def tiny_run(root: Path) -> dict[str, Any]:
    """Iterations 0 to 2: triplets, cache, what was logged, the weights, and the last `tpaw.json`."""
    start(root)
    found: dict[str, Any] = {}
    trained: dict[str, str] = {}
    with contextlib.chdir(root):
        for iteration in range(3):
            output = Path(f"saves/play_iter{iteration}")
            run("generate", f"iter{iteration}.yaml")
            train_here(Path(f"iter{iteration}.yaml"))
            manifest = read(output / "tpaw.json")
            rows, meta = triplets(Path(f"data/tpaw/play_iter{iteration}.jsonl"))
            found[f"triplets_{iteration}"] = {"rows": rows, "meta": meta}
            found[f"training_{iteration}"] = {"log": logged(output), "weights": weights(output)}
            found[f"cache_{iteration}"] = cached(Path("saves/.tpaw_cache/logps"), trained)
            trained[manifest["result"]["fingerprint"]] = f"fingerprint of theta_{iteration + 1}"
        found["manifest"] = lasting(manifest)
    text = json.dumps(found)
    for fingerprint, name in trained.items():
        text = text.replace(fingerprint, name)
    return json.loads(text)


def logged(output: Path) -> list[dict[str, Any]]:
    """What training logged, but for how fast it was and for what is rounding at the first step."""
    first, *later = read(output / "trainer_state.json")["log_history"]
    first = {key: value for key, value in first.items() if not key.startswith(BY_ROUNDING)}
    fast = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [{key: value for key, value in entry.items() if key not in fast} for entry in (first, *later)]


def weights(output: Path) -> dict[str, list[float]]:
    """Sum, norm and first number of each tensor."""
    tensors = {name: tensor.double() for name, tensor in load_file(output / "model.safetensors").items()}
    return {name: [float(each.sum()), float(each.norm()), float(each.ravel()[0])] for name, each in tensors.items()}


def cached(folder: Path, trained: dict[str, str]) -> dict[str, Any]:
    """Folder, numerics, and log-prob and number of tokens by key, of the players that no machine trains otherwise."""
    found: dict[str, Any] = {}
    for numerics in sorted(folder.glob("*/*/numerics.json")):
        if read(numerics)["fingerprint"] in trained:
            continue
        entries: dict[str, Any] = {}
        for part in numerics.parent.glob("part-*.safetensors"):
            columns = [load_file(part)[name].tolist() for name in ("keys", "logps", "tokens")]
            entries |= {bytes(key).hex(): [logp, tokens] for key, logp, tokens in zip(*columns, strict=True)}
        where = numerics.parent.relative_to(folder).as_posix()
        found[where] = {"numerics": read(numerics), "entries": dict(sorted(entries.items()))}
    return found


def committed(root: Path) -> dict[str, Any]:
    """SHA-256 of the committed run files and `data/dataset_info.json`."""
    paths = [ROOT / "data" / "dataset_info.json", *(path for path in (ROOT / "yaml").rglob("*") if path.is_file())]
    return {path.relative_to(ROOT).as_posix(): digest(path.read_bytes()) for path in sorted(paths)}


def init(root: Path) -> dict[str, Any]:
    """Keys and dataset entries that `init` writes where it has nothing to find out about model and data."""
    start(root)
    with contextlib.chdir(root):
        run("init", "--model", "saves/theta_0", "--data", "additions", "--name", "mine", "--template", "qwen",
            "--iterations", "3", "--objective", "tpaw,spin,tspin")  # fmt: skip
        files = {path.name: yaml.safe_load(path.read_text()) for path in sorted(Path("yaml").iterdir())}
        entries = read(Path("data/dataset_info.json"))
    found = {
        name: {key: value for key, value in content.items() if key in INIT_KEYS or key.startswith("tpaw_")}
        for name, content in files.items()
    }
    return found | {"dataset_info.json": {name: entries[name] for name in entries if name.startswith("mine")}}


SINGLE: dict[str, Callable[[Path], dict[str, Any]]] = {
    each.__name__: each for each in (fingerprints, cache_keys, prompts, committed, init)
}
