# SPDX-License-Identifier: Apache-2.0
"""What became of each seam, and the message for stage `tpaw` where one is missing."""

import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

from .. import _hook
from ..errors import ConfigError


# The LlamaFactory versions that the tests were run with; setup.py reads this and `TORCH` from here.
SUPPORTED = ">=0.9.5,<0.9.6"
# LlamaFactory imports torchaudio, whose last release (2.11) refuses a torch built for another CUDA than 13.0.
TORCH = "<2.15"
PACKAGE = "llamafactory"


class SeamMissing(Exception):
    """A LlamaFactory name is not what the hook builds on. Says what is wrong with it."""


@dataclass
class SeamStatus:
    """One place where LlamaFactory is extended.

    Attributes:
        name: Short name, as `llamafactory-tpaw doctor` shows it.
        target: Full name of what is extended.
        purpose: What it is for, in a few words.
        required: Whether stage `tpaw` cannot run without it.
        board: Whether LlamaBoard alone needs it, so that nothing else imports its module.
        state: `waiting` until LlamaFactory imports the module.
        reason: What is wrong, where the state is `missing`.
    """

    name: str
    target: str
    purpose: str
    required: bool
    board: bool = False
    state: Literal["waiting", "applied", "missing"] = "waiting"
    reason: str | None = None

    @property
    def module(self) -> str:
        """Name of the module that holds the target."""
        return self.target.rpartition(".")[0]

    def miss(self, reason: str) -> None:
        """Record that the seam is missing. Only a debug run hears of it here: other stages are not concerned."""
        self.state, self.reason = "missing", reason
        if os.environ.get("LLAMAFACTORY_VERBOSITY", "").upper() == "DEBUG":
            sys.stderr.write(f"llamafactory-tpaw: debug: seam `{self.name}` ({self.target}) is missing: {reason}\n")

    def __str__(self) -> str:
        return f"seam `{self.name}`, `{self.target}` ({self.purpose}): {self.reason}"


# The one install record; `hook.seams.callbacks` fills it when LlamaFactory is imported.
RECORD: dict[str, SeamStatus] = {}


def installed_version() -> str:
    """Return the version of the LlamaFactory that is imported, else installed, else `an unknown version`."""
    version = getattr(sys.modules.get(f"{PACKAGE}.extras.env"), "VERSION", None)
    if isinstance(version, str):
        return version
    from importlib import metadata

    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "an unknown version"


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
    """Make sure that every seam of stage `tpaw` is in place, importing the modules that were not imported yet.

    Raises:
        ConfigError: If the hook is not active or a seam is missing; names the seams and the supported versions.
    """
    importlib.import_module(PACKAGE)  # fills the record
    reason = _hook.inactive_reason()
    if reason:
        raise ConfigError(f"Stage `tpaw` is not available: {reason}")
    for seam in list(RECORD.values()):
        if seam.state == "waiting" and not seam.board:
            importlib.import_module(seam.module)
    message = missing_message()
    if message:
        raise ConfigError(message)
    _warn_untested()


def _warn_untested() -> None:
    """Say once, for stage `tpaw` only, that a version was never tried or that a seam of convenience is missing."""
    import logging

    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    notices = [
        f"{seam}. Training is not affected." for seam in RECORD.values() if seam.state == "missing" and not seam.board
    ]
    version = installed_version()
    try:
        tested = SpecifierSet(SUPPORTED).contains(Version(version), prereleases=True)
    except InvalidVersion:
        tested = False
    if not tested:
        notices.append(f"LlamaFactory {version} was not tested with stage `tpaw`; {SUPPORTED} was.")
    for notice in notices:
        if notice not in _said:
            _said.add(notice)
            logging.getLogger(f"{PACKAGE}.tpaw").warning(notice)


_said: set[str] = set()


def check(condition: Any, problem: str) -> None:
    """Raise `SeamMissing` with `problem` unless `condition` holds."""
    if not condition:
        raise SeamMissing(problem)


def check_function(module: Any, name: str, *, parameters: tuple[str, ...] = (), uses: tuple[str, ...] = ()) -> Any:
    r"""Return a module's function after a look at its shape.

    Args:
        module: Where it should be.
        name: Its name there.
        parameters: Names of its first parameters, in order.
        uses: Global or attribute names that its body refers to.

    Raises:
        SeamMissing: If it is not there or differs.
    """
    function = getattr(module, name, None)
    check(inspect.isfunction(function), f"there is no function `{name}` in `{module.__name__}`")
    found = tuple(inspect.signature(function).parameters)
    expected = f"({', '.join(parameters)}, ...)"
    check(found[: len(parameters)] == parameters, f"`{name}` takes ({', '.join(found)}) instead of {expected}")
    absent = [used for used in uses if used not in function.__code__.co_names]
    check(not absent, f"`{name}` no longer refers to {' and '.join(f'`{used}`' for used in absent)}")
    return function
