# SPDX-License-Identifier: Apache-2.0
"""Writes `docs/configuration.md` from the fields themselves: `python -m tools.configuration`, see `make docs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from llamafactory_tpaw.arguments.checks import INCOMPATIBLE
from llamafactory_tpaw.arguments.fields import FIELDS, LISTS, RANGES


PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
TYPE_NAMES = {int: "whole number", int | None: "whole number", float: "number", str: "text", str | None: "text"}


class Group(NamedTuple):
    """Keys that belong together, and the objectives that read them."""

    heading: str
    objectives: str
    keys: tuple[str, ...]


GROUPS = (
    Group(
        "Iteration and team",
        "all",
        (
            "tpaw_iteration",
            "tpaw_players",
            "tpaw_team_size",
            "tpaw_objective",
            "tpaw_cache_dir",
            "tpaw_keep_checkpoints",
            "tpaw_guard",
            "tpaw_eval_tasks",
        ),
    ),
    Group("Objectives `tpaw` and `iris`", "`tpaw`, `iris`", ("tpaw_reward_scale",)),
    Group("Objective `tpaw`", "`tpaw`", ("tpaw_eta", "tpaw_gamma", "tpaw_team_select")),
    Group("Objective `tspin`", "`tspin`", ("tpaw_scale", "tpaw_history_weight", "tpaw_proto")),
    Group("Objective `iris`", "`iris`", ("tpaw_renyi_alpha",)),
    Group(
        "Prompts and generation",
        "all",
        (
            "tpaw_prompts",
            "tpaw_max_prompts",
            "tpaw_prompts_seed",
            "tpaw_turn",
            "tpaw_min_response",
            "tpaw_max_bad_rows",
            "tpaw_samples_per_prompt",
            "tpaw_prompt_weight",
            "tpaw_answer_pattern",
            "tpaw_opponent_model",
            "tpaw_opponent_filter",
        ),
    ),
    Group(
        "Engines",
        "all",
        (
            "tpaw_engine",
            "tpaw_generate_batch_tokens",
            "tpaw_engine_url",
            "tpaw_engine_model",
            "tpaw_engine_concurrency",
            "tpaw_engine_timeout",
            "tpaw_engine_retries",
            "tpaw_engine_startup",
            "tpaw_max_failed",
            "tpaw_vllm_command",
            "tpaw_vllm_args",
        ),
    ),
    Group("Players' log-probs", "`tpaw`, `iris`", ("tpaw_reference", "tpaw_score_batch_tokens")),
    Group("Speed and memory", "all", ("tpaw_grouping", "tpaw_layout", "tpaw_logits")),
)

PAGE_HEAD = """\
# Configuration

<!-- Written by `make docs` from llamafactory_tpaw/arguments/fields.py. Change the help there. -->

A run of stage `tpaw` is one YAML file, an iteration each. Everything that is not listed here is LlamaFactory's own key
and keeps its meaning. All keys below can be overridden on the command line, as LlamaFactory's own:
`llamafactory-cli train yaml/qwen_tpaw_iter2.yaml tpaw_eta=4.0`. A key that is not known is refused, and the nearest
known one is named.
"""

PAGE_TAIL = """\
## Keys of servers

A server's API key is read from the environment alone, `TPAW_ENGINE_API_KEY` or else `OPENAI_API_KEY`. It is never
written to a file, a log or a message, and no key of the run file takes it. [Generation](generation.md) says more.

## LlamaFactory's keys that stage `tpaw` reads in its own way

| key | what it does here |
|---|---|
| `model_name_or_path` | theta_t: generates D_t, is the newest player, and is then trained. |
| `dataset` | The triplets to train on, oldest round first. The newest `tpaw_team_size` are used. The last one is \
generated where it is missing and `tpaw_prompts` is set. Any other ranking set may be named, too. |
| `temperature`, `top_p`, `top_k` | Sampling. They must be given where `tpaw_prompts` is set, because LlamaFactory's \
defaults (0.95, 0.7, 50) would cut the distribution unseen. |
| `max_new_tokens`, `cutoff_len` | A response has at most min(`max_new_tokens`, `cutoff_len` - prompt) tokens. \
Prompts are never cut. |
| `seed` | Seeds the sampling and the training. It does not change which prompts are used. |
| `max_samples` | Limits prompts, never triplets. |
| `val_size` | Counts prompts: all triplets of a prompt are on one side, the same side in every iteration. |
"""


def configuration_page() -> str:
    """Return the text of `docs/configuration.md`."""
    parts = [PAGE_HEAD]
    for group in GROUPS:
        rows = ["| key | type | default | allowed | objective | meaning |", "|---|---|---|---|---|---|"]
        for key in group.keys:
            cells = (f"`{key}`", _type(key), _default(key), _allowed(key), group.objectives, _help(key))
            rows.append("| " + " | ".join(cells) + " |")
        parts.append(f"## {group.heading}\n\n" + "\n".join(rows) + "\n")
    return "\n".join([*parts, PAGE_TAIL, _refused_keys()])


def _refused_keys() -> str:
    rows = ["## LlamaFactory's keys that stage `tpaw` refuses", "", "| key | allowed | because |", "|---|---|---|"]
    for key, (harmless, reason) in INCOMPATIBLE.items():
        # As YAML writes them; 0 and 0.0 are one.
        words = dict.fromkeys(str(value).lower().removesuffix(".0") for value in harmless)
        rows.append(f"| `{key}` | {', '.join(f'`{word}`' for word in words) or 'not at all'} | {reason} |")
    return "\n".join(rows) + "\n"


def _type(key: str) -> str:
    if key in LISTS:
        return "text or list"
    kind: Any = FIELDS[key].type
    return "word" if get_origin(kind) is Literal else TYPE_NAMES[kind]


def _default(key: str) -> str:
    default = FIELDS[key].default
    return "none" if default is None else f"`{default}`"


def _allowed(key: str) -> str:
    if _type(key) == "word":
        return ", ".join(f"`{choice}`" for choice in get_args(FIELDS[key].type))
    return str(RANGES[key]) if key in RANGES else ""


def _help(key: str) -> str:
    return FIELDS[key].metadata["help"].replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(configuration_page(), encoding="utf-8")
