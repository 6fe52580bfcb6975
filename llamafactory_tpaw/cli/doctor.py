# SPDX-License-Identifier: Apache-2.0
"""`doctor`: what is installed, what holds, what is wrong, and the command that mends it."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import EnvironmentProblem
from .command import Command
from .step_line import clear_step, show_step


GIB = 1024**3
BOLD, RED, YELLOW = "1", "31", "33"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--vllm",
        metavar="COMMAND",
        help="the `tpaw_vllm_command` to try; without it, the `vllm` of this environment",
    )


def _run(arguments: argparse.Namespace) -> int:
    from ..doctor.report import make_report

    report = make_report(lambda step: show_step(step.removeprefix("import ")), arguments.vllm)
    clear_step()
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(_text(report)))
    return 0 if report["ok"] else EnvironmentProblem.exit_code


def _paint(text: str, *codes: str) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\x1b[{';'.join(codes)}m{text}\x1b[0m"


def _text(report: dict[str, Any]) -> Iterator[str]:
    machine = report["machine"]
    yield f"llamafactory-tpaw {report['version']}, Python {machine['python']}, {machine['system']}"
    yield f"interpreter: {machine['interpreter']}"
    sections = {
        "Packages": _packages([package for package in report["packages"] if package["use"] != "optional"]),
        "Optional packages": _packages([package for package in report["packages"] if package["use"] == "optional"]),
        "Hook": _hook(report["hook"]),
        f"Seams in LlamaFactory {report['llamafactory']['version'] or ''}".rstrip(): _seams(report["llamafactory"]),
        "Devices": _devices(report["torch"], machine["nvidia"]),
        "vLLM": _vllm(report["vllm"]),
        "Machine": _machine(machine),
        "Findings": _findings(report["findings"]),
    }
    for heading, lines in sections.items():
        yield ""
        yield _paint(heading, BOLD)
        yield from (f"  {line}" for line in lines)


def _packages(packages: list[dict[str, Any]]) -> Iterator[str]:
    for package in packages:
        if package["version"] is None:
            state = f"not installed; extra `{package['extra']}`" if package["extra"] else "not installed"
        elif package["error"]:
            state = "broken"
        elif not package["within"]:
            state = "version not tested"
        elif package["conflicts"]:
            state = "conflicts"
        else:
            state = "imported" if package["module"] else "installed"
        row = f"{package['name']:<16}{package['version'] or '-':<16}{state:<34}{package['allowed']}"
        yield row.rstrip()


def _hook(hook: dict[str, Any]) -> Iterator[str]:
    if hook["switched_off"]:
        yield "switched off by LLAMAFACTORY_TPAW=0"
    elif hook["active"]:
        yield "registered at the interpreter's start" + (", by PYTHONPATH" if hook["by_pythonpath"] else "")
    else:
        yield "not registered at the interpreter's start"
    yield from hook["files"]


def _seams(llamafactory: dict[str, Any]) -> Iterator[str]:
    if llamafactory["error"]:
        yield f"not looked at: {llamafactory['error']}"
    for seam in llamafactory["seams"]:
        yield f"{seam['name']:<14}{seam['state']:<9}{seam['target']}: {seam['purpose']}"


def _devices(torch: dict[str, Any] | None, nvidia: dict[str, Any] | None) -> Iterator[str]:
    if nvidia:
        yield f"NVIDIA driver {nvidia['driver']}: {len(nvidia['devices'])} x {nvidia['devices'][0]}"
    if not torch:
        yield "torch cannot be asked"
        return
    built = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['rocm']}" if torch["rocm"] else "the CPU alone"
    yield f"torch is built for {built}"
    for index, device in enumerate(torch["devices"]):
        free = "" if device["free"] is None else f", {_gib(device['free'])} free"
        yield f"{index}: {device['name']}, {_gib(device['total'])}{free}, capability {device['capability']}"
    if not torch["devices"]:
        yield f"torch uses {torch['accelerator']}" if torch["accelerator"] else "torch sees no device but the CPU"


def _vllm(vllm: dict[str, Any]) -> Iterator[str]:
    if vllm["program"]:
        whose = "named by the command line" if vllm["command"] else "found by its name"
        yield f"{vllm['program']}: {vllm['version'] or 'broken'}, {whose}"
    elif vllm["command"]:
        yield f"{vllm['command']}: not there"
    else:
        yield "not installed; `tpaw_vllm_command` may name one in another environment"


def _machine(machine: dict[str, Any]) -> Iterator[str]:
    yield f"processors: {machine['cpus']}, of which {machine['usable_cpus']} may be used"
    if machine["memory"]:
        memory = machine["memory"]
        yield f"memory: {_gib(memory['total'])}, {_gib(memory['available'])} available"
    if machine["shared_memory"]:
        shared = machine["shared_memory"]
        yield f"shared memory: {_gib(shared['total'])}, {_gib(shared['free'])} free"
    disk = machine["disk"]
    yield f"working folder: {machine['folder']}, {_gib(disk['free'])} free of {_gib(disk['total'])}"
    if machine["variables"]:
        yield "variables: " + " ".join(f"{name}={value}" for name, value in machine["variables"].items())


def _findings(findings: list[dict[str, str]]) -> Iterator[str]:
    for finding in findings:
        level = _paint(finding["level"], RED if finding["level"] == "problem" else YELLOW)
        yield f"{level}: {finding['text']}"
        yield f"  mend: {finding['fix']}"
    if not any(finding["level"] == "problem" for finding in findings):
        yield "All that stage `tpaw` needs is there."


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


DOCTOR = Command(
    summary="versions, hook, seams, devices: what is wrong and the command that mends it",
    description="Look at everything that stage `tpaw` needs and print a report that can be pasted into an issue: it "
    "holds no user name, token or password. Each package is imported in a process apart, so that a broken one does "
    "not hide the others; this takes up to a minute. Exit code 5 if something that is needed is missing.",
    example="llamafactory-tpaw doctor\nllamafactory-tpaw doctor --json > doctor.json\n"
    "llamafactory-tpaw doctor --vllm vllm-env/bin/vllm",
    add_arguments=_add_arguments,
    run=_run,
)
