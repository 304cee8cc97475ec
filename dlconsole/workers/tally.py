"""A session's running totals, and the statistics made of them at each heartbeat."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Final

import psutil

from dlconsole import __version__
from dlconsole.model import Failure, Outcome, SessionStats
from dlconsole.settings import WorkerSettings
from dlconsole.workers.fetch.timings import Timings

_SITES_EVERY: Final = 3
_SITES_FIRST: Final = 2
"""Which heartbeats report sites: the second, when there is something to tell, then every third."""


class Tally:
    """Counted in the fetch loop, read at heartbeats. Each number is written by one thread only."""

    def __init__(self, host: str, worker: WorkerSettings, timings: Timings) -> None:
        self.stored = 0
        self.failed = 0
        self.bytes = 0
        self.kinds: Counter[str] = Counter()
        self._host = host
        self._timings = timings
        self._concurrency = worker.concurrency
        self._engine = worker.engine
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call has nothing to compare with
        self._started_ms = 0
        self._last = (time.monotonic(), 0, 0, 0)
        self._beats = 0

    def begin(self, started_ms: int) -> None:
        """The session began at `started_ms`, the server's clock."""
        self._started_ms = started_ms

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if isinstance(outcome, Failure):
            self.failed += 1
            self.kinds[outcome.kind] += 1
        else:
            self.stored += 1
            self.bytes += outcome.size_bytes

    def sites(self) -> bytes:
        """The report of sites, for each third heartbeat, since it is larger than all else; b'' for others."""
        self._beats += 1
        return self._timings.sites.report() if self._beats % _SITES_EVERY == _SITES_FIRST else b""

    def stats(self, *, at_ms: int, state: str, waits: str, in_flight: int, fetching: int) -> SessionStats:
        """The totals, and the speeds since the last call."""
        now = time.monotonic()
        then, stored, failed, size = self._last
        elapsed_s = max(now - then, 1e-3)
        self._last = (now, self.stored, self.failed, self.bytes)
        return SessionStats(
            host=self._host,
            pid=os.getpid(),
            started_ms=self._started_ms,
            at_ms=at_ms,
            state=state,
            stored=self.stored,
            failed=self.failed,
            kinds=dict(self.kinds),
            in_flight=in_flight,
            fetching=fetching,
            bytes=self.bytes,
            stored_per_s=round((self.stored - stored) / elapsed_s, 2),
            failed_per_s=round((self.failed - failed) / elapsed_s, 2),
            bytes_per_s=round((self.bytes - size) / elapsed_s, 1),
            cpu_percent=self._process.cpu_percent(),
            rss_bytes=self._process.memory_info().rss,
            concurrency=self._concurrency,
            engine=self._engine,
            timings=self._timings.counts,
            reused=self._timings.reused,
            opened=self._timings.opened,
            lookups=dict(self._timings.lookups),
            version=__version__,
            waits=waits,
        )
