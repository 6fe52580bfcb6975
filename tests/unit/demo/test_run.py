# SPDX-License-Identifier: Apache-2.0
"""The demo's order of trainings: the right files and folders, nothing done twice, a failure stops with its command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from demo import evaluate, run
from demo.page import LABELS, METHODS
from demo.steps import DATA, RUNS, Layout, command, layout, prepare_data_folder


ROOT = Path(__file__).resolve().parents[3]


def settings(name: str) -> dict:
    return yaml.safe_load((ROOT / "yaml" / f"tiny_{name}.yaml").read_text())


def overridden(name: str, seed: int) -> dict:
    pairs = (part.partition("=") for part in command(layout(seed), name)[3:])
    return settings(name) | {key: value for key, _, value in pairs}


@pytest.fixture
def place(tmp_path):
    return Layout(0, tmp_path / "saves", tmp_path / "data", tmp_path / "report")


@pytest.fixture
def fake(place, monkeypatch, tmp_path):
    """Makes every training run a few lines of Python instead, which write what a run writes; returns their file."""
    script, run_file = tmp_path / "fake.py", tmp_path / "run.yaml"
    run_file.write_text("a: 1\n")
    script.write_text(
        f"from pathlib import Path\nfolder = Path({str(place.output('sft'))!r})\nfolder.mkdir(parents=True)\n"
        "(folder / 'trainer_state.json').write_text('{}')\nprint('trained')\n"
    )
    monkeypatch.setattr(run, "command", lambda *_: [sys.executable, str(script), str(run_file)])
    return script


def test_every_run_has_its_file_label_and_method():
    assert {path.stem for path in (ROOT / "yaml").glob("tiny_*.yaml")} == {f"tiny_{name}" for name in RUNS}
    assert set(LABELS) == set(RUNS) == {"sft", *(name for names in METHODS.values() for name in names)}


def test_the_committed_seed_runs_the_committed_files_as_they_are():
    for name in RUNS:
        assert command(layout(0), name) == ["llamafactory-cli", "train", f"yaml/tiny_{name}.yaml"]
        assert settings(name)["output_dir"] == str(layout(0).output(name))
        assert settings(name)["seed"] == 0
    assert settings("sft")["model_name_or_path"] == str(layout(0).base)


def test_another_seed_changes_folders_and_seed_and_nothing_else():
    for name in RUNS:
        ours, theirs = overridden(name, 7), settings(name)
        changed = {key for key in ours if ours[key] != theirs.get(key)}
        keys = {"model_name_or_path", "output_dir", "dataset_dir", "seed"}
        assert changed == keys | ({"tpaw_players"} if "iter" in name else set())
        folders = str({key: ours[key] for key in changed}).replace("saves/Tiny-seed7", "saves/Tiny")
        assert "Tiny-" not in folders
        for key in ("model_name_or_path", "output_dir", *(["tpaw_players"] if "iter" in name else [])):
            assert ours[key].replace("saves/Tiny-seed7/", "saves/Tiny/") == theirs[key]


def test_continued_sft_takes_as_many_steps_as_tpaw():
    for_one = -(-1000 // settings("tpaw_iter0")["per_device_train_batch_size"])
    rounds = (1000, 2000, 3000)
    steps = [-(-rows // settings("tpaw_iter0")["per_device_train_batch_size"]) for rows in rounds]
    assert steps[0] == for_one
    epochs = [settings(f"tpaw_iter{t}")["num_train_epochs"] for t in range(3)]
    total = sum(int(epoch) * step for epoch, step in zip(epochs, steps, strict=True))
    assert settings("sft_more")["max_steps"] == total


def test_another_seed_has_datasets_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    DATA.mkdir()
    (DATA / "dataset_info.json").write_text((ROOT / "data" / "dataset_info.json").read_text())
    prepare_data_folder(layout(7))
    entries = json.loads((layout(7).data / "dataset_info.json").read_text())
    named = {name for run_name in RUNS for name in settings(run_name)["dataset"].split(",")}
    assert set(entries) == named
    before = (DATA / "dataset_info.json").read_bytes()
    prepare_data_folder(layout(0))
    assert (DATA / "dataset_info.json").read_bytes() == before


def test_a_finished_training_is_not_done_again(place, fake, capsys):
    progress: dict[str, str] = {}
    run.train(place, "sft", 1, progress)
    assert json.loads((place.saves / "demo.json").read_text()) == progress
    assert (place.saves / "logs" / "sft.log").read_text() == "trained\n"
    run.train(place, "sft", 1, progress)  # the script would fail on the folder that is there
    assert "there already" in capsys.readouterr().out


def test_a_training_whose_result_is_gone_is_done_again(place, fake):
    progress: dict[str, str] = {}
    run.train(place, "sft", 1, progress)
    (place.output("sft") / "trainer_state.json").unlink()
    with pytest.raises(run.DemoError, match="FileExistsError"):
        run.train(place, "sft", 1, progress)


def test_changed_settings_are_refused(place, fake, tmp_path):
    progress: dict[str, str] = {}
    run.train(place, "sft", 1, progress)
    (tmp_path / "run.yaml").write_text("a: 2\n")
    with pytest.raises(run.DemoError, match=r"run.yaml changed since .*saves was made. Delete"):
        run.train(place, "sft", 1, progress)


def test_a_failure_shows_the_command_and_the_end_of_the_log(place, fake):
    fake.write_text("print('the reason')\nraise SystemExit(7)\n")
    progress: dict[str, str] = {}
    with pytest.raises(run.DemoError, match=r"(?s)the reason.*fake.py .*run.yaml\nended with status 7; its log is "):
        run.train(place, "sft", 1, progress)
    assert progress == {}


def test_problems_and_base_model_are_made_once(place, capsys):
    progress: dict[str, str] = {}
    run.prepare(place, progress)
    made = (place.base / "model.safetensors").stat().st_mtime_ns
    run.prepare(place, progress)
    assert (place.base / "model.safetensors").stat().st_mtime_ns == made
    assert (place.problems / "test.jsonl").is_file()


def test_each_checkpoint_is_measured_once(place, monkeypatch):
    calls = []

    def measured(folder, rows):
        calls.append(folder.name)
        return {"checkpoint": "x", "n": len(rows), "correct": 0, "accuracy": 0.0, "interval": [0, 1], "hits": "0"}

    monkeypatch.setattr(evaluate, "evaluate_checkpoint", measured)
    place.problems.mkdir(parents=True)
    (place.problems / "test.jsonl").write_text('{"question": "q", "answer": "answer 1"}\n')
    folders = [place.output("sft"), place.output("sft_more") / "checkpoint-10", place.output("sft_more")]
    for folder, weights in zip(folders, ("a", "b", "b"), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_text(weights)
    assert run.checkpoints(place) == [folders[0], folders[2], folders[1]]
    rows = run.measure(place, "test", run.checkpoints(place))
    assert [row["checkpoint"] for row in rows] == [str(folders[0]), str(folders[2]), str(folders[1])]
    assert calls == ["sft", "sft_more"]
    run.measure(place, "test", run.checkpoints(place))
    assert len(calls) == 2
    (folders[0] / "model.safetensors").write_text("c")
    run.measure(place, "test", run.checkpoints(place))
    assert calls == ["sft", "sft_more", "sft"]
