"""Bytes → lines of a ledger, quickly and leniently; and what sorts them.

A line is read strictly first and, where that fails, as Python's own reader does: what foreign feeders put
into items (NaN, lone surrogates, numbers of any size) does not make it less of a line.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from dlconsole.model import KEY_DIGITS, LedgerLine
from dlconsole.services.objects import read_object

SAMPLES: Final = 5
_SAMPLE_BYTES: Final = 80
_START: Final = KEY_DIGITS + 1
_LIST: Final = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}-")
_BLOCK: Final = 4096
_TAILS: Final = [f"{number:03x}\0" for number in range(_BLOCK)]
_ADDED: Final = 10**15
"""Added to a time, it makes all as long, so that the greater text is the greater; padding is slower."""
_RAW: Final = ("caption", "id", "hash", "columns")

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=2**48 - 1)]


class Line(LedgerLine, frozen=True, gc=False, omit_defaults=True):
    """A line with no number in it that a table or a sort key could not hold."""

    status: _Number | None = None
    bytes: _Number = 0
    width: _Number = 0
    height: _Number = 0
    attempts: _Number = 1
    started_ms: _Time = 0
    ended_ms: _Time = 0


class Row(Line, frozen=True, gc=False, omit_defaults=True):
    """A line with the values that travelled along, not their JSON."""

    caption: Any = None
    id: Any = None
    hash: Any = None
    columns: Any = None


L = TypeVar("L", Line, Row)


@dataclass(slots=True)
class Bad:
    """Lines that are none of a ledger, with what the first of them are."""

    count: int = 0
    samples: list[str] = field(default_factory=list)

    def add(self, place: str, why: str, line: bytes = b"") -> None:
        """One more."""
        self.count += 1
        if len(self.samples) < SAMPLES:
            text = line[:_SAMPLE_BYTES].decode("utf-8", "backslashreplace")
            self.samples.append(f"{place}: {why}" + (f": {text}" if text else ""))


class LineReader(Generic[L]):
    """Reads lines as `Line` or as `Row`; remembers those that are neither."""

    def __init__(self, kind: type[L]) -> None:
        self._kind: type[L] = kind
        self._decoder: msgspec.json.Decoder[L] = msgspec.json.Decoder(kind)
        self.bad = Bad()

    def read(self, text: bytes, file: str = "", number: int = 1) -> tuple[list[bytes], list[L]]:
        """Of whole lines with their newlines, those that are a ledger's, as they stand and as what they say.
        `file` and `number`, that of the first line, name the others. Empty lines do not count.
        """
        lines = text.split(b"\n")
        lines.pop()
        # What decodes many lines at once takes any white space for what is between them. That each begins
        # with a brace and there are as many objects as lines, makes each line one object.
        if all([line[:1] == b"{" for line in lines]):  # noqa: C419  (three times as fast)
            try:
                found = self._decoder.decode_lines(text)
            except (ValueError, RecursionError):
                found = []
            if len(found) == len(lines):
                return lines, found
        return self._one_by_one(lines, file, number)

    def again(self, lines: Sequence[bytes]) -> list[L]:
        """What lines say that were read before, by this or another reader of the kind."""
        try:
            return self._decoder.decode_lines(b"\n".join(lines))
        except (ValueError, RecursionError):
            return [self._decode(line) for line in lines]

    def _one_by_one(self, lines: list[bytes], file: str, number: int) -> tuple[list[bytes], list[L]]:
        good: list[bytes] = []
        found: list[L] = []
        for at, line in enumerate(lines, number):
            if not line or line.isspace():
                continue
            try:
                found.append(self._decode(line))
                good.append(line)
            except (ValueError, RecursionError) as error:
                self.bad.add(f"{file} line {at}", str(error), line)
        return good, found

    def _decode(self, line: bytes) -> L:
        try:
            return self._decoder.decode(line)
        except (ValueError, RecursionError):
            fields = read_object(line)
        if fields is None:
            raise ValueError("no JSON object")
        row = msgspec.convert(fields, Row)
        if self._kind is Row:
            return row
        # Written with escapes, so that it is JSON again, but for NaN.
        raws = {name: msgspec.Raw(json.dumps(fields.pop(name)).encode()) for name in _RAW if name in fields}
        return msgspec.structs.replace(msgspec.convert(fields, self._kind), **raws)


# -- what sorts them --------------------------------------------------------------------------------


def heads(lines: Sequence[LedgerLine], first: int) -> list[bytes]:
    """What stands before each line where they are sorted: bytes that compare as `order` does, then NUL, then
    those that say which of a task's lines is the last, then NUL. `first` is the number of the first line,
    counted through all files in their order.
    """
    found: list[bytes] = []
    for start in range(0, len(lines), _BLOCK):
        block = f"{first + start:013x}"
        found += [
            f"{order(line.key)}\0{_ADDED + line.ended_ms}{block}{tail}".encode("utf-8", "surrogatepass")
            for line, tail in zip(lines[start : start + _BLOCK], _TAILS, strict=False)
        ]
    return found


def order(key: str) -> str:
    """Text that sorts keys in the order of their source: those of lists by list, then by row; others behind
    them, by their text. Different for different keys, without NUL and newline.
    """
    prefix = _prefix(key[:_START], len(key))
    if prefix:
        number = key[_START:]
        # Without a leading zero, so that each number is written in one way.
        if number.isdecimal() and number.isascii() and number[0] != "0":
            return prefix + number
    return "1" + key.replace("\1", "\1\1").replace("\0", "\1\2").replace("\n", "\1\3")


@functools.lru_cache(4096)
def _prefix(start: str, length: int) -> str:
    """What a list's key begins with, by its first characters and its length: a longer number is a greater
    one. '' where it is no list's.
    """
    digits = length - _START
    return f"0{start[:-1]}{digits:02}" if _LIST.fullmatch(start) and 0 < digits < 100 else ""
