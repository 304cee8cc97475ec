"""What a list is read as: blocks of rows, each with the position behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, overload

CHUNK_BYTES: Final = 1 << 20
SAMPLE_ROWS: Final = 100
"""Of how many rows at its beginning a list's columns are found."""

Idle = Callable[[], bool]
"""Asked now and then while a list is waited for: False ends it."""


class Unreadable(Exception):
    """Why a list cannot be read, or read on; whoever knows its name says it as a FeedError."""


class Stopped(Exception):
    """Nobody wants to wait for the list any longer."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is none: why, and what there is of it, for the file of rejects."""

    why: str
    data: Any = None


Row = dict[str, Any] | BadRow | None
"""Column → value; None is a blank line."""


class Table(Sequence[Row]):
    """Good rows as they lie in columns: whoever can use these need not make a row of each."""

    __slots__ = ("columns", "names")

    def __init__(self, names: Sequence[str], columns: list[list[Any]]) -> None:
        self.names = names
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Table: ...

    def __getitem__(self, index: int | slice) -> Row | Table:
        if isinstance(index, slice):
            return Table(self.names, [column[index] for column in self.columns])
        return dict(zip(self.names, [column[index] for column in self.columns], strict=True))

    def __iter__(self) -> Iterator[Row]:
        for values in zip(*self.columns, strict=False):
            yield dict(zip(self.names, values, strict=False))


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows, and the position behind them, from which reading can go on.

    Of plain text `lines`, without their newlines; behind these, `too_long` lines were left out that no
    limit would have let into memory. Of every other format `rows`. `done` says that the list ends here.
    """

    lines: list[bytes]
    end: int
    too_long: int = 0
    rows: Sequence[Row] = ()
    done: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of a list, in their order. Without a header of its own they are named 0, 1, …
    `sample` has its first rows.
    """

    names: tuple[str, ...]
    sample: list[dict[str, Any]]
    has_names: bool = True
    open_ended: bool = False
    """Whether further rows may have further columns: JSON."""
    fault: str = ""
    """Why none of its rows could be read."""
    notes: tuple[str, ...] = ()
    """What a user should know of how it is read."""


class RowReader(Protocol):
    """A list in one format."""

    def header(self, idle: Idle) -> Header:
        """Its columns. Raises Unreadable, Stopped, OSError."""

    def blocks(self, at: int, most: int, idle: Idle, names: frozenset[str] | None) -> Iterator[Block]:
        """Blocks of at most `most` rows (or SAMPLE_ROWS) from the position `at` on. `names` are the columns
        that are of use, None for all: others may be missing. Raises Unreadable, Stopped, OSError.
        """


def unique(names: list[str]) -> tuple[str, ...]:
    """Names of columns as they can be told apart: an empty one gets its number, a second one `_2`."""
    found: list[str] = []
    for number, name in enumerate(names):
        base = name.strip() or str(number)
        unlike, count = base, 1
        while unlike in found:
            count += 1
            unlike = f"{base}_{count}"
        found.append(unlike)
    return tuple(found)


def shown_text(text: str) -> str:
    """Text that was decoded with `surrogateescape`, as it can be written down."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def too_long(most_bytes: int) -> BadRow:
    """The row of a line that no limit lets into memory."""
    return BadRow(f"longer than {most_bytes} bytes")
