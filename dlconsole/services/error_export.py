"""The error list → files, each error on one line, once, whatever is killed when.

For each batch: take it into a spool (one script), lock the file, say durably what is about to be
written (the intent), append, fsync, note the intent as done, drop the spool. A process that died leaves
a spool in Redis and perhaps an intent in the folder; the next one in that folder is the same drainer,
compares intent and file, writes what is missing and goes on.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, ParamSpec

import redis

from dlconsole.errors import StoreError
from dlconsole.services import drain_file, drain_folder, error_items, spool
from dlconsole.services.connection import check_version, connect, translated
from dlconsole.services.drain_folder import Home, Intent, said
from dlconsole.services.hosts import host_name
from dlconsole.services.keys import Keys
from dlconsole.services.patience import Patience
from dlconsole.services.permission import require_writable
from dlconsole.services.spool import Drainer, Spool
from dlconsole.settings import Settings

P = ParamSpec("P")

_LOOK_EVERY_S: Final = 1.0
_LOOK_AROUND_EVERY_S: Final = 30.0
_DISK_PAUSE_S: Final = 5.0
_NEIGHBOUR_PATIENCE_S: Final = 10.0
_NEIGHBOUR_LOOK_S: Final = 0.02


@dataclass(slots=True)
class ExportReport:
    """What an export did so far. `finished` are errors that an earlier process had written and not yet
    reported, or had taken and not written; they are in `exported` where this process wrote them.
    `uncertain` were written, but Redis had lost that they were taken: they may come once more.
    """

    exported: int = 0
    sentinels: int = 0
    finished: int = 0
    uncertain: int = 0
    batches: int = 0
    total: int = 0
    stopped: bool = False
    file: str = ""


@dataclass(frozen=True, slots=True)
class Watcher:
    """How an export talks to its caller: when to stop, what to say to the user, what was done so far."""

    stop: threading.Event
    say: Callable[[str], None]
    progress: Callable[[ExportReport], None]


def file_name(at: time.struct_time) -> str:
    """As the legacy drainer names it: the local day and the sixth of it, such as `20240131_2.txt`."""
    return f"{at.tm_year:04}{at.tm_mon:02}{at.tm_mday:02}_{at.tm_hour // 4}.txt"


def export(
    settings: Settings, watcher: Watcher, *, follow: bool = False, limit: int | None = None
) -> ExportReport:
    """Export into `settings.errors.dir`: what is in the list now, or with `follow` until stopped; at most
    `limit` errors, a batch left by an earlier process not counted.

    Waits where Redis is away, and with `follow` where the disk is full. Raises ReadOnlyError,
    RedisUnusable, StoreError (what was taken stays in Redis), FencedError, and RedisUnavailable where it
    was stopped while waiting.
    """
    require_writable(settings, "exporting errors")
    folder, keys, url = settings.errors.dir, Keys(settings.dataset), settings.redis
    patience = Patience(watcher.stop.wait, watcher.say)
    with connect(url, name="dlconsole-errors") as client:
        source = patience.call(_source, client, keys, url)
        with drain_folder.open_home(folder, source, host_name(settings)) as home:
            run = _Export(settings, watcher, client, home, source, follow=follow)
            run.start(limit)
            run.loop()
            run.leave()
            return run.report


def _source(client: redis.Redis, keys: Keys, url: str) -> str:
    with translated(url):
        check_version(client.info("server"), url)
    return spool.source_id(client, keys, url)


class _Export:
    """One drainer at work in one folder."""

    def __init__(
        self,
        settings: Settings,
        watcher: Watcher,
        client: redis.Redis,
        home: Home,
        source: str,
        *,
        follow: bool,
    ) -> None:
        self.report = ExportReport()
        self._follow = follow
        self._settings = settings
        self._watcher = watcher
        self._client = client
        self._home = home
        self._source = source
        self._folder = settings.errors.dir
        self._keys = Keys(settings.dataset)
        self._patience = Patience(watcher.stop.wait, watcher.say)
        self._drainer = Drainer(client, self._keys, home.id, url=settings.redis)
        self._left: int | None = None

    def beside(self, home: Home) -> _Export:
        """The same work for another drainer of the folder, whose process died; one report for both."""
        other = _Export(self._settings, self._watcher, self._client, home, self._source, follow=self._follow)
        other.report = self.report
        return other

    def start(self, limit: int | None) -> None:
        """Become this drainer, and finish what its last process left."""
        self.take_over()
        waiting: int = self._patience.call(self._waiting)
        self.report.total = waiting if limit is None else min(limit, waiting)
        self._left = limit if self._follow else self.report.total

    def loop(self) -> None:
        """Batch by batch until nothing is left to do."""
        looked: float | None = None
        while not self._watcher.stop.is_set() and (self._left != 0 or looked is None):
            if looked is None or time.monotonic() - looked >= _LOOK_AROUND_EVERY_S:
                self._finish_for_the_dead()
                looked = time.monotonic()
                continue
            batch = self._settings.errors.batch
            spooled = self._take(batch if self._left is None else min(batch, self._left))
            if spooled is not None:
                self._insist(self._finish, spooled)
                if self._left is not None:
                    self._left = max(0, self._left - len(spooled.items))
            elif not self._follow:
                break
            else:
                self._watcher.stop.wait(_LOOK_EVERY_S)
        self.report.stopped = self._watcher.stop.is_set()

    def leave(self) -> None:
        """End; a spool that could not be written stays, for the next process."""
        self._patience.call(self._drainer.leave)

    # -- steps ---------------------------------------------------------------------------------

    def _waiting(self) -> int:
        with translated(self._settings.redis):
            count: Any = self._client.llen(self._keys.error)
        return int(count)

    def _enlist(self) -> None:
        host, place = host_name(self._settings), str(self._folder)
        self._patience.call(self._drainer.enlist, spool.EXPORT, host, place)

    def take_over(self) -> None:
        self._enlist()
        self._insist(self._settle)
        while spooled := self._take(0):
            self.report.finished += len(spooled.items)
            self._insist(self._finish, spooled)

    def _finish_for_the_dead(self) -> None:
        """Put back what dead requeues held; finish what drainers of this folder left whose processes died."""
        self._patience.call(spool.tidy, self._client, self._keys, self._settings.redis)
        for home in drain_folder.free_homes(self._folder, self._source):
            with home:
                neighbour = self.beside(home)
                neighbour.take_over()
                neighbour.leave()

    def _insist(self, write: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Write; with `follow` a disk that cannot be written is waited out. Raises StoreError."""
        warned = False
        while True:
            try:
                if warned:
                    self._settle()
                write(*args, **kwargs)
            except StoreError as error:
                if not self._follow:
                    raise StoreError(
                        f"{error}; nothing is lost, what was taken stays in Redis: run it again "
                        "in this folder when it can be written"
                    ) from error
                if not warned:
                    self._watcher.say(f"{error}; nothing is lost, trying again every {_DISK_PAUSE_S:.0f} s")
                warned = True
                if self._watcher.stop.wait(_DISK_PAUSE_S):
                    raise
                self._take(0)  # so that Redis knows that we are alive
            else:
                if warned:
                    self._watcher.say("the folder can be written again")
                return

    def _take(self, count: int) -> Spool | None:
        spooled = self._patience.call(self._drainer.take, self._home.done + 1, count)
        return spooled if spooled.items else None

    def _finish(self, spooled: Spool) -> None:
        """Write a batch, unless it is written, and drop its spool."""
        lines = error_items.lines(spooled.items)
        if spooled.batch > self._home.done:
            name = file_name(time.localtime())
            with said(self._folder / name):
                self._write(name, Intent(spooled.batch, name, 0, 0, ""), b"".join(lines))
            self.report.exported += len(lines)
            self.report.file = name
        dropped = self._patience.call(self._drainer.drop, spooled.batch)
        if not dropped:
            self.report.uncertain += len(lines)
        self.report.sentinels += len(spooled.items) - len(lines)
        self.report.batches += 1
        self._watcher.progress(self.report)

    # -- the file ------------------------------------------------------------------------------

    def _write(self, name: str, intent: Intent, lines: bytes) -> None:
        path = self._folder / name
        deadline = time.monotonic() + _NEIGHBOUR_PATIENCE_S
        while True:
            with drain_file.locked(path) as file:
                if self._neighbours_are_done(name, file) or time.monotonic() > deadline:
                    self._append(path, file, intent, lines)
                    return
            # A neighbour begins to go on with what it left: it comes first, with the lock.
            self._watcher.stop.wait(_NEIGHBOUR_LOOK_S)

    def _neighbours_are_done(self, name: str, file: int) -> bool:
        """Finish, under the file's lock, what dead drainers of this folder left half written in it."""
        for drainer_id in drain_folder.unfinished(self._folder, name, self._source, but=self._home.id):
            home = drain_folder.try_home(self._folder, drainer_id, self._source)
            if home is None:
                return False
            with home:
                self.beside(home).settle_in(file)
        return True

    def _append(self, path: Path, file: int, intent: Intent, lines: bytes) -> None:
        """The heart of it: intent, append, fsync, done. Raises OSError with nothing left half done, or
        else with the intent left to say so.
        """
        drain_file.mend(file)
        offset = drain_file.size_of(file)
        digest = hashlib.sha256(lines).hexdigest()
        self._home.begin(Intent(intent.batch, intent.file, offset, len(lines), digest, intent.skip))
        try:
            drain_folder.write_all(file, lines)
            drain_file.fsync(file)
        except OSError:
            if drain_file.take_back(path, file, offset, lines):
                self._home.call_off()
            raise
        self._home.finish()

    def _settle(self) -> None:
        """Finish what the intent of an earlier process, or of a write that failed, says."""
        with said(self._folder):
            intent = self._home.intent
            if intent is not None:
                with drain_file.locked(self._folder / intent.file) as file:
                    self.settle_in(file)

    def settle_in(self, file: int) -> None:
        """The same for a caller that has the file's lock."""
        intent = self._home.intent  # again, under the lock
        if intent is None:
            return
        if drain_file.holds(file, intent):
            drain_file.write_again(file, intent.offset, intent.length)
            drain_file.fsync(file)
            self._home.finish()
            return
        self._enlist()
        spooled = self._take(0)
        if spooled is None or spooled.batch != intent.batch:
            # Redis lost its last moments, or the spool was given up: its errors are in the list again.
            self._home.finish()
            return
        lines = b"".join(error_items.lines(spooled.items))[intent.skip :]
        written = drain_file.written_of(file, intent.offset, lines)
        rest = Intent(intent.batch, intent.file, 0, 0, "", intent.skip + written)
        self._append(self._folder / intent.file, file, rest, lines[written:])
