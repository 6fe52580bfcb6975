# SPDX-License-Identifier: Apache-2.0
"""Which settings belong to a result, and how two runs' settings are compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


# Keys that cannot change θ_{t+1}: what is logged, saved or shown, and how the work is laid out.
WITHOUT_EFFECT = frozenset(
    """
    output_dir overwrite_output_dir resume_from_checkpoint overwrite_cache preprocessing_num_workers
    preprocessing_batch_size dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    logging_steps logging_strategy logging_first_step logging_dir log_level report_to run_name plot_loss disable_tqdm
    save_steps save_strategy save_total_limit save_only_model eval_steps eval_strategy per_device_eval_batch_size
    do_eval push_to_hub hub_model_id hub_strategy hub_private_repo ddp_timeout print_param_status
    include_effective_tokens_per_second include_num_input_tokens_seen cache_dir trust_remote_code
    use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_logdir
    project trackio_space_id trackio_bucket_id trackio_static_space_id tpaw_eval_tasks
    tpaw_cache_dir tpaw_keep_checkpoints tpaw_guard tpaw_reference tpaw_score_batch_tokens tpaw_generate_batch_tokens
    tpaw_max_bad_rows tpaw_engine tpaw_layout tpaw_logits tpaw_engine_url tpaw_engine_model tpaw_engine_concurrency
    tpaw_engine_timeout tpaw_engine_retries tpaw_engine_startup tpaw_max_failed tpaw_vllm_command tpaw_vllm_args
    model_name_or_path adapter_name_or_path tpaw_players tpaw_opponent_model ray_init_kwargs master_addr master_port
    """.split()
)
SECRET = re.compile(r"_(token|key|secret|password)$|webhook")


def recorded_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `tpaw.json` keeps: neither keys without effect nor secrets; checkpoints are recorded apart."""
    return {key: value for key, value in sorted(given.items()) if key not in WITHOUT_EFFECT and not SECRET.search(key)}


def different_settings(
    recorded: Mapping[str, Any], given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """Name each key of `tpaw.json` and of what is given now that differs; one that is left out has its default."""
    now, differing = recorded_settings(given), []
    for key in sorted({*recorded, *now}):
        before, after = (values.get(key, defaults.get(key)) for values in (recorded, now))
        if _plain(before) != _plain(after):
            differing.append(f"`{key}` was {before} and is {after} now")
    return differing


def _plain(value: Any) -> Any:
    """One form for values that mean the same: `2.0e-7` as text or number, a list or names with commas."""
    if isinstance(value, (list, tuple)):
        value = ",".join(str(item) for item in value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return ",".join(part.strip() for part in value.split(","))
    if isinstance(value, bool):
        return str(value).lower()  # a number that is equal to it means something else
    return float(value) if isinstance(value, (int, float)) else value
