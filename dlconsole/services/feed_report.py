"""How far a list is fed, as Redis keeps it, and what feeding it did so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from dlconsole.errors import RedisUnusable


class Window(msgspec.Struct, frozen=True):
    """A stretch of a list that is fed in parts: `taken` of its `tasks` are fed, or were duplicates, in the
    order of `spread` (see `spread.py`), or in their own. The others say where it ends, as in a position.
    """

    tasks: int
    taken: int
    spread: bool
    line: int
    offset: int
    not_http: int = 0
    blank: int = 0
    bad: int = 0
    done: bool = False


class Position(msgspec.Struct, frozen=True):
    """How far a list is fed: a value of `…:dl:feed`. `offset` and `line` are behind the last block: what an
    offset is depends on the list's format, and `line` counts rows. The counts are of this `turn`: how often
    the list was begun. `path` is where it was, for a reader. `done` says that the list ends there.

    Inside a `window` all are those in front of it, but for `fed` and `duplicates`, which count what was taken
    of it. Positions of older versions have neither.
    """

    path: str
    turn: int = 1
    line: int = 0
    offset: int = 0
    fed: int = 0
    not_http: int = 0
    blank: int = 0
    bad: int = 0
    done: bool = False
    duplicates: int = 0
    window: Window | None = None

    @property
    def made(self) -> int:
        """How many tasks lie in front of the window, or of the position where there is none."""
        return self.fed + self.duplicates - (self.window.taken if self.window else 0)

    def is_complete(self, size: int | None) -> bool:
        """Whether nothing is left of the list; of plain text in a file its size says so, and always did."""
        return self.done or (size is not None and self.offset >= size)


_POSITION: Final = msgspec.json.Decoder(Position)


def parse_position(text: bytes | None) -> Position | None:
    """The position that Redis has, None for none. Raises RedisUnusable where it is not ours."""
    if not text:
        return None
    try:
        return _POSITION.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RedisUnusable(f"a list's position in Redis is none of dlconsole's: {text[:80]!r}") from None


@dataclass(slots=True)
class FeedReport:
    """What feeding a list did so far. `lines` are the lines or rows that lie behind it, also of earlier runs;
    the counts are of this run: `tasks` were made, `fed` of them are known to be in Redis.
    `samples` are the first bad rows: number from 1 → why; `rejects` is the file that has all of them.
    """

    list_id: str = ""
    size: int | None = None
    """Where the positions of a file of plain text end; of nothing else is that known beforehand."""
    is_stream: bool = False
    raw_bytes: int | None = None
    """The list's size as it lies there, where that is known."""
    has_columns: bool = False
    columns: dict[str, Any] | None = None
    """Its columns: their roles, which others travel along; None for plain text, or where none was read."""
    began_line: int = 0
    fed_before: int = 0
    """Where an earlier run had come to, and how many tasks it fed."""
    lines: int = 0
    inside: int = 0
    """Tasks behind these lines that are fed all the same, or were duplicates: those taken of a window."""
    position: int = 0
    """How many of `raw_bytes` are read."""
    tasks: int = 0
    fed: int = 0
    not_http: int = 0
    blank: int = 0
    bad: int = 0
    duplicates: int = 0
    samples: dict[int, str] = field(default_factory=dict)
    rejects: str = ""
    too_large: dict[str, int] = field(default_factory=dict)
    """Values that were too large to travel along, by column."""
    waiting: str = ""
    """Why nothing is pushed just now: Redis is away, or the queue is full enough."""
    fed_as: str = ""
    """Nothing was left to do: the path that this list, or one with equal content, was fed from."""
    listed: bool = False
    """Nothing was done: the list of lists that are done has it, and Redis knows nothing of it."""
    limited: bool = False
    """Whether it ended at the limit, and not at its end."""
    stopped: bool = False

    @property
    def has_nothing(self) -> bool:
        """Whether not one row, nor a column, was found in a list that is not empty."""
        is_over = not (self.stopped or self.limited or self.listed or self.fed_as)
        return is_over and bool(self.raw_bytes) and self.has_columns and not self.lines and not self.columns
