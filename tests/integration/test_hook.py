# SPDX-License-Identifier: Apache-2.0
"""The hook on real commands: other stages train unchanged, and moved seams are told."""

from __future__ import annotations

import importlib.util
import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest

from llamafactory_tpaw.lf.status import SUPPORTED, installed_version
from tests.integration.pairs import add_pairs, make_pairs
from tests.processes import Started
from tests.runs import COMMON, Project


pytestmark = pytest.mark.integration
STEPS = 5


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    project = Project(tmp_path, tiny_model)
    add_pairs(project, "pairs", make_pairs(12))
    return project


def write_run(project: Project, stage: str, name: str, **keys: Any) -> str:
    """Write the run file `name` of a stage, whose output goes to a folder of that name."""
    settings = {"stage": stage, "do_train": True, "finetuning_type": "full", "model_name_or_path": str(project.model)}
    settings |= {"dataset": "additions" if stage == "sft" else "pairs", "output_dir": f"saves/{name}"}
    return project.write(f"{name}.yaml", COMMON | settings | {"max_steps": STEPS} | keys)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_other_stages_train_alike_with_and_without_the_hook(project: Project, stage: str) -> None:
    commands = {
        name: Started(project, "llamafactory-cli", "train", write_run(project, stage, name), LLAMAFACTORY_TPAW=switch)
        for name, switch in (("on", "1"), ("off", "0"))
    }
    for command in commands.values():
        assert command.wait() == 0, command.output
    on, off = map(project.history, commands)
    assert on == off
    assert len({entry["loss"] for entry in on}) == STEPS, "the steps must differ, or equality would show nothing"
    weights = [(project.root / "saves" / name / "model.safetensors").read_bytes() for name in commands]
    assert weights[0] == weights[1]


# -- LlamaFactory versions that moved a seam


def replace(package: Path, files: str, *pairs: tuple[str, str]) -> None:
    """Replace text in the files of a copy; each piece must occur."""
    for old, new in pairs:
        found = [path for path in package.glob(files) if old in path.read_text(encoding="utf-8")]
        assert found, f"no {files} has {old!r}"
        for path in found:
            path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


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


def test_moved_seams(project: Project) -> None:
    """Other stages train; stage `tpaw` says what is missing."""
    original = Path(importlib.util.find_spec("llamafactory").origin).parent
    package = project.root / "moved" / "llamafactory"
    shutil.copytree(original, package, ignore=shutil.ignore_patterns("__pycache__"))
    replace(package, "extras/env.py", ('VERSION = "0.9', 'VERSION = "0.10'))
    (package / "hparams/finetuning_args.py").rename(package / "hparams/tuning_args.py")
    replace(package, "hparams/*.py", ("from .finetuning_args import", "from .tuning_args import"))
    (package / "train/tuner.py").rename(package / "train/engine.py")
    replace(package, "**/*.py", ("train.tuner import", "train.engine import"))
    replace(package, "*.py", ("def launch(", "def start("), ("launcher.launch()", "launcher.start()"))
    for files in ("extras/constants.py", "webui/*.py", "webui/components/*.py"):
        replace(package, files, ("TRAINING_STAGES", "STAGES"))
    write_run(project, "sft", "sft", max_steps=1)
    write_run(project, "tpaw", "tpaw", tpaw_eta=6.0)
    path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
    result = project.command("python", "-c", SCRIPT, PYTHONPATH=path, PYTHONUNBUFFERED="1")
    assert (result.code, len(project.history("sft"))) == (0, 1), result.output
    lines = result.output.splitlines()
    assert {"CODE tpaw died", "CODE sft 0"} <= set(lines)
    (message,) = [line for line in lines if line.startswith("llamafactory-tpaw: error: ")]
    version = f"0.10{installed_version().removeprefix('0.9')}"
    named = ["seam `arguments`", "seam `dispatch`", "seam `launch`"]
    for part in [*named, SUPPORTED, f"{version} is installed", "other stages are not affected"]:
        assert part in message
    assert "TPAW" not in next(line for line in lines if line.startswith("STAGES"))
