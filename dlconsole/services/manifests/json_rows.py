"""json and jsonl → rows. A position is the byte offset in the unpacked text behind a row.

json is an array of objects, or objects one after the other; both are read in the same way, and in flat
memory: whitespace, commas and the array's brackets only stand between rows, so any offset behind a row is
enough to go on from.
"""

from __future__ import annotations

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from dlconsole.services.manifests.lines import line_blocks
from dlconsole.services.manifests.rows import (
    CHUNK_BYTES,
    SAMPLE_ROWS,
    BadRow,
    Block,
    Header,
    Idle,
    Row,
    Stopped,
    Unreadable,
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
_HELD_BYTES: Final = 16 << 20
"""Most of what is kept of the bad rows in front of the first good one."""


def _as_row(value: Any) -> Row:
    return value if isinstance(value, dict) else BadRow(_NO_OBJECT, value)


class _JsonReader(ABC):
    """What both have: the columns are those of the first rows that are objects, wherever these begin."""

    def __init__(self, text: Text, *, max_row_bytes: int) -> None:
        self._text = text
        self._max_row_bytes = max_row_bytes
        self._header: Header | None = None
        self._held: list[Block] = []
        """What was read for the header, of which a stream gives nothing twice."""
        self._behind: Iterator[Block] | None = None
        """The blocks behind those."""

    def header(self, idle: Idle) -> Header:
        """See RowReader. Reads on where the first rows are none, or too long."""
        if self._header is None:
            self._header = self._read_header(idle)
        return self._header

    def blocks(self, at: int, most: int, idle: Idle, _names: frozenset[str] | None) -> Iterator[Block]:
        """See RowReader."""
        held, behind = self._held, self._behind
        self._held, self._behind = [], None
        if at == 0 and behind is not None:
            yield from held
            yield from behind
        else:
            yield from self._read(at, most, idle)

    @abstractmethod
    def _read(self, at: int, most: int, idle: Idle) -> Iterator[Block]:
        """As `blocks`."""

    def _read_header(self, idle: Idle) -> Header:
        sample: list[dict[str, Any]] = []
        fault, size = "", 0
        blocks = self._behind = self._read(0, SAMPLE_ROWS, idle)
        try:
            for block in blocks:
                if not idle():
                    raise Stopped
                if self._behind is not None:
                    self._held.append(block)
                    size += sum(_size(str(row.data)) for row in block.rows if isinstance(row, BadRow))
                sample += [dict(row) for row in block.rows if isinstance(row, dict)]
                if sample and (
                    self._text.is_stream or len(sample) >= SAMPLE_ROWS or block.end >= CHUNK_BYTES
                ):
                    break
                fault = fault or next((row.why for row in block.rows if isinstance(row, BadRow)), "")
                if size > _HELD_BYTES:
                    self._hold_no_more(fault)
        except Unreadable as error:
            if not sample:
                raise
            self._behind = _ended_by(error)  # said when what comes before it is read
        names = dict.fromkeys(name for row in sample for name in row)
        return Header(tuple(names), sample, open_ended=True, fault="" if sample else fault)

    def _hold_no_more(self, fault: str) -> None:
        if self._text.is_stream:
            raise Unreadable(f"begins with {_HELD_BYTES >> 20} MiB and more without a row ({fault})")
        self._held, self._behind = [], None  # they will be read once more


def _ended_by(error: Unreadable) -> Iterator[Block]:
    yield from ()
    raise error


class JsonLines(_JsonReader):
    """A list in jsonl: one object a line."""

    def _read(self, at: int, most: int, idle: Idle) -> Iterator[Block]:
        self._text.seek(at, idle)
        for block in line_blocks(lambda: self._text.read(idle), at, most, self._max_row_bytes, idle):
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


class JsonRows(_JsonReader):
    """A list in json: an array of objects, or objects one after the other."""

    def _read(self, at: int, most: int, idle: Idle) -> Iterator[Block]:
        self._text.seek(at, idle)
        scan = _Scan(at, self._max_row_bytes)
        while True:
            begun = scan.at
            while rows := scan.take(most):
                yield Block([], scan.at, rows=rows)
            if scan.is_finished:
                return
            if scan.at == begun and not idle():  # something that may have no end
                raise Stopped
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
