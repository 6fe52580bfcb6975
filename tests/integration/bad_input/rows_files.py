# SPDX-License-Identifier: Apache-2.0
"""The run file, dataset_info.json, the output folder and the cache."""

from __future__ import annotations

from pathlib import Path

from llamafactory_tpaw.data.files import locked

from .rows import Row
from .spoiling import OTHER, change_json, cut, other_model, write


PLAYED = {"output_dir": "saves/play_iter0", "plot_loss": True}
INFO = "data/dataset_info.json"


def cut_parts() -> None:
    for path in Path("saves/.tpaw_cache").glob("logps/*/*/part-*"):
        cut(path)


ROWS = [
    Row("a run file that does not exist", lambda: Path("run.yaml").unlink(missing_ok=True), run_file="",
        overrides=("stage=tpaw",)),
    Row("a run file that is a list", run_file="- stage: tpaw\n", overrides=("stage=tpaw",)),
    Row("a run file that is not YAML", run_file="stage: tpaw\ntpaw_players: [a\n"),
    Row("a run file that is not UTF-8", run_file="stage: tpaw\noutput_dir: saves/é\n".encode("latin-1")),
    Row("an override with dashes", overrides=("--tpaw_eta", "4")),
    Row("no dataset_info.json", lambda: Path(INFO).unlink()),
    Row("a dataset_info.json that is not JSON", lambda: cut(INFO)),
    Row("a dataset_info.json that is a list", lambda: write(INFO, "[]")),
    Row("an entry that is not an object", lambda: change_json(INFO, play_iter0="play.jsonl")),
    Row("a dataset without an entry", given={"dataset": "play_iter9"}),
    Row("an `eval_dataset` without an entry", given={"eval_dataset": "nowhere"}),
    Row("an `output_dir` below a file", lambda: write("saves/anew", ""), given={"output_dir": "saves/anew/x"}),
    Row("an `output_dir` finished with other settings", given=PLAYED | {"tpaw_eta": 4.0, "learning_rate": 2.0e-3}),
    Row("an `output_dir` finished from another checkpoint", other_model, 1,
        {"output_dir": "saves/play_iter1", "plot_loss": True, "tpaw_players": f"{OTHER},saves/play_iter0"},
        unlike=((r"theta_0 was \S+ with", "theta_0 was <its folder> with"),)),
    Row("an `output_dir` finished but damaged since", lambda: cut("saves/play_iter0/model.safetensors"), given=PLAYED),
    Row("an `output_dir` with a model of another stage", other_model, given={"output_dir": OTHER}),
    Row("an `output_dir` that is a player's folder", None, 1,
        {"output_dir": "saves/sft", "overwrite_output_dir": True}),
    Row("an `output_dir` that another process is at work on",
        during=lambda: locked(Path("saves/anew").resolve(), "it")),
    Row("triplets that another process is generating", generating=True,
        during=lambda: locked(Path("data/tpaw/play_iter0.jsonl").resolve(), "it")),
    Row("a truncated cache part", cut_parts),
    Row("a `tpaw_cache_dir` that is a file", lambda: write("saves/cache", ""),
        given={"tpaw_cache_dir": "saves/cache"}),
]  # fmt: skip
