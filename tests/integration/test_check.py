# SPDX-License-Identifier: Apache-2.0
"""`check` against what a run then really needs, and against broken runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.errors import EnvironmentProblem
from llamafactory_tpaw.runs import guard
from llamafactory_tpaw.runs.check import check
from llamafactory_tpaw.runs.launcher import prepared
from tests import runs, tiny
from tests.unit.team.checkpoints import flip


pytestmark = pytest.mark.integration
STEPS = ["generation", "scoring", "training"]


@pytest.fixture
def project(
    played: tuple[runs.Project, list[runs.Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> runs.Project:
    """The played run before its iteration 2."""
    shutil.copytree(played[0].root, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "saves" / "play_iter2")
    for path in (tmp_path / "run" / "data" / "tpaw").glob("play_iter2*"):
        path.unlink()
    monkeypatch.chdir(tmp_path / "run")
    return runs.Project(tmp_path / "run", played[0].model)


def messages(found: dict[str, Any]) -> list[str]:
    return [f"{each['level']}: {each['message']}" for each in found["findings"]]


def test_a_sound_run_has_estimates(project: runs.Project, played: tuple[runs.Project, list[runs.Result]]) -> None:
    found = check(project.settings(2, num_train_epochs=2.0))
    assert (found["findings"], found["exit_code"], found["step_zero"]) == ([], 0, None)
    assert list(found) == ["schema", "exit_code", "findings", "device", "memory", "disk", "time", "step_zero"]
    assert list(found["memory"]) == STEPS
    assert all(amount > 0 for figures in found["memory"].values() for amount in figures.values())
    # By the iteration before, which trained on two rounds.
    before = json.loads(Path("saves/play_iter1/tpaw.json").read_text())["seconds"]
    seconds = found["time"]
    assert seconds["generate"] == pytest.approx(before["generate"], abs=1e-3)
    assert seconds["train"] == pytest.approx(before["train"] * 3 / 2, rel=0.01)
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"], abs=1e-3)
    weights = (played[0].root / "saves/play_iter2/model.safetensors").stat().st_size
    assert found["disk"] == {"theta_{t+1}": pytest.approx(weights, rel=0.3), "checkpoints": 0}
    idle = check(project.settings(0, output_dir="saves/other_iter0", max_steps=1, warmup_ratio=0.1))
    assert (idle["time"], idle["exit_code"]) == ({}, 0)
    assert [text.partition(", `")[0] for text in messages(idle)] == [
        "warning: The training would change no weight: by `lr_scheduler_type: linear`"
    ]


def test_the_guard_reads_what_a_run_recorded(project: runs.Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "COLLAPSED", dict.fromkeys(guard.COLLAPSED, lambda *_: True))
    (text,) = messages(check(project.settings(1, output_dir="saves/other_iter1")))
    assert text.startswith("warning: `tpaw_guard`: theta_1 (saves/play_iter0) has collapsed since iteration 0 began: ")
    assert text.count("(then ") == len(guard.COLLAPSED)


def test_memory_is_near_what_one_batch_takes(tmp_path: Path) -> None:
    """In a process of its own, which holds nothing of other tests."""
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
    project = runs.Project(tmp_path, tiny.save_model(tmp_path / "theta_0", **sizes))
    changes = {"per_device_train_batch_size": 8, "max_new_tokens": 64, "tpaw_score_batch_tokens": 2048}
    name = project.write("run.yaml", project.settings(0, **changes))
    result = project.command("llamafactory-tpaw", "check", name, "--model", "--json")
    found = json.loads(result.output[result.output.index("\n{\n") :])
    assert found["step_zero"]["reward"] == pytest.approx(0.0, abs=1e-5)
    assert list(found["memory"]) == STEPS
    for figures in found["memory"].values():
        assert figures["peak"] == pytest.approx(figures["measured"], rel=0.3)
    assert figures["measured"] > figures["process"] + 16 * 10e6
    assert set(found["time"]) == {"generate", "score", "train", "total"}
    assert all(found["time"].values())
    assert sorted((tmp_path / "saves").glob("**/checkpoint-*")) == []


def test_every_problem_at_once(project: runs.Project) -> None:
    rows = Path("data/additions.jsonl").read_text().splitlines()
    Path("data/additions.jsonl").write_text("\n".join([*rows[:2], '{"question": "?", "answer": ""}', *rows[3:]]))
    found = check(project.settings(2, template="llama3"))
    assert found["exit_code"] == 3
    texts = "\n".join(messages(found))
    assert "play_iter0.jsonl was generated with another tokenizer or template than this run's" in texts
    assert "`tpaw_prompts: additions` (data/additions.jsonl, first 16 rows) has 1 bad row, but" in texts
    assert "First: row 3, because its response is empty." in texts
    assert all((found["memory"], found["disk"], found["time"]))


def test_what_may_go_wrong_and_what_training_would_refuse(project: runs.Project) -> None:
    found = check(project.settings(0, run="other", template="empty", cutoff_len=4096, max_new_tokens=4))
    limits, lengths = [text for text in messages(found) if text.startswith("warning: `")][1:]
    assert limits.startswith(f"warning: `cutoff_len` is 4096, but {project.model} has 2048 positions")
    assert "has targets of " in lengths
    assert "but under `max_new_tokens: 4` and `cutoff_len: 4096` most responses would be cut" in lengths
    found = check(project.settings(0, run="other", finetuning_type="lora", lora_target="q_projj"))
    assert found["exit_code"] == 2
    assert messages(found)[0].startswith(f"error: `lora_target: q_projj` is nowhere in {project.model}. Correct")


def test_a_disk_that_is_too_small(project: runs.Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    settings = project.settings(2, save_strategy="steps")
    found = check(settings)
    assert found["exit_code"] == 5
    (problem,) = messages(found)
    assert problem.startswith("error: `output_dir: saves/play_iter2` is to hold theta_{t+1} of ")
    assert "but its file system has 97.7 KiB free. Free some, save fewer checkpoints" in problem
    with pytest.raises(EnvironmentProblem, match=r"has 97\.7 KiB free"), prepared(settings):
        pytest.fail("training would begin")
    needed = int(sum(found["disk"].values()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert check(settings)["findings"] == []


def test_a_device_that_is_too_small(project: runs.Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_tpaw.runs import check as module

    settings = project.settings(2)
    peak = check(settings)["memory"]["training"]["peak"]
    for share, code, level in ((2, 5, "error"), (1, 0, "warning")):
        device = {"name": "a phone", "bytes": round(peak / share)}
        monkeypatch.setattr(module, "_device_of", lambda run, device=device: device)
        found = check(settings)
        assert found["exit_code"] == code
        assert {each["level"] for each in found["findings"]} == {level}
        assert "Lower `per_device_train_batch_size` or `cutoff_len`" in messages(found)[-1]


def test_model_finds_a_hidden_change(project: runs.Project) -> None:
    settings = project.settings(2)
    found = check(settings, with_model=True)
    assert found["findings"] == []
    assert found["step_zero"]["reward"] == pytest.approx(0.0, abs=1e-5)
    assert sorted(found["step_zero"]["fingerprints"]) == ["theta_0", "theta_1", "theta_2"]
    path = Path("saves/play_iter1/model.safetensors")
    stat = path.stat()
    flip(path, -1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert check(settings)["exit_code"] == 0
    found = check(settings, with_model=True)
    assert found["exit_code"] in (2, 3)
    assert "theta_2" in messages(found)[0]
