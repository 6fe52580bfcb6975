# SPDX-License-Identifier: Apache-2.0
"""Players that are missing, damaged, changed, in the wrong order, or read text otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .rows import Row
from .spoiling import OTHER, change_json, cut, other_model, other_weights, remove_key, write


MANIFEST = "saves/play_iter0/tpaw.json"
HUB = (("from the hub: .*\\. Correct", "from the hub: <what the hub says>. Correct"),)


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


def change_a_checkpoint() -> None:
    """A checkpoint of a training whose weights are not those that it was saved with."""
    shutil.copytree("saves/play_iter0", "saves/anew/checkpoint-4")
    change_json("saves/anew/checkpoint-4/tpaw.json", status="checkpoint", files={"model.safetensors": "0" * 64})


def fewer_merges(folder: str) -> None:
    """Give a folder a tokenizer that reads text otherwise."""
    path = Path(folder) / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-5]
    path.write_text(json.dumps(tokenizer))


def no_tokenizer(folder: str) -> None:
    for path in Path(folder).glob("tokenizer*"):
        path.unlink()


def larger_vocabulary(folder: str) -> None:
    """Let a checkpoint's config say that it has 8 tokens more."""
    path = Path(folder) / "config.json"
    change_json(path, vocab_size=json.loads(path.read_text())["vocab_size"] + 8)


ROWS = [
    Row("a player's folder that is gone", lambda: shutil.rmtree("saves/play_iter0"), 2),
    Row("a model's folder that is not there", given={"model_name_or_path": "/no/model", "tpaw_players": None}),
    Row("a model that neither this machine nor the hub has", unlike=HUB,
        given={"model_name_or_path": "nobody/nothing", "tpaw_players": None}),
    Row("a player that is a file", lambda: write("saves/file", ""), 1,
        {"tpaw_players": "saves/file,saves/play_iter0"}),
    Row("a folder without weights", lambda: Path("saves/sft/model.safetensors").unlink(), 1),
    Row("weights that were half copied", lambda: cut("saves/play_iter1/model.safetensors"), 2),
    Row("a shard that is gone", lose_a_shard, 1),
    Row("a folder without config.json", lambda: Path("saves/sft/config.json").unlink(), 1),
    Row("a config.json that is cut", lambda: cut("saves/sft/config.json"), 1),
    Row("a config.json of no kind of model", lambda: remove_key("saves/sft/config.json", "model_type")),
    Row("weights changed after the iteration", lambda: other_weights("saves/play_iter0"), 1),
    Row("a checkpoint to continue from that was changed", change_a_checkpoint,
        given={"resume_from_checkpoint": "saves/anew/checkpoint-4"}),
    # What tpaw.json says.
    Row("a player whose training is not finished", lambda: change_json(MANIFEST, status="training"), 1),
    Row("a player without tpaw.json", lambda: Path(MANIFEST).unlink(), 1),
    Row("a tpaw.json that is cut", lambda: cut(MANIFEST), 1),
    Row("a tpaw.json that is a list", lambda: write(MANIFEST, "[]"), 1),
    Row("a tpaw.json of another version", lambda: change_json(MANIFEST, schema=99), 1),
    Row("a tpaw.json that lacks a key", lambda: remove_key(MANIFEST, "policy"), 1),
    Row("a tpaw.json that names no place", lambda: change_json(MANIFEST, policy={"name": "theta_0", "path": 0}), 1),
    Row("a finished tpaw.json without a result", lambda: change_json(MANIFEST, result={}), 1),
    Row("an interrupted training whose triplets changed", interrupt_and_change_triplets),
    # The order of the players.
    Row("players in the wrong order", None, 2, {"tpaw_players": "saves/play_iter0,saves/sft,saves/play_iter1"}),
    Row("outputs in the wrong order", None, 2, {"model_name_or_path": "saves/play_iter0",
        "tpaw_players": "saves/sft,saves/play_iter1,saves/play_iter0"}),
    Row("a model that is not the last player", None, 1, {"tpaw_players": "saves/play_iter0,saves/sft"}),
    Row("too few players", None, 2, {"tpaw_players": "saves/play_iter1"}),
    Row("a player named twice", None, 1, {"tpaw_players": "saves/play_iter0,./saves/play_iter0"}),
    Row("a player of another run", other_model, 1, {"tpaw_players": f"{OTHER},saves/play_iter0"}),
    # Their tokenizers.
    Row("a player with another tokenizer", lambda: fewer_merges("saves/sft"), 1),
    Row("a player without a tokenizer", lambda: no_tokenizer("saves/sft"), 1),
    Row("a model without a tokenizer", lambda: no_tokenizer("saves/play_iter0"), 1),
    Row("a player with a cut tokenizer", lambda: cut("saves/sft/tokenizer.json"), 1),
    Row("a player with another vocabulary", lambda: larger_vocabulary("saves/sft"), 1),
    Row("tokens beyond the vocabulary", given={"tpaw_players": None, "add_tokens": "<new>", "resize_vocab": True}),
    Row("a player of another run with another tokenizer and changed weights",
        lambda: (other_weights("saves/play_iter0"), fewer_merges("saves/sft")), 1),
]  # fmt: skip
