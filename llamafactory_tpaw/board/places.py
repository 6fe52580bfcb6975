# SPDX-License-Identifier: Apache-2.0
"""The folders that LlamaBoard's page may reach: nothing that a browser sends leads out of them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError


# What separates players in `tpaw_players`, and entries in `dataset`.
SEPARATORS = ",+"
# LlamaFactory's default of `dataset_dir`.
DATA = Path("data")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Places:
    r"""Where LlamaBoard's runs are, relative to the folder in which it was started, or absolute.

    Attributes:
        saves: Output folders, `saves/<model name>/<finetuning type>/<run>`.
        dataset_dir: Folder of `dataset_info.json` and of the triplets.
        yaml: Run files.
    """

    saves: Path = Path("saves")
    dataset_dir: Path = DATA
    yaml: Path = Path("yaml")

    def inside(self, given: Any, key: str = "path") -> str:
        r"""Return a path as it was given, when it leads into one of the folders, links followed.

        Args:
            given: What came from the browser: a text, of a file or folder that need not exist.
            key: How messages call it.

        Raises:
            ConfigError: If it leads elsewhere, or is no path.
        """
        return self._within(given, key, (self.saves, self.dataset_dir, self.yaml))

    def output_dir(self, given: Any, key: str = "output_dir") -> str:
        r"""Return a folder that is written to, when it is one below the saves folder.

        Args:
            given: What came from the browser.
            key: How messages call it.

        Raises:
            ConfigError: If it is none.
        """
        return self._within(given, key, (self.saves,))

    def checkpoint(self, given: Any, allowed: Collection[str] = (), key: str = "tpaw_players") -> str:
        r"""Return a model that was picked: a folder below the saves folder, or one of those that the page offered.

        Args:
            given: The model, `model` or `model+adapter`.
            allowed: What may be elsewhere: LlamaBoard's own model path, and what the run's files name.
            key: How messages call it.

        Raises:
            ConfigError: If it is neither. A name of a hub (`org/name`) is only allowed where `allowed` has it.
        """
        for part in self._text(given, key).split("+"):
            if part not in allowed and given not in allowed:
                self._within(part, key, (self.saves,))
        return given

    def name(self, given: Any, key: str) -> str:
        r"""Return a name that becomes part of a path, such as that of a run.

        Raises:
            ConfigError: If it could lead elsewhere, or separates names in a list.
        """
        text = self._text(given, key)
        wrong = [sign for sign in ("/", "\\", *SEPARATORS) if sign in text]
        if wrong or text in (".", "..") or text != text.strip() or text.startswith("-"):
            raise ConfigError(
                f"`{key}` is {given!r}, but must be a name: no {' '.join(('/', chr(92), *SEPARATORS))}, no `.` or "
                "`..`, no `-` or space at its beginning and no space at its end. Choose another."
            )
        return text

    def run_folder(self, model_name: Any, finetuning_type: Any) -> Path:
        r"""Return the folder of a model's runs, spelled as LlamaBoard does: without spaces.

        Raises:
            ConfigError: If one of the names could lead elsewhere.
        """
        parts = [
            self.name(str(given or "").replace(" ", ""), key)
            for key, given in (("model_name", model_name), ("finetuning_type", finetuning_type))
        ]
        folder = self.saves.joinpath(*parts)
        self.output_dir(str(folder))
        return folder

    @staticmethod
    def _text(given: Any, key: str) -> str:
        if not isinstance(given, str) or not given.strip() or UNPRINTABLE.search(given):
            raise ConfigError(f"`{key}` is {given!r}, but must be a name or path. Choose one.")
        return given

    def _within(self, given: Any, key: str, folders: tuple[Path, ...]) -> str:
        text = self._text(given, key)
        try:
            place = Path(text).resolve()
            place.exists()  # raises where the name is too long
            lies_in = any(place.is_relative_to(folder.resolve()) and place != folder.resolve() for folder in folders)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"`{key}` is {text!r}, which is no path: {error}. Choose another.") from error
        if not lies_in:
            listed = " or ".join(str(folder) for folder in folders)
            raise ConfigError(
                f"`{key}` is {text!r}, which is not below {listed}{_followed(text, place)}. LlamaBoard reads and "
                "writes only there: choose another, or use the command line."
            )
        return text


def dataset_folder(given: Any) -> Path:
    r"""Return the dataset folder that the page names, when it lies in the folder that LlamaBoard was started in.

    `data` may be a link that leads elsewhere: whoever made it need not ask the page.

    Args:
        given: What came from the browser; empty for `data`.

    Raises:
        ConfigError: If it lies elsewhere, or is no path.
    """
    text = given or str(DATA)
    if not isinstance(text, str) or UNPRINTABLE.search(text):
        raise ConfigError(f"`dataset_dir` is {given!r}, but must be a folder. Choose one.")
    try:
        place, root = Path(text).resolve(), Path.cwd().resolve()
        place.exists()  # raises where the name is too long
        lies_in = place.is_relative_to(root) or Path(text) == DATA
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"`dataset_dir` is {text!r}, which is no path: {error}. Choose another.") from error
    if not lies_in:
        raise ConfigError(
            f"`dataset_dir` is {text!r}, which is not below {root}{_followed(text, place)}, where LlamaBoard was "
            "started. Self-play in the page reads and writes only there: choose another, start LlamaBoard in a "
            "folder above it, or use the command line."
        )
    return Path(text)


def _followed(text: str, place: Path) -> str:
    """Where links lead, when it is not what the text says."""
    return "" if os.path.abspath(text) == str(place) else f" (it leads to {place})"
