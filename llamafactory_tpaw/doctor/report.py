# SPDX-License-Identifier: Apache-2.0
"""The whole report, as a dict that JSON can hold and that may be shown to anybody."""

import dataclasses
import site
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import __version__
from ..doctor import probe
from ..lf.status import PACKAGE as LLAMAFACTORY
from .engines import vllm_program
from .examine import Answer, examine
from .findings import find_all
from .machine import machine
from .packages import Package, installed_packages, is_within
from .privacy import cleaned


STARTUP_FILE = "llamafactory_tpaw.pth"


def make_report(show: Callable[[str], None], vllm_command: str | None = None) -> dict[str, Any]:
    r"""Find everything out.

    Args:
        show: Is called with the name of each step that takes time.
        vllm_command: `tpaw_vllm_command`, where another vLLM than this environment's is used.

    Returns:
        `ok` (whether all that stage `tpaw` needs is there), `version`, `findings`, `packages`, `hook`,
        `llamafactory`, `torch`, `vllm`, `machine`. Sizes are bytes.
    """
    packages = installed_packages()
    answers = examine(_steps(packages), show)
    for package in packages:
        _add_import(package, answers)
    show("vllm --version")
    facts = {
        "hook": _hook(answers[probe.HOOK]),
        "llamafactory": _llamafactory(packages, answers),
        "torch": answers[probe.DEVICES].found,
        "vllm": vllm_program(vllm_command),
        "machine": machine(Path.cwd()),
    }
    findings = find_all(packages, facts)
    return cleaned(
        {
            "ok": not any(finding.level == "problem" for finding in findings),
            "version": __version__,
            "findings": [finding._asdict() for finding in findings],
            "packages": [dataclasses.asdict(package) for package in packages],
            **facts,
        }
    )


def _steps(packages: list[Package]) -> list[str]:
    """Torch and its devices first, LlamaFactory before what it does not need."""
    imports = {
        use: [probe.IMPORT + package.module for package in packages if package.use == use and _is_tried(package)]
        for use in ("needed", "board", "optional")
    }
    torch, *needed = imports["needed"]
    judged = [probe.SEAMS, probe.DEPENDENCIES]
    return [probe.HOOK, torch, probe.DEVICES, *needed, *judged, *imports["board"], *imports["optional"]]


def _is_tried(package: Package) -> bool:
    """What is needed may lie on the path without pip's knowing."""
    return package.module is not None and (package.version is not None or package.use == "needed")


def _add_import(package: Package, answers: dict[str, Answer]) -> None:
    answer = answers.get(f"{probe.IMPORT}{package.module}")
    if answer is None:
        return
    if package.version is not None:
        package.error = answer.error
    elif answer.error is None:
        package.version = "unknown"


def _hook(answer: Answer) -> dict[str, Any]:
    unknown = {"active": False, "switched_off": False, "by_pythonpath": False}
    folders = dict.fromkeys([*site.getsitepackages(), site.getusersitepackages()])
    files = [str(path) for path in (Path(folder) / STARTUP_FILE for folder in folders) if path.is_file()]
    return (answer.found or unknown) | {"files": files, "error": answer.error}


def _llamafactory(packages: list[Package], answers: dict[str, Answer]) -> dict[str, Any]:
    """What became of the seams. The version of what is imported counts, not that of what pip installed."""
    package = next(package for package in packages if package.name == LLAMAFACTORY)
    seams, dependencies = answers[probe.SEAMS], answers[probe.DEPENDENCIES]
    found = seams.found or {"version": package.version, "folder": None, "reason": None, "seams": []}
    if seams.found:
        package.version = found["version"]
        package.within = is_within(found["version"], package.allowed)
    return found | {"error": seams.error, "refusal": dependencies.found}
