# SPDX-License-Identifier: Apache-2.0
"""What `llamafactory-tpaw doctor` finds: hook, seams, versions, vLLM, and the command that mends what is wrong."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from . import __version__, _hook
from .errors import TpawError
from .hook import start
from .hook.seams import seam_status
from .lf.status import PACKAGE as LLAMAFACTORY
from .lf.status import SUPPORTED, installed_version


OURS = "llamafactory-tpaw"
CHECKOUT = Path(__file__).resolve().parents[1]
LLAMAFACTORY_ENV = [sys.executable, "-m", "llamafactory.cli", "env"]


class Finding(NamedTuple):
    """A `problem` keeps stage `tpaw` from running; a `warning` concerns some runs."""

    level: str
    text: str
    fix: str


def examine(vllm_command: str | None = None) -> dict[str, Any]:
    """Find out what is installed, `vllm_command` (`tpaw_vllm_command`) too, and what became of the hook."""
    hook = _hook.active_finder() is not None  # before LlamaFactory is imported
    seams = _seams()
    versions, findings = _packages()
    findings += _hook_findings(hook)
    for seam in (each for each in seams if each["state"] == "missing"):
        text = f"Seam `{seam['name']}`, `{seam['target']}` ({seam['purpose']}), is missing: {seam['reason']}."
        level = "problem" if seam["required"] else "warning"
        findings.append(Finding(level, text, f'pip install "{LLAMAFACTORY}{SUPPORTED}"'))
    vllm = None
    try:
        from .generation.vllm import find_program

        vllm = shlex.join(find_program(vllm_command))
    except (TpawError, ImportError) as error:
        if vllm_command:
            findings.append(Finding("warning", str(error), "pip install vllm, and name it with `--vllm`"))
    environment = subprocess.run(LLAMAFACTORY_ENV, capture_output=True, text=True, errors="replace", check=False)
    if environment.returncode:
        last = environment.stderr.strip().rpartition("\n")[2]
        text = f"`llamafactory-cli env` ends with exit code {environment.returncode}: {last}"
        findings.append(Finding("problem", text, f'pip install --force-reinstall "{LLAMAFACTORY}{SUPPORTED}"'))
    return {
        "ok": not any(finding.level == "problem" for finding in findings),
        "version": __version__,
        "python": f"{platform.python_version()}, {platform.platform()}",
        "interpreter": sys.executable,
        "findings": [finding._asdict() for finding in findings],
        "hook": hook,
        "seams": seams,
        "packages": versions,
        "vllm": vllm,
        "environment": environment.stdout.strip().splitlines(),
    }


def text_of(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a report."""
    yield f"{OURS} {report['version']}, Python {report['python']}: {report['interpreter']}"
    yield f"hook: {'' if report['hook'] else 'not '}registered at the interpreter's start"
    yield f"vLLM: {report['vllm'] or 'not found'}"
    yield f"packages: {', '.join(f'{name} {version}' for name, version in sorted(report['packages'].items()))}"
    yield "seams in LlamaFactory:"
    for seam in report["seams"]:
        yield f"  {seam['name']:<15} {seam['state']:<8} {seam['target']}: {seam['purpose']}"
    yield "llamafactory-cli env:"
    yield from (f"  {line}" for line in report["environment"] if line)
    for finding in report["findings"]:
        yield f"{finding['level']}: {finding['text']}\n  mend: {finding['fix']}"
    if report["ok"]:
        yield "All that stage `tpaw` needs is there."


def _hook_findings(active: bool) -> Iterator[Finding]:
    if os.environ.get(_hook.SWITCH) == "0":
        yield Finding("problem", f"{_hook.SWITCH}=0 switches stage `tpaw` off.", f"unset {_hook.SWITCH}")
    elif not active:
        text = "`llamafactory-cli train` does not know stage `tpaw`, since llamafactory_tpaw.pth was not processed at "
        text += "the interpreter's start; `llamafactory-tpaw train` does."
        yield Finding("warning", text, _reinstall())
    elif reason := _hook.inactive_reason():
        yield Finding("problem", f"The hook does not work: {reason}", _reinstall())


def _seams() -> list[dict[str, Any]]:
    """Import what the seams extend, each by itself, and tell what became of them."""
    start.install()
    with contextlib.redirect_stdout(sys.stderr):  # packages print when they are imported
        for name in [LLAMAFACTORY, *dict.fromkeys(seam.module for seam in seam_status())]:
            try:
                importlib.import_module(name)
            except (Exception, SystemExit) as error:  # whatever a broken package raises is the finding
                for seam in seam_status():
                    if seam.state == "waiting" and seam.module == name:
                        seam.miss(f"`{name}` cannot be imported: {type(error).__name__}: {error}")
    return [vars(seam) for seam in seam_status()]


def _packages() -> tuple[dict[str, str], list[Finding]]:
    """Return the versions of what this package and its extras require, and what is wrong with them."""
    from packaging.requirements import Requirement

    versions, findings = {}, []
    for requirement in map(Requirement, metadata.requires(OURS) or []):
        extra = re.search(r"""extra == ["']([^"']+)""", str(requirement.marker or ""))
        if requirement.marker and not requirement.marker.evaluate({"extra": extra[1] if extra else ""}):
            continue
        name, fix = requirement.name, f'pip install "{requirement.name}{requirement.specifier}"'
        try:
            versions[name] = installed_version() if name == LLAMAFACTORY else metadata.version(name)
            if not requirement.specifier.contains(versions[name], prereleases=True):
                text = f"`{name}` {versions[name]} is installed, but {requirement.specifier} is required."
                findings.append(Finding("warning", text, fix))
        except metadata.PackageNotFoundError:
            if not extra:
                findings.append(Finding("problem", f"`{name}` is not installed.", fix))
    return versions, findings


def _reinstall() -> str:
    is_checkout = (CHECKOUT / "setup.py").is_file()
    return f"pip install {f'--editable {shlex.quote(str(CHECKOUT))}' if is_checkout else f'--force-reinstall {OURS}'}"
