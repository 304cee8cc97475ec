"""json and jsonl → rows. A position is the byte offset in the unpacked text behind a row.

json is an array of objects, or objects one after the other; both are read in the same way, and in flat
memory: whitespace, commas and the array's brackets only stand between rows, so any offset behind a row is
enough to go on from.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from dlconsole.services.manifests.lines import BOM, line_blocks
from dlconsole.services.manifests.rows import (
    CHUNK_BYTES,
    SAMPLE_ROWS,
    BadRow,
    Block,
    Header,
    Idle,
    Row,
    shown_text,
    too_long,
)
from dlconsole.services.manifests.text import Text

_STRICT: Final = msgspec.json.Decoder()
_LENIENT: Final = json.JSONDecoder(strict=False)
_BETWEEN: Final = re.compile(r"[\s,\[\]\ufeff]*")
_TURNS: Final = re.compile(r'["\\{}\[\]]')
_ESCAPED_BYTE: Final = re.compile("[\udc80-\udcff]")
_NO_OBJECT: Final = "no JSON object"
_NEAR_END: Final = 16
"""An error of the reader so close to the end of what is there may only be for want of more."""
_SHOWN_CHARS: Final = 64 * 1024


def _as_row(value: Any) -> Row:
    return value if isinstance(value, dict) else BadRow(_NO_OBJECT, value)


def _header(rows: list[Row]) -> Header:
    sample = [row for row in rows if isinstance(row, dict)]
    names = dict.fromkeys(name for row in sample for name in row)
    bad = next((row.why for row in rows if isinstance(row, BadRow)), "")
    return Header(tuple(names), sample, open_ended=True, fault="" if sample else bad)


def _has_row(rows: list[Row]) -> bool:
    return any(isinstance(row, dict) for row in rows)


class JsonLines:
    """A list in jsonl: one object a line."""

    def __init__(self, text: Text, *, max_row_bytes: int) -> None:
        self._text = text
        self._max_row_bytes = max_row_bytes
        self._header: Header | None = None

    def header(self, idle: Idle) -> Header:
        """See RowReader."""
        if self._header is None:
            head, is_all = self._text.head(
                max(self._max_row_bytes, CHUNK_BYTES), idle, enough=lambda data: _has_row(self._sample(data))
            )
            self._header = _header(self._sample(head, is_all=is_all))
        return self._header

    def _sample(self, head: bytes, *, is_all: bool = False) -> list[Row]:
        lines = head.removeprefix(BOM).split(b"\n")
        if not is_all:
            lines.pop()
        return [self._row(line) for line in lines[:SAMPLE_ROWS]]

    def blocks(self, at: int, most: int, idle: Idle, _names: frozenset[str] | None) -> Iterator[Block]:
        """See RowReader."""
        self._text.seek(at, idle)
        for block in line_blocks(lambda: self._text.read(idle), at, most, self._max_row_bytes):
            rows = [self._row(line) for line in block.lines]
            rows += [too_long(self._max_row_bytes)] * block.too_long
            yield Block([], block.end, rows=rows)

    def _row(self, line: bytes) -> Row:
        if len(line) > self._max_row_bytes:
            return too_long(self._max_row_bytes)
        try:
            return _as_row(_STRICT.decode(line))
        except (ValueError, RecursionError):  # much faster than Python's reader, and stricter
            pass
        if not line.strip():
            return None
        try:
            return _as_row(_LENIENT.decode(line.decode()))
        except UnicodeDecodeError:
            return BadRow("not UTF-8", shown_text(line.decode("utf-8", "surrogateescape")))
        except (ValueError, RecursionError):
            return BadRow("no JSON", line.decode())


class JsonRows:
    """A list in json: an array of objects, or objects one after the other."""

    def __init__(self, text: Text, *, max_row_bytes: int) -> None:
        self._text = text
        self._max_row_bytes = max_row_bytes
        self._header: Header | None = None

    def header(self, idle: Idle) -> Header:
        """See RowReader."""
        if self._header is None:
            head, is_all = self._text.head(
                max(self._max_row_bytes, CHUNK_BYTES), idle, enough=lambda data: _has_row(self._sample(data))
            )
            self._header = _header(self._sample(head, is_all=is_all))
        return self._header

    def _sample(self, head: bytes, *, is_all: bool = False) -> list[Row]:
        scan = _Scan(0, self._max_row_bytes)
        scan.add(head)
        if is_all:
            scan.finish()
        return scan.take(SAMPLE_ROWS)

    def blocks(self, at: int, most: int, idle: Idle, _names: frozenset[str] | None) -> Iterator[Block]:
        """See RowReader."""
        self._text.seek(at, idle)
        scan = _Scan(at, self._max_row_bytes)
        while True:
            while rows := scan.take(most):
                yield Block([], scan.at, rows=rows)
            if scan.is_finished:
                return
            data = self._text.read(idle)
            if data:
                scan.add(data)
            else:
                scan.finish()


class _Scan:
    """Takes text, gives rows. `at` is the offset behind the last of them."""

    def __init__(self, at: int, max_bytes: int) -> None:
        self.at = at
        self.is_finished = False
        self._read_to = at
        """The offset of what is looked at next; behind `at` where something is being skipped."""
        self._max_bytes = max_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._buffer = ""
        self._next = 0
        """Where in the buffer the text behind the last row begins."""
        self._has_bad_bytes = False
        self._skip: _Skip | None = None

    def add(self, data: bytes) -> None:
        self._append(self._decoder.decode(data))

    def finish(self) -> None:
        self._append(self._decoder.decode(b"", final=True))
        self.is_finished = True

    def _append(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            self._has_bad_bytes = True
        self._buffer += text

    def take(self, most: int) -> list[Row]:
        """At most `most` rows of what is there; none where more is needed, or all is read."""
        found: list[Row] = []
        begun = behind = self._next
        while len(found) < most:
            row = self._skipped() if self._skip is not None else self._one()
            if row is None:
                break
            found.append(row)
            behind = self._next
        if found:
            self.at = self._read_to + _size(self._buffer[begun:behind])
        self._read_to += _size(self._buffer[begun : self._next])
        if len(found) < most:
            self._buffer, self._next = self._buffer[self._next :], 0
        return found

    def _one(self) -> Row:
        buffer = self._buffer
        between = _BETWEEN.match(buffer, self._next)
        start = between.end() if between else self._next
        if start == len(buffer):
            if self.is_finished or start - self._next > self._max_bytes:
                self._next = start
            return None
        try:
            value, end = _LENIENT.raw_decode(buffer, start)
        except json.JSONDecodeError as error:
            is_short = error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - _NEAR_END
            if is_short and not self.is_finished and len(buffer) - start <= self._max_bytes:
                return None
            return self._begin_skip(start, "no JSON")
        except (ValueError, RecursionError):  # a number of thousands of digits, nested too deeply
            return self._begin_skip(start, "no JSON that can be read")
        if end == len(buffer) and not self.is_finished and buffer[start] not in '{"':
            return None  # a number may go on
        return self._row(value, start, end)

    def _row(self, value: Any, start: int, end: int) -> Row:
        self._next = end
        source = self._buffer[start:end] if self._has_bad_bytes or (end - start) * 4 > self._max_bytes else ""
        if _size(source) > self._max_bytes:
            return too_long(self._max_bytes)
        if _ESCAPED_BYTE.search(source):
            return BadRow("not UTF-8", shown_text(source))
        return _as_row(value)

    def _begin_skip(self, start: int, why: str) -> Row:
        if self._skip is None:
            self._skip = _Skip(why, self._buffer[start : start + _SHOWN_CHARS], self._buffer[start])
            self._next = start
        return self._skipped()

    def _skipped(self) -> Row:
        """The bad row, once its end is found: where its brackets close, or at the end of the list."""
        skip = self._skip
        if skip is None:
            return None
        end = skip.end(self._buffer, self._next)
        if end is None:
            self._next = len(self._buffer)
            if not self.is_finished:
                return None
        else:
            self._next = end
        self._skip = None
        why = skip.why if skip.size <= self._max_bytes else too_long(self._max_bytes).why
        return BadRow(why, shown_text(skip.shown))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


class _Skip:
    """Looks for the end of something that cannot be read, without keeping it."""

    def __init__(self, why: str, shown: str, first: str) -> None:
        self.why = why
        self.shown = shown
        self.size = 0
        self._is_plain = first not in '{["'
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end(self, text: str, at: int) -> int | None:
        """Where in these further characters it ends; None where it goes on behind them."""
        found = self._plain_end(text, at) if self._is_plain else self._balanced_end(text, at)
        self.size += (len(text) if found is None else found) - at
        return found

    def _plain_end(self, text: str, at: int) -> int | None:
        found = text.find("{", at)
        return None if found < 0 else found

    def _balanced_end(self, text: str, at: int) -> int | None:
        if self._escaped and at < len(text):
            self._escaped, at = False, at + 1
        while turn := _TURNS.search(text, at):
            at = turn.end()
            mark = turn[0]
            if mark == "\\":
                if self._in_string:
                    self._escaped = at == len(text)
                    at += 1
            elif mark == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if mark in "{[" else -1
            if self._depth <= 0 and not self._in_string and mark != "\\":
                return at
        return None
