# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause. Each message says what was given, what is allowed and what to do."""

from collections.abc import Sequence


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
