# SPDX-License-Identifier: Apache-2.0
"""One row of the table of wrong input, and the messages that `messages.md` says it gets."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


MESSAGES = Path(__file__).with_name("messages.md")
HEADING = re.compile(r"^### (?P<about>.+) \(exit code (?P<code>\d+)\)$")


class Refusal(NamedTuple):
    """How a command ended: its exit code and each error that it showed."""

    code: int
    problems: list[str]


@dataclass(frozen=True)
class Row:
    r"""One thing done wrong to the played run; everything else is right.

    Attributes:
        about: What is wrong; the heading in `messages.md`.
        spoil: Does it to files, in the run's folder.
        iteration: Which iteration is started then, into a new output folder.
        given: Keys that are given otherwise; None leaves a key out.
        generating: Whether the iteration's own triplets are still to be generated.
        overrides: What stands after the run file on the command line.
        run_file: The text of the run file, instead of the settings.
        during: What is going on meanwhile.
        unlike: Patterns of what other packages say, and what stands for it in `messages.md`.
    """

    about: str
    spoil: Callable[[], object] | None = None
    iteration: int = 0
    given: dict[str, Any] = field(default_factory=dict)
    generating: bool = False
    overrides: tuple[str, ...] = ()
    run_file: str | bytes | None = None
    environment: dict[str, str] = field(default_factory=dict)
    during: Callable[[], AbstractContextManager[object]] = nullcontext
    unlike: tuple[tuple[str, str], ...] = ()


def read_messages() -> dict[str, Refusal]:
    """Read what `messages.md` says, by what is wrong."""
    found: dict[str, Refusal] = {}
    about = ""
    for line in MESSAGES.read_text(encoding="utf-8").splitlines():
        heading = HEADING.match(line)
        if heading:
            about = heading["about"]
            assert about not in found, f"{about} is there twice"
            found[about] = Refusal(int(heading["code"]), [])
        elif line.startswith("    "):
            found[about].problems.append(line[4:])
    return found
