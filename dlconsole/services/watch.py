"""A folder that lists appear in: which of them are to be fed now, and what became of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dlconsole.errors import FeedError
from dlconsole.services.feed_report import FeedReport
from dlconsole.services.feed_run import FeedRun
from dlconsole.services.manifests import Place, lists_below
from dlconsole.services.patience import wait_while

UNFINISHED: Final = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".swp", "~")
"""Ends of the names of files that somebody still writes; a list has a known end, so these stand before it."""

_AT_ONCE: Final = 100
"""Lists that share a wait for the server's disk."""
Look = tuple[int, int, int]
"""A file as it was found: inode, size, time of its last change in ns."""


@dataclass(slots=True)
class Folders:
    """What lies below the watched folders. Memory follows what is there, not what ever was.

    `ready` are lists that were the same at two looks, `apart_s` or more apart; until they change they are
    given once.
    """

    roots: list[Path]
    without: list[Path]
    apart_s: float
    _seen: dict[Path, tuple[Look, float]] = field(default_factory=dict)
    _given: dict[Path, Look] = field(default_factory=dict)

    def ready(self, now: float) -> list[Path]:
        """Look, `now` being a clock's seconds; those to be fed, by name. A root that is away has none."""
        found = {path: look for path in lists_below(self.roots, self.without) if (look := look_at(path))}
        self._seen = {path: self._since(path, look, now) for path, look in found.items()}
        self._given = {path: look for path, look in self._given.items() if found.get(path) == look}
        return [
            path
            for path, (look, since) in sorted(self._seen.items())
            if now - since >= self.apart_s and path not in self._given
        ]

    def give(self, path: Path) -> None:
        """It was fed, or cannot be: not again before it is another one."""
        look = look_at(path)
        if look is not None:
            self._given[path] = look

    @property
    def growing(self) -> int:
        """How many lists were not yet the same for long enough at the last look."""
        return len(self._seen) - len(self._given)

    def _since(self, path: Path, look: Look, now: float) -> tuple[Look, float]:
        before = self._seen.get(path)
        return before if before is not None and before[0] == look else (look, now)


def look_at(path: Path) -> Look | None:
    """A finished file as it is; None for one that is gone, or whose name says that it is not finished."""
    stems = {path.name, path.stem, Path(path.stem).stem}
    if any(stem.endswith(UNFINISHED) for stem in stems):
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(slots=True)
class Watch:
    """Feeds each list that appears below some folders, until it is stopped. `on_list` is told of each that is
    done or was fed before; `say` of one that cannot be read, which is tried again when it changes.
    """

    run: FeedRun
    folders: Folders
    on_list: Callable[[Path, FeedReport], None] = lambda _path, _report: None
    done: int = 0
    """Lists that are done, those of earlier runs that still lie there included."""
    failed: int = 0

    def feed(self) -> None:
        """Until `run.on_progress` says that it is to end. Raises RedisUnusable, ReadOnlyError, and FeedError
        of the Bloom filter.
        """
        self.run.on_unreadable = self._leave_out
        wait = wait_while(lambda: self.run.on_progress(self.words()))
        with self.run.opened() as is_open:
            while is_open:
                ready = self.folders.ready(time.monotonic())
                for at in range(0, len(ready), _AT_ONCE):
                    if not self._feed_some(ready[at : at + _AT_ONCE]):
                        return
                if wait(self.folders.apart_s):
                    return

    def words(self) -> str:
        """What it waits for."""
        roots = ", ".join(map(str, self.folders.roots))
        failed = f", {self.failed:,} cannot be read" if self.failed else ""
        growing = f", {self.folders.growing:,} new" if self.folders.growing else ""
        return f"for lists in {roots}: {self.done:,} done{failed}{growing}"

    def _feed_some(self, paths: list[Path]) -> bool:
        """Whether to go on."""
        finished = self.run.feed_lists(list[Place](paths))
        for path in paths:
            report = self.run.reports.pop(path, None)
            if report is None:
                continue
            if not report.stopped:
                self.done += 1
                self.folders.give(path)
            self.on_list(path, report)
        return finished

    def _leave_out(self, place: Place, error: FeedError) -> None:
        assert isinstance(place, Path)
        self.run.reports.pop(place, None)
        self.run.say(f"{error}; left out until it changes")
        self.failed += 1
        self.folders.give(place)
