# SPDX-License-Identifier: Apache-2.0
"""What is measured: model, data and learning settings that all contenders share. Imports nothing heavy."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REAL_VOCABULARY = 151_936

# Fields of a Qwen2 configuration. 0.5b and 1.5b are those of Qwen2.5; `small` has their vocabulary and head, and a
# body that a CPU can train; `toy` is for tests of the harness.
SIZES: dict[str, dict[str, int]] = {
    "toy": {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64, "vocabulary": 512},
    "small": {"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "intermediate": 1024},
    "deep": {"hidden": 256, "layers": 24, "heads": 4, "kv_heads": 2, "intermediate": 1024},
    "0.5b": {"hidden": 896, "layers": 24, "heads": 14, "kv_heads": 2, "intermediate": 4864},
    "1.5b": {"hidden": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "intermediate": 8960},
}
PRECISIONS = ("fp32", "bf16", "pure_bf16")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Data:
    r"""One set of triplets: a target and one generated response of each θ for each prompt.

    Attributes:
        prompts: Number of prompts.
        prompt_tokens: Tokens of a prompt, the template's included.
        response_tokens: Tokens of a response, its end included; the most of them where `spread` is not 0.
        spread: Lengths of responses are drawn from (1 - spread) times `response_tokens` to `response_tokens`.
        rounds: How many θ generated for it.
    """

    prompts: int
    prompt_tokens: int
    response_tokens: int
    spread: float = 0.0
    rounds: int = 3

    def entry(self, iteration: int) -> str:
        """Name of the round's entry in `dataset_info.json`."""
        return f"bench_{self.prompts}x{self.prompt_tokens}x{self.response_tokens}x{self.rounds}_iter{iteration}"

    @property
    def pair_tokens(self) -> float:
        """Tokens of a triplet as a plain trainer reads it: the prompt twice, target, generated response."""
        return 2 * (self.prompt_tokens + self.response_tokens * (1 - self.spread / 2))

    @property
    def cutoff_len(self) -> int:
        """A limit that cuts nothing."""
        return self.prompt_tokens + self.response_tokens + 8


@dataclass(frozen=True)
class Workload:
    r"""Everything that contenders have in common.

    Attributes:
        folder: Where models, data and outputs are.
        size: Name in `SIZES`.
        device: `cpu` or `cuda`.
        precision: `fp32`; `bf16`, which is float32 weights under autocast; or `pure_bf16`.
        micro_triplets: Triplets of a micro-batch.
        accumulation: Micro-batches of an optimizer step.
        checkpointing: Whether gradient checkpointing is on.
        tied: Whether input and output embeddings are one.
        thetas: How many checkpoints there are.
        threads: Threads of a process on the CPU.
        optimizer: `optim` of transformers.
        datasets: The sets of triplets to make.
    """

    folder: str
    size: str = "small"
    device: str = "cpu"
    precision: str = "fp32"
    micro_triplets: int = 3
    accumulation: int = 2
    checkpointing: bool = False
    tied: bool = True
    thetas: int = 3
    threads: int = field(default_factory=processors)
    optimizer: str = "adamw_torch"
    learning_rate: float = 1e-6
    reward_scale: float = 0.1
    eta: float = 6.0
    gamma: float = 0.5
    logging_steps: int = 1
    datasets: tuple[Data, ...] = ()

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return SIZES[self.size].get("vocabulary", REAL_VOCABULARY)

    @property
    def data_dir(self) -> Path:
        """Folder of `dataset_info.json`."""
        return Path(self.folder) / "data"

    def theta(self, number: int) -> Path:
        """Folder of a checkpoint."""
        return Path(self.folder) / f"theta_{number}"

    def triplet_file(self, data: Data, iteration: int) -> Path:
        """File of a round."""
        return self.data_dir / "tpaw" / f"{data.entry(iteration)}.jsonl"

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "datasets": tuple(Data(**data) for data in values["datasets"])})


@dataclass(frozen=True)
class Job:
    """One whole iteration: which triplets, how many epochs, and how many of the newest θ are players."""

    data: Data
    epochs: int = 1
    players: int = 3

    @property
    def thetas(self) -> list[int]:
        """Numbers of the players and of the rounds they generated, oldest first."""
        return list(range(self.players))

    def to_dict(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Job:
        """Read what `to_dict` wrote."""
        return cls(**{**values, "data": Data(**values["data"])})

    @property
    def triplets(self) -> int:
        """Triplets of an epoch."""
        return self.data.prompts * self.players


def described(workload: Workload) -> dict[str, Any]:
    """What a result says of its workload."""
    return {name: value for name, value in asdict(workload).items() if name not in ("folder", "datasets")}
