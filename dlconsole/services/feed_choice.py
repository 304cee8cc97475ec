"""Which of a list's tasks are fed: duplicates are left out, and what lies beyond the limit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlconsole.services.feed_report import Position
from dlconsole.services.feed_windows import OpenWindow, WindowReader
from dlconsole.settings import Settings

if TYPE_CHECKING:
    from dlconsole.services.seen import Digests, Seen, SeenInList


@dataclass(frozen=True, slots=True)
class Chosen:
    """Of the next `taken` tasks of a window these `items` are fed; `digests` are theirs, where duplicates are
    looked for.
    """

    items: list[bytes]
    taken: int
    digests: Digests | None = None


class Choice:
    """Chooses for one list. `most` is how many of its tasks may be fed in this turn, earlier runs counted;
    None for all. `seen` knows duplicates.
    """

    def __init__(self, most: int | None, seen: Seen | None) -> None:
        self.most = most
        self._seen = seen

    def is_reached(self, fed: int) -> bool:
        """Whether the limit is."""
        return self.most is not None and fed >= self.most

    def of(self, window: OpenWindow, block: int, fed: int) -> Chosen:
        """From the window's next `block` tasks; `fed` were before."""
        portion = window.items
        if window.taken or len(portion) > block:
            portion = portion[window.taken : window.taken + block]
        most = len(portion) if self.most is None else max(0, self.most - fed)
        if self._seen is None or not portion:
            chosen = portion if len(portion) <= most else portion[:most]
            return Chosen(chosen, len(chosen))
        return self._firsts(portion, window, most, self._seen)

    def _firsts(self, portion: list[bytes], window: OpenWindow, most: int, seen: Seen) -> Chosen:
        from dlconsole.services.seen import digests_of  # noqa: PLC0415  (loads numpy)

        digests = digests_of(portion)
        places = seen.first_ones(digests, window.first).nonzero()[0]
        taken = len(portion)
        if len(places) > most:
            taken = int(places[most])
            seen.forget(digests[places[most:]])
            places = places[:most]
        return Chosen([portion[place] for place in places.tolist()], taken, digests[places])

    def confirm(self, digests: Digests | None, window_end: int) -> None:
        """These are in Redis; `window_end` of the list's tasks lie up to the end of their window."""
        if self._seen is not None and digests is not None:
            self._seen.confirm(digests, window_end)

    def forget(self, digests: Digests | None) -> None:
        """These were not pushed."""
        if self._seen is not None and digests is not None:
            self._seen.forget(digests)


class Knowledge:
    """Keeps `seen` true to where a list stands: a position that Redis says may lie behind or in front of what
    this run knows.
    """

    def __init__(self, seen: Seen | None, of_list: SeenInList | None, say: Callable[[str], None]) -> None:
        self._seen = seen
        self._of_list = of_list
        self._say = say
        self._knows: Position | None = None

    def move_to(self, position: Position) -> None:
        """Redis has everything up to here: this run's own push."""
        self._knows = position

    def begin(
        self, list_id: str, found: Position, reader: WindowReader, goes_on: Callable[[str], bool]
    ) -> None:
        """Go on from a position. What is not known of the rows in front of it is read; `goes_on` is told so,
        and ends that by False. Raises FeedError.
        """
        if self._seen is not None:
            self._seen.begin(list_id, found.turn, found.made)
        if self._of_list is None:
            return
        known = self._knows
        if known is None or not _is_ahead(found, known):
            if known is not None:
                self._of_list.reset()
            known = Position(found.path, found.turn)
            if found.line:
                self._say(f"{reader.source.path}: {_reading(found.line)}")
        self._learn(self._of_list, known, found, reader, goes_on)
        self._knows = found

    def _learn(
        self,
        seen: SeenInList,
        known: Position,
        found: Position,
        reader: WindowReader,
        goes_on: Callable[[str], bool],
    ) -> None:
        from dlconsole.services.seen import digests_of  # noqa: PLC0415  (loads numpy)

        for items in reader.tasks_between(known, found):
            seen.learn(digests_of(items))
            if not goes_on(_reading(found.line - known.line)):
                return


def _reading(rows: int) -> str:
    return f"reading {rows:,} rows that were fed before, to know their URLs"


def _is_ahead(found: Position, known: Position) -> bool:
    """Whether everything that is known lies in front of `found`."""
    taken = found.fed + found.duplicates
    return found.turn == known.turn and found.line >= known.line and taken >= known.fed + known.duplicates


def seen_in_list(settings: Settings) -> AbstractContextManager[SeenInList | None]:
    """What finds the duplicates of one list, where that is asked for. Raises FeedError."""
    if settings.feed.dedupe != "file":
        return nullcontext()
    from dlconsole.services.seen import SeenInList  # noqa: PLC0415  (loads numpy)

    return closing(SeenInList(settings.feed.temp_dir or settings.state_dir / "feed"))
