# SPDX-License-Identifier: Apache-2.0
r"""Tokens per second of generation, ours against a plain loop of `model.generate`; lengths are mixed.

    python -m benchmarks.generation

Both sides run in this process in turn, with the same model of random weights, the same prompts, the same limit of
tokens in a batch, sampling at temperature 1. The plain loop takes the prompts in the file's order and as many at a
time as fit when each of them gets the longest answer. A share of the vocabulary ends an answer, so that lengths of
answers are about geometric. Only tokens up to an answer's end are counted. `--profile` says where our time goes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from llamafactory_tpaw.generation.base import Request, SamplingSettings
from llamafactory_tpaw.generation.hf import HfEngine

from .clock import MEBIBYTE, now, peak_bytes, reset_peaks
from .workload import REAL_VOCABULARY, RESULTS, SIZES


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PAD = 0
BLOCK = 32


@dataclass
class Side:
    """What one way of generating took in each repeat."""

    generate: Callable[[int], list[int]]
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Generate once."""
        reset_peaks()
        before = peak_bytes()
        begin, used = now(), time.process_time()
        lengths = self.generate(len(self.seconds))
        self.seconds.append(now() - begin)
        self.processor_seconds.append(time.process_time() - used)
        self.tokens.append(sum(lengths))
        device = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else peak_bytes() - before
        self.peak_mib.append(device / MEBIBYTE)

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each repeat."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]

    @property
    def processor_rate(self) -> float:
        """Tokens per second of the processors' time: what a loaded machine disturbs least."""
        return sum(self.tokens) / sum(self.processor_seconds)

    def summary(self) -> dict[str, Any]:
        """Return median and range of tokens per second, and the largest memory over what was there before."""
        return {
            "tokens_per_second": round(statistics.median(self.rates), 1),
            "lowest": round(min(self.rates), 1),
            "highest": round(max(self.rates), 1),
            "tokens_per_processor_second": round(self.processor_rate, 1),
            "peak_mib": round(max(self.peak_mib), 1),
            "seconds": [round(seconds, 2) for seconds in self.seconds],
            "tokens": self.tokens,
        }


def make_model(options: argparse.Namespace) -> Qwen2ForCausalLM:
    """Make a Qwen2 model of random weights."""
    torch.manual_seed(0)
    size = SIZES[options.size]
    config = Qwen2Config(
        vocab_size=size.get("vocabulary", REAL_VOCABULARY),
        hidden_size=size["hidden"],
        intermediate_size=size["intermediate"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    model = Qwen2ForCausalLM(config).to(device=options.device, dtype=getattr(torch, options.dtype))
    return model.eval()


def make_requests(options: argparse.Namespace, vocabulary: int) -> list[Request]:
    """Make prompts of random tokens; as many of 16 to 32 tokens as of 32 to 64, and so on."""
    rng = random.Random(0)
    low, high = math.log(options.shortest_prompt), math.log(options.longest_prompt)
    lengths = [round(math.exp(rng.uniform(low, high))) for _ in range(options.prompts)]
    draw = np.random.default_rng(0)
    return [
        Request(f"{number}-0", draw.integers(1, vocabulary, length, dtype=np.int32), options.max_new_tokens, 0)
        for number, length in enumerate(lengths)
    ]


def plain_batches(requests: Sequence[Request], batch_tokens: int) -> list[list[Request]]:
    """Split in the order given: as many rows as fit with all their new tokens, padding included."""
    batches: list[list[Request]] = []
    for request in requests:
        rows = [*batches[-1], request] if batches else [request]
        width = max(len(row.prompt_ids) for row in rows) + max(row.max_new_tokens for row in rows)
        if batches and len(rows) * width <= batch_tokens:
            batches[-1] = rows
        else:
            batches.append([request])
    return batches


def sampling(stop: Sequence[int], options: argparse.Namespace, **changes: Any) -> GenerationConfig:
    """Settings for transformers."""
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=options.top_p,
        top_k=options.top_k,
        max_new_tokens=options.max_new_tokens,
        eos_token_id=list(stop),
        pad_token_id=PAD,
        **changes,
    )


@torch.inference_mode()
def plain_loop(
    model: Qwen2ForCausalLM,
    requests: Sequence[Request],
    stop: Sequence[int],
    options: argparse.Namespace,
    **changes: Any,
) -> list[int]:
    """Generate with `model.generate`, batch after batch; returns the lengths of the answers."""
    config = sampling(stop, options, **changes)
    ends, lengths = torch.tensor(stop), []
    for batch in plain_batches(requests, options.batch_tokens):
        width = max(len(request.prompt_ids) for request in batch)
        input_ids = torch.full((len(batch), width), PAD)
        mask = torch.zeros_like(input_ids)
        for row, request in enumerate(batch):
            input_ids[row, width - len(request.prompt_ids) :] = torch.from_numpy(request.prompt_ids)
            mask[row, width - len(request.prompt_ids) :] = 1
        output = model.generate(
            input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
        ended = torch.isin(output[:, width:].cpu(), ends)
        lengths += [int(row.nonzero()[0]) + 1 if row.any() else len(row) for row in ended]
    return lengths


def own_continuous(
    model: Qwen2ForCausalLM, requests: Sequence[Request], stop: Sequence[int], options: argparse.Namespace
) -> list[int]:
    """Generate with transformers' continuous batching, its cache as large as a batch may be."""
    attention = model.config._attn_implementation
    blocks = ContinuousBatchingConfig(num_blocks=options.batch_tokens // BLOCK, block_size=BLOCK)
    prompts = [request.prompt_ids.tolist() for request in requests]
    try:
        outputs = model.generate_batch(
            prompts,
            generation_config=sampling(stop, options),
            continuous_batching_config=blocks,
            progress_bar=False,
            warmup=False,
        )
    finally:
        model.set_attn_implementation(attention)
    return [len(output.generated_tokens) for output in outputs.values()]


def our_engine(engine: HfEngine, requests: Sequence[Request], iteration: int) -> list[int]:
    """Generate with other random numbers in every repeat, as the plain loop does; returns the answers' lengths."""
    return [
        len(response.ids) for response in engine.generate([replace(each, iteration=iteration) for each in requests])
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run both sides in turn, and return the figures."""
    model = make_model(options)
    vocabulary = model.config.vocab_size
    requests = make_requests(options, vocabulary)
    stop = random.Random(1).sample(range(1, vocabulary), max(round(vocabulary / options.mean_answer), 1))
    settings = SamplingSettings(1.0, options.top_p, options.top_k, 1.0, options.max_new_tokens, 0)
    engine = HfEngine(model, settings, stop, PAD, options.batch_tokens)
    sides = {
        "plain loop": Side(lambda _: plain_loop(model, requests, stop, options)),
        "ours": Side(lambda number: our_engine(engine, requests, number)),
    }
    if options.all:
        sides["generate, static cache"] = Side(
            lambda _: plain_loop(model, requests, stop, options, cache_implementation="static")
        )
        sides["generate_batch"] = Side(lambda _: own_continuous(model, requests, stop, options))
    warm = requests[: max(options.prompts // 8, 1)]
    plain_loop(model, warm, stop, options)
    engine.generate(warm)
    if options.profile:
        return profile(lambda: our_engine(engine, requests, 0))
    for number in range(options.repeats):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            sides[name].measure()
            note = f"repeat {number + 1} of {options.repeats}, {name}: {sides[name].rates[-1]:.1f} tokens/s"
            print(note, file=sys.stderr, flush=True)
    ratios = [ours / plain for ours, plain in zip(sides["ours"].rates, sides["plain loop"].rates, strict=True)]
    return {
        "benchmark": "generation",
        "ratio": round(statistics.median(ratios), 3),
        "processor_ratio": round(sides["ours"].processor_rate / sides["plain loop"].processor_rate, 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "sides": {name: side.summary() for name, side in sides.items()},
        "settings": {key: value for key, value in vars(options).items() if key != "json"},
        "machine": {
            "platform": platform.platform(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def profile(generate: Callable[[], list[int]]) -> dict[str, Any]:
    """Print which operations our side spends its time in."""
    with torch.profiler.profile() as profiler:
        begin = time.perf_counter()
        tokens = sum(generate())
        seconds = time.perf_counter() - begin
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=40))
    return {"benchmark": "generation", "profiled_tokens": tokens, "profiled_seconds": round(seconds, 2)}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {
        "prompts": (64, "number of prompts"),
        "shortest-prompt": (16, "tokens of the shortest"),
        "longest-prompt": (512, "tokens of the longest"),
        "max-new-tokens": (192, "most tokens of an answer"),
        "mean-answer": (48, "mean tokens of an answer"),
        "batch-tokens": (16384, "most tokens in a batch, as `tpaw_generate_batch_tokens`"),
        "repeats": (5, "measured repeats of each side"),
        "threads": (2, "threads of the CPU"),
        "top-k": (0, "most likely tokens that are kept, 0 for all"),
    }
    for name, (default, meaning) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="probability that is kept (default: %(default)s)")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="model (default: %(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--all", action="store_true", help="measure a static cache and transformers' `generate_batch` too"
    )
    parser.add_argument("--profile", action="store_true", help="profile our side instead of measuring both")
    parser.add_argument("--json", type=Path, default=RESULTS / "generation.json", help="file (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and one line of JSON."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    result = measure(options)
    if "sides" in result:
        print(f"{'generation':<24}{'tokens/s':>9}{'range':>18}{'per CPU s':>11}{'peak MiB':>10}")
        for name, row in result["sides"].items():
            spread = f"{row['lowest']:.1f} to {row['highest']:.1f}"
            rates = f"{row['tokens_per_second']:>9.1f}{spread:>18}{row['tokens_per_processor_second']:>11.1f}"
            print(f"{name:<24}{rates}{row['peak_mib']:>10.1f}")
        low, high = min(result["ratios"]), max(result["ratios"])
        print(
            f"ours / plain loop: {result['ratio']:.2f} ({low:.2f} to {high:.2f}), "
            f"by processor time {result['processor_ratio']:.2f}, {options.repeats} repeats"
        )
    text = json.dumps(result)
    print(text)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
