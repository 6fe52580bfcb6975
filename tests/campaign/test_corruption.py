# SPDX-License-Identifier: Apache-2.0
"""The short form of the campaign `corruption`: files whose damage only a digest shows."""

from __future__ import annotations

import random

import pytest

from .corruption import Corruptions
from .kill import Campaign


OUTPUT, CHECKPOINT = "saves/play_iter*/", "saves/play_iter*/checkpoint-*/"
# Scene, kind, way, and what the choice of file and place starts from.
DAMAGE = [
    ("interrupted", CHECKPOINT + "optimizer.pt", "swapped", 0),
    ("interrupted", CHECKPOINT + "model.safetensors", "byte", 0),
    ("interrupted", OUTPUT + "config.json", "digit", 0),
    ("interrupted", "theta_*/config.json", "digit", 0),
    ("interrupted", "saves/.tpaw_cache/fingerprints/*.json", "digit", 0),
    ("interrupted", "saves/.tpaw_cache/logps/*/*/part-*.safetensors", "swapped", 0),
    ("half done", "data/tpaw/play_iter*.jsonl.partial", "digit", 0),
    ("finished", OUTPUT + "model.safetensors", "swapped", 0),
    ("report", OUTPUT + "trainer_state.json", "digit", 0),
    ("report", OUTPUT + "tpaw.json", "digit", 13),
    ("report", OUTPUT + "eval.json", "swapped", 0),
    ("report", "data/tpaw/play_iter*.jsonl", "swapped", 0),
    ("lineage", "theta_*/config.json", "digit", 0),
]


@pytest.mark.integration
def test_damage_is_named_or_does_no_harm(campaign: Campaign, capfd: pytest.CaptureFixture[str]) -> None:
    with capfd.disabled():  # what a copy of this process says goes into its log
        corruptions = Corruptions(campaign)
        found = [corruptions.one(random.Random(seed), *damage) for *damage, seed in DAMAGE]
    assert found == [(kind, []) for _, kind, *_ in DAMAGE]
