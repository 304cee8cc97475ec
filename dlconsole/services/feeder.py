"""Lists → queue: each block of tasks is pushed together with the list's position, in one script.

So the position in Redis is the truth, and there is nothing else to agree with it: whoever feeds asks
where the list stands and goes on from there, after a `kill -9`, after a reply that never came, and
after a Redis that came back without its last second.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import redis

from dlconsole.errors import FeedError, RedisUnavailable, RedisUnusable
from dlconsole.services import manifests
from dlconsole.services.connection import check_version, connect, translated
from dlconsole.services.items import Tally, TaskWriter
from dlconsole.services.keys import Keys
from dlconsole.services.manifests import UrlList
from dlconsole.services.patience import Patience, wait_while
from dlconsole.services.permission import require_writable
from dlconsole.services.scripts import script
from dlconsole.settings import Settings

CLIENT_NAME: Final = "dlconsole-feed"


class Position(msgspec.Struct, frozen=True):
    """How far a list is fed: a value of `…:dl:feed`. `offset` and `line` are behind the last block, the
    counts are of this `turn`: how often the list was begun. `path` is where it was, for a reader.
    """

    path: str
    turn: int = 1
    line: int = 0
    offset: int = 0
    fed: int = 0
    not_http: int = 0
    blank: int = 0
    bad: int = 0


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
    """What feeding a list did so far. `lines` are those that lie behind it, also of earlier runs; the
    counts are of this run: `tasks` were made, `fed` of them are known to be in Redis.
    `samples` are the first bad rows: line number from 1 → why.
    """

    list_id: str = ""
    size: int | None = None
    began_line: int = 0
    fed_before: int = 0
    """Where an earlier run had come to, and how many tasks it fed."""
    lines: int = 0
    position: int = 0
    tasks: int = 0
    fed: int = 0
    not_http: int = 0
    blank: int = 0
    bad: int = 0
    samples: dict[int, str] = field(default_factory=dict)
    waiting: str = ""
    """Why nothing is pushed just now: Redis is away."""
    fed_as: str = ""
    """Nothing was left to do: the path that this list, or one with equal content, was fed from."""
    listed: bool = False
    """Nothing was done: the list of lists that are done has it, and Redis knows nothing of it."""
    stopped: bool = False


def count(
    path: Path,
    settings: Settings,
    on_progress: Callable[[FeedReport], bool],
    on_tasks: Callable[[list[bytes]], None] = lambda _items: None,
) -> FeedReport:
    """Read a list as `feed` would, and push nothing; `on_tasks` is given the items. Raises FeedError."""
    writer, tally, report = TaskWriter(settings), Tally(), FeedReport()
    limit = settings.feed.max_url_bytes
    with manifests.open_list(path) as source:
        for block in source.blocks(
            at=0, lines=settings.feed.block, max_line_bytes=limit, idle=lambda: on_progress(report)
        ):
            on_tasks(writer.tasks(block.lines, tally, too_long=block.too_long))
            report.lines, report.position, report.tasks = tally.lines, block.end, tally.tasks
            report.not_http, report.blank, report.bad = tally.not_http, tally.blank, tally.bad
            report.samples = tally.samples
            if not on_progress(report):
                report.stopped = True
                break
    return report


def feed(
    path: Path,
    settings: Settings,
    *,
    skip: int = 0,
    again: bool = False,
    listed: bool = False,
    on_progress: Callable[[FeedReport], bool] = lambda _report: True,
    say: Callable[[str], None] = lambda _text: None,
) -> FeedReport:
    """Feed a list from where it stands; `on_progress` is called after each block, and ends it by False.

    `skip` lines of a stream are left out. `again` feeds a list that is done once more; one that is half
    fed is gone on with all the same, so the same command can be repeated until it comes to its end.
    `listed` says that somebody else knows this list to be done, which counts where Redis does not know it.

    Waits while Redis is away, and tells `say`. Raises FeedError, ReadOnlyError, RedisUnusable.
    """
    require_writable(settings, "feeding")
    report = FeedReport()
    with manifests.open_list(path) as source:
        _Feeder(source, settings, report, on_progress, say, skip=skip, again=again, listed=listed).run()
    return report


@dataclass(frozen=True, slots=True)
class _Push:
    """A block on its way: from position `before` to `after`, as text and as numbers."""

    before: bytes
    after: bytes
    to: Position
    items: list[bytes]


class _Moved(Exception):
    """The list does not stand where it was thought to: somebody else feeds it, or Redis lost something."""


class _Feeder:
    """Feeds one list. Blocks are pushed one ahead: while the server takes in one, the next is made."""

    def __init__(
        self,
        source: UrlList,
        settings: Settings,
        report: FeedReport,
        on_progress: Callable[[FeedReport], bool],
        say: Callable[[str], None],
        *,
        skip: int,
        again: bool,
        listed: bool,
    ) -> None:
        self._source = source
        self._settings = settings
        self._report = report
        self._on_progress = on_progress
        self._patience = Patience(wait_while(self._goes_on), say)
        self._skip = skip
        self._again = again
        self._listed = listed
        self._path = os.fsencode(source.path.absolute()).decode("utf-8", "replace")
        self._writer = TaskWriter(settings)
        self._sent: deque[_Push] = deque()
        self._made: Iterator[_Push] = iter(())
        self._stands: bytes | None = None
        """The last position that Redis said; None before the first."""
        self._turn = 1
        self._began = Position(self._path)
        report.list_id, report.size = source.id, source.size

    def run(self) -> None:
        """Until the list's end, or until it was asked to stop."""
        at_end = False
        while not self._report.stopped:
            try:
                with _Link(self._settings, self._source.id) as link:
                    self._report.waiting = ""
                    if not at_end and self._agree(link):
                        self._push_all(link)
                    at_end = not self._report.stopped
                    if at_end and self._source.size is None:
                        link.forget()
                    self._patience.over()
                    return
            except _Moved:
                continue
            except RedisUnavailable as trouble:
                self._report.waiting = str(trouble)
                self._patience.pause(trouble)

    def _agree(self, link: _Link) -> bool:
        """Ask where the list stands and go on from there; whether anything is left to do."""
        stands = link.stands()
        first, self._stands = self._stands is None, self._stands if self._stands is not None else b""
        # Of what was sent without an answer some may have arrived.
        arrived = [push.after for push in self._sent]
        for _ in range(arrived.index(stands) + 1 if stands in arrived else 0):
            self._arrived(self._sent.popleft())
        if first or stands != self._stands:
            return self._go_on_from(stands, first=first)
        for push in self._sent:
            link.send(push)
        return True

    def _go_on_from(self, stands: bytes, *, first: bool) -> bool:
        """Begin at, or go back or forward to, the position that Redis has."""
        found = parse_position(stands)
        size = self._source.size
        if size is None and not first:
            raise FeedError(
                f"{self._source.path}: Redis came back without what was pushed last, and a stream cannot be "
                f"read twice; feed it once more from line {(found.line if found else self._skip) + 1} on "
                f"(--skip {found.line if found else self._skip})"
            )
        if first and self._listed and not self._again and found is None:
            self._report.listed, self._report.position = True, size or 0
            return False
        complete = size is not None and found is not None and found.offset >= size
        if first and found is not None:
            self._turn = found.turn + (complete and self._again)
        done = complete and found is not None and found.turn >= self._turn
        if found is None or (complete and not done):
            found = Position(self._path, turn=self._turn, line=self._skip if size is None else 0)
        if first or found.turn != self._began.turn or found.offset < self._began.offset:
            self._began = found
            self._report.began_line, self._report.fed_before = found.line, found.fed
        self._sent.clear()
        self._stands = stands
        self._show(found)
        if done:
            self._report.fed_as, self._report.position = found.path if first else "", size or 0
            return False
        self._made = self._pushes(found)
        return True

    def _push_all(self, link: _Link) -> None:
        for push in self._made:
            self._sent.append(push)
            link.send(push)
            while len(self._sent) > 1:
                self._collect(link)
            if not self._goes_on():
                break
        while self._sent:
            self._collect(link)

    def _pushes(self, start: Position) -> Iterator[_Push]:
        """The list's blocks from `start` on, each knowing which one it follows."""
        settings = self._settings.feed
        tally = Tally(start.line, start.fed, start.not_http, start.blank, start.bad, self._report.samples)
        before = self._stands or b""
        blocks = self._source.blocks(
            at=start.offset,
            lines=settings.block,
            max_line_bytes=settings.max_url_bytes,
            idle=self._goes_on,
        )
        for lines, too_long, end in self._skipped(blocks):
            items = self._writer.tasks(lines, tally, too_long=too_long)
            to = Position(
                self._path, self._turn, tally.lines, end, tally.tasks, tally.not_http, tally.blank, tally.bad
            )
            after = msgspec.json.encode(to)
            self._report.tasks = tally.tasks - self._began.fed
            self._report.position = end
            yield _Push(before, after, to, items)
            before = after

    def _goes_on(self) -> bool:
        self._report.stopped = not self._on_progress(self._report)
        return not self._report.stopped

    def _skipped(self, blocks: Iterator[manifests.Block]) -> Iterator[tuple[list[bytes], int, int]]:
        """Lines, too long lines, end of each block; a stream's without the first `skip` lines."""
        left = self._skip if self._source.size is None else 0
        for block in blocks:
            lines, too_long = block.lines, block.too_long
            if left:
                skipped = min(left, len(lines))
                lines, left = lines[skipped:], left - skipped
                left, too_long = (left - too_long, 0) if left else (0, too_long)
                if not lines and not too_long:
                    continue
            yield lines, too_long, block.end

    def _collect(self, link: _Link) -> None:
        """Read the answer to the oldest block on its way."""
        applied, stands = link.answer()
        if not applied and stands != self._sent[0].after:
            raise _Moved
        self._arrived(self._sent.popleft())

    def _arrived(self, push: _Push) -> None:
        self._patience.over()
        self._stands = push.after
        self._show(push.to)

    def _show(self, stands: Position) -> None:
        """Bring the report to what is known to be in Redis."""
        report, began = self._report, self._began
        report.lines = stands.line
        if stands.turn == began.turn:
            report.fed = max(0, stands.fed - began.fed)
            report.not_http = max(0, stands.not_http - began.not_http)
            report.blank = max(0, stands.blank - began.blank)
            report.bad = max(0, stands.bad - began.bad)


class _Link:
    """One connection to Redis, used as a pipe: blocks go out before earlier ones are answered.

    Every method raises RedisUnavailable or RedisUnusable; then it is of no more use.
    """

    def __init__(self, settings: Settings, list_id: str) -> None:
        self._url = settings.redis
        self._keys = Keys(settings.dataset)
        self._id = list_id
        self._script = script("push")

    def __enter__(self) -> Self:
        self._client: redis.Redis = connect(self._url, name=CLIENT_NAME)
        try:
            with translated(self._url):
                check_version(self._client.info("server"), self._url)
                self._connection: Any = self._client.connection_pool.get_connection()
                self._call("SCRIPT", "LOAD", self._script.source)
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.disconnect()  # answers may still be on their way
        self._client.connection_pool.release(self._connection)
        self._client.close()

    def stands(self) -> bytes:
        """The list's position in Redis, b'' for none."""
        with translated(self._url):
            return self._call("HGET", self._keys.feed, self._id) or b""

    def send(self, push: _Push) -> None:
        """Send a block."""
        keys = self._keys
        with translated(self._url):
            words = ("EVALSHA", self._script.sha, 3, keys.task, keys.fed, keys.feed)
            command = self._connection.pack_command(*words, self._id, push.before, push.after, *push.items)
            self._connection.send_packed_command(command, check_health=False)

    def answer(self) -> tuple[int, bytes]:
        """The answer to the oldest block that has none yet: whether it was applied, where the list stands.

        Raises RedisUnavailable also where the server has lost the script: the next link loads it again.
        """
        with translated(self._url):
            try:
                applied, stands = self._connection.read_response()
            except redis.exceptions.NoScriptError as error:
                raise RedisUnavailable(f"the server lost its scripts: {error}") from error
        return int(applied), bytes(stands)

    def forget(self) -> None:
        """Drop the position: of a stream nobody can go on."""
        with translated(self._url):
            self._call("HDEL", self._keys.feed, self._id)

    def _call(self, *words: str | bytes) -> Any:
        self._connection.send_command(*words, check_health=False)
        return self._connection.read_response()
