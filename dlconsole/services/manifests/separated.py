"""csv and tsv → rows. A position is the byte offset in the unpacked text behind a record.

csv is RFC 4180: fields in double quotes may hold commas, newlines and doubled quotes. tsv is what data sets
call so: one line a row, a tab between two fields, and quotes are text (Conceptual Captions); nothing in it
can hold a tab or a newline. `tsv-quoted` is csv with tabs, as spreadsheets and pandas write it.

What is called csv may be separated by tabs, semicolons or bars, and what is called tsv may be tsv-quoted: the
first rows tell, see `separators`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from dlconsole.services.manifests.lines import BOM, line_blocks
from dlconsole.services.manifests.records import Record, Records
from dlconsole.services.manifests.rows import (
    CHUNK_BYTES,
    SAMPLE_ROWS,
    BadRow,
    Block,
    Header,
    Idle,
    Row,
    Unreadable,
    shown_text,
    too_long,
    unique,
)
from dlconsole.services.manifests.separators import SEPARATORS, is_quoted, separator
from dlconsole.services.manifests.text import Text

_HTTP: Final = re.compile(r"\s*https?://", re.IGNORECASE)
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


class _PlainLines:
    """tsv: each line is a record. As `Records`."""

    def __init__(self, max_bytes: int) -> None:
        self._lines: list[bytes] = []
        self._max_bytes = max_bytes

    def add(self, lines: list[bytes]) -> None:
        self._lines += lines

    def take(self, most: int, *, is_last: bool) -> tuple[list[Record], int]:
        del is_last
        lines, self._lines = self._lines[:most], self._lines[most:]
        return list(map(self._cells, lines)), sum(map(len, lines)) + len(lines)

    def _cells(self, line: bytes) -> Record:
        if len(line) > self._max_bytes:
            return too_long(self._max_bytes)
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError:
            return BadRow("not UTF-8", shown_text(line.decode("utf-8", "surrogateescape")))
        return text.split("\t") if text else None


class SeparatedRows:
    """A list in csv or tsv. Without a header (its first row holds an http URL) the columns are named
    `preset_names`, or 0, 1, …
    """

    def __init__(
        self,
        text: Text,
        *,
        kind: str,
        max_row_bytes: int,
        preset_names: tuple[str, ...] = (),
        is_told: bool = False,
    ) -> None:
        self._text = text
        self._max_row_bytes = max_row_bytes
        self._preset_names = preset_names
        self._kind = kind
        self._is_told = is_told or bool(preset_names)
        self._records: Callable[[], Records | _PlainLines] = (
            partial(_PlainLines, max_row_bytes)
            if kind == "tsv"
            else partial(Records, "," if kind == "csv" else "\t", max_row_bytes)
        )
        self._header: Header | None = None
        self._data_at = 0

    def header(self, idle: Idle) -> Header:
        """See RowReader."""
        if self._header is None:
            self._header = self._read_header(idle)
        return self._header

    def _read_header(self, idle: Idle) -> Header:
        head, is_all = self._text.head(
            max(self._max_row_bytes, CHUNK_BYTES), idle, enough=lambda data: b"\n" in data.strip()
        )
        if head.startswith(_UTF16):
            raise Unreadable("is UTF-16; make it UTF-8 first: iconv -f UTF-16 -t UTF-8")
        if b"\n" not in head and b"\r" in head.strip():
            raise Unreadable("ends its lines with CR alone; make them newlines first: tr '\\r' '\\n'")
        at = len(BOM) if head.startswith(BOM) else 0
        lines = head[at:].split(b"\n")
        if not is_all and len(lines) == 1:
            raise Unreadable(
                f"has a first line of more than {len(head)} bytes, where names of columns should be"
            )
        if not is_all or not lines[-1]:
            lines.pop()
        notes = self._choose_separator(lines)
        records = self._records()
        records.add(lines)
        first: Record = None
        begins = at
        while first is None and lines:
            begins = at
            found, size = records.take(1, is_last=True)
            if not found:
                break
            first, at = found[0], at + size
        if isinstance(first, BadRow):
            raise Unreadable(f"has no readable first row, where the names of its columns are: {first.why}")
        names, has_names = self._names(first or [])
        self._data_at = min(at if has_names else begins, len(head))
        sample, _ = records.take(SAMPLE_ROWS, is_last=True)
        rows = [dict(zip(names, row, strict=False)) for row in sample if isinstance(row, list)]
        if first and not has_names:
            rows.insert(0, dict(zip(names, first, strict=True)))
        return Header(names, rows, has_names, notes=notes)

    def _choose_separator(self, lines: list[bytes]) -> tuple[str, ...]:
        """Where what is called csv has another separator, or what is called tsv has quotes: read it so where
        that is certain, and say it.
        """
        if self._kind == "csv" and (found := separator(lines, self._max_row_bytes)) != ",":
            self._records = partial(Records, found, self._max_row_bytes)
            return (f"separated by {SEPARATORS[found]}",)
        if self._kind == "tsv" and (has_quotes := is_quoted(lines, self._max_row_bytes)) is not False:
            if has_quotes and not self._is_told:
                self._records = partial(Records, "\t", self._max_row_bytes)
                return ("read as tsv-quoted (--format tsv: quotes are text)",)
            return ("its quotes are read as text (--format tsv-quoted: as quotes)",)
        return ()

    def _names(self, first: list[str]) -> tuple[tuple[str, ...], bool]:
        preset = self._preset_names
        if len(preset) == len(first):
            has_names = any(cell.strip().lower() in preset for cell in first)
            return (unique(first), True) if has_names else (preset, False)
        if not any(map(_HTTP.match, first)):
            return unique(first), True
        return tuple(map(str, range(len(first)))), False

    def blocks(self, at: int, most: int, idle: Idle, _names: frozenset[str] | None) -> Iterator[Block]:
        """See RowReader."""
        names = self.header(idle).names
        at = max(at, self._data_at)
        self._text.seek(at, idle)
        records, end = self._records(), at
        for block in line_blocks(lambda: self._text.read(idle), at, most, self._max_row_bytes, idle):
            end = block.end
            records.add(block.lines)
            while True:
                found, size = records.take(most, is_last=bool(block.too_long))
                if not found:
                    break
                at += size
                yield Block([], min(at, end), rows=_rows(found, names))
            if block.too_long:
                at = block.end
                yield Block([], at, rows=[too_long(self._max_row_bytes)])
        while True:
            found, size = records.take(most, is_last=True)
            if not found:
                return
            at += size
            yield Block([], min(at, end), rows=_rows(found, names))


def _rows(found: list[Record], names: tuple[str, ...]) -> list[Row]:
    count = len(names)
    rows: list[Row] = []
    for record in found:
        if not isinstance(record, list):
            rows.append(record)
        elif len(record) == count:
            rows.append(dict(zip(names, record, strict=True)))
        else:
            rows.append(BadRow(_wrong_count(len(record), count), record))
    return rows


def _wrong_count(found: int, wanted: int) -> str:
    return f"has {found} column{'s' if found != 1 else ''} where the list has {wanted}"
