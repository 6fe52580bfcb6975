# SPDX-License-Identifier: Apache-2.0
"""What happens before training: finished iterations, interrupted ones, and the child that generates."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.errors import ConfigError, DataError, InUseError, TpawError
from llamafactory_tpaw.generation.share import SHARE, Share
from llamafactory_tpaw.lf.signals import Terminated
from llamafactory_tpaw.runs import launcher
from tests.unit.team.checkpoints import make_tensors, save_single
from tests.unit.team.test_manifest import make_manifest


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def save_checkpoint(output: Path, step: int, *, optimizer: bool = True, state: str = "{}") -> Path:
    folder = save_single(output / f"checkpoint-{step}", make_tensors())
    (folder / "trainer_state.json").write_text(state)
    for name in ("optimizer.pt", "scheduler.pt") if optimizer else ():
        (folder / name).touch()
    return folder


def continue_in(output: Path, **given: Any) -> dict[str, Any]:
    return launcher._where_to_continue({"output_dir": str(output)} | given, make_manifest(status="training"))


def test_new_iteration_begins(output: Path) -> None:
    assert launcher._where_to_continue({"output_dir": str(output)}, None) == {}


def test_interrupted_iteration_without_checkpoint_begins_again(output: Path) -> None:
    assert continue_in(output) == {"overwrite_output_dir": True}


def test_newest_checkpoint_is_resumed_by_number(output: Path) -> None:
    for step in (2, 10, 9):
        save_checkpoint(output, step)
    (output / "checkpoint-best").mkdir()
    assert continue_in(output) == {"resume_from_checkpoint": str(output / "checkpoint-10")}


def test_half_written_ones_are_removed(output: Path) -> None:
    kept = save_checkpoint(output, 2)
    cut, stateless, torn = (save_checkpoint(output, step) for step in (4, 6, 8))
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1])
    (stateless / "trainer_state.json").unlink()
    (torn / "trainer_state.json").write_text('{"epoch": 1')
    assert continue_in(output) == {"resume_from_checkpoint": str(kept)}
    assert [path.name for path in output.iterdir()] == ["checkpoint-2"]


def test_checkpoints_of_weights_only_are_kept_but_not_resumed(output: Path) -> None:
    save_checkpoint(output, 4, optimizer=False)
    assert continue_in(output) == {"overwrite_output_dir": True}
    assert (output / "checkpoint-4").is_dir()
    older = save_checkpoint(output, 2)
    assert continue_in(output) == {"resume_from_checkpoint": str(older)}


def test_choice_of_the_user_is_left_alone(output: Path) -> None:
    save_checkpoint(output, 4, state="")
    assert continue_in(output, resume_from_checkpoint="mine") == {}
    assert (output / "checkpoint-4").is_dir()


class TestChild:
    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
        """Commands that would be started; they end with `code`."""
        found: list[tuple[list[str], dict[str, str]]] = []

        def run(command: list[str], environment: dict[str, str]) -> int:
            found.append((command, environment))
            return self.code

        monkeypatch.setattr(launcher, "run_child", run)
        return found

    code = 0

    def test_sees_the_devices_that_the_command_sees(
        self, commands: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
        launcher._generate_in_child(["run.yaml", "seed=1"])
        ((command, environment),) = commands
        assert command == [sys.executable, "-m", "llamafactory_tpaw", "generate", "run.yaml", "seed=1"]
        assert environment["CUDA_VISIBLE_DEVICES"] == "3,1"

    @pytest.mark.parametrize("code", [1, 3, 137])
    def test_failure_ends_the_command(
        self, commands: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
    ) -> None:
        monkeypatch.setattr(TestChild, "code", code)
        warnings: list[str] = []
        monkeypatch.setattr(launcher.logger, "warning_rank0", warnings.append, raising=False)
        with pytest.raises(SystemExit) as caught:
            launcher._generate_in_child([])
        assert caught.value.code == code
        assert ["ended by signal 9" in text for text in warnings] == ([True] if code == 137 else [])

    @pytest.mark.parametrize(("code", "stop"), [(130, KeyboardInterrupt), (143, Terminated)])
    def test_its_interruption_is_the_commands(
        self, commands: list[Any], monkeypatch: pytest.MonkeyPatch, code: int, stop: type[KeyboardInterrupt]
    ) -> None:
        monkeypatch.setattr(TestChild, "code", code)
        with pytest.raises(KeyboardInterrupt) as caught:
            launcher._generate_in_child([])
        assert caught.type is stop


class TestLock:
    """One process an output folder."""

    @pytest.fixture
    def given(self, output: Path) -> dict[str, Any]:
        return {"do_train": True, "output_dir": str(output)}

    def test_second_one_is_refused(self, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        with launcher.hold_output(given):
            with launcher.hold_output(given):  # another part of the same command
                pass
            with monkeypatch.context() as patch:
                patch.delenv(launcher.HELD)
                with pytest.raises(InUseError, match=r"`output_dir: .*out` is in use: another process"):
                    launcher.hold_output(given).__enter__()
        assert launcher.HELD not in os.environ
        with launcher.hold_output(given):
            pass

    @pytest.mark.parametrize("rank", ["RANK", "NODE_RANK"])
    def test_other_ranks_and_nodes_follow_the_first(
        self, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, rank: str
    ) -> None:
        monkeypatch.setenv(rank, "0")
        with launcher.hold_output(given):
            with monkeypatch.context() as patch:
                patch.delenv(launcher.HELD)
                patch.setenv(rank, "1")
                with launcher.hold_output(given):
                    pass

    def test_nothing_is_locked_where_nothing_is_trained(self, given: dict[str, Any], output: Path) -> None:
        for changed in (given | {"do_train": False}, given | {"output_dir": None}):
            with launcher.hold_output(changed):
                assert launcher.HELD not in os.environ
        assert list(output.parent.iterdir()) == []


class TestProcesses:
    @pytest.fixture(autouse=True)
    def _one_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("FORCE_TORCHRUN", "NNODES", "NPROC_PER_NODE", "USE_RAY", "USE_KT"):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize("there", [True, False])
    def test_ray_is_refused_before_generation_where_it_cannot_work(
        self, monkeypatch: pytest.MonkeyPatch, there: bool
    ) -> None:
        monkeypatch.setattr(launcher, "find_spec", lambda name: object() if there else None)
        launcher._refuse_ray({})  # without USE_RAY nobody reads it
        monkeypatch.setenv("USE_RAY", "1")
        with contextlib.nullcontext() if there else pytest.raises(TpawError, match="Ray is not installed"):
            launcher._refuse_ray({"ray_num_workers": 2})

    def test_a_run_that_does_nothing_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"Neither `do_train` nor `do_eval` is true"):
            launcher._refuse_idle({"do_train": "false"})
        launcher._refuse_idle({"do_eval": True})


GIVEN = {"stage": "tpaw", "do_train": True, "output_dir": "out"}


class TestSteps:
    """`prepare`, `before_parse` and `generate` around a plan that is given."""

    @pytest.fixture
    def plan(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
        monkeypatch.chdir(tmp_path)
        plan = SimpleNamespace(
            to_generate=[],
            given={},
            tpaw_args=SimpleNamespace(tpaw_prompts="additions"),
        )
        monkeypatch.setattr(launcher, "make_plan", lambda given: plan)
        monkeypatch.setattr(launcher, "check_start", lambda plan: None)
        monkeypatch.setattr(launcher, "key_problems", lambda given: [])
        monkeypatch.setattr(launcher, "finished_manifest", lambda given: None)
        return plan

    def test_missing_triplets_are_generated_by_the_command(
        self, plan: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started: list[Any] = []
        monkeypatch.setattr(launcher, "_generate_in_child", started.append)
        with launcher.prepare(GIVEN):
            assert started == []
            assert os.environ[launcher.HELD] == str(Path("out").resolve())
        plan.to_generate = [SimpleNamespace(path=Path("d.jsonl"))]
        with launcher.prepare(GIVEN):
            assert started == [GIVEN]

    def test_a_worker_on_ray_works_where_the_command_was_started(
        self, plan: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(launcher, "_refuse_ray", lambda given: None)
        monkeypatch.setenv("USE_RAY", "1")
        (tmp_path / "elsewhere").mkdir()
        with launcher.prepare(GIVEN):
            assert launcher.HELD not in os.environ
            monkeypatch.chdir("elsewhere")
            assert launcher.before_parse(GIVEN) == GIVEN
            assert Path.cwd() == tmp_path
            os.environ[launcher.STARTED_IN] = str(tmp_path / "on another node")
            launcher.before_parse(GIVEN)
            assert Path.cwd() == tmp_path
        assert launcher.STARTED_IN not in os.environ

    def test_missing_triplets_are_told_where_training_is_started_otherwise(self, plan: SimpleNamespace) -> None:
        assert launcher.before_parse(GIVEN) == GIVEN
        plan.to_generate = [SimpleNamespace(path=Path("d.jsonl"))]
        with pytest.raises(DataError, match=r"d\.jsonl is not there yet.*run `llamafactory-tpaw generate`"):
            launcher.before_parse(GIVEN)
        with pytest.raises(DataError, match=r"d\.jsonl is not there yet"):
            launcher.score(GIVEN)

    @pytest.mark.parametrize("step", [lambda given: launcher.prepare(given).__enter__(), launcher.before_parse])
    def test_finished_iteration_ends_well(
        self, plan: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, step: Any
    ) -> None:
        monkeypatch.setattr(launcher, "finished_manifest", lambda given: make_manifest())
        plan.to_generate = [SimpleNamespace(path=Path("d.jsonl"))]
        with pytest.raises(SystemExit) as caught:
            step(GIVEN)
        assert caught.value.code == 0

    def test_wrong_keys_are_told_before_the_output_folder_is_looked_at(
        self, plan: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(launcher, "finished_manifest", lambda given: make_manifest())
        monkeypatch.setattr(launcher, "key_problems", lambda given: ["`x` is wrong."])
        with launcher.prepare(GIVEN):  # and make_plan raises
            pass

    @pytest.mark.parametrize("command", ["generate", "score"])
    def test_run_files_of_other_stages_are_refused(self, command: str) -> None:
        message = f"`stage: sft` is not `tpaw`, but `llamafactory-tpaw {command}` is for an iteration of self-play."
        with pytest.raises(ConfigError, match=message):
            getattr(launcher, command)(GIVEN | {"stage": "sft"})

    @pytest.mark.parametrize(
        ("visible", "device", "first", "devices"),
        [
            (None, "cpu", "0", []),
            ("3,1", "cuda", "3", ["3", "1"]),
            ("3,1", "cpu", "3", []),
            ("", "cpu", "", []),
        ],
    )
    def test_one_device_is_used_and_all_are_told(
        self,
        plan: SimpleNamespace,
        monkeypatch: pytest.MonkeyPatch,
        visible: str | None,
        device: str,
        first: str,
        devices: list[str],
    ) -> None:
        told: list[Any] = []
        run = SimpleNamespace(training=SimpleNamespace(device=SimpleNamespace(type=device)))
        monkeypatch.setattr("llamafactory_tpaw.arguments.parsed.parse_single_process", lambda given: run)
        monkeypatch.setattr("llamafactory_tpaw.generation.local.generate_round", lambda *given: told.append(given))
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        plan.to_generate = [SimpleNamespace(path=Path("d.jsonl"))]
        assert launcher.generate(GIVEN) == 0
        assert told == [(run, plan.to_generate[0], GIVEN, devices)]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == first

    def test_a_process_for_one_device_answers_for_its_round_alone(
        self, plan: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[Any] = []
        share = Share("e.jsonl", 7)
        run = SimpleNamespace(training=SimpleNamespace(device=SimpleNamespace(type="cuda")))
        monkeypatch.setenv(SHARE, json.dumps({"file": "e.jsonl", "channel": 7}))
        monkeypatch.setattr("llamafactory_tpaw.arguments.parsed.parse_single_process", lambda given: run)
        monkeypatch.setattr("llamafactory_tpaw.generation.local.generate_round", None)
        monkeypatch.setattr("llamafactory_tpaw.generation.local.answer_share", lambda *given: told.append(given))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        plan.to_generate = [SimpleNamespace(path=Path(name)) for name in ("d.jsonl", "e.jsonl")]
        assert launcher.generate(GIVEN) == 0
        assert told == [(run, plan.to_generate[1], share)]

    def test_nothing_to_generate(self, plan: SimpleNamespace) -> None:
        assert launcher.generate(GIVEN) == 0
        plan.tpaw_args.tpaw_prompts = None
        with pytest.raises(ConfigError, match="`tpaw_prompts` is missing, so there is nothing to generate"):
            launcher.generate(GIVEN)


def test_interrupted_run_resumes_by_the_given_settings(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save_checkpoint(output, 4)
    given = {"stage": "tpaw", "do_train": True, "output_dir": str(output)}
    monkeypatch.setattr(launcher, "make_plan", lambda given: SimpleNamespace(to_generate=[]))
    monkeypatch.setattr(launcher, "key_problems", lambda given: [])
    monkeypatch.setattr(launcher, "finished_manifest", lambda given: make_manifest(status="training"))
    assert launcher.before_parse(given) == given | {"resume_from_checkpoint": str(checkpoint)}
    assert json.loads((checkpoint / "trainer_state.json").read_text()) == {}
