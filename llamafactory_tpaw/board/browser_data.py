# SPDX-License-Identifier: Apache-2.0
r"""Triplet files page by page, for LlamaBoard's triplet browser.

Of a file only an index is kept in memory, 9 bytes a row: where each row begins, and whether it is equal or truncated.
A file is scanned once; where no filter asks for the rows' content, only its line ends are.
"""

from __future__ import annotations

import re
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..data.files import cannot_read, parse_json
from ..data.source import is_triplet_file
from ..data.triplets import TripletRow
from ..errors import ConfigError, DataError
from ..generation.partial import COMMIT
from .datasets import opponent_sets
from .places import Places


EQUAL, TRUNCATED, DAMAGED = 1, 2, 4
MOST_ROWS_A_PAGE = 200
KEPT_FILES, KEPT_SEARCHES = 8, 8
BLOCK_BYTES = 1 << 22
# How a row ends as it is written.
IDS = b', "generated_ids": '
LIST_AND_END = re.compile(rb"\[[0-9, ]*\]\}\s*")


class Filter(NamedTuple):
    r"""Which rows are shown; None stands for both.

    Attributes:
        equal: Whether the generated response is the target, word by word and to its end.
        truncated: Whether the generated response ran into the limit (`finish_reason: length`).
        text: What the prompt, target or generated response has in it, small or capital letters; empty for anything.
    """

    equal: bool | None = None
    truncated: bool | None = None
    text: str = ""


ALL = Filter()


@dataclass(frozen=True)
class TripletView:
    r"""One row as plain text; nothing of it is escaped.

    Attributes:
        row: Its number in the file, from 1.
        prompt: The conversation up to the response, each message below a line with its role in brackets.
        target: The SFT response.
        generated: The generated response.
        iteration: Which theta generated it.
        equal: Whether the generated response is the target.
        truncated: Whether it ran into the limit.
        sample: Which of the prompt's responses it is, from 0.
        problem: Why the row cannot be shown; then the texts are empty.
    """

    row: int
    prompt: str = ""
    target: str = ""
    generated: str = ""
    iteration: int | None = None
    equal: bool = False
    truncated: bool = False
    sample: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Counts:
    """How many rows a file has, and of them equal, truncated and damaged ones."""

    rows: int
    equal: int
    truncated: int
    damaged: int


@dataclass(frozen=True)
class Page:
    r"""Some rows.

    Attributes:
        rows: In the order of the file.
        number: Which page it is, from 1.
        pages: How many there are, at least 1.
        matching: How many rows the filter lets through.
    """

    rows: list[TripletView]
    number: int
    pages: int
    matching: int


def open_triplets(places: Places, name: Any) -> TripletFile:
    r"""Open the triplets of an entry of `dataset_info.json`; one that was opened before and is the same stays open.

    Args:
        places: Where files may be.
        name: The entry, as the browser sent it.

    Raises:
        ConfigError: If there is no such entry, or its file is outside of the folders.
        DataError: If it is no triplet file, or cannot be read.
    """
    found = next((each for each in opponent_sets(places) if each.name == name), None)
    if found is None or found.path is None:
        raise ConfigError(f"{name!r} is no entry of dataset_info.json whose triplets are in a file. Choose another.")
    path = Path(places.inside(str(found.rows_file or found.path), "file_name"))
    if found.rows_file is None:
        raise DataError(f"{path} is not there yet: its iteration generates it. Play that first.")
    if path == found.path and not _holds_triplets(path):
        raise DataError(
            f"{path} holds no triplets that were generated here: its rows lack `id`, `iteration` and "
            "`finish_reason`. Choose another set."
        )
    return _OPEN.get(path)


def _holds_triplets(path: Path) -> bool:
    try:
        return is_triplet_file(path)
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error


class TripletFile:
    """A triplet file of any size. Several threads may ask it at once.

    Args:
        path: JSON lines, as they are generated. Of a half-done file (`.partial`) the rows count that are kept when the
            run is ended now, in the order in which they came.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._half_done = path.name.endswith(".partial")
        # Pages without a filter are shown while another thread still scans.
        self._indexing, self._scanning = threading.Lock(), threading.RLock()
        self._offsets: array[int] | None = None
        self._flags: bytearray | None = None
        self._found: OrderedDict[Filter, array[int]] = OrderedDict()

    def counts(self) -> Counts:
        """Count the rows; the first time the whole file is read."""
        flags = self._scan()
        numbers = Counter(flags)
        kinds = [sum(numbers[flag] for flag in numbers if flag & kind) for kind in (EQUAL, TRUNCATED, DAMAGED)]
        return Counts(len(flags), *kinds)

    def page(self, number: int = 1, size: int = 10, wanted: Filter = ALL) -> Page:
        r"""Return a page of the rows that a filter lets through.

        Args:
            number: Which, from 1; a larger one than there are is the last.
            size: Rows of a page, up to `MOST_ROWS_A_PAGE`.
            wanted: The filter.

        Raises:
            ConfigError: If a number is none.
            DataError: If the file cannot be read.
        """
        for key, value, most in (("page", number, None), ("rows a page", size, MOST_ROWS_A_PAGE)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most and value > most):
                raise ConfigError(
                    f"`{key}` is {value!r}, but must be a whole number from 1{f' to {most}' if most else ''}."
                )
        found = self._choose(wanted)
        pages = max(1, -(-len(found) // size))
        number = min(number, pages)
        rows = found[(number - 1) * size : number * size]
        return Page(list(self._read(rows)), number, pages, len(found))

    def _choose(self, wanted: Filter) -> range | array[int]:
        """Numbers of the rows, from 0, that a filter lets through."""
        if wanted == ALL:
            return range(len(self._index()))
        wanted = wanted._replace(text=wanted.text.casefold())
        with self._scanning:
            if wanted in self._found:
                self._found.move_to_end(wanted)
                return self._found[wanted]
            flags = self._scan()
            lets = _by_flags(wanted)
            numbers = array("Q", (number for number, flag in enumerate(flags) if lets(flag)))
            if wanted.text:
                views = zip(numbers, self._read(numbers), strict=True)
                numbers = array("Q", (number for number, view in views if _has(view, wanted.text)))
            self._found[wanted] = numbers
            if len(self._found) > KEPT_SEARCHES:
                self._found.popitem(last=False)
            return numbers

    def _index(self) -> array[int]:
        """Where each row begins."""
        with self._indexing:
            if self._offsets is None:
                with self._opened() as stream:
                    starts = (start for start, _ in _committed(stream))
                    self._offsets = array("Q", starts) if self._half_done else _line_starts(stream)
            return self._offsets

    def _scan(self) -> bytearray:
        """What kind of row each is."""
        with self._scanning:
            if self._flags is None:
                offsets, flags = array("Q"), bytearray()
                with self._opened() as stream:
                    rows = _committed(stream) if self._half_done else _every(stream)
                    for number, (start, line) in enumerate(rows):
                        offsets.append(start)
                        flags.append(_flag(self._view(number, line)))
                self._offsets, self._flags = offsets, flags
            return self._flags

    def _read(self, numbers: range | array[int]) -> Iterator[TripletView]:
        offsets = self._index()
        with self._opened() as stream:
            for number in numbers:
                stream.seek(offsets[number])
                yield self._view(number, stream.readline())

    def _view(self, number: int, line: bytes) -> TripletView:
        where = f"{self.path}, row {number + 1}"
        try:
            content = parse_json(_without_ids(line), where, "Restore the file.")
            if not isinstance(content, dict):
                raise DataError(f"{where} is no JSON object in braces. Restore the file.")
            row = TripletRow.from_json(content, where)
            texts = (_conversation(row), row.target["content"], row.generated)
            if not all(isinstance(text, str) for text in texts):
                raise DataError(f"{where} is not a triplet: a response is no text. Restore the file.")
        except DataError as error:
            return TripletView(number + 1, problem=str(error))
        truncated = row.finish_reason == "length"
        equal = not truncated and texts[1] == texts[2]
        return TripletView(number + 1, *texts, row.iteration, equal, truncated, row.sample)

    def _opened(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise DataError(cannot_read(self.path, error)) from error


class _OpenFiles:
    """The files that were opened last, until they change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[Any, ...], TripletFile] = OrderedDict()

    def get(self, path: Path) -> TripletFile:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(cannot_read(path, error)) from error
        key = (path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if key not in self._files:
                self._files[key] = TripletFile(path)
                if len(self._files) > KEPT_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(key)
            return self._files[key]


_OPEN = _OpenFiles()


def _every(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, each with where it begins."""
    place = 0
    for line in stream:
        yield place, line
        place += len(line)


def _committed(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the rows of a half-done file: what stands between its first line and its last commit."""
    rows: list[tuple[int, bytes]] = []
    for start, line in _every(stream):
        if line.startswith(COMMIT) and line.endswith(b"\n"):
            yield from rows
            rows.clear()
        elif start:
            rows.append((start, line))


def _line_starts(stream: BinaryIO) -> array[int]:
    starts, place, at_start = array("Q"), 0, True
    while block := stream.read(BLOCK_BYTES):
        if at_start:
            starts.append(place)
        end = block.find(b"\n")
        while end >= 0:
            if end + 1 < len(block):
                starts.append(place + end + 1)
            end = block.find(b"\n", end + 1)
        at_start = block.endswith(b"\n")
        place += len(block)
    return starts


def _without_ids(line: bytes) -> bytes:
    """Leave out the sampled ids, which are most of a row and are not shown. No text has an unescaped quote."""
    begin = line.rfind(IDS)
    is_last = begin > 0 and LIST_AND_END.fullmatch(line, begin + len(IDS)) is not None
    return line[:begin] + b"}" if is_last else line


def _flag(view: TripletView) -> int:
    return view.equal * EQUAL | view.truncated * TRUNCATED | bool(view.problem) * DAMAGED


def _by_flags(wanted: Filter) -> Callable[[int], bool]:
    """Damaged rows are shown where nothing is asked of rows."""
    asked = [(kind, value) for kind, value in ((EQUAL, wanted.equal), (TRUNCATED, wanted.truncated))
             if value is not None]  # fmt: skip

    def lets(flag: int) -> bool:
        return not flag & DAMAGED and all(bool(flag & kind) == value for kind, value in asked)

    return lets


def _has(view: TripletView, text: str) -> bool:
    return any(text in part.casefold() for part in (view.prompt, view.target, view.generated))


def _conversation(row: TripletRow) -> str:
    parts = [("system", row.system), ("tools", row.tools)]
    parts = [(role, text) for role, text in parts if text]
    parts += [(message["role"], message["content"]) for message in row.messages]
    if [role for role, _ in parts] == ["user"]:
        return parts[0][1]
    return "\n\n".join(f"[{role}]\n{text}" for role, text in parts)
