"""Two threads that watch each other: a worker whose loop stalls must not hold its tasks for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum


class Thread(Enum):
    """Who beats."""

    LOOP = "the fetch loop"
    COURIER = "the courier"


class Watchdog:
    """Each thread beats while it moves, and so learns whether the other has stopped.

    A process that was suspended (SIGSTOP, a laptop's lid) finds everybody silent for long, itself too:
    whoever notices a gap of its own gives the other the whole time again.
    """

    def __init__(self, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_s = stall_s
        self._clock = clock
        self._beats = dict.fromkeys(Thread, clock())
        self._watch_from = clock()

    def beat(self, who: Thread) -> float:
        """Say that `who` moves; for how many seconds the other has not, or 0.0 while all is well."""
        now = self._clock()
        if now - self._beats[who] > self._stall_s / 2:
            self._watch_from = now
        self._beats[who] = now
        other = Thread.COURIER if who is Thread.LOOP else Thread.LOOP
        silent_s = now - max(self._beats[other], self._watch_from)
        return silent_s if silent_s > self._stall_s else 0.0
