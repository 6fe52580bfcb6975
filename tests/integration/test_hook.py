# SPDX-License-Identifier: Apache-2.0
"""The hook on real `llamafactory-cli train` runs: other stages unchanged, moved seams told, keys in the help."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_tpaw.lf.status import SUPPORTED, installed_version


pytestmark = pytest.mark.integration

CLI = [sys.executable, "-c", "import sys; from llamafactory.cli import main; sys.exit(main())"]
SWITCH = "LLAMAFACTORY_TPAW"
STEPS = 5


def start(command: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Start a command in `folder` with one thread, so that its sums are always taken in the same order."""
    environment = {key: value for key, value in os.environ.items() if key != SWITCH}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for a command that must succeed; return its stdout and stderr."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-4000:]
    return out, err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small SFT set and a small ranking set."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"instruction": f"What is {a} + {b}?", "output": f"{a + b}", "wrong": f"{a * b}, I think"}
        for a, b in zip(range(12), range(3, 15), strict=True)
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    columns = {"prompt": "instruction", "response": "output"}
    ranking = {"prompt": "instruction", "chosen": "output", "rejected": "wrong"}
    entries = {
        "answers": {"file_name": "rows.json", "columns": columns},
        "pairs": {"file_name": "rows.json", "ranking": True, "columns": ranking},
    }
    (folder / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def write_run(tiny_model: Path, data: Path) -> Callable[..., Path]:
    def write(folder: Path, stage: str, **keys: Any) -> Path:
        """Write `<stage>.yaml` into `folder`; its output goes to `folder/<stage>`."""
        settings = {
            "model_name_or_path": str(tiny_model),
            "stage": stage,
            "do_train": True,
            "finetuning_type": "full",
            "dataset": "answers" if stage == "sft" else "pairs",
            "dataset_dir": str(data),
            "template": "qwen",
            "cutoff_len": 128,
            "output_dir": stage,
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "learning_rate": 1.0e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": "none",
        } | keys
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{stage}.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path

    return write


def history(folder: Path) -> list[tuple[float, float]]:
    """Return loss and gradient norm of each step."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [(entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_other_stages_train_alike_with_and_without_the_hook(
    stage: str, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    runs = {}
    for name, variables in (("on", {}), ("off", {SWITCH: "0"})):
        run_file = write_run(tmp_path / name, stage)
        runs[name] = start([*CLI, "train", run_file.name], run_file.parent, **variables)
    for process in runs.values():
        finish(process)
    on, off = (history(tmp_path / name / stage) for name in runs)
    assert len(on) == STEPS
    assert on == off
    assert len(set(on)) == STEPS, "the steps must differ, or equality would show nothing"
    weights = [(tmp_path / name / stage / "model.safetensors").read_bytes() for name in runs]
    assert weights[0] == weights[1]


def test_help_lists_the_stage_and_the_keys(tmp_path: Path) -> None:
    out, _ = finish(start([*CLI, "train", "-h"], tmp_path, COLUMNS="200"))
    assert "--tpaw_eta" in out
    assert "--tpaw_players" in out
    assert "{pt,sft,rm,ppo,dpo,kto,tpaw}" in out


# -- LlamaFactory versions that moved a seam


def replace(package: Path, files: str, *pairs: tuple[str, str]) -> None:
    """Replace text in the files of a copy; each piece must occur."""
    for old, new in pairs:
        found = [path for path in package.glob(files) if old in path.read_text(encoding="utf-8")]
        assert found, f"no {files} has {old!r}"
        for path in found:
            path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def rename_training_function(package: Path) -> None:
    replace(package, "train/tuner.py", ("_training_function", "_train"))


def move_arguments(package: Path) -> None:
    (package / "hparams/finetuning_args.py").rename(package / "hparams/tuning_args.py")
    replace(package, "hparams/*.py", ("from .finetuning_args import", "from .tuning_args import"))


def move_everything(package: Path) -> None:
    move_arguments(package)
    (package / "train/tuner.py").rename(package / "train/engine.py")
    replace(package, "**/*.py", ("train.tuner import", "train.engine import"))
    replace(package, "*.py", ("def launch(", "def start("), ("launcher.launch()", "launcher.start()"))
    replace(package, "extras/constants.py", ("TRAINING_STAGES", "STAGES"))
    replace(package, "webui/*.py", ("TRAINING_STAGES", "STAGES"))
    replace(package, "webui/components/*.py", ("TRAINING_STAGES", "STAGES"))


SCRIPT = textwrap.dedent("""
    import sys, traceback
    from llamafactory.cli import main

    for stage in ("tpaw", "sft"):
        sys.argv = ["llamafactory-cli", "train", f"{stage}.yaml"]
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code
        except Exception:
            code = "died"
            sys.excepthook(*sys.exc_info())
        print("CODE", stage, code)
    print("STAGES", getattr(sys.modules["llamafactory.extras.constants"], "TRAINING_STAGES", None))
""")


@pytest.mark.parametrize(
    ("doctor", "code", "named"),
    [
        (rename_training_function, "2", ["seam `dispatch`", "no function `_training_function`"]),
        (move_arguments, "2", ["seam `arguments`", "no module `llamafactory.hparams.finetuning_args`"]),
        (move_everything, "died", ["seam `arguments`", "seam `dispatch`", "seam `launch`"]),
    ],
)
def test_moved_seams(
    doctor: Callable[[Path], None], code: str, named: list[str], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    """Other stages train; stage `tpaw` says what is missing."""
    original = Path(importlib.util.find_spec("llamafactory").origin).parent
    package = tmp_path / "moved" / "llamafactory"
    shutil.copytree(original, package, ignore=shutil.ignore_patterns("__pycache__"))
    replace(package, "extras/env.py", ('VERSION = "0.9', 'VERSION = "0.10'))
    doctor(package)
    write_run(tmp_path, "sft", max_steps=1)
    write_run(tmp_path, "tpaw", tpaw_eta=6.0)
    path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
    out, err = finish(start([sys.executable, "-c", SCRIPT], tmp_path, PYTHONPATH=path))
    assert f"CODE tpaw {code}" in out
    assert "CODE sft 0" in out
    assert len(history(tmp_path / "sft")) == 1
    (message,) = [line for line in err.splitlines() if line.startswith("llamafactory-tpaw: error: ")]
    version = f"0.10{installed_version().removeprefix('0.9')}"
    for part in [*named, SUPPORTED, f"{version} is installed", "other stages are not affected"]:
        assert part in message
    assert "TPAW" not in out.split("STAGES", 1)[1].splitlines()[0]
