# SPDX-License-Identifier: Apache-2.0
"""What is wrong, and the command that mends it."""

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from ..lf.status import PACKAGE as LLAMAFACTORY
from ..lf.status import SUPPORTED, TORCH
from .packages import Package, install_command, reinstall_command


GIB = 1024**3
LOW_DISK = GIB
LOW_SHARED_MEMORY = GIB
# Whom it concerns.
USES = {
    "needed": "",
    "commands": " Some commands of llamafactory-tpaw need it.",
    "board": " LlamaBoard needs it.",
    "optional": " Only runs that ask for it are concerned.",
}
REFUSED_VARIABLES = ("USE_V1", "USE_MCA")


class Finding(NamedTuple):
    """A `problem` keeps stage `tpaw` from running; a `warning` may matter to some runs."""

    level: Literal["problem", "warning"]
    text: str
    fix: str


def find_all(packages: list[Package], facts: dict[str, Any]) -> list[Finding]:
    r"""Judge what was found out.

    Args:
        packages: With the errors of their imports.
        facts: Of `report.make_report`: `hook`, `llamafactory`, `torch`, `vllm`, `machine`.

    Returns:
        Problems first.
    """
    found = [
        *_of_packages(packages),
        *_of_hook(facts["hook"]),
        *_of_seams(packages, facts["llamafactory"]),
        *_of_devices(facts["torch"], facts["machine"]),
        *_of_vllm(facts["vllm"]),
        *_of_machine(facts["machine"]),
    ]
    return sorted(found, key=lambda finding: finding.level != "problem")


def _of_packages(packages: list[Package]) -> Iterator[Finding]:
    lacks_llamafactory = any(package.name == LLAMAFACTORY and package.version is None for package in packages)
    for package in packages:
        if lacks_llamafactory and package.version is None and package.name != LLAMAFACTORY:
            continue  # pip installs them with it, in versions that it allows
        level = "problem" if package.use == "needed" else "warning"
        use, fix = USES[package.use], install_command(package)
        if package.version is None:
            if package.use != "optional":
                yield Finding(level, f"`{package.name}` is not installed.{use}", fix)
            continue
        name = f"`{package.name}` {package.version}"
        if package.error:
            yield Finding(level, f"{name} cannot be imported: {package.error}.{use}", fix)
        if not package.within:
            yield Finding("warning", f"{name} is installed, but {package.allowed} was tested.", fix)
        for conflict in package.conflicts:
            yield Finding("warning", f"{name} requires {conflict}.", fix)


def _of_hook(hook: dict[str, Any]) -> Iterator[Finding]:
    if hook["error"]:
        yield Finding("problem", f"The hook cannot be looked at: {hook['error']}.", reinstall_command())
    elif hook["switched_off"]:
        yield Finding("problem", "LLAMAFACTORY_TPAW=0 switches stage `tpaw` off.", "unset LLAMAFACTORY_TPAW")
    elif not hook["active"]:
        there = f"{hook['files'][0]} is not processed" if hook["files"] else "there is no llamafactory_tpaw.pth"
        yield Finding(
            "warning",
            f"`llamafactory-cli train` does not know stage `tpaw`, because {there} in the interpreter's "
            "site-packages; `llamafactory-tpaw train` does.",
            reinstall_command(),
        )


def _of_seams(packages: list[Package], llamafactory: dict[str, Any]) -> Iterator[Finding]:
    # Where a package is broken that LlamaFactory imports, nothing of LlamaFactory itself has to be replaced.
    broken = [package for package in packages if package.use == "needed" and (package.error or not package.version)]
    fix = install_command(broken[0]) if broken else f'pip install --force-reinstall "{LLAMAFACTORY}{SUPPORTED}"'
    if llamafactory["error"] and llamafactory["version"]:
        yield Finding("problem", f"LlamaFactory cannot be imported: {llamafactory['error']}.", fix)
    if llamafactory["reason"]:
        yield Finding("problem", llamafactory["reason"], reinstall_command())
    for seam in llamafactory["seams"]:
        if seam["state"] == "missing":
            level = "problem" if seam["required"] else "warning"
            text = f"Seam `{seam['name']}`, `{seam['target']}` ({seam['purpose']}), is missing: {seam['reason']}."
            moved = "cannot be imported" not in seam["reason"]
            yield Finding(level, text, f'pip install "{LLAMAFACTORY}{SUPPORTED}"' if moved else fix)
    if llamafactory["refusal"]:
        wanted = re.search(r"pip install ([^\s`]+)`", llamafactory["refusal"])
        fix = f'pip install "{wanted[1]}"' if wanted else f'pip install "{LLAMAFACTORY}{SUPPORTED}"'
        yield Finding("problem", f"LlamaFactory refuses to start: {llamafactory['refusal']}", fix)


def _of_devices(torch: dict[str, Any], machine: dict[str, Any]) -> Iterator[Finding]:
    nvidia = machine["nvidia"]
    hidden = machine["variables"].get("CUDA_VISIBLE_DEVICES", "unset") in ("", "-1")
    if not torch or not nvidia or hidden or torch["devices"]:
        return
    count = f"{len(nvidia['devices'])} x {nvidia['devices'][0]}"
    if torch["cuda"] is None:
        yield Finding(
            "warning",
            f"The machine has {count}, but the installed torch was built without CUDA.",
            f'pip install --force-reinstall "torch{TORCH}" torchvision torchaudio',
        )
    else:
        yield Finding(
            "warning",
            f"The machine has {count}, but torch, built for CUDA {torch['cuda']}, cannot use it with driver "
            f"{nvidia['driver']}: {torch['error'] or 'it does not say why'}.",
            "nvidia-smi shows up to which CUDA the driver goes: update the driver, or install the torch for that CUDA "
            "as https://pytorch.org/get-started/locally says",
        )


def _of_vllm(vllm: dict[str, Any]) -> Iterator[Finding]:
    if vllm["error"]:
        name = vllm["program"] or vllm["command"]
        yield Finding(
            "warning",
            f"`{name}` does not start as vLLM: {vllm['error']}{'' if vllm['error'].endswith('.') else '.'} Only runs "
            "with `tpaw_engine: vllm` are concerned.",
            "python -m venv vllm-env && vllm-env/bin/pip install vllm, then `tpaw_vllm_command: vllm-env/bin/vllm`",
        )


def _of_machine(machine: dict[str, Any]) -> Iterator[Finding]:
    for name in REFUSED_VARIABLES:
        if machine["variables"].get(name, "0").lower() in ("true", "y", "1"):
            yield Finding("problem", f"{name} is set; stage `tpaw` refuses to run with it.", f"unset {name}")
    if not machine["folder_writable"]:
        folder = machine["folder"]
        yield Finding("problem", f"Nothing can be written in the working folder {folder}.", f"chmod u+w {folder}")
    if machine["disk"]["free"] < LOW_DISK:
        free = machine["disk"]["free"] / GIB
        yield Finding(
            "warning",
            f"Only {free:.2f} GiB are free where {machine['folder']} is; a checkpoint may not fit.",
            "du -sh saves/* data/tpaw | sort -h, then remove what is not needed",
        )
    shared = machine["shared_memory"]
    if shared and shared["total"] < LOW_SHARED_MEMORY:
        size = f"{shared['total'] / GIB:.2f} GiB"
        yield Finding(
            "warning",
            f"/dev/shm holds {size}; data loading in several processes and NCCL may need more.",
            "mount -o remount,size=16G /dev/shm, or start the container with --shm-size=16g",
        )
