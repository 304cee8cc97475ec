"""Feeding several lists: one after the other, each marked done once its tasks are on the server's disk."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import redis

from dlconsole.errors import FeedError, RedisUnavailable
from dlconsole.services import checks, feeder
from dlconsole.services.columns import Columns
from dlconsole.services.connection import connect, translated
from dlconsole.services.done_list import DoneList
from dlconsole.services.durable import wait_until_on_disk
from dlconsole.services.feed_link import CLIENT_NAME
from dlconsole.services.feed_report import FeedReport, parse_position
from dlconsole.services.keys import Keys
from dlconsole.services.list_items import open_as_set
from dlconsole.services.manifests import Place, is_stream
from dlconsole.services.patience import Patience, wait_while
from dlconsole.services.permission import require_writable
from dlconsole.services.scripts import script
from dlconsole.settings import Settings

if TYPE_CHECKING:
    from dlconsole.services.bloom import Bloom

_SETTLE_EVERY_S: Final = 5.0
"""Between two waits for the server's disk: many small lists share one."""
_MOST_UNSETTLED: Final = 100
"""Lists that share one; a Bloom filter has 128 frontiers."""


@dataclass(slots=True)
class FeedRun:
    """See above. `reports` has one report a list, in order, as far as it came. `on_progress` is called now
    and then with what is waited for, '' for nothing, and ends the run by False; `say` is told what a user
    should know.
    """

    settings: Settings
    on_progress: Callable[[str], bool] = lambda _waiting: True
    say: Callable[[str], None] = lambda _text: None
    skip: int = 0
    again: bool = False
    limit: int | None = None
    """Most tasks of all lists together, those of earlier runs counted; then the run ends."""
    reports: dict[Place, FeedReport] = field(default_factory=dict)
    not_listed: str = ""
    """Why lists that are done could not be written down as done."""
    on_unreadable: Callable[[Place, FeedError], None] | None = None
    """Told of a list that cannot be read, which then is left out; without it that ends the run."""
    is_limited: bool = False
    """Whether it ended at the limit."""
    _said_columns: str = ""
    _bloom: Bloom | None = None
    _fed: dict[str, int] = field(default_factory=dict)
    """With a limit: tasks of each list that are fed in its present turn, by the list's id."""

    def run(self, paths: list[Place]) -> bool:
        """Feed them; False where it was stopped before all were done. Raises as `feeder.feed`."""
        with self.opened() as is_open:
            return is_open and self.feed_lists(paths)

    @contextmanager
    def opened(self) -> Iterator[bool]:
        """Make ready to feed lists: look at the server, open the Bloom filter; False where it was stopped
        meanwhile.
        """
        require_writable(self.settings, "feeding")
        if not self._look_at_server():
            yield False
        elif self.settings.feed.dedupe != "bloom":
            yield True
        else:
            from dlconsole.services.bloom import open_bloom  # noqa: PLC0415  (loads numpy)

            with closing(open_bloom(self.settings, self.say)) as self._bloom:
                self.say(self._bloom.words())
                yield True
                self.say(self._bloom.words())

    def feed_lists(self, paths: list[Place]) -> bool:
        """As `run`, on what is `opened`."""
        done_list = DoneList(self.settings.feed.done_file)
        if not self._count_earlier(paths):
            return False
        todo, fed = deque(paths), list[Place]()
        settle_at = time.monotonic() + _SETTLE_EVERY_S
        while todo or fed:
            if todo and self._is_at_limit():
                todo.clear()
            if todo:
                path = todo.popleft()
                try:
                    if not self._feed(path, done_list):
                        return False
                    if self._counts_as_done(path):
                        fed.append(path)
                except FeedError as error:
                    if self.on_unreadable is None:
                        raise
                    self.on_unreadable(path, error)
            if fed and (not todo or time.monotonic() >= settle_at or len(fed) >= _MOST_UNSETTLED):
                settled, lost = self._settle(fed)
                if not settled:
                    return False
                self._write_down(done_list, [path for path in fed if path not in lost])
                todo.extend(lost)
                fed, settle_at = [], time.monotonic() + _SETTLE_EVERY_S
        self._is_at_limit()
        return True

    def _look_at_server(self) -> bool:
        """Say what about it is unsafe, before anything is fed to it; False where it was stopped meanwhile."""
        patience = Patience(wait_while(lambda: self.on_progress(patience.waiting)), self.say)
        try:
            found = patience.call(checks.ask, self.settings)
        except RedisUnavailable:  # and it was asked to stop
            return False
        for finding in found:
            self.say(f"warning: {finding.said}: {finding.todo}")
        return True

    def _feed(self, path: Place, done_list: DoneList) -> bool:
        def on_progress(report: FeedReport) -> bool:
            self.reports[path] = report
            return self.on_progress(report.waiting)

        def on_columns(columns: Columns) -> None:
            if columns.words() != self._said_columns:  # lists of one data set are alike
                self._said_columns = columns.words()
                self.say(f"{path}: {self._said_columns}")

        earlier = self.reports.get(path)
        report = feeder.feed(
            path,
            self.settings,
            skip=self.skip,
            again=self.again and earlier is None,  # not for one that Redis lost a part of
            listed=not is_stream(path) and self._is_listed(done_list, path),
            on_progress=on_progress,
            on_columns=on_columns,
            say=self.say,
            most=self._most,
            bloom=self._bloom,
        )
        if self.limit is not None:
            self._fed[report.list_id] = report.fed_before + report.fed
        if earlier is not None:
            report.fed += report.fed_before - earlier.fed_before
            report.fed_before, report.began_line = earlier.fed_before, earlier.began_line
        self.reports[path] = report
        if report.has_nothing:
            self.say(
                f"warning: {path}: not one row was found in it, so it is not marked as done: is that its "
                "format? --format"
            )
        return not report.stopped

    def _count_earlier(self, places: list[Place]) -> bool:
        """With a limit: how much of these lists is fed. False where it was stopped meanwhile."""
        if self.limit is None:
            return True
        keys = Keys(self.settings.dataset)
        patience = Patience(wait_while(lambda: self.on_progress(patience.waiting)), self.say)

        def stands(list_id: str) -> bytes | None:
            url = self.settings.redis
            with connect(url, name=CLIENT_NAME) as client, translated(url):
                found: bytes | None = client.hget(keys.feed, list_id)
                return found

        for place in places:
            if not self.on_progress(""):
                return False
            if is_stream(place):
                continue
            with open_as_set(place, self.settings, lambda: self.on_progress("")) as source:
                try:
                    found = parse_position(patience.call(stands, source.id))
                except RedisUnavailable:  # and it was asked to stop
                    return False
                is_new_turn = found is not None and self.again and found.is_complete(source.size)
                self._fed[source.id] = 0 if found is None or is_new_turn else found.fed
        return True

    def _most(self, list_id: str) -> int | None:
        if self.limit is None:
            return None
        return self.limit - sum(fed for other, fed in self._fed.items() if other != list_id)

    def _is_at_limit(self) -> bool:
        self.is_limited = self.limit is not None and sum(self._fed.values()) >= self.limit
        return self.is_limited

    def _is_listed(self, done_list: DoneList, path: Place) -> bool:
        try:
            return done_list.has(path)
        except OSError as error:
            self.not_listed = f"{done_list.path}: {error.strerror}"
            return False

    def _counts_as_done(self, path: Place) -> bool:
        report = self.reports[path]
        return not (report.is_stream or report.listed or report.limited or report.has_nothing)

    def _settle(self, fed: list[Place]) -> tuple[bool, list[Place]]:
        """Wait until these lists are on the server's disk; whether they are, and which it has lost a
        part of meanwhile. Waits while Redis is away.
        """
        report, url = self.reports[fed[-1]], self.settings.redis

        def goes_on() -> bool:
            report.waiting = patience.waiting or "until it is on the server's disk"
            report.stopped = not self.on_progress(report.waiting)
            return not report.stopped

        def settle() -> tuple[bool, list[Place]]:
            with connect(url, name=CLIENT_NAME) as client, translated(url):
                lost = [path for path in fed if not self._touch(client, path)]
                settled = wait_until_on_disk(client, goes_on)
                return settled, [path for path in fed if path in lost or not self._touch(client, path)]

        patience = Patience(wait_while(goes_on), self.say)
        try:
            return patience.call(settle)
        except RedisUnavailable:  # and it was asked to stop
            return False, []

    def _touch(self, client: redis.Redis, path: Place) -> bool:
        """Whether Redis has all of this list; then its position is written once more, so that there is
        a write of this connection to wait for.
        """
        report, keys = self.reports[path], Keys(self.settings.dataset)
        while report.size != 0:  # such a one has no position
            stands: bytes | None = client.hget(keys.feed, report.list_id)  # type: ignore[assignment]
            found = parse_position(stands)
            if stands is None or found is None or not found.is_complete(report.size):
                return False
            names = [keys.task, keys.fed, keys.feed]
            applied, *_ = script("push").run(client, names, report.list_id, stands, stands)
            if applied:
                break
        return True

    def _write_down(self, done_list: DoneList, paths: list[Place]) -> None:
        for path in paths:
            self.reports[path].waiting = ""
            if self._bloom is not None:
                self._bloom.settle(self.reports[path].list_id)
        try:
            done_list.add(paths)
        except OSError as error:
            self.not_listed = f"{done_list.path}: {error.strerror}"
