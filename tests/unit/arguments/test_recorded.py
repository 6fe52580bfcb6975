# SPDX-License-Identifier: Apache-2.0
"""Which settings `tpaw.json` keeps, and when two runs' settings are the same."""

from __future__ import annotations

from typing import Any

import pytest

from llamafactory_tpaw.arguments.recorded import different_settings, recorded_settings


DEFAULTS = {"tpaw_eta": 6.0, "learning_rate": 5e-5, "bf16": False, "seed": 42}


def test_keys_without_effect_and_secrets_are_left_out() -> None:
    left_out = "output_dir logging_steps tpaw_cache_dir hf_hub_token swanlab_api_key swanlab_lark_webhook_url "
    left_out += "swanlab_lark_secret model_name_or_path tpaw_players tpaw_opponent_model tpaw_engine_url "
    left_out += "tpaw_max_failed master_addr"
    given = {"tpaw_samples_per_prompt": 2, "tpaw_eta": 6.0, "learning_rate": 1e-3}
    kept = recorded_settings(dict.fromkeys(left_out.split(), "x") | given)
    assert kept == given
    assert list(kept) == sorted(kept)


def test_differences_name_key_and_both_values() -> None:
    recorded = {"tpaw_eta": 4, "learning_rate": 2e-7, "dataset": "a,b"}
    given = {"learning_rate": 2e-6, "dataset": "b,a", "bf16": True}
    assert different_settings(recorded, given, DEFAULTS) == [
        "`bf16` was False and is True now",
        "`dataset` was a,b and is b,a now",
        "`learning_rate` was 2e-07 and is 2e-06 now",
        "`tpaw_eta` was 4 and is 6.0 now",
    ]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2.0e-7", 2e-7, True),
        (["a", "b"], "a, b", True),
        (["2024"], "2024", True),
        (["a", "b"], "b, a", False),
        (True, True, True),
        (True, "true", True),
        (True, 1, False),
        (False, 0, False),
        (None, False, False),
    ],
)
def test_values_that_mean_the_same(first: Any, second: Any, same: bool) -> None:
    assert (different_settings({"key": first}, {"key": second}, {}) == []) is same
