# SPDX-License-Identifier: Apache-2.0
"""`study`: what its parts are, their run files, how they are shared and continued, and what is kept of them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

from llamafactory_tpaw.data.files import locked
from llamafactory_tpaw.errors import ConfigError, InUseError, TpawError
from llamafactory_tpaw.runs import study as module
from llamafactory_tpaw.runs.study import Part, Study, collect, read_study, run_study, write_part
from tests.runs import Project
from tests.unit.runs.test_plan import project


__all__ = ["project"]

REPRODUCTION = Path(__file__).parents[3] / "docs" / "reproduction"
METHODS = {
    "tpaw": {"num_train_epochs": 2},
    "no_team": None,
    "spin": {"learning_rate": 2e-5},
    "warm": {"from": "tpaw", "temperature": 0.7},
    "sft_epochs": None,
    "sft_steps": {"learning_rate": 2e-5},
    "dpo": {"dataset": "pairs"},
}
SETTINGS = {"template": "qwen", "use_cpu": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


def study(**changes: Any) -> Study:
    """A study of three iterations from `saves/sft` on `additions`, which has 16 rows."""
    given = {"name": "s", "theta_0": "saves/sft", "data": "additions", "methods": METHODS, "iterations": 3}
    return Study(**{**given, "settings": SETTINGS, "folder": "saves/s", "results": "saves/s/results", **changes})


def write(**keys: Any) -> str:
    given = {"name": "s", "theta_0": "saves/sft", "data": "additions", "methods": {"tpaw": None}}
    Path("study.yaml").write_text(json.dumps({**given, **keys}))
    return "study.yaml"


@pytest.mark.usefixtures("elsewhere")
class TestReading:
    def test_parts(self) -> None:
        """All methods of a seed, then those of the next; `from` takes over the keys of the method, too."""
        methods = {"tpaw": {"seed": 1, "label": "ours"}, "eta4": {"from": "tpaw", "tpaw_eta": 4}, "no_mpw": None}
        parts = read_study(write(methods=methods, seeds=[3, 5])).parts()
        names = ["tpaw_seed3", "eta4_seed3", "no_mpw_seed3", "tpaw_seed5", "eta4_seed5", "no_mpw_seed5"]
        assert [part.name for part in parts] == names
        assert [part.label for part in parts[:3]] == ["ours", "TPAW, tpaw_eta 4", "TPAW without player weights"]
        assert [part.overrides for part in parts[:3]] == [{"seed": 1}, {"seed": 1, "tpaw_eta": 4}, {}]
        assert parts[4].folders[3] == Path("saves/s/runs/eta4_seed5_iter3")
        assert parts[4].result == Path("saves/s/results/eta4_seed5.json")

    @pytest.mark.parametrize(
        ("keys", "said"),
        [
            ({"methods": {"eta4": {"tpaw_eta": 4}}}, "`methods: eta4` is not known. Take one of tpaw, spin"),
            ({"methods": {"spin": {"from": "tpaw"}}}, "`methods: spin` is not known"),
            ({"methods": {"a/b": {"from": "tpaw"}}}, "`methods: a/b` is not known"),
            ({"seed": [1]}, "Key 'seed' not in 'Study'"),
            ({"seeds": ["a"]}, "seeds"),
            ({"name": "???"}, "name"),
        ],
    )
    def test_what_is_wrong(self, keys: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            read_study(write(**keys))
        assert said in str(caught.value)
        with pytest.raises(ConfigError, match="`--only 7` is no part of"):
            run_study(write(), 7, print)


def test_run_files(project: Project) -> None:
    """They pass `run`'s checks. Methods that sample alike share D_0; SFT's steps are those of TPAW's triplets."""
    project.add_dataset("pairs", [{"a": "x", "b": "y", "c": "z"}], ranking=True, columns={"prompt": "a"})
    runs = {}
    for part in study().parts():
        items = write_part(part)
        assert [item.file for item in items] == [f"saves/s/yaml/{part.name}_iter{t}.yaml" for t in range(3)]
        runs[part.key] = [item.given for item in items]
    assert runs["spin"][1]["dataset"] == "spin_seed0_iter1"
    assert runs["tpaw"][1]["dataset"] == "seed0_iter0,tpaw_seed0_iter1"
    assert runs["no_team"][0]["dataset"] == runs["spin"][0]["dataset"] == "seed0_iter0"
    assert runs["warm"][1]["dataset"] == "warm_seed0_iter0,warm_seed0_iter1"
    assert [run["tpaw_team_size"] for run in runs["no_team"]] == [1, 1, 1]
    assert {run["learning_rate"] for run in runs["spin"]} == {2e-5}
    assert {run["num_train_epochs"] for key in ("tpaw", "warm", "sft_epochs") for run in runs[key]} == {2}
    assert [run["max_steps"] for run in runs["sft_steps"]] == [8, 16, 24]  # 16, 32, 48 triplets by 4, 2 epochs
    assert [run["model_name_or_path"] for run in runs["sft_steps"]][:2] == [
        "saves/sft",
        "saves/s/runs/sft_steps_seed0_iter0",
    ]
    assert {run["stage"] for run in runs["dpo"]} == {"dpo"}
    assert {run["dataset"] for run in runs["dpo"]} == {"pairs"}
    assert not [key for key in runs["sft_epochs"][0] if key.startswith("tpaw_") or key in ("temperature", "max_steps")]
    entries = json.loads(Path("saves/s/data/dataset_info.json").read_text())
    assert entries["sft_seed0"]["file_name"] == str(Path("data/additions.jsonl").resolve())
    with pytest.raises(ConfigError, match="`methods: sft_steps` needs a local SFT set whose rows are all prompts"):
        write_part(study(settings=SETTINGS | {"tpaw_max_prompts": 8}).parts()[5])


@pytest.mark.usefixtures("elsewhere")
class TestRunning:
    @pytest.fixture(autouse=True)
    def _world(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.played: list[str] = []
        self.left = 10**6
        monkeypatch.setattr(module, "_play_part", self.play)

    def play(self, part: Part, tell: Any) -> int:
        """Make a part's folders one by one."""
        for folder in part.folders:
            if not folder.is_dir():
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
                folder.mkdir(parents=True)
                (folder / "train_results.json").write_text("{}")
                self.played.append(folder.name)
        if part.key == "spin":
            raise TpawError("it collapsed")
        part.result.parent.mkdir(exist_ok=True)
        part.result.write_text(json.dumps(part.definition()))
        return 0

    def test_interrupted_three_times(self, capsys: pytest.CaptureFixture[str]) -> None:
        """It ends with the same results, nothing is played twice, and a part that fails does not keep the others."""
        file, said = write(methods={"tpaw": None, "spin": None, "no_trw": None}, seeds=[0, 1], iterations=2), []
        for allowed in (1, 4, 2):
            self.left = allowed
            with pytest.raises(KeyboardInterrupt):
                run_study(file, None, said.append)
        states = [part.state() for part in read_study(file).parts()]
        assert states[:4] == ["finished", "at iteration 2", "finished", "at iteration 1"]
        self.left = 10**6
        assert run_study(file, None, said.append) == TpawError.exit_code
        assert len(self.played) == len(set(self.played)) == 12
        results = sorted(path.stem for path in Path("saves/s/results").glob("*.json"))
        assert results == ["no_trw_seed0", "no_trw_seed1", "tpaw_seed0", "tpaw_seed1"]
        assert said[-1] == "4 of 6 parts are finished. `llamafactory-tpaw report saves/s/results` compares them."
        assert "it collapsed" in capsys.readouterr().err

    def test_results_of_other_settings(self) -> None:
        assert run_study(write(), None, print) == 0
        with pytest.raises(ConfigError, match=r"tpaw_seed0\.json was made with other `overrides` and `settings`"):
            run_study(write(methods={"tpaw": {"tpaw_eta": 4}}, settings={"bf16": True}), None, print)

    def test_a_part_in_another_process(self) -> None:
        file, said = write(methods={"tpaw": None, "no_trw": None}, iterations=1), []
        with locked(Path("saves/s/runs/tpaw_seed0"), "tpaw_seed0"):
            assert run_study(file, None, said.append) == 0
            with pytest.raises(InUseError):
                run_study(file, 0, said.append)
        assert self.played == ["no_trw_seed0_iter0"]
        assert "tpaw_seed0 is in use" in said[1]


def test_one_part_at_a_time_evaluates_theta_0(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """All methods of a seed evaluate it, and `eval` refuses a checkpoint at which another process is at work."""
    one = study(evaluate="--tasks words").parts()[0]
    commands = []

    def start(words: list[str], **_: Any) -> int:
        commands.append(words)
        with pytest.raises(Timeout):
            FileLock(Path("saves/s/.theta_0_seed0.lock")).acquire(timeout=0)
        return 0

    for name, fake in (("_start", start), ("play", lambda *_: 0), ("_preload", int), ("collect", lambda _: {})):
        monkeypatch.setattr(module, name, fake)
    assert module._play_part(one, print) == 0
    assert commands == [["eval", "saves/sft", *map(str, one.folders), "--tasks", "words"]]


@pytest.mark.parametrize("file", sorted(REPRODUCTION.glob("small*.yaml")), ids=lambda file: file.stem)
def test_committed_results_are_those_of_their_study(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPRODUCTION.parents[1])
    parts = read_study(str(file)).parts()
    results = {path.name for path in Path(read_study(str(file)).results).glob("*.json")}
    assert results <= {part.result.name for part in parts}
    assert [part.state() == "finished" for part in parts] == [part.result.name in results for part in parts]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_command_in_a_process(tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It does what the command does, its output is in the log, and its exit code comes back."""
    log = tmp_path / "log"
    with capsys.disabled():  # what pytest puts in the place of stdout is no file that a command would have
        codes = [module._start(words, log, method) for words in (["--version"], ["check", "nope.yaml"])]
    assert codes == [0, ConfigError.exit_code]
    assert "llamafactory-tpaw 0." in log.read_text()
    assert "error: The run file nope.yaml cannot be read" in log.read_text()


def test_bars_wait_for_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed one would hold a lock that they shared for ever."""
    monkeypatch.setattr(module, "PRELOADED", ())
    monkeypatch.setattr(tqdm, "_lock", TqdmDefaultWriteLock(), raising=False)
    module._preload()
    assert isinstance(tqdm.get_lock(), type(threading.RLock()))


def test_what_is_kept(played: tuple[Project, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    project, _ = played
    monkeypatch.chdir(project.root)
    part = (
        study(theta_0=str(project.model)).parts()[0]._replace(folders=[Path(f"saves/play_iter{t}") for t in range(3)])
    )
    found = json.loads(json.dumps(collect(part), allow_nan=False))
    assert [point["theta"] for point in found["points"]] == [0, 1, 2, 3]
    steps = [len(project.history(f"play_iter{t}")) for t in range(3)]
    assert [point["steps"] for point in found["points"]] == [0, steps[0], sum(steps[:2]), sum(steps)]
    assert [len(point["logs"]) for point in found["points"][1:]] == steps
    assert {"step", "loss", "rewards/target", "weights/player/theta_0"} <= found["points"][1]["logs"][0].keys()
    assert all(len(point["fingerprint"]) == 64 for point in found["points"])
    assert (found["schema"], found["seed"], found["overrides"]) == (1, 0, {"num_train_epochs": 2})
    assert {"python", "torch", "commit", "cpu", "threads"} <= found["environment"].keys()
