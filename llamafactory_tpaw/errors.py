# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause. Each message says what was given, what is allowed and what to do."""

from collections.abc import Sequence


# What the exit codes of every command mean; `llamafactory-tpaw --help` and the guide show them.
INTERRUPTED = 130
EXIT_CODES = {
    0: "done, or nothing to do",
    1: "an error that this package does not know: a bug, or a failure of LlamaFactory or torch",
    2: "usage: wrong arguments, or settings that cannot work",
    3: "data: a dataset, triplet file, checkpoint or cache is missing, damaged or of another run",
    4: "generation: an engine could not answer all prompts",
    5: "environment: a package, the device's memory or disk space is missing",
    INTERRUPTED: "interrupted: the same command continues",
}


class TpawError(Exception):
    """Base of the errors that end a run with a message instead of a traceback."""

    exit_code = 1


class ConfigError(TpawError):
    """The settings of a run cannot work. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(TpawError):
    """A dataset, triplet file or checkpoint on disk is missing, damaged or belongs to another run."""

    exit_code = 3


class CacheError(DataError):
    """The log-prob cache holds something that fails its check."""


class GenerationError(TpawError):
    """An engine could not answer all prompts."""

    exit_code = 4


class EnvironmentProblem(TpawError):
    """The machine lacks something: a package, memory of the device, disk space."""

    exit_code = 5
