# SPDX-License-Identifier: Apache-2.0
"""JSON arrays of any size, item by item, with the errors that reading all of it at once would give."""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import DataError


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_BYTES = 1 << 20
SPACE = " \t\n\r"
# An error so near the end of what was read may only say that the rest is missing.
MARGIN = 16


class ArrayReader:
    r"""Iterates over the items of a file that holds one JSON array.

    Args:
        stream: The file, at its beginning.
        where: What it is, for messages.
        advice: What to do about it, for messages.
        read: Told how many more bytes were read, whenever some were.

    Raises:
        DataError: While iterating, if the file is not UTF-8 or not a JSON array, naming the place.
    """

    def __init__(
        self, stream: BinaryIO, where: str, advice: str, read: Callable[[int], object] = lambda _: None
    ) -> None:
        self._stream = stream
        self._where = where
        self._advice = advice
        self._read = read
        self._decode_bytes = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._decode_value = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0  # place in the text that comes next
        self._ended = False
        self._lines = 0  # that ended before the text
        self._column = 0  # characters of the line before the text
        self._bytes = 0  # that were read
        self._bytes_of_lines = 0  # of those, up to the last end of a line

    def __iter__(self) -> Iterator[Any]:
        if self._next() != "[":
            raise self._invalid("Expecting '['", self._at)
        self._at += 1
        if self._next() != "]":
            yield self._value()
            while self._next() != "]":
                if self._next() != ",":
                    raise self._invalid("Expecting ',' delimiter", self._at)
                self._at += 1
                self._next()
                yield self._value()
        self._at += 1
        if self._next():
            raise self._invalid("Extra data", self._at)

    def _next(self) -> str:
        """The next character that is no space, empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decode_value(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._text) - MARGIN or error.msg.startswith("Unterminated string")
                if not (cut and self._more()):
                    raise self._invalid(error.msg.removesuffix(" at"), error.pos) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self._where} is not valid JSON: {error}. {self._advice}") from error
            else:
                if end < len(self._text) or not self._more():  # a number may go on
                    self._at = end
                    return value

    def _more(self) -> bool:
        """Drop the text that was taken and read some more, as much as is left, so that long items do not take long."""
        if self._ended:
            return False
        taken, self._text, self._at = self._text[: self._at], self._text[self._at :], 0
        self._lines += taken.count("\n")
        self._column = len(taken) - taken.rfind("\n") - 1 + (0 if "\n" in taken else self._column)
        block = self._stream.read(max(BLOCK_BYTES, len(self._text)))
        self._ended = not block
        try:
            self._text += self._decode_bytes(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._not_utf8(error, block) from error
        if b"\n" in block:
            self._bytes_of_lines = self._bytes + block.rfind(b"\n") + 1
        self._bytes += len(block)
        self._read(len(block))
        return True

    def _invalid(self, what: str, at: int) -> DataError:
        line = self._lines + self._text.count("\n", 0, at) + 1
        begin = self._text.rfind("\n", 0, at) + 1
        character = at - begin + 1 + (0 if begin else self._column)
        place = f"line {line}, character" if self._lines or "\n" in self._text.rstrip("\n") else "character"
        return DataError(f"{self._where} is not valid JSON: {what} at {place} {character}. {self._advice}")

    def _not_utf8(self, error: UnicodeDecodeError, block: bytes) -> DataError:
        at = error.start - (len(error.object) - len(block))  # negative for a character that begins before the block
        before = block[: max(at, 0)]
        line = self._lines + self._text.count("\n") + before.count(b"\n") + 1
        begin = self._bytes + before.rfind(b"\n") + 1 if b"\n" in before else self._bytes_of_lines
        place = f"line {line}, byte" if line > 1 or b"\n" in block.rstrip(b"\n") else "byte"
        return DataError(
            f"{self._where} is not UTF-8: 0x{error.object[error.start]:02x} at {place} "
            f"{self._bytes + at - begin + 1}. Save the file as UTF-8."
        )
