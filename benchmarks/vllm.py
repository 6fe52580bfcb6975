# SPDX-License-Identifier: Apache-2.0
r"""Tokens per second of engine `vllm` against engine `hf`, and whether greedy rows agree.

    python -m benchmarks.vllm --model Qwen/Qwen2.5-1.5B-Instruct --template qwen --prompts 2000
    python -m benchmarks.vllm --model saves/… --template qwen --dataset data/gsm8k.json --vllm vllm-env/bin/vllm

Each engine generates the same prompts by `llamafactory-tpaw generate`, twice: sampled at temperature 1, which is
measured, and greedily, to compare the rows. Tokens per second are those of the meta file: over the time in which
requests were answered. The whole command, with imports, loading and the server's start, is the other column. Greedy
rows of two engines may part where two tokens are about as likely: kernels round differently. `--dataset` is a file
with `question` and `answer`; without it sums are asked for.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from llamafactory_tpaw.data.source import triplet_entry
from llamafactory_tpaw.data.triplets import read_meta
from llamafactory_tpaw.errors import EnvironmentProblem, TpawError
from llamafactory_tpaw.generation.vllm import find_program

from .options import count
from .workload import RESULTS


ENGINES = ("hf", "vllm")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], prog="python -m benchmarks.vllm")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub name")
    parser.add_argument("--template", required=True, help="LlamaFactory's template of the model")
    parser.add_argument("--dataset", type=Path, help="JSON or JSON lines with `question` and `answer`")
    parser.add_argument("--prompts", type=count, default=1000, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=count, default=512, help="most of a response (default: %(default)s)")
    parser.add_argument("--cutoff-len", type=count, default=2048, help="default: %(default)s")
    parser.add_argument("--batch-tokens", type=count, default=262144, help="of engine hf (default: %(default)s)")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--vllm", help="`tpaw_vllm_command`")
    parser.add_argument("--vllm-args", help="`tpaw_vllm_args`")
    parser.add_argument("--json", type=Path, default=RESULTS / "vllm.json", help="default: %(default)s")
    return parser.parse_args(argv)


def refuse_without_vllm(command: str | None) -> None:
    r"""Say what is missing before anything is loaded.

    Raises:
        EnvironmentProblem: If there is no vLLM, or no client for it.
    """
    find_program(command)
    if importlib.util.find_spec("openai") is None:
        raise EnvironmentProblem(
            "Engine `vllm` needs the package openai, which is not installed. Run: pip install "
            '"llamafactory-tpaw[openai]"'
        )


def write_data(folder: Path, dataset: Path | None, prompts: int) -> None:
    """Write the prompts and the entries of what will be generated."""
    info: dict[str, Any] = {
        f"{engine}_{kind}": triplet_entry(f"{engine}_{kind}") for engine in ENGINES for kind in ("sampled", "greedy")
    }
    file = str(dataset.resolve()) if dataset else "sums.jsonl"
    info["prompts"] = {"file_name": file, "columns": {"prompt": "question", "response": "answer"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    if dataset is None:
        rows = [
            {
                "question": f"A shop sells {7 + index} pens on Monday and {3 * index + 1} on Tuesday. It pays "
                f"{index % 9 + 2} dollars for a pen. How much does it pay for all of them? Explain each step.",
                "answer": str((8 + 4 * index) * (index % 9 + 2)),
            }
            for index in range(prompts)
        ]
        (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def settings(options: argparse.Namespace, folder: Path, engine: str, kind: str) -> dict[str, Any]:
    """The run file of one engine."""
    given = {
        "model_name_or_path": options.model,
        "stage": "tpaw",
        "do_train": True,
        "finetuning_type": "full",
        "template": options.template,
        "cutoff_len": options.cutoff_len,
        "tpaw_prompts": "prompts",
        "tpaw_max_prompts": options.prompts,
        "tpaw_engine": engine,
        "tpaw_generate_batch_tokens": options.batch_tokens,
        "temperature": 1.0 if kind == "sampled" else 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": options.new_tokens,
        "dataset_dir": str(folder),
        "dataset": f"{engine}_{kind}",
        "output_dir": str(folder / f"{engine}_{kind}"),
        "tpaw_cache_dir": str(folder / "cache"),
        "report_to": "none",
    }
    if options.precision != "fp32":
        given[options.precision] = True
    if engine == "vllm":
        given |= {"tpaw_vllm_command": options.vllm, "tpaw_vllm_args": options.vllm_args}
    return {key: value for key, value in given.items() if value is not None}


def generate(options: argparse.Namespace, folder: Path, engine: str, kind: str) -> dict[str, Any]:
    """Run the command and return what it took."""
    file = folder / f"{engine}_{kind}.yaml"
    file.write_text(yaml.safe_dump(settings(options, folder, engine, kind)), encoding="utf-8")
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "llamafactory_tpaw", "generate", str(file)], check=False)
    wall = time.monotonic() - begin
    if done.returncode:
        raise SystemExit(done.returncode)
    meta = read_meta(folder / "tpaw" / f"{engine}_{kind}.jsonl")
    tokens = meta.counts["generated_tokens"]
    return {
        "engine": meta.engine,
        "rows": meta.rows,
        "tokens": tokens,
        "seconds": meta.seconds,
        "tokens_per_second": tokens / max(meta.seconds, 1e-9),
        "command_seconds": wall,
        "hardware": meta.hardware,
        "versions": meta.versions,
    }


def compare(folder: Path) -> dict[str, float]:
    """How many greedy rows are the same, and where the others part."""
    rows = [_ids(folder / "tpaw" / f"{engine}_greedy.jsonl") for engine in ENGINES]
    parted = [place for pair in zip(*rows, strict=True) if (place := parting(*pair)) is not None]
    total = len(rows[0])
    return {
        "rows": total,
        "equal": total - len(parted),
        "median_tokens_before_parting": statistics.median(parted) if parted else 0,
    }


def parting(ours: Sequence[Any], theirs: Sequence[Any]) -> int | None:
    """Where two rows part; None where they are the same."""
    if ours == theirs:
        return None
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((place for place, (our, their) in pairs if our != their), min(len(ours), len(theirs)))


def _ids(path: Path) -> list[list[int]]:
    return [json.loads(line)["generated_ids"] for line in path.read_text(encoding="utf-8").splitlines()]


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table and write a JSON file."""
    options = parse(argv)
    try:
        refuse_without_vllm(options.vllm)
    except TpawError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, options.dataset, options.prompts)
        measured = {engine: generate(options, folder, engine, "sampled") for engine in ENGINES}
        for engine in ENGINES:
            generate(options, folder, engine, "greedy")
        greedy = compare(folder)
    print(f"\n{'engine':<10}{'tokens':>12}{'seconds':>10}{'tokens/s':>12}{'whole command, s':>20}")
    for engine, row in measured.items():
        print(
            f"{engine:<10}{row['tokens']:>12}{row['seconds']:>10.1f}{row['tokens_per_second']:>12.0f}"
            f"{row['command_seconds']:>20.1f}"
        )
    ratio = measured["vllm"]["tokens_per_second"] / measured["hf"]["tokens_per_second"]
    print(f"vllm is {ratio:.1f} times as fast. Greedy: {greedy['equal']} of {greedy['rows']} rows are the same.")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"options": {key: str(value) for key, value in vars(options).items()}, **measured, "greedy": greedy}
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
