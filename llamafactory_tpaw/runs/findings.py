# SPDX-License-Identifier: Apache-2.0
"""What `check` finds: problems that end a run, warnings and notes, collected instead of raised."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import EXIT_CODES, ConfigError, DataError, EnvironmentProblem, GenerationError, TpawError


if TYPE_CHECKING:
    from collections.abc import Iterator

ERROR, WARNING, NOTE = "error", "warning", "note"
# Names of the kinds of errors, by their exit codes.
KINDS = {code: meaning.partition(":")[0] for code, meaning in EXIT_CODES.items() if ":" in meaning}
ERRORS = {2: ConfigError, 3: DataError, 4: GenerationError, 5: EnvironmentProblem}


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        level: `error`, `warning` or `note`.
        message: What was given, what is allowed, what to do.
        code: The exit code of an error; 0 for others.
    """

    level: str
    message: str
    code: int = 0

    def as_dict(self) -> dict[str, str]:
        """Plain values for `--json`."""
        return {"level": self.level, "kind": KINDS.get(self.code, self.level), "message": self.message}


@dataclass
class Report:
    """Findings in the order in which they were made."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, level: str, message: str, code: int = 0) -> None:
        """Add a finding that is not there yet."""
        finding = Finding(level, message, code)
        if finding not in self.findings:
            self.findings.append(finding)

    def error(self, kind: type[TpawError], message: str) -> None:
        """Add what would end the run with an error of this kind."""
        self.add(ERROR, message, kind.exit_code)

    def warn(self, message: str) -> None:
        """Add what may go wrong, but need not."""
        self.add(WARNING, message)

    def note(self, message: str) -> None:
        """Add what is good to know."""
        self.add(NOTE, message)

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Turn an error into findings, so that the next check runs too."""
        try:
            yield
        except TpawError as error:
            for problem in getattr(error, "problems", None) or [str(error)]:
                self.add(ERROR, problem, error.exit_code)

    @property
    def errors(self) -> list[Finding]:
        """The findings that end a run."""
        return [finding for finding in self.findings if finding.level == ERROR]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that may."""
        return [finding for finding in self.findings if finding.level == WARNING]

    @property
    def exit_code(self) -> int:
        """The smallest code of the errors, 0 for none: settings first, since the rest depends on them."""
        return min((finding.code for finding in self.errors), default=0)

    def raise_errors(self) -> None:
        r"""Raise what was found as one error.

        Raises:
            TpawError: Of the kind of the exit code, with every message.
        """
        if self.errors:
            messages = [finding.message for finding in self.errors]
            kind = ERRORS.get(self.exit_code, TpawError)
            raise kind(messages)
