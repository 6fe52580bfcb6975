# SPDX-License-Identifier: Apache-2.0
"""The one table of run-file keys and the elements of the page that hold them, LlamaBoard's own and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ..arguments.checks import SAMPLING_NUMBERS
from ..arguments.fields import FIELDS, LISTS, RANGES, Range


Kind = Literal["text", "whole", "number", "switch", "names"]


class Field(NamedTuple):
    r"""A run-file key and its element.

    Attributes:
        key: The key.
        element: Full id of the element.
        kind: `names` is a list in the page and a text with commas in the run file.
        default: What LlamaFactory takes where a run file lacks the key.
        absent: What the element shows where the run file lacks the key and there is no default.
        always: Written also where it is the default, because it says what the run is.
        allowed: Of a number.
        group: What must hold for the key to be written, see `arguments`; None for always.
    """

    key: str
    element: str
    kind: Kind = "text"
    default: Any = None
    absent: Any = ""
    always: bool = False
    allowed: Range | None = None
    group: str | None = None


def _train(key: str, kind: Kind, default: Any = None, element: str | None = None, **more: Any) -> Field:
    return Field(key, f"train.{element or key}", kind, default, **more)


def _ours(key: str) -> Field:
    spec = FIELDS[key]
    if key in LISTS:
        return Field(key, f"train.{key}", "names" if key == "tpaw_players" else "text", absent=[], always=True)
    types = {int: "whole", int | None: "whole", float: "number"}
    return Field(key, f"train.{key}", types.get(spec.type, "text"), spec.default, allowed=RANGES.get(key))


def _sampling(key: str) -> Field:
    kind, allowed = SAMPLING_NUMBERS[key]
    return Field(key, f"train.tpaw_{key}", "whole" if kind is int else "number", always=True, allowed=allowed)


NOT_NEGATIVE, POSITIVE, AT_LEAST_ONE = Range(0), Range(0, exclusive=True), Range(1)
TPAW_KEYS = (
    "tpaw_iteration",
    "tpaw_players",
    "tpaw_team_size",
    "tpaw_objective",
    "tpaw_reward_scale",
    "tpaw_eta",
    "tpaw_gamma",
    "tpaw_scale",
    "tpaw_history_weight",
    "tpaw_prompts",
    "tpaw_max_prompts",
    "tpaw_engine",
    "tpaw_engine_url",
    "tpaw_samples_per_prompt",
    "tpaw_reference",
    "tpaw_grouping",
    "tpaw_cache_dir",
)
SAMPLED = ("temperature", "top_p", "top_k", "max_new_tokens")
# A run file says these even where they are the defaults.
SAID = ("tpaw_iteration", "tpaw_team_size", "tpaw_objective", "tpaw_reward_scale", "tpaw_eta", "tpaw_gamma")
SAID += ("tpaw_scale", "tpaw_history_weight", "tpaw_engine")

OURS = (
    *(_ours(key)._replace(always=key in SAID or key == "tpaw_players") for key in TPAW_KEYS),
    *map(_sampling, SAMPLED),
    Field("trust_remote_code", "train.tpaw_trust_remote_code", "switch", False),
)
# What LlamaBoard shows before anybody typed: for `max_samples` it stands for no limit.
NO_LIMIT = "100000"

BOARDS = (
    Field("template", "top.template", always=True, absent="default"),
    Field("rope_scaling", "top.rope_scaling", absent="none"),
    _train("dataset_dir", "text", "data"),
    _train("dataset", "names", absent=[], always=True),
    _train("learning_rate", "number", 5e-5, always=True, allowed=NOT_NEGATIVE),
    _train("num_train_epochs", "number", 3.0, always=True, allowed=POSITIVE),
    _train("max_grad_norm", "number", 1.0, allowed=NOT_NEGATIVE),
    _train("max_samples", "whole", absent=NO_LIMIT, allowed=AT_LEAST_ONE),
    _train("cutoff_len", "whole", 2048, always=True),
    _train("per_device_train_batch_size", "whole", 8, "batch_size", always=True),
    _train("gradient_accumulation_steps", "whole", 1, always=True),
    _train("lr_scheduler_type", "text", "linear", always=True),
    _train("val_size", "number", 0.0),
    _train("logging_steps", "whole", 500, always=True),
    _train("save_steps", "whole", 500, always=True),
    _train("warmup_steps", "number", 0),
    _train("neftune_noise_alpha", "number", element="neftune_alpha", absent=0),
    _train("packing", "switch", absent=False),
    _train("neat_packing", "switch", False),
    _train("train_on_prompt", "switch", False),
    _train("mask_history", "switch", False),
    _train("resize_vocab", "switch", False),
    _train("use_llama_pro", "switch", False),
    _train("enable_thinking", "switch", True),
    _train("report_to", "text", "none", always=True),
    *(
        _train(key, kind, default, group="freeze")
        for key, kind, default in (
            ("freeze_trainable_layers", "whole", 2),
            ("freeze_trainable_modules", "text", "all"),
            ("freeze_extra_modules", "text", None),
        )
    ),
    *(
        _train(key, kind, default, group="lora", always=key in ("lora_rank", "lora_alpha"))
        for key, kind, default in (
            ("lora_rank", "whole", 8),
            ("lora_alpha", "whole", None),
            ("lora_dropout", "number", 0.0),
            ("create_new_adapter", "switch", False),
            ("use_rslora", "switch", False),
            ("use_dora", "switch", False),
            ("lora_target", "text", "all"),
            ("additional_target", "text", None),
        )
    ),
    _train("loraplus_lr_ratio", "number", group="lora", absent=0),
    _train("pissa_init", "switch", False, "use_pissa", group="lora"),
    *(
        _train(key, kind, default, group=group)
        for group, keys in {
            "galore": (
                ("galore_rank", "whole", 16),
                ("galore_update_interval", "whole", 200),
                ("galore_scale", "number", 2.0),
                ("galore_target", "text", "all"),
            ),
            "apollo": (
                ("apollo_rank", "whole", 16),
                ("apollo_update_interval", "whole", 200),
                ("apollo_scale", "number", 32.0),
                ("apollo_target", "text", "all"),
            ),
            "swanlab": (
                ("swanlab_project", "text", "llamafactory"),
                ("swanlab_run_name", "text", None),
                ("swanlab_workspace", "text", None),
                ("swanlab_mode", "text", "cloud"),
            ),
        }.items()
        for key, kind, default in keys
    ),
    *(_train(key, "switch", False) for key in ("use_galore", "use_apollo", "use_badam", "use_swanlab")),
)
TABLE = (*OURS, *BOARDS)
BY_KEY = {field.key: field for field in TABLE}

# Elements that stand for several keys, or whose key depends on others; `arguments` reads and fills them.
COMPOSED = (
    "top.model_name",
    "top.model_path",
    "top.finetuning_type",
    "top.checkpoint_path",
    "top.quantization_bit",
    "top.quantization_method",
    "top.booster",
    "train.compute_type",
    "train.ds_stage",
    "train.ds_offload",
    "train.output_dir",
    "train.extra_args",
)
# Written also where they do not apply: a run that is continued is compared with what it was begun with.
KEPT = ("tpaw_team_size", "tpaw_reference", "tpaw_cache_dir")
OF_THE_TEAM = ("tpaw_team_size", "tpaw_reward_scale", "tpaw_eta", "tpaw_gamma", "tpaw_reference", "tpaw_cache_dir")
OF_TSPIN = ("tpaw_scale", "tpaw_history_weight")
OF_GENERATION = ("tpaw_max_prompts", "tpaw_engine", "tpaw_engine_url", "tpaw_samples_per_prompt", *SAMPLED)


def not_used(settings: Mapping[str, Any]) -> set[str]:
    r"""Return the keys of `OURS` that do nothing with these settings.

    Args:
        settings: At least `tpaw_objective`, `tpaw_engine`, `tpaw_prompts` and `tpaw_reference`, as the page has them.
    """
    unused: set[str] = set(OF_THE_TEAM if settings.get("tpaw_objective") == "tspin" else OF_TSPIN)
    if settings.get("tpaw_engine") != "openai":
        unused.add("tpaw_engine_url")
    if not settings.get("tpaw_prompts"):
        unused.update(OF_GENERATION)
    if settings.get("tpaw_reference") == "online":
        unused.add("tpaw_cache_dir")
    return unused
