# SPDX-License-Identifier: Apache-2.0
"""What happens around training: finished iterations, interrupted ones, other nodes, and what is pruned."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_tpaw.arguments.checks import read_tpaw_args
from llamafactory_tpaw.data.rounds import Round
from llamafactory_tpaw.data.source import Entry
from llamafactory_tpaw.data.triplets import meta_path
from llamafactory_tpaw.errors import ConfigError, DataError, EnvironmentProblem, InUseError
from llamafactory_tpaw.lf.given import handed_file
from llamafactory_tpaw.report.evaluate import Evaluation, write_evaluations
from llamafactory_tpaw.runs import launcher
from llamafactory_tpaw.runs.plan import Plan
from llamafactory_tpaw.team.manifest import write_manifest
from tests.unit.team.test_checkpoint import STATES, WHOLE, save_step
from tests.unit.team.test_manifest import make_manifest


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def continue_in(output: Path, *, begun: bool = True, **given: Any) -> dict[str, Any]:
    given = {"output_dir": str(output)} | given
    earlier = make_manifest(status="training") if begun else None
    return launcher._where_to_continue(Plan(given, read_tpaw_args(given)[0], [], None, earlier))


def test_where_an_iteration_goes_on(output: Path) -> None:
    assert continue_in(output, begun=False) == {}
    assert continue_in(output) == {"overwrite_output_dir": True}
    newest = save_step(output, 10, *WHOLE, *STATES["Trainer"])
    assert continue_in(output) == {"resume_from_checkpoint": str(newest)}
    assert continue_in(output, resume_from_checkpoint="mine") == {}


@pytest.mark.parametrize("rank", ["RANK", "NODE_RANK"])
def test_one_command_holds_an_output_folder_and_other_ranks_and_nodes_follow(
    output: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    given = {"do_train": True, "output_dir": str(output)}
    monkeypatch.setenv("NNODES", "2")
    with launcher.hold_output(given):
        with pytest.raises(InUseError, match=r"`output_dir: .*out` is in use"), launcher.hold_output(given):
            pass
        monkeypatch.setenv(rank, "1")
        with launcher.hold_output(given):
            pass
        monkeypatch.setenv("NNODES", "1")
        if rank == "NODE_RANK":  # without a second node it says nothing
            with pytest.raises(InUseError), launcher.hold_output(given):
                pass


GIVEN = {"stage": "tpaw", "do_train": True, "output_dir": "out", "dataset": "d"}
ROUND = SimpleNamespace(path=Path("d.jsonl"), complete=False)


class TestSteps:
    """The steps around a plan that is given."""

    @pytest.fixture
    def plan(self, monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> SimpleNamespace:
        tpaw_args = SimpleNamespace(tpaw_prompts="additions", tpaw_engine_startup=0.0, tpaw_eval_tasks=None)
        plan = SimpleNamespace(
            to_generate=[],
            given=GIVEN,
            tpaw_args=tpaw_args,
            opponents=SimpleNamespace(rounds=[]),
            earlier=None,
            is_finished=False,
        )
        monkeypatch.setattr(launcher, "make_plan", lambda given: plan)
        monkeypatch.setattr(launcher, "handed_plan", lambda given: plan)
        monkeypatch.setattr(launcher, "check_disk", lambda plan, sample, findings: {})
        monkeypatch.setattr(launcher, "check_first_rows", lambda run, plan: None)
        monkeypatch.setattr(launcher, "guard", lambda plan: None)
        return plan

    @pytest.mark.parametrize("step", ["prepared", "before_training", "generate", "score", "the round"])
    def test_the_guard_stops_every_step(
        self, plan: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        """Before anything is generated, and where only the round says so before training."""
        children: list[Any] = []

        def stop(plan: Any) -> None:
            if bool(children) == (step == "the round"):
                raise InUseError("theta_1 has collapsed")

        monkeypatch.setattr(launcher, "run_child", lambda command: children.append(command) or 0)
        monkeypatch.setattr(launcher, "guard", stop)
        plan.to_generate = [SimpleNamespace(path=Path("d.jsonl"), complete=False)]
        steps = {"before_training": lambda file: launcher.before_training(GIVEN, None)}
        steps |= {name: lambda file, name=name: getattr(launcher, name)([file]) for name in ("generate", "score")}
        with handed_file(GIVEN) as file, pytest.raises(InUseError):
            steps.get(step, lambda file: launcher.prepared(GIVEN).__enter__())(file)
        assert len(children) == (step == "the round")

    def test_a_process_with_a_plan_goes_on_where_the_command_was_started(
        self, plan: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        assert launcher.before_training(GIVEN, {"cwd": str(tmp_path)}) == GIVEN
        assert Path.cwd() == tmp_path
        launcher.before_training(GIVEN, {"cwd": "/not/on/this/node"})
        assert Path.cwd() == tmp_path

    def test_missing_triplets_are_told_where_training_is_started_otherwise(self, plan: SimpleNamespace) -> None:
        assert launcher.before_training(GIVEN, None) == GIVEN
        plan.to_generate = [ROUND]
        with pytest.raises(DataError, match=r"d\.jsonl is not there yet.*Run `llamafactory-tpaw generate`"):
            launcher.before_training(GIVEN, None)
        with handed_file(GIVEN) as file, pytest.raises(DataError, match=r"d\.jsonl is not there yet"):
            launcher.score([file])

    def test_a_finished_iteration_ends_well(self, plan: SimpleNamespace) -> None:
        plan.is_finished, plan.earlier, plan.to_generate = True, make_manifest(), [ROUND]
        with pytest.raises(SystemExit) as caught:
            launcher.before_training(GIVEN, None)
        assert caught.value.code == 0

    def test_weights_are_pruned_when_a_training_has_finished(
        self, plan: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pruned: list[Any] = []
        monkeypatch.setattr(launcher, "prune", lambda *given: pruned.append(given))
        with pytest.raises(KeyboardInterrupt), launcher.prepared(GIVEN, "a.yaml"):
            raise KeyboardInterrupt
        with launcher.prepared(GIVEN, "a.yaml"):
            assert pruned == [], "nothing goes while an iteration trains, or where it was interrupted"
        assert pruned == [(GIVEN, "a.yaml")]

    def test_theta_is_evaluated_at_the_end_and_a_failure_is_a_warning(
        self, plan: SimpleNamespace, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started, warned = [], []
        monkeypatch.setattr(launcher, "run_child", lambda command: started.append(command[1:]) or 5)
        monkeypatch.setattr(launcher.logger, "warning_rank0", warned.append)
        monkeypatch.setattr(launcher.facade, "torch_gc", lambda: None, raising=False)
        plan.given, plan.tpaw_args.tpaw_eval_tasks = GIVEN | {"output_dir": str(output)}, ["a", "b c.yaml"]
        write_manifest(output, make_manifest(status="training"))  # one that was aborted
        with launcher.prepared(GIVEN):
            pass
        assert started == []
        with launcher.prepared(GIVEN):
            write_manifest(output, make_manifest())
        assert started == [["-m", "llamafactory_tpaw", "eval", str(output), "--tasks", "a,b c.yaml"]]
        (warning,) = warned
        assert f"exit code 5. Correct what it says above and repeat it: llamafactory-tpaw eval {output}" in warning
        assert warning.endswith(" --tasks 'a,b c.yaml'")
        Path("b c.yaml").write_text("task: b\n")
        found = Evaluation("acc", 0.5, None, 2, "01", {}, "1.0", 0, None, "hf", "float32", None, "0.4.13", 1.0)
        write_evaluations(output, make_manifest().result["fingerprint"], {"a": found, "b": found})
        with launcher.prepared(GIVEN):
            pass
        assert len(started) == 1, "what is evaluated already is not evaluated again"

    @pytest.mark.parametrize("command", ["generate", "score"])
    def test_run_files_of_other_stages_are_refused(self, command: str) -> None:
        message = f"`stage: sft` is not `tpaw`, but `llamafactory-tpaw {command}` is for an iteration of self-play."
        with handed_file(GIVEN | {"stage": "sft"}) as file, pytest.raises(ConfigError, match=message):
            getattr(launcher, command)([file])

    @pytest.mark.parametrize(
        ("visible", "device", "devices"), [("3,1", "cuda", ["3", "1"]), ("3,1", "cpu", []), ("", "cpu", [])]
    )
    def test_one_device_is_used_and_all_are_told(
        self, plan: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, visible: str, device: str, devices: list[str]
    ) -> None:
        told: list[Any] = []
        run = SimpleNamespace(training=SimpleNamespace(device=SimpleNamespace(type=device)))
        monkeypatch.setattr("llamafactory_tpaw.arguments.parsed.parse_single_process", lambda given: run)
        monkeypatch.setattr("llamafactory_tpaw.generation.local.generate_round", lambda *given: told.append(given))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        plan.to_generate = [ROUND]
        with handed_file(GIVEN) as file:
            assert launcher.generate([file]) == 0
        assert told == [(run, ROUND, devices)]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == visible.split(",")[0]

    def test_nothing_to_generate(self, plan: SimpleNamespace) -> None:
        with handed_file(GIVEN) as file:
            assert launcher.generate([file]) == 0
            plan.tpaw_args.tpaw_prompts = None
            with pytest.raises(ConfigError, match="`tpaw_prompts` is missing, so there is nothing to generate"):
                launcher.generate([file])


class TestNodes:
    """Node 0 generates; the others wait for its triplets."""

    def test_waits_while_rows_become_more(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        round_ = Round(0, Entry("d0", {}, tmp_path / "d0.jsonl"))
        partial = tmp_path / "d0.jsonl.partial"
        polls = 0

        def work(_: float) -> None:
            nonlocal polls
            polls += 1
            partial.write_text("row\n" * polls)
            if polls == 5:
                round_.path.touch()
                meta_path(round_.path).touch()

        clock = iter(range(0, 1000, 4))
        monkeypatch.setattr(launcher.time, "sleep", work)
        monkeypatch.setattr(launcher.time, "monotonic", lambda: next(clock))
        launcher._wait_for(round_, patience_s=9.0)
        assert polls == 5

    def test_gives_up_where_no_row_comes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launcher, "POLL_S", 0.005)
        round_ = Round(0, Entry("d0", {}, tmp_path / "d0.jsonl"))
        with pytest.raises(EnvironmentProblem, match="must be on a file system that all nodes share"):
            launcher._wait_for(round_, patience_s=0.05)
