# SPDX-License-Identifier: Apache-2.0
"""Players that are missing, damaged, changed, in the wrong order, or read text otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .rows import Row
from .spoiling import (
    OTHER,
    change_json,
    cut,
    fewer_merges,
    larger_vocabulary,
    no_tokenizer,
    other_model,
    other_weights,
    remove_key,
    write,
)


MANIFEST = "saves/play_iter0/tpaw.json"
HUB = (("cannot be loaded \\(.*\\)\\. It is", "cannot be loaded (<what the hub says>). It is"),)


def lose_a_shard() -> None:
    Path("saves/sft/model.safetensors").rename("saves/sft/model-1-of-2.safetensors")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    write("saves/sft/model.safetensors.index.json", json.dumps(index))


def interrupt_and_change_triplets() -> None:
    """A training that stopped at a checkpoint, and triplets that are not those of its tpaw.json any more."""
    shutil.copytree("saves/play_iter0", "saves/anew/checkpoint-4")
    for name in ("optimizer.pt", "scheduler.pt"):
        write(f"saves/anew/checkpoint-4/{name}", "")
    Path("saves/anew/checkpoint-4/tpaw.json").rename("saves/anew/tpaw.json")
    record = json.loads(Path("saves/anew/tpaw.json").read_text())
    record["triplets"][0]["digest"] = "0" * 64
    change_json("saves/anew/tpaw.json", status="training", triplets=record["triplets"])


FOLDERS = [
    Row("a player's folder that is gone", spoil=lambda: shutil.rmtree("saves/play_iter0"), iteration=2),
    Row("a model's folder that is not there", given={"model_name_or_path": "/no/model", "tpaw_players": None}),
    Row(
        "a model that neither this machine nor the hub has",
        unlike=HUB,
        given={"model_name_or_path": "nobody/nothing", "tpaw_players": None},
    ),
    Row(
        "a player that is a file",
        spoil=lambda: write("saves/file", ""),
        iteration=1,
        given={"tpaw_players": "saves/file,saves/play_iter0"},
    ),
    Row("a folder without weights", spoil=lambda: Path("saves/sft/model.safetensors").unlink(), iteration=1),
    Row("weights that were half copied", spoil=lambda: cut("saves/play_iter1/model.safetensors"), iteration=2),
    Row("a shard that is gone", spoil=lose_a_shard, iteration=1),
    Row("a folder without config.json", spoil=lambda: Path("saves/sft/config.json").unlink(), iteration=1),
    Row("a config.json that is cut", spoil=lambda: cut("saves/sft/config.json"), iteration=1),
    Row("weights changed after the iteration", spoil=lambda: other_weights("saves/play_iter0"), iteration=1),
]
MANIFESTS = [
    Row(
        "a player whose training is not finished", spoil=lambda: change_json(MANIFEST, status="training"), iteration=1
    ),
    Row(
        "an unfinished output as theta_0",
        spoil=lambda: change_json(MANIFEST, status="training"),
        given={"model_name_or_path": "saves/play_iter0", "tpaw_players": None},
    ),
    Row("a player without tpaw.json", spoil=lambda: Path(MANIFEST).unlink(), iteration=1),
    Row("a tpaw.json that is cut", spoil=lambda: cut(MANIFEST), iteration=1),
    Row("a tpaw.json that is a list", spoil=lambda: write(MANIFEST, "[]"), iteration=1),
    Row("a tpaw.json of another version", spoil=lambda: change_json(MANIFEST, schema=99), iteration=1),
    Row("a tpaw.json that lacks a key", spoil=lambda: remove_key(MANIFEST, "policy"), iteration=1),
    Row("an interrupted training whose triplets changed", spoil=interrupt_and_change_triplets),
]
ORDER = [
    Row(
        "players in the wrong order",
        iteration=2,
        given={"tpaw_players": "saves/play_iter0,saves/sft,saves/play_iter1"},
    ),
    Row(
        "outputs in the wrong order",
        iteration=2,
        given={
            "tpaw_players": "saves/sft,saves/play_iter1,saves/play_iter0",
            "model_name_or_path": "saves/play_iter0",
        },
    ),
    Row("a model that is not the last player", iteration=1, given={"tpaw_players": "saves/play_iter0,saves/sft"}),
    Row("too few players", iteration=2, given={"tpaw_players": "saves/play_iter1"}),
    Row(
        "too many players",
        iteration=1,
        given={
            "tpaw_players": "saves/sft,saves/play_iter0,saves/play_iter1",
            "model_name_or_path": "saves/play_iter1",
        },
    ),
    Row("no players from iteration 1 on", iteration=1, given={"tpaw_players": None}),
    Row("a player named twice", iteration=1, given={"tpaw_players": "saves/play_iter0,./saves/play_iter0"}),
    Row(
        "a player of another run", spoil=other_model, iteration=1, given={"tpaw_players": f"{OTHER},saves/play_iter0"}
    ),
]
TOKENIZERS = [
    Row("a player with another tokenizer", spoil=lambda: fewer_merges("saves/sft"), iteration=1),
    Row("a player without a tokenizer", spoil=lambda: no_tokenizer("saves/sft"), iteration=1),
    Row("a model without a tokenizer", spoil=lambda: no_tokenizer("saves/play_iter0"), iteration=1),
    Row("a player with a cut tokenizer", spoil=lambda: cut("saves/sft/tokenizer.json"), iteration=1),
    Row("a player with another vocabulary", spoil=lambda: larger_vocabulary("saves/sft"), iteration=1),
    Row("tokens beyond the vocabulary", given={"tpaw_players": None, "add_tokens": "<new>", "resize_vocab": True}),
    Row(
        "a player of another run with another tokenizer and changed weights",
        iteration=1,
        spoil=lambda: (other_weights("saves/play_iter0"), fewer_merges("saves/sft")),
    ),
]
ROWS = [*FOLDERS, *MANIFESTS, *ORDER, *TOKENIZERS]
