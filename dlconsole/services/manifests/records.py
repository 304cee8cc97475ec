"""Lines → records of csv, which may span lines; told by the standard library's own reader, one line at a
time, so that the position behind each record is exact.
"""

from __future__ import annotations

import csv
import re
from itertools import accumulate
from typing import Final

from dlconsole.services.manifests.rows import BadRow, shown_text, too_long

Record = list[str] | BadRow | None
"""The cells; None is a blank line."""

_QUOTE: Final = '"'
_ESCAPED_BYTE: Final = re.compile("[\udc80-\udcff]")
_STAND_IN: Final = "\U0010fffe"
"""No character, by Unicode's own word."""


class _Open(Exception):
    """The record goes on in the next line."""


class _Feed:
    """The lines of one record, as the csv reader asks for them. A carriage return that ends no line, which
    the reader refuses outside quotes, has a stand-in.
    """

    def __init__(self) -> None:
        self.has_stand_in = False
        self._lines: list[str] = []
        self._next = 0

    def set(self, lines: list[str]) -> None:
        self._lines, self._next, self.has_stand_in = lines, 0, False

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if self._next == len(self._lines):
            raise _Open
        line = self._lines[self._next]
        self._next += 1
        if "\r" in line and line.find("\r") < len(line) - 1 and _STAND_IN not in line:
            end = line[-1:]
            line = line[:-1].replace("\r", _STAND_IN) + end
            self.has_stand_in = True
        return line + "\n"


class Records:
    """Takes lines, gives records. A quote opens a field only at its beginning. Where it is not closed on its
    line, it must be within `max_bytes`, and properly, in front of a delimiter or at a line's end: else its
    line is a bad row, and the next record begins behind that line. So one quote too many costs one row; it is
    not closed by the next quoted field that begins somewhere below.
    """

    def __init__(self, delimiter: str, max_bytes: int) -> None:
        csv.field_size_limit(2**31 - 1)  # ours is `max_bytes`
        self._delimiter = delimiter
        self._max_bytes = max_bytes
        self._feed = _Feed()
        self._reader = csv.reader(self._feed, delimiter=delimiter)
        self._strict = csv.reader(self._feed, delimiter=delimiter, strict=True)
        self._lines: list[str] = []
        self._ends: list[int] = []
        """Behind each line, how many bytes it and those before it are."""
        self._has_bad_bytes = False
        self._open_to = 0
        """A record that is open behind an earlier line stays open up to this one: none is looked at twice."""

    def add(self, lines: list[bytes]) -> None:
        """Further lines, without their newlines."""
        text = []
        for line in lines:
            try:
                text.append(line.decode())
            except UnicodeDecodeError:
                text.append(line.decode("utf-8", "surrogateescape"))
                self._has_bad_bytes = True
        end = self._ends[-1] if self._ends else 0
        self._lines += text
        self._ends += [end + size for size in accumulate(len(line) + 1 for line in lines)]

    def take(self, most: int, *, is_last: bool) -> tuple[list[Record], int]:
        """At most `most` records, and how many bytes they were, newlines included. Without `is_last` a record
        that is still open waits for its further lines.
        """
        lines, delimiter, feed, reader = self._lines, self._delimiter, self._feed, self._reader
        found: list[Record] = []
        first, count = 0, len(lines)
        while first < count and len(found) < most:
            line = lines[first]
            last = first
            if self._ends[first] - (self._ends[first - 1] if first else 0) > self._max_bytes + 1:
                found.append(too_long(self._max_bytes))
            elif _QUOTE not in line:
                line = line.removesuffix("\r")
                found.append(line.split(delimiter) if line else None)
            else:
                feed.set([line])
                try:
                    found.append(self._cells(next(reader)))
                except _Open:
                    closing = self._closing_line(first)
                    if closing is None and not is_last:
                        break
                    record, last = self._spanning(first, closing)
                    found.append(record)
                except csv.Error as error:
                    found.append(BadRow(f"cannot be read as csv: {error}", shown_text(line)))
            first, begun = last + 1, first
            if self._has_bad_bytes:
                self._look_for_bad_bytes(found, begun, first)
        return found, self._drop(first)

    def _text(self, first: int, behind: int) -> str:
        return shown_text("\n".join(self._lines[first:behind]))

    def _drop(self, count: int) -> int:
        if not count:
            return 0
        size = self._ends[count - 1]
        del self._lines[:count]
        self._ends = [end - size for end in self._ends[count:]]
        self._open_to = max(0, self._open_to - count)
        if not self._lines:
            self._has_bad_bytes = False
        return size

    def _closing_line(self, first: int) -> int | None:
        """The line that ends the record that is open behind line `first`; -1 where none does within the
        limit; None where it is not known yet.
        """
        most = (self._ends[first - 1] if first else 0) + self._max_bytes
        at = max(first + 1, self._open_to)
        while at < len(self._lines):
            if self._ends[at] > most:
                return -1
            if _QUOTE in self._lines[at] and (closes := self._closes(self._lines[at])) is not None:
                return at if closes else -1
            at += 1
            self._open_to = at
        return None

    def _closes(self, line: str) -> bool | None:
        """Whether a field that was open in front of this line is properly closed on it; None where it, or
        another one, is open behind it.
        """
        self._feed.set([_QUOTE + line])
        try:
            next(self._strict)
        except _Open:
            return None
        except csv.Error:
            return False
        return True

    def _spanning(self, first: int, last: int | None) -> tuple[Record, int]:
        """The record of these lines, and which of them is its last."""
        if last is not None and last > first:
            self._feed.set(self._lines[first : last + 1])
            try:
                return self._cells(next(self._strict)), last
            except csv.Error:
                pass
        return BadRow("a quote is opened and not closed", self._text(first, first + 1)), first

    def _cells(self, cells: list[str]) -> list[str]:
        return [cell.replace(_STAND_IN, "\r") for cell in cells] if self._feed.has_stand_in else cells

    def _look_for_bad_bytes(self, found: list[Record], first: int, behind: int) -> None:
        """Make the last record a bad one where its lines are not UTF-8."""
        lines = self._lines[first:behind]
        if not isinstance(found[-1], BadRow) and any(map(_ESCAPED_BYTE.search, lines)):
            found[-1] = BadRow("not UTF-8", self._text(first, behind))
