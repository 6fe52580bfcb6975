# SPDX-License-Identifier: Apache-2.0
"""What became of each seam, and the message for stage `tpaw` where one is missing."""

import importlib
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from .. import _hook
from ..errors import ConfigError


# The LlamaFactory versions that the tests were run with; setup.py reads this and `TORCH` from here.
SUPPORTED = ">=0.9.5,<0.9.6"
# LlamaFactory imports torchaudio, whose last release (2.11) refuses a torch built for another CUDA than 13.0.
TORCH = "<2.15"
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
    """Return the version of the LlamaFactory that is imported, else of the one that is installed."""
    imported = getattr(sys.modules.get(f"{PACKAGE}.extras.env"), "VERSION", None)
    return imported or next((found.version for found in metadata.distributions(name=PACKAGE)), "0+unknown")


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
