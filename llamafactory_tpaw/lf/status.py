# SPDX-License-Identifier: Apache-2.0
"""What became of each seam, and the message for stage `tpaw` where one is missing."""

import importlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from .. import _hook
from ..errors import ConfigError


# The LlamaFactory versions that the tests were run with; setup.py reads this and `TORCH` from here.
SUPPORTED = ">=0.9.5,<0.9.7.dev0"
# LlamaFactory imports torchaudio, whose last release (2.11) refuses a torch built for another CUDA than 13.0.
TORCH = ">=2.6,<2.15"  # with less transformers continues no training
PACKAGE = "llamafactory"


@dataclass
class SeamStatus:
    """One place where LlamaFactory is extended, and what became of it."""

    name: str  # as `llamafactory-tpaw doctor` shows it
    target: str  # full name of what is extended
    purpose: str
    required: bool  # by the stage itself; the others are LlamaBoard's
    state: Literal["waiting", "applied", "missing"] = "waiting"  # until LlamaFactory imports the module
    reason: str | None = None  # what is wrong, where it is missing

    @property
    def module(self) -> str:
        """Name of the module that holds the target."""
        return self.target.rpartition(".")[0]

    def miss(self, reason: str) -> None:
        """Record that the seam is missing; nothing is said yet, since other stages are not concerned."""
        self.state, self.reason = "missing", reason

    def __str__(self) -> str:
        return f"seam `{self.name}`, `{self.target}` ({self.purpose}): {self.reason}"


# The one install record; `hook.seams.callbacks` fills it when LlamaFactory is imported.
RECORD: dict[str, SeamStatus] = {}


def installed_version() -> str:
    """Return the version of the LlamaFactory that is imported, whatever distribution it is from; or `0+unknown`."""
    try:
        return str(importlib.import_module(f"{PACKAGE}.extras.env").VERSION)
    except (ImportError, AttributeError):
        return "0+unknown"


def installed_commit() -> str | None:
    """Return the commit of a LlamaFactory that is a checkout, `-dirty` if changed, or was installed from git."""
    place = Path(importlib.import_module(PACKAGE).__file__).resolve().parents[1]
    root = place.parent  # a checkout has the package in `src`
    if (root / ".git").exists() and shutil.which("git"):
        command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
        command += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    for found in metadata.distributions(name=PACKAGE, path=[str(place)]):
        return json.loads(found.read_text("direct_url.json") or "{}").get("vcs_info", {}).get("commit_id")
    return None


def lacks(what: str) -> str:
    """Return the message where LlamaFactory is not as expected."""
    return (
        f"Stage `tpaw` needs LlamaFactory {SUPPORTED}, but {installed_version()} is installed and lacks {what}. Run "
        f'`pip install "{PACKAGE}{SUPPORTED}"`, or install a newer llamafactory-tpaw; other stages are not affected.'
    )


def missing_message() -> str | None:
    """Return the message for stage `tpaw` if a seam it needs is missing, else None."""
    missing = [str(seam) for seam in RECORD.values() if seam.required and seam.state == "missing"]
    return lacks(f"what the stage builds on: {'; '.join(missing)}") if missing else None


def require_seams() -> None:
    """Make sure that every seam of stage `tpaw` is in place, importing the modules that were not imported yet."""
    importlib.import_module(PACKAGE)  # fills the record
    if reason := _hook.inactive_reason():
        raise ConfigError(f"Stage `tpaw` is not available: {reason}")
    for seam in list(RECORD.values()):
        if seam.state == "waiting" and seam.required:
            importlib.import_module(seam.module)
    if message := missing_message():
        raise ConfigError(message)
