# SPDX-License-Identifier: Apache-2.0
"""The packages that matter: installed versions, the versions that are allowed, and how to install them."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..lf.status import PACKAGE as LLAMAFACTORY
from ..lf.status import SUPPORTED, TORCH


try:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version
except ImportError:  # then nothing is required of anything here, and the report says that `packaging` is missing
    Requirement = None


OURS = "llamafactory-tpaw"
# Where this package lies; a checkout where there is a setup.py.
CHECKOUT = Path(__file__).resolve().parents[2]
# Distribution -> the module whose import shows that it works; None where its version says enough.
NEEDED: dict[str, str | None] = {
    LLAMAFACTORY: None,  # its modules are the seams'
    "torch": "torch",
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "transformers": "transformers",
    "datasets": "datasets",
    "accelerate": "accelerate",
    "peft": "peft",
    "trl": "trl",
    "tokenizers": None,
    "safetensors": None,
    "numpy": None,
    "omegaconf": None,
    "packaging": None,
    "filelock": None,
    "matplotlib": None,
}
COMMANDS: dict[str, str | None] = {"rich": None, "psutil": None, "shtab": None}
BOARD: dict[str, str | None] = {"gradio": "gradio"}
OPTIONAL: dict[str, str | None] = {
    "deepspeed": "deepspeed",
    "openai": "openai",
    "vllm": "vllm",
    "flash-attn": "flash_attn",
    "bitsandbytes": "bitsandbytes",
    "liger-kernel": "liger_kernel",
    "ray": "ray",
    "lm-eval": "lm_eval",
}
USES = {"needed": NEEDED, "commands": COMMANDS, "board": BOARD, "optional": OPTIONAL}
# These have to be of one release.
TORCH_FAMILY = ("torch", "torchvision", "torchaudio")


@dataclass
class Package:
    """A distribution.

    Attributes:
        name: The name that pip knows.
        version: The installed version; None where it is not installed.
        allowed: The versions that llamafactory-tpaw and LlamaFactory allow, as pip writes them; empty for any.
        use: `needed` for training, `commands` for some of our commands, `board` for LlamaBoard, `optional` for what
            a run file may ask for.
        module: What is imported to see whether it works.
        extra: The extra of llamafactory-tpaw that installs it.
        within: Whether the version is allowed.
        conflicts: What it requires itself, and what is there instead.
        error: What its import ended with; None where it succeeded or was not tried.
    """

    name: str
    version: str | None
    allowed: str
    use: str
    module: str | None = None
    extra: str | None = None
    within: bool = True
    conflicts: list[str] = field(default_factory=list)
    error: str | None = None


def installed_packages() -> list[Package]:
    """Return the packages that matter, installed or not, in the order of a report."""
    bounds, extras = _bounds(), _extras()
    return [
        _package(name, module, use, bounds, extras)
        for use, modules in USES.items()
        for name, module in modules.items()
    ]


def version_of(name: str) -> str | None:
    """Return a distribution's installed version, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def install_command(package: Package) -> str:
    """Return the command that installs an allowed version, or a working one in place of one that is broken."""
    again = "--force-reinstall " if package.error else ""
    if package.name in TORCH_FAMILY and package.error:
        return f'pip install {again}"torch{TORCH}" torchvision torchaudio'
    if package.extra:
        return f"pip install {again}{_own_source()}'[{package.extra}]'"
    return f'pip install {again}"{package.name}{package.allowed}"'


def reinstall_command() -> str:
    """Return the command that installs llamafactory-tpaw again from where it came."""
    return f"pip install --force-reinstall --no-deps {_own_source()}"


def _package(
    name: str, module: str | None, use: str, bounds: dict[str, list[str]], extras: dict[str, tuple[str, str]]
) -> Package:
    extra, wanted = extras.get(name, (None, ""))
    version = version_of(name)
    allowed = _merged([*bounds.get(name, []), wanted])
    package = Package(name, version, allowed, use, module, extra)
    if version is not None:
        package.within = is_within(version, allowed)
        package.conflicts = [] if name == LLAMAFACTORY else list(_conflicts(name))
    return package


def _bounds() -> dict[str, list[str]]:
    """Return what llamafactory-tpaw and the installed LlamaFactory require: name -> specifiers."""
    bounds = {LLAMAFACTORY: [SUPPORTED], "torch": [TORCH]}
    for requirement in [*_requirements(OURS), *_requirements(LLAMAFACTORY)]:
        bounds.setdefault(_normal(requirement.name), []).append(str(requirement.specifier))
    return bounds


def _extras() -> dict[str, tuple[str, str]]:
    """Return what the extras of llamafactory-tpaw install: name -> (extra, specifier)."""
    found = {}
    for requirement in _requires(OURS):
        extra = re.search(r"""extra == ["']([^"']+)["']""", str(requirement.marker or ""))
        name = _normal(requirement.name)
        if extra and (name not in found or extra[1] == name):  # several may have it: the one that is named like it
            found[name] = (extra[1], str(requirement.specifier))
    return found


def _requirements(name: str) -> Iterator:
    """Yield what a distribution requires here, its extras left out."""
    for requirement in _requires(name):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _requires(name: str) -> list:
    try:
        return [Requirement(line) for line in metadata.requires(name) or []] if Requirement else []
    except metadata.PackageNotFoundError:
        return []


def _conflicts(name: str) -> Iterator[str]:
    for requirement in _requirements(name):
        version = version_of(requirement.name)
        if version is None:
            yield f"{requirement.name}{requirement.specifier}, which is not installed"
        elif not is_within(version, str(requirement.specifier)):
            yield f"{requirement.name}{requirement.specifier}, but {version} is installed"


def is_within(version: str, allowed: str) -> bool:
    """Tell whether a version is one of those that pip's notation allows."""
    if Requirement is None:
        return True
    try:
        return SpecifierSet(allowed).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _merged(specifiers: list[str]) -> str:
    """Join specifiers, each clause once: lower bounds, upper bounds, then versions that are left out."""
    clauses = dict.fromkeys(clause.strip() for text in specifiers for clause in text.split(",") if clause.strip())
    order = {">": 0, "=": 0, "~": 0, "<": 1, "!": 2}
    return ",".join(sorted(clauses, key=lambda clause: order.get(clause[0], 3)))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _own_source() -> str:
    """Return what to give to pip for llamafactory-tpaw: the folder that it was installed from, or its name."""
    # More than one is found where the working folder is a checkout; pip's own has the record.
    texts = filter(None, (found.read_text("direct_url.json") for found in metadata.distributions(name=OURS)))
    record = json.loads(next(texts, "{}"))
    url = urlsplit(record.get("url", ""))
    if url.scheme == "file":
        return ("--editable " if record.get("dir_info", {}).get("editable") else "") + shlex.quote(unquote(url.path))
    return f"--editable {shlex.quote(str(CHECKOUT))}" if (CHECKOUT / "setup.py").is_file() else OURS
