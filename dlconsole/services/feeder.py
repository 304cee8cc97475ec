"""Lists → queue: each block of tasks is pushed together with the list's position, in one script.

So the position in Redis is the truth, and there is nothing else to agree with it: whoever feeds asks
where the list stands and goes on from there, after a `kill -9`, after a reply that never came, and
after a Redis that came back without its last second.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from dlconsole.errors import FeedError, RedisUnavailable
from dlconsole.services.columns import Columns
from dlconsole.services.feed_choice import Choice, Knowledge, seen_in_list
from dlconsole.services.feed_link import Link, Push
from dlconsole.services.feed_report import FeedReport, Position, parse_position
from dlconsole.services.feed_windows import WindowReader
from dlconsole.services.items import Tally
from dlconsole.services.list_items import ItemMaker, item_maker, open_as_set
from dlconsole.services.manifests import Place, Stopped, UrlList
from dlconsole.services.patience import Patience, wait_while
from dlconsole.services.permission import require_writable
from dlconsole.services.rejects import RejectFile
from dlconsole.settings import Settings

if TYPE_CHECKING:
    from dlconsole.services.bloom import Bloom

_ASK_DEPTH_S: Final = 1.0
"""How often the queue's length is asked for while it is above the threshold."""


def count(
    place: Place,
    settings: Settings,
    on_progress: Callable[[FeedReport], bool] = lambda _report: True,
    on_tasks: Callable[[list[bytes]], None] = lambda _items: None,
    on_columns: Callable[[Columns], None] = lambda _columns: None,
    most: int | None = None,
) -> FeedReport:
    """Read a list as `feed` would, up to `most` tasks, and push nothing; `on_tasks` is given the items.
    Duplicates are counted with the others. Raises FeedError.
    """
    tally, report = Tally(), FeedReport()

    def goes_on() -> bool:
        report.stopped = not on_progress(report)
        return not report.stopped

    with _stoppable(report), open_as_set(place, settings, goes_on) as source:
        _describe(report, source)
        maker = item_maker(source, settings, goes_on)
        _tell_columns(report, maker, on_columns)
        for block in source.blocks(idle=goes_on, names=maker.needed):
            tally.next_block()
            items = maker.items(block, tally)
            if most is not None and tally.tasks >= most:
                items = items[: len(items) - (tally.tasks - most)]
                tally.tasks, report.limited = most, True
            on_tasks(items)
            report.lines, report.position, report.tasks = tally.lines, source.raw_at, tally.tasks
            report.not_http, report.blank, report.bad = tally.not_http, tally.blank, tally.bad
            report.samples = tally.samples
            _add_up(report.too_large, tally.too_large)
            if not goes_on() or report.limited:
                break
    return report


def feed(
    place: Place,
    settings: Settings,
    *,
    skip: int = 0,
    again: bool = False,
    listed: bool = False,
    on_progress: Callable[[FeedReport], bool] = lambda _report: True,
    on_columns: Callable[[Columns], None] = lambda _columns: None,
    say: Callable[[str], None] = lambda _text: None,
    most: Callable[[str], int | None] = lambda _list_id: None,
    bloom: Bloom | None = None,
) -> FeedReport:
    """Feed a list from where it stands; `on_progress` is called after each block, and ends it by False.
    `on_columns` is told, before anything is fed, what the list's columns are; not of plain text.

    `skip` lines or rows of a stream are left out. `again` feeds a list that is done once more; one that is
    half fed is gone on with all the same, so the same command can be repeated until it comes to its end.
    `listed` says that somebody else knows this list to be done, which counts where Redis does not know it.
    `most` tells, by the list's id, how many of its tasks may be fed in this turn, those of earlier runs
    counted; None for all. `bloom` is what knows duplicates with `feed.dedupe = "bloom"`.

    Waits while Redis is away, and tells `say`. Raises FeedError, ReadOnlyError, RedisUnusable.
    """
    require_writable(settings, "feeding")
    report = FeedReport()
    wishes = _Wishes(on_progress, on_columns, say, skip=skip, again=again, listed=listed)
    with (
        _stoppable(report),
        open_as_set(place, settings, lambda: on_progress(report)) as source,
        seen_in_list(settings) as of_list,
    ):
        _describe(report, source)
        if source.is_stream and bloom is not None:
            raise FeedError(
                f"{source.path}: --dedupe bloom needs a list that can be read again: fetch it first"
            )
        choice = Choice(most(source.id), bloom or of_list)
        knowledge = Knowledge(bloom or of_list, of_list, say)
        _Feeder(source, settings, report, wishes, choice, knowledge).run()
    return report


@contextmanager
def _stoppable(report: FeedReport) -> Iterator[None]:
    """Waiting for a list that was ended is no error."""
    try:
        yield
    except Stopped:
        report.stopped = True


def _describe(report: FeedReport, source: UrlList) -> None:
    report.list_id, report.size, report.raw_bytes = source.id, source.size, source.raw_bytes
    report.is_stream, report.has_columns = source.is_stream, source.has_columns


def _tell_columns(report: FeedReport, maker: ItemMaker, on_columns: Callable[[Columns], None]) -> None:
    if maker.columns is not None and maker.columns.url:
        report.columns = maker.columns.to_json()
        on_columns(maker.columns)


def _add_up(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for name, number in more.items():
        counts[name] = counts.get(name, 0) + number


def _shown_place(place: Place) -> str:
    """A place as Redis keeps it: a file's whole path."""
    if isinstance(place, Path):
        return os.fsencode(place.absolute()).decode("utf-8", "replace")
    return str(place)


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What `feed` was asked for; see there."""

    on_progress: Callable[[FeedReport], bool]
    on_columns: Callable[[Columns], None]
    say: Callable[[str], None]
    skip: int
    again: bool
    listed: bool


class _Moved(Exception):
    """The list does not stand where it was thought to: somebody else feeds it, or Redis lost something."""


class _Feeder:
    """Feeds one list. Blocks are pushed one ahead: while the server takes in one, the next is made."""

    def __init__(
        self,
        source: UrlList,
        settings: Settings,
        report: FeedReport,
        wishes: _Wishes,
        choice: Choice,
        knowledge: Knowledge,
    ) -> None:
        self._source = source
        self._settings = settings
        self._report = report
        self._wishes = wishes
        self._listed = wishes.listed
        self._choice = choice
        self._knowledge = knowledge
        self._skip = wishes.skip if source.is_stream else 0
        self._wait = wait_while(self._goes_on)
        self._patience = Patience(self._wait, wishes.say)
        self._path = _shown_place(source.path)
        name = "stdin" if str(source.path) == "-" else source.path.name
        self._rejects = RejectFile(settings.feed.reject_dir, name, source.id, wishes.say)
        self._reader: WindowReader | None = None
        self._depth: int | None = None
        """The queue's length as it was last told by this link."""
        self._sent: deque[Push] = deque()
        self._made: Iterator[Push] = iter(())
        self._stands: bytes | None = None
        """The last position that Redis said; None before the first."""
        self._turn = 1
        self._fed = 0
        """Tasks of this turn up to the last one that was made."""
        self._began = Position(self._path)

    def run(self) -> None:
        """Until the list's end, or until it was asked to stop."""
        with closing(self._rejects):
            self._run()

    def _run(self) -> None:
        at_end = False
        while not self._report.stopped:
            try:
                with Link(self._settings, self._source.id) as link:
                    self._report.waiting, self._depth = "", None
                    if not at_end and self._agree(link):
                        self._push_all(link)
                    at_end = not self._report.stopped
                    if at_end and self._source.is_stream:
                        link.forget()
                    self._patience.over()
                    return
            except _Moved:
                continue
            except RedisUnavailable as trouble:
                self._report.waiting = str(trouble)
                self._patience.pause(trouble)

    def _agree(self, link: Link) -> bool:
        """Ask where the list stands and go on from there; whether anything is left to do."""
        stands = link.stands()
        first, self._stands = self._stands is None, self._stands if self._stands is not None else b""
        # Of what was sent without an answer some may have arrived.
        arrived = [push.after for push in self._sent]
        for _ in range(arrived.index(stands) + 1 if stands in arrived else 0):
            self._arrived(self._sent.popleft())
        if first and self._listed and not stands:
            # Fed from this path before, but with another content: that was another list.
            self._listed = not link.knows(self._path)
        if first or stands != self._stands:
            return self._go_on_from(stands, first=first)
        for push in self._sent:
            link.send(push)
        return True

    def _go_on_from(self, stands: bytes, *, first: bool) -> bool:
        """Begin at, or go back or forward to, the position that Redis has."""
        found = parse_position(stands)
        source, again = self._source, self._wishes.again
        if source.is_stream and not first:
            line = found.line if found else self._skip
            raise FeedError(
                f"{source.path}: Redis came back without what was pushed last, and a stream cannot be read "
                f"twice; feed it once more from line {line + 1} on (--skip {line})"
                + (f"; {found.window.taken:,} tasks behind it are queued" if found and found.window else "")
            )
        if first and self._listed and not again and found is None:
            self._report.listed, self._report.position = True, source.raw_bytes or 0
            return False
        complete = not source.is_stream and found is not None and found.is_complete(source.size)
        # One that had no row is looked at again, and warned of.
        complete = complete and not (source.has_columns and found is not None and not found.line)
        if first and found is not None:
            self._turn = found.turn + (complete and again)
        done = complete and found is not None and found.turn >= self._turn
        if found is None or (complete and not done):
            found = Position(self._path, turn=self._turn, line=self._skip)
        if first or found.turn != self._began.turn or found.made < self._began.made:
            self._began = found
            self._report.began_line, self._report.fed_before = found.line, found.fed
        for push in self._sent:
            self._choice.forget(push.digests)
        self._sent.clear()
        self._stands = stands
        self._show(found)
        if done:
            self._report.fed_as = found.path if first else ""
            self._report.position = source.raw_bytes or 0
            return False
        self._report.limited = self._choice.is_reached(found.fed)
        if self._report.limited:
            return False
        return self._begin_at(found)

    def _begin_at(self, found: Position) -> bool:
        """Make ready to push what follows; False where the list was ended meanwhile."""
        reader = self._ready_reader()
        # Of streams every row before the limit has to be told apart: how else could one go on behind it?
        reader.rows_apart = lambda rows: self._source.is_stream and self._choice.is_reached(self._fed + rows)
        self._knowledge.begin(self._source.id, found, reader, self._goes_on_learning)
        self._report.waiting = ""
        if self._report.stopped:
            return False
        self._made = self._pushes(msgspec.structs.replace(found, path=self._path), reader)
        self._rejects.cut_behind(found.line)
        return True

    def _goes_on_learning(self, waiting: str) -> bool:
        self._report.waiting = waiting
        return self._goes_on()

    def _ready_reader(self) -> WindowReader:
        if self._reader is None:
            maker = item_maker(self._source, self._settings, self._goes_on)
            _tell_columns(self._report, maker, self._wishes.on_columns)
            self._reader = WindowReader(
                self._source,
                maker,
                self._settings.feed,
                self._goes_on,
                self._rejects.write,
                self._report.samples,
                self._skip,
            )
        return self._reader

    def _push_all(self, link: Link) -> None:
        while self._has_room(link) and (push := next(self._made, None)) is not None:
            self._sent.append(push)
            link.send(push)
            while len(self._sent) > 1:
                self._collect(link)
            # A stream can be gone on with behind a window, not inside.
            if not self._goes_on() and not (self._source.is_stream and push.to.window):
                break
        while self._sent:
            self._collect(link)

    def _has_room(self, link: Link) -> bool:
        """Wait while the queue is full enough; False where it was asked to stop."""
        most = self._settings.feed.threshold
        if not most:
            return True
        if self._depth is None:
            self._depth = link.depth()
        if self._depth + sum(len(push.items) for push in self._sent) <= most:
            return True
        while self._sent:
            self._collect(link)
        while self._depth > most:
            self._report.waiting = f"the queue has {self._depth:,} tasks, more than {most:,} (--threshold)"
            if self._wait(_ASK_DEPTH_S):
                return False
            self._depth = link.depth()
        self._report.waiting = ""
        return True

    def _pushes(self, start: Position, reader: WindowReader) -> Iterator[Push]:
        """What follows `start`, each part knowing which one it follows."""
        block, report, choice = self._settings.feed.block, self._report, self._choice
        before, before_line = self._stands or b"", start.line
        duplicates, made = start.duplicates, start.made
        self._fed = start.fed
        for window in reader.windows(start):
            window.first, is_over = made, False
            while not is_over:
                chosen = choice.of(window, block, self._fed)
                window.taken += chosen.taken
                is_over = window.taken == len(window.items)
                self._fed += len(chosen.items)
                duplicates += chosen.taken - len(chosen.items)
                to = window.position(self._fed, duplicates)
                after = msgspec.json.encode(to)
                report.tasks, report.position = self._fed - self._began.fed, self._source.raw_at
                yield Push(
                    before, before_line, after, to, chosen.items, chosen.digests, made + len(window.items),
                    window.too_large if is_over else {},
                )  # fmt: skip
                before, before_line = after, to.line
                if choice.is_reached(self._fed):
                    report.limited = not to.is_complete(self._source.size)
                    return
            made += len(window.items)

    def _goes_on(self) -> bool:
        self._report.stopped = not self._wishes.on_progress(self._report)
        return not self._report.stopped

    def _collect(self, link: Link) -> None:
        """Read the answer to the oldest block on its way."""
        applied, stands, self._depth = link.answer()
        if not applied and stands != self._sent[0].after:
            # Its bad rows are in the file of whoever pushed these rows instead.
            self._rejects.cut_own_behind(self._sent[0].before_line)
            raise _Moved
        self._arrived(self._sent.popleft())

    def _arrived(self, push: Push) -> None:
        self._patience.over()
        self._stands = push.after
        self._choice.confirm(push.digests, push.window_end)
        self._knowledge.move_to(push.to)
        self._show(push.to)
        _add_up(self._report.too_large, push.too_large)
        self._report.rejects = str(self._rejects.path or "")

    def _show(self, stands: Position) -> None:
        """Bring the report to what is known to be in Redis."""
        report, began = self._report, self._began
        report.lines, report.inside = stands.line, stands.window.taken if stands.window else 0
        if stands.turn == began.turn:
            report.fed = max(0, stands.fed - began.fed)
            report.not_http = max(0, stands.not_http - began.not_http)
            report.blank = max(0, stands.blank - began.blank)
            report.bad = max(0, stands.bad - began.bad)
            report.duplicates = max(0, stands.duplicates - began.duplicates)
