# SPDX-License-Identifier: Apache-2.0
"""Every `tpaw_*` key, with its default, help and range. The table in the docs is generated from here."""

# No `from __future__ import annotations`: LlamaFactory's argument parser reads the types of this class from
# another module, where the names of string annotations would not resolve.

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args, get_origin

from ..errors import ConfigError
from .engine import url_problem


class Range(NamedTuple):
    """Allowed values of a number: at least `minimum`, or above it where `exclusive`; at most `maximum`."""

    minimum: float
    exclusive: bool = False
    maximum: float = math.inf

    def __str__(self) -> str:
        above = f"{'>' if self.exclusive else '>='} {self.minimum:g}"
        return above if math.isinf(self.maximum) else f"{above} and <= {self.maximum:g}"

    def holds(self, value: float) -> bool:
        """Whether a finite `value` is allowed."""
        above = value > self.minimum if self.exclusive else value >= self.minimum
        return math.isfinite(value) and above and value <= self.maximum


@dataclass
class TpawArguments:
    r"""The keys of stage `tpaw`; mixed into LlamaFactory's `FinetuningArguments`, so they keep its flat namespace."""

    tpaw_iteration: int = field(
        default=0,
        metadata={"help": "Round of self-play, from 0. Iteration t starts from theta_t and produces theta_{t+1}."},
    )
    tpaw_players: str | None = field(
        default=None,
        metadata={
            "help": (
                "Checkpoints theta_0 to theta_t, oldest first, separated by commas or as a YAML list; the last is "
                "`model_name_or_path` with `adapter_name_or_path`; adapters are written `model+adapter`. The newest "
                "`tpaw_team_size` form the team. Default: the model itself, at iteration 0."
            )
        },
    )
    tpaw_team_size: int = field(
        default=3,
        metadata={"help": "How many checkpoints are players, and how many rounds of triplets are opponents."},
    )
    tpaw_objective: Literal["tpaw", "tspin"] = field(
        default="tpaw",
        metadata={"help": "The loss. `tpaw` judges by a team of players; `tspin` (T-SPIN) needs no reference model."},
    )
    tpaw_reward_scale: float = field(
        default=0.1,
        metadata={"help": "Lambda: factor from log-ratios in nats to rewards (objective `tpaw`)."},
    )
    tpaw_eta: float = field(
        default=6.0,
        metadata={"help": "Target weight where a player's target reward is not positive (objective `tpaw`)."},
    )
    tpaw_gamma: float = field(
        default=0.5,
        metadata={
            "help": (
                "Sharpness of the player weights, a softmax of -gamma times the margins (objective `tpaw`). "
                "0 is the plain average over players."
            )
        },
    )
    tpaw_scale: float = field(
        default=1.0,
        metadata={"help": "Factor a on the log-prob differences (objective `tspin`)."},
    )
    tpaw_history_weight: float = field(
        default=0.1,
        metadata={"help": "Weight b of the term against y_0, from iteration 1 (objective `tspin`)."},
    )
    tpaw_proto: str | None = field(
        default=None,
        metadata={
            "help": (
                "Entry of dataset_info.json with the triplets of iteration 0, which hold y_0. Required by objective "
                "`tspin` from iteration 1."
            )
        },
    )
    tpaw_prompts: str | None = field(
        default=None,
        metadata={
            "help": (
                "The SFT set whose prompts are answered, an entry of dataset_info.json. Without it nothing is "
                "generated and every entry of `dataset` must exist."
            )
        },
    )
    tpaw_max_prompts: int | None = field(
        default=None,
        metadata={"help": "How many rows of `tpaw_prompts` are used, chosen once for all iterations. Default: all."},
    )
    tpaw_prompts_seed: int = field(
        default=0,
        metadata={"help": "Seed of the choice of `tpaw_max_prompts`; independent of `seed`."},
    )
    tpaw_turn: Literal["last", "first"] = field(
        default="last",
        metadata={
            "help": (
                "Which response of a conversation is the target: `last` (everything before it is the prompt) or "
                "`first` (SPIN's choice)."
            )
        },
    )
    tpaw_engine: Literal["hf", "vllm", "openai"] = field(
        default="hf",
        metadata={
            "help": (
                "What samples the responses: `hf` is transformers in processes of its own, `vllm` starts and stops "
                "vLLM's server, `openai` asks the servers at `tpaw_engine_url`."
            )
        },
    )
    tpaw_engine_url: str | None = field(
        default=None,
        metadata={
            "help": (
                "Base addresses of servers that speak `/completions`, such as `http://host:8000/v1`, separated by "
                "commas or as a YAML list; requests are spread over them. Required by engine `openai`."
            )
        },
    )
    tpaw_engine_model: str | None = field(
        default=None,
        metadata={
            "help": (
                "Name under which the servers of engine `openai` serve the generator. Default: the checkpoint's path "
                "or folder name, whichever they list."
            )
        },
    )
    tpaw_engine_concurrency: int = field(
        default=256,
        metadata={"help": "Most requests in flight at one server (engines `vllm` and `openai`)."},
    )
    tpaw_engine_timeout: float = field(
        default=600.0,
        metadata={"help": "Seconds after which a request to a server is given up and repeated."},
    )
    tpaw_engine_retries: int = field(
        default=8,
        metadata={
            "help": "How often a request that a server failed to answer is repeated before it counts as failed."
        },
    )
    tpaw_engine_startup: float = field(
        default=1800.0,
        metadata={
            "help": (
                "Seconds within which a server that engine `vllm` starts must be ready, and for which a lost server "
                "of engine `openai` is waited for."
            )
        },
    )
    tpaw_max_failed: int = field(
        default=0,
        metadata={
            "help": (
                "How many responses may fail for good; their prompts then have that many triplets less. Beyond it the "
                "run stops and goes on when it is started again."
            )
        },
    )
    tpaw_vllm_command: str | None = field(
        default=None,
        metadata={
            "help": (
                "The program that engine `vllm` starts with `serve`, with a path where it lies in an environment of "
                "its own. Default: `vllm`."
            )
        },
    )
    tpaw_vllm_args: str | None = field(
        default=None,
        metadata={"help": "Further arguments of `vllm serve`, as in a shell: `--gpu-memory-utilization 0.8`."},
    )
    tpaw_samples_per_prompt: int = field(
        default=1,
        metadata={"help": "Responses sampled for each prompt; every one makes a triplet."},
    )
    tpaw_opponent_model: str | None = field(
        default=None,
        metadata={
            "help": (
                "Checkpoint that generates the triplets in place of theta_t; with engine `openai` any model's name "
                "that the servers list. Recorded with the triplets, so that they do not count as theta_t's."
            )
        },
    )
    tpaw_generate_batch_tokens: int = field(
        default=32768,
        metadata={"help": "Most tokens (prompts and new ones, padding included) in one batch of generation."},
    )
    tpaw_reference: Literal["cached", "online"] = field(
        default="cached",
        metadata={
            "help": (
                "`cached` scores each player once, one in memory at a time, and keeps the log-probs on disk; `online` "
                "keeps all players in memory and scores in every step, for comparison."
            )
        },
    )
    tpaw_grouping: Literal["prompt", "none"] = field(
        default="prompt",
        metadata={
            "help": (
                "`prompt` visits the triplets of a prompt one after another and forwards what they have in common, "
                "the target, once a batch; `none` keeps the plain order and forwards each pair by itself. Batch sizes "
                "count triplets in both."
            )
        },
    )
    tpaw_layout: Literal["auto", "padded", "shared"] = field(
        default="auto",
        metadata={
            "help": (
                "How sequences lie in a batch. `auto` shares a prompt's row between its responses where attention "
                "allows it and that is cheaper, and packs rows without padding under flash-attention; `shared` always "
                "shares where it can; `padded` gives each sequence a row."
            )
        },
    )
    tpaw_logits: Literal["blocks", "full"] = field(
        default="blocks",
        metadata={
            "help": (
                "`blocks` computes log-probs of response tokens from blocks of the vocabulary, so that no tensor of "
                "tokens x vocabulary is kept; `full` keeps the model's logits, for comparison."
            )
        },
    )
    tpaw_cache_dir: str = field(
        default="saves/.tpaw_cache",
        metadata={"help": "Folder of the players' log-probs and of the checkpoints' fingerprints."},
    )
    tpaw_keep_checkpoints: Literal["all", "needed"] = field(
        default="all",
        metadata={
            "help": (
                "`needed` removes, when an iteration has finished, weights of earlier ones that neither theta_0, its "
                "team, the best by an accuracy file nor another run needs, and the checkpoints of their trainings."
            )
        },
    )
    tpaw_score_batch_tokens: int = field(
        default=8192,
        metadata={"help": "Most tokens, padding included, in one batch when players are scored."},
    )
    tpaw_min_response: int = field(
        default=1,
        metadata={
            "help": "A prompt that leaves fewer tokens than this for the response under `cutoff_len` is a bad row."
        },
    )
    tpaw_max_bad_rows: int = field(
        default=0,
        metadata={"help": "How many bad rows of `tpaw_prompts` may be dropped; beyond that the run is refused."},
    )

    @property
    def rounds_played(self) -> int:
        """Most rounds of triplets that are opponents, and checkpoints behind them: T-SPIN plays the newest alone."""
        return 1 if self.tpaw_objective == "tspin" else self.tpaw_team_size

    def __post_init__(self) -> None:
        """Coerce what YAML leaves as text and check ranges; other stages are left alone."""
        if getattr(self, "stage", "tpaw") != "tpaw":
            return
        problems = []
        for spec in fields(TpawArguments):
            value, problem = parse_value(spec.name, getattr(self, spec.name))
            if problem:
                problems.append(problem)
            else:
                setattr(self, spec.name, value)
        if problems:
            raise ConfigError(problems)


RANGES: dict[str, Range] = {
    "tpaw_iteration": Range(0),
    "tpaw_team_size": Range(1),
    "tpaw_reward_scale": Range(0, exclusive=True),
    "tpaw_eta": Range(1),
    "tpaw_gamma": Range(0),
    "tpaw_scale": Range(0, exclusive=True),
    "tpaw_history_weight": Range(0),
    "tpaw_max_prompts": Range(1),
    "tpaw_prompts_seed": Range(0),
    "tpaw_engine_concurrency": Range(1),
    "tpaw_engine_timeout": Range(0, exclusive=True),
    "tpaw_engine_retries": Range(0),
    "tpaw_engine_startup": Range(0, exclusive=True),
    "tpaw_max_failed": Range(0),
    "tpaw_samples_per_prompt": Range(1),
    "tpaw_generate_batch_tokens": Range(1),
    "tpaw_score_batch_tokens": Range(1),
    "tpaw_min_response": Range(1),
    "tpaw_max_bad_rows": Range(0),
}
FIELDS = {spec.name: spec for spec in fields(TpawArguments)}
# Keys that hold several values: a YAML list, or text with commas.
LISTS = ("tpaw_players", "tpaw_engine_url")


def parse_value(name: str, value: Any) -> tuple[Any, str | None]:
    r"""Read one key's value as its type and check its range.

    Args:
        name: A key of `TpawArguments`.
        value: What YAML, the command line or Python gave; numbers may be text.

    Returns:
        The value and None, or the value as given and a message that says what is allowed.
    """
    spec = FIELDS[name]
    if value is None:
        return None, None if spec.default is None else f"`{name}` is empty. Give a value or leave the key out."
    kind = spec.type
    if name in LISTS:
        items = value if isinstance(value, (list, tuple)) else str(value).split(",")
        parts = [str(item).strip() for item in items if str(item).strip()]
        problem = next(filter(None, map(url_problem, parts)), None) if name == "tpaw_engine_url" else None
        return (value, problem) if problem else (parts, None)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return (
            (value, None)
            if value in choices
            else (value, f"`{name}` is {value!r}, but must be {_either(choices)}. {_change(spec.default)}")
        )
    number = int if kind in (int, int | None) else float if kind is float else None
    if number is None:
        return str(value), None
    parsed, problem = parse_number(name, value, number, RANGES[name])
    return parsed, f"{problem} {_change(spec.default)}" if problem else None


def _change(default: Any) -> str:
    return f"Change the key or leave it out{'' if default is None else f' (default: {default})'}."


def parse_number(name: str, value: Any, kind: type[int] | type[float], allowed: Range) -> tuple[Any, str | None]:
    """Read a number as `kind` and check its range: (number, None) or (value, message)."""
    try:
        parsed = kind(str(value))
    except ValueError:
        return value, f"`{name}` is {value!r}, but must be {'a whole number' if kind is int else 'a number'}."
    return (parsed, None) if allowed.holds(parsed) else (value, f"`{name}` is {value}, but must be {allowed}.")


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join(f"`{choice}`" for choice in choices)
