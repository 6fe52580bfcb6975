# SPDX-License-Identifier: Apache-2.0
"""Every `tpaw_*` key, with its default, help and range; `docs/configuration.md` is written from here."""

# No `from __future__ import annotations`: LlamaFactory's argument parser reads the types of this class from
# another module, where the names of string annotations would not resolve.

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args, get_origin

from ..errors import ConfigError


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
        return above and value <= min(self.maximum, 1e300)


def _key(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class TpawArguments:
    """The keys of stage `tpaw`; mixed into LlamaFactory's `FinetuningArguments`, so they keep its flat namespace."""

    tpaw_iteration: int = _key(0, "Iteration t of self-play, from 0: it starts from theta_t and makes theta_{t+1}.")
    tpaw_players: str | None = _key(
        None,
        "Checkpoints theta_0 to theta_t, oldest first, as names with commas or a YAML list; one with adapters is "
        "written `model+adapter`. The newest `tpaw_team_size` form the team, or those of `tpaw_team_select`. Default: "
        "the model itself, at iteration 0.",
    )
    tpaw_team_size: int = _key(3, "How many checkpoints are players, and how many rounds of triplets are opponents.")
    tpaw_objective: Literal["tpaw", "tspin", "iris"] = _key(
        "tpaw",
        "`tpaw` plays against a team of players; `tspin` (T-SPIN) needs no reference model; `iris` (a reconstruction "
        "of IRIS) plays against theta_t by a Renyi objective over the whole batch.",
    )
    tpaw_team_select: Literal["last", "best", "diverse"] = _key(
        "last",
        "Which of `tpaw_players` play beside theta_t where these are more than the team: the `last`, the `best` by "
        "eval.json, or the most `diverse` by cached log-probs. Rounds of triplets are always the last.",
    )
    tpaw_reward_scale: float = _key(
        0.1, "Lambda: factor from log-ratios in nats to rewards (objectives `tpaw` and `iris`)."
    )
    tpaw_eta: float = _key(6.0, "Target weight where a player's target reward is not positive (objective `tpaw`).")
    tpaw_gamma: float = _key(0.5, "Sharpness of the player weights (objective `tpaw`); 0 is the plain average.")
    tpaw_scale: float = _key(1.0, "Factor a on the log-prob differences (objective `tspin`).")
    tpaw_history_weight: float = _key(0.1, "Weight b of the term against y_0, from iteration 1 (objective `tspin`).")
    tpaw_renyi_alpha: float = _key(
        0.5, "Order alpha of the Renyi divergence, the same in all steps (objective `iris`, a reconstruction)."
    )
    tpaw_proto: str | None = _key(
        None, "Entry with the triplets of iteration 0, which hold y_0; required by `tspin` from iteration 1 on."
    )
    tpaw_prompts: str | None = _key(
        None, "The SFT set whose prompts are answered, an entry of dataset_info.json; without it nothing is generated."
    )
    tpaw_max_prompts: int | None = _key(None, "Use so many rows of `tpaw_prompts`, always the same. Default: all.")
    tpaw_prompts_seed: int = _key(0, "Seed of the choice of `tpaw_max_prompts`; independent of `seed`.")
    tpaw_turn: Literal["last", "first"] = _key(
        "last", "Which response of a conversation is the target; what is before it is the prompt."
    )
    tpaw_engine: Literal["hf", "vllm", "openai"] = _key(
        "hf", "What samples: transformers (`hf`), a vLLM server that is started, or servers at `tpaw_engine_url`."
    )
    tpaw_engine_url: str | None = _key(
        None, "Addresses of the servers of `openai`, such as `http://host:8000/v1`; with commas or as a YAML list."
    )
    tpaw_engine_model: str | None = _key(
        None, "Name under which the servers list the generator. Default: its path or folder name, whichever they list."
    )
    tpaw_engine_concurrency: int = _key(256, "Most requests in flight at one server (engines `vllm` and `openai`).")
    tpaw_engine_timeout: float = _key(600.0, "Seconds after which a request to a server is given up and repeated.")
    tpaw_engine_retries: int = _key(8, "How often a failed request is repeated before it counts as failed for good.")
    tpaw_engine_startup: float = _key(
        1800.0, "Seconds within which a server must be ready that is started (engine `vllm`) or was lost (`openai`)."
    )
    tpaw_max_failed: int = _key(
        0, "How many responses may fail for good and be left out; beyond that the run stops, and can be continued."
    )
    tpaw_vllm_command: str | None = _key(None, "Program, or its path, that engine `vllm` starts. Default: `vllm`.")
    tpaw_vllm_args: str | None = _key(None, "More arguments of `vllm serve`, as `--gpu-memory-utilization 0.8`.")
    tpaw_samples_per_prompt: int = _key(1, "Responses sampled for each prompt; every one makes a triplet.")
    tpaw_prompt_weight: Literal["none", "entropy"] = _key(
        "none",
        "`entropy` weighs the losses of a prompt by how much the answers sampled for it differ (EAST, a "
        "reconstruction), and leaves out prompts whose answers are all right or none right.",
    )
    tpaw_answer_pattern: str | None = _key(
        None, "Regular expression whose last match in a response, or the group in it, is the final answer (`entropy`)."
    )
    tpaw_opponent_model: str | None = _key(
        None,
        "Checkpoint, or with engine `openai` any model that the servers list, that generates in place of theta_t; "
        "recorded with the triplets, which do not count as theta_t's.",
    )
    tpaw_opponent_filter: str | None = _key(
        None,
        "Generated responses that are not trained on, whichever theta wrote them: `equal` to the target, `truncated`, "
        "`shorter:8` than so many tokens; several with commas or as a YAML list. Default: all are.",
    )
    tpaw_generate_batch_tokens: int = _key(32768, "Most tokens, padding included, in one batch of generation.")
    tpaw_reference: Literal["cached", "online"] = _key(
        "cached",
        "`cached` scores each player once and keeps the log-probs on disk; `online` keeps all players in memory and "
        "scores in every step, for comparison.",
    )
    tpaw_grouping: Literal["prompt", "none"] = _key(
        "prompt",
        "`prompt` puts the triplets of a prompt into one batch, so that their target is forwarded once; `none` keeps "
        "the plain order and forwards each pair by itself. Batch sizes count triplets in both.",
    )
    tpaw_layout: Literal["auto", "padded", "shared"] = _key(
        "auto",
        "How sequences lie in a batch: `padded` gives each a row; `shared` puts the responses to a prompt into its "
        "row where attention allows; `auto` does so where it is cheaper, and packs rows under flash-attention.",
    )
    tpaw_logits: Literal["blocks", "full"] = _key(
        "blocks",
        "`blocks` computes log-probs by blocks of the vocabulary and keeps no tensor of tokens x vocabulary; `full` "
        "keeps the logits, for comparison.",
    )
    tpaw_cache_dir: str = _key("saves/.tpaw_cache", "Folder of the players' log-probs and checkpoints' fingerprints.")
    tpaw_keep_checkpoints: Literal["all", "needed"] = _key(
        "all",
        "`needed` removes, when an iteration has finished, weights of earlier ones that neither theta_0, its team nor "
        "another run needs, and the checkpoints of their trainings.",
    )
    tpaw_guard: Literal["warn", "stop", "off"] = _key(
        "warn",
        "What to do where theta_t has collapsed, by what training and generation recorded: `warn` gives the figures, "
        "`stop` ends the run with them and exit code 3, before another iteration is spent.",
    )
    tpaw_eval_tasks: str | None = _key(
        None,
        "Tasks of lm-evaluation-harness, names or YAML files of them, on which theta_{t+1} is evaluated at the end; "
        "with commas or as a YAML list.",
    )
    tpaw_score_batch_tokens: int = _key(8192, "Most tokens, padding included, in one batch when players are scored.")
    tpaw_min_response: int = _key(
        1, "Fewest tokens that a prompt must leave for the response under `cutoff_len`, else it is a bad row."
    )
    tpaw_max_bad_rows: int = _key(0, "Bad rows of `tpaw_prompts` that may be dropped; with more the run is refused.")

    @property
    def rounds_played(self) -> int:
        """Most rounds of triplets that are opponents, and checkpoints behind them."""
        return 1 if self.tpaw_objective in WITHOUT_TEAM else self.tpaw_team_size

    @property
    def candidates(self) -> int:
        """How many of the newest checkpoints may be in the team."""
        selects = self.tpaw_team_select != "last" and self.tpaw_objective not in WITHOUT_TEAM
        return self.tpaw_iteration + 1 if selects else self.rounds_played

    def __post_init__(self) -> None:
        """Coerce what YAML leaves as text and check ranges; other stages are left alone."""
        if getattr(self, "stage", "tpaw") != "tpaw":
            return
        problems = []
        for name in FIELDS:
            value, problem = parse_value(name, getattr(self, name))
            setattr(self, name, value)
            problems += [problem] if problem else []
        if problems:
            raise ConfigError(problems)


WITHOUT_TEAM = ("tspin", "iris")  # objectives that play the newest checkpoint alone
FIELDS = {spec.name: spec for spec in fields(TpawArguments)}
# Keys that hold several values: a YAML list, or text with commas.
LISTS = ("tpaw_players", "tpaw_engine_url", "tpaw_opponent_filter", "tpaw_eval_tasks")
RANGES: dict[str, Range] = {
    **dict.fromkeys(("tpaw_iteration", "tpaw_gamma", "tpaw_history_weight", "tpaw_prompts_seed"), Range(0)),
    **dict.fromkeys(("tpaw_engine_retries", "tpaw_max_failed", "tpaw_max_bad_rows"), Range(0)),
    **dict.fromkeys(("tpaw_team_size", "tpaw_eta", "tpaw_max_prompts", "tpaw_samples_per_prompt"), Range(1)),
    **dict.fromkeys(("tpaw_min_response", "tpaw_engine_concurrency"), Range(1)),
    **dict.fromkeys(("tpaw_generate_batch_tokens", "tpaw_score_batch_tokens"), Range(1)),
    **dict.fromkeys(("tpaw_reward_scale", "tpaw_scale", "tpaw_renyi_alpha"), Range(0, exclusive=True)),
    **dict.fromkeys(("tpaw_engine_timeout", "tpaw_engine_startup"), Range(0, exclusive=True)),
}


def parse_value(name: str, value: Any) -> tuple[Any, str | None]:
    """Read one key's value, as YAML, the command line or Python gave it, as its type, and check its range.

    Returns the value and None, or the value as given and a message that says what is allowed.
    """
    kind, default = FIELDS[name].type, FIELDS[name].default
    advice = f"Change the key or leave it out{'' if default is None else f' (default: {default})'}."
    if value is None:
        return None, None if default is None else f"`{name}` is empty. Give a value or leave the key out."
    if name in LISTS:
        items = value if isinstance(value, (list, tuple)) else str(value).split(",")
        return [str(item).strip() for item in items if str(item).strip()], None
    if get_origin(kind) is Literal:
        choices = " or ".join(f"`{choice}`" for choice in get_args(kind))
        known = value in get_args(kind)
        return value, None if known else f"`{name}` is {value!r}, but must be {choices}. {advice}"
    if name not in RANGES:
        return str(value), None
    try:
        parsed = float(str(value)) if kind is float else int(str(value))
    except ValueError:
        allowed = "a number" if kind is float else "a whole number"
        return value, f"`{name}` is {value!r}, but must be {allowed}. {advice}"
    if not RANGES[name].holds(parsed):
        return value, f"`{name}` is {value}, but must be {RANGES[name]}. {advice}"
    return parsed, None
