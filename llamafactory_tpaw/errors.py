# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause. Each message says what was given, what is allowed and what to do."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from types import TracebackType


# What the exit codes of every command mean; `llamafactory-tpaw --help` and the guide show them.
INTERRUPTED, TERMINATED = 130, 143
EXIT_CODES = {
    0: "done, or nothing to do",
    1: "an error that this package does not know: a bug, or a failure of LlamaFactory or torch",
    2: "usage: wrong arguments, or settings that cannot work",
    3: "data: a dataset, triplet file, checkpoint or cache is missing, damaged, collapsed, in use or of another run",
    4: "generation: an engine could not answer all prompts",
    5: "environment: a package, the device's memory or disk space is missing",
    INTERRUPTED: "interrupted (Ctrl-C): the same command continues",
    TERMINATED: "terminated (SIGTERM): the same command continues",
}


# What a terminal obeys, or what hides something: control characters but tab and newline, halves of characters, what
# turns the direction of the text around it.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"
)


def visible(text: str) -> str:
    """Return a text with the codes of such characters in their place, as it can be shown wherever it came from."""
    return UNSEEN.sub(lambda found: f"\u27e8U+{ord(found.group()):04X}\u27e9", text.replace("\r\n", "\n"))


class TpawError(Exception):
    """Base of the errors that end a run with a message, of every problem found, instead of a traceback."""

    exit_code = 1

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [visible(each) for each in ([problems] if isinstance(problems, str) else problems)]
        super().__init__("\n".join(self.problems))


class ConfigError(TpawError):
    """The settings of a run cannot work."""

    exit_code = 2


class DataError(TpawError):
    """A dataset, triplet file or checkpoint on disk is missing, damaged or belongs to another run."""

    exit_code = 3


class InUseError(DataError):
    """Another process is writing there."""


class CacheError(DataError):
    """The log-prob cache holds something that fails its check."""


class GenerationError(TpawError):
    """An engine could not answer all prompts."""

    exit_code = 4


class EnvironmentProblem(TpawError):
    """The machine lacks something: a package, memory of the device, disk space."""

    exit_code = 5


class Findings(contextlib.AbstractContextManager["Findings"]):
    r"""What several checks find, so that a run is refused once, with all of it.

    Each check runs under `note()`. Leaving the `with` of the findings raises what was noted, together with an error
    that kept the rest from being checked, as the kind with the smallest exit code: settings first, since the rest
    depends on them. `warnings` may go wrong, but need not; `remarks` are good to know.
    """

    def __init__(self) -> None:
        self.errors: list[TpawError] = []
        self.warnings: list[str] = []
        self.remarks: list[str] = []

    @contextlib.contextmanager
    def note(self) -> Iterator[None]:
        """Keep an error for later, so that the next check runs too."""
        try:
            yield
        except TpawError as error:
            self.errors.append(error)

    def refuse(self, kind: type[TpawError], problems: Sequence[str]) -> None:
        """Keep problems for later, if there are any."""
        if problems:
            self.errors.append(kind(problems))

    @property
    def problems(self) -> dict[str, int]:
        """Every problem, once, with its exit code."""
        return {problem: error.exit_code for error in self.errors for problem in error.problems}

    @property
    def exit_code(self) -> int:
        """The smallest of the errors, 0 for none."""
        return min(self.problems.values(), default=0)

    def raise_noted(self) -> None:
        """Raise what was noted so far, where what comes next needs that all is well."""
        errors, problems = self.errors, list(self.problems)
        self.errors = []
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise type(min(errors, key=lambda error: error.exit_code))(problems) from errors[0]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.raise_noted()
        elif isinstance(error, TpawError) and self.errors:
            self.errors.append(error)
            self.raise_noted()
