"""The rows of a list → windows of tasks, which are fed one portion after the other.

Usually a window is one block of the list, and one portion. It is larger where neighbours are to be of
different hosts, and it is left in its middle where a limit is reached there, or a feeder is killed. So the
position in Redis says how many of its tasks are taken, and in which order: whoever goes on makes the same
window again, whatever its own options are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from dlconsole.errors import FeedError
from dlconsole.services.feed_report import Position, Window
from dlconsole.services.items import Reject, Tally
from dlconsole.services.list_items import ItemMaker
from dlconsole.services.manifests import Block, UrlList
from dlconsole.services.spread import spread
from dlconsole.settings import FeedSettings

MOST_BYTES: Final = 64 << 20
"""Of the tasks of a window that is spread."""


@dataclass(slots=True)
class OpenWindow:
    """The `items` of consecutive rows, in the order in which they are fed, of which `taken` are. `start` is
    the position in front of it, `end` the one behind it; their `fed` and `duplicates` mean nothing.
    """

    start: Position
    end: Position
    items: list[bytes]
    is_spread: bool = False
    taken: int = 0
    first: int = 0
    """How many of the list's tasks lie in front of it."""
    too_large: Counter[str] = field(default_factory=Counter)

    def position(self, fed: int, duplicates: int) -> Position:
        """Where the list stands with `taken` of its tasks taken."""
        if self.taken == len(self.items):
            return msgspec.structs.replace(self.end, fed=fed, duplicates=duplicates)
        end = self.end
        window = Window(
            tasks=len(self.items),
            taken=self.taken,
            spread=self.is_spread,
            line=end.line,
            offset=end.offset,
            not_http=end.not_http,
            blank=end.blank,
            bad=end.bad,
            done=end.done,
        )
        return msgspec.structs.replace(self.start, fed=fed, duplicates=duplicates, window=window)


@dataclass(slots=True)
class WindowReader:
    """Makes the windows of one list. `samples` gets its first bad rows, `on_rejects` all of them; `idle` is
    asked while the list is waited for. Of a stream the first `skip` rows are left out; where `rows_apart`
    says so of a block, each of its rows is a window, so that the stream may be left behind any of them.
    """

    source: UrlList
    maker: ItemMaker
    settings: FeedSettings
    idle: Callable[[], bool]
    on_rejects: Callable[[list[Reject]], None]
    samples: dict[int, str]
    skip: int = 0
    rows_apart: Callable[[int], bool] = lambda _rows: False

    def windows(self, start: Position) -> Iterator[OpenWindow]:
        """From a position on. Raises FeedError."""
        if start.window is not None:
            window = self.reopened(start)
            if window is None:
                return  # it was ended meanwhile
            yield window
            start = window.end
            if start.done:
                return
        tally = Tally(start.line, 0, start.not_http, start.blank, start.bad, self.samples)
        blocks = self._skipped(self._blocks(start.offset))
        if not self.settings.shuffle_hosts:
            for block in self._apart(blocks):
                window = self._window(start, block, tally)
                self.on_rejects(tally.rejects)
                yield window
                start = window.end
            return
        yield from self._spread(start, blocks, tally)

    def reopened(self, start: Position) -> OpenWindow | None:
        """The window that a position is inside of, made again; None where the list was ended."""
        inside = start.window
        assert inside is not None
        end = Position(
            start.path,
            start.turn,
            line=inside.line,
            offset=inside.offset,
            not_http=inside.not_http,
            blank=inside.blank,
            bad=inside.bad,
            done=inside.done,
        )
        tally = Tally(start.line, 0, start.not_http, start.blank, start.bad, self.samples)
        items: list[bytes] = []
        too_large: Counter[str] = Counter()
        for block in self._blocks(start.offset):
            tally.next_block()
            items += self.maker.items(first_rows(block, inside.line - tally.lines), tally)
            self.on_rejects(tally.rejects)
            too_large += tally.too_large
            if tally.lines >= inside.line:
                break
        if tally.lines < inside.line:
            return None
        if len(items) != inside.tasks:
            raise FeedError(
                f"{self.source.path}: a run ended among {inside.tasks:,} tasks that are {len(items):,} with "
                "the options of now; go on with those that it had (columns, format, limits of URLs and rows)"
            )
        start = msgspec.structs.replace(start, window=None)
        items = self._ordered(items, inside.spread)
        return OpenWindow(start, end, items, inside.spread, inside.taken, too_large=too_large)

    def tasks_between(self, start: Position, end: Position) -> Iterator[list[bytes]]:
        """All that was taken between two positions, in blocks, for somebody who only wants to know them."""
        tally = Tally(start.line)
        for block in self._blocks(start.offset):
            if tally.lines >= end.line:
                break
            tally.next_block()
            yield self.maker.items(first_rows(block, end.line - tally.lines), tally)
        if end.window is not None:
            quiet = replace(self, samples={}, on_rejects=lambda _rejects: None)
            window = quiet.reopened(end)
            yield window.items[: window.taken] if window else []

    def _blocks(self, at: int) -> Iterator[Block]:
        return self.source.blocks(at=at, idle=self.idle, names=self.maker.needed)

    def _window(self, start: Position, block: Block, tally: Tally) -> OpenWindow:
        tally.next_block()
        items = self.maker.items(block, tally)
        end = Position(
            start.path,
            start.turn,
            line=tally.lines,
            offset=block.end,
            not_http=tally.not_http,
            blank=tally.blank,
            bad=tally.bad,
            done=block.done,
        )
        return OpenWindow(start, end, items, too_large=tally.too_large)

    def _spread(self, start: Position, blocks: Iterator[Block], tally: Tally) -> Iterator[OpenWindow]:
        """Windows of many blocks."""
        whole: OpenWindow | None = None
        size = 0
        for block in blocks:
            window = self._window(start, block, tally)
            self.on_rejects(tally.rejects)
            if whole is None:
                whole = window
            else:
                whole.items += window.items
                whole.too_large += window.too_large
                whole.end = window.end
            size += sum(map(len, window.items))
            if tally.lines - whole.start.line >= self.settings.shuffle_window or size >= MOST_BYTES:
                yield self._as_spread(whole)
                start, whole, size = whole.end, None, 0
        if whole is not None:
            yield self._as_spread(whole)

    def _as_spread(self, window: OpenWindow) -> OpenWindow:
        return replace(window, items=self._ordered(window.items, is_spread=True), is_spread=True)

    def _ordered(self, items: list[bytes], is_spread: bool) -> list[bytes]:
        return [items[index] for index in spread(items)] if is_spread else items

    def _apart(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            rows = len(block.lines) + len(block.rows)
            if rows > 1 and self.rows_apart(rows):
                yield from _each_row(block)
            else:
                yield block

    def _skipped(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks; a stream's without the first `skip` lines or rows."""
        left = self.skip
        for block in blocks:
            if not left:
                yield block
                continue
            lines, rows, too_long = block.lines[left:], block.rows[left:], block.too_long
            left = max(0, left - len(block.lines) - len(block.rows))
            if left:
                left, too_long = max(0, left - too_long), 0
            if lines or rows or too_long:
                yield replace(block, lines=lines, rows=rows, too_long=too_long)


def first_rows(block: Block, most: int) -> Block:
    """The block without what lies behind so many of its rows; its `end` stays."""
    have = len(block.lines) + len(block.rows)
    if most >= have + block.too_long:
        return block
    lines, rows = block.lines[:most], block.rows[:most]
    return replace(block, lines=lines, rows=rows, too_long=max(0, most - have), done=False)


def _each_row(block: Block) -> Iterator[Block]:
    """Its rows one by one, for a stream, whose positions count rows only."""
    for line in block.lines:
        yield replace(block, lines=[line], too_long=0, done=False)
    for row in block.rows:
        yield replace(block, rows=[row], too_long=0, done=False)
    if block.too_long or block.done:
        yield replace(block, lines=[], rows=[])
