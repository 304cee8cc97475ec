"""Two threads that watch each other, and a third that watches both: a worker that stalls must not hold
its tasks for ever.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Final

EXIT_STALLED: Final = 4
"""Exit status of a worker that gave itself up; its supervisor replaces it."""
LAST_RESORT_S: Final = 25.0
"""So much later than the others the sentry ends the process: longer than an orderly end may take."""
_ROUND_S: Final = 1.0


class Thread(Enum):
    """Who beats."""

    LOOP = "the fetch loop"
    COURIER = "the courier"
    SENTRY = "the sentry"


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
        self._ended = threading.Event()

    def beat(self, who: Thread) -> float:
        """Say that `who` moves; for how many seconds the other has not, or 0.0 while all is well."""
        now = self._clock()
        if now - self._beats[who] > self._stall_s / 2:
            self._watch_from = now
        self._beats[who] = now
        others = {Thread.LOOP, Thread.COURIER} - {who}
        silent_s = now - max(min(self._beats[other] for other in others), self._watch_from)
        return silent_s if silent_s > self._stall_s else 0.0

    def start_sentry(self) -> None:
        """End the process where both others have stopped, or one gives up and cannot even do that: their
        log, say, is on the disk that hangs. So this thread does nothing else, and says nothing.
        """
        threading.Thread(target=self._stand, name="sentry", daemon=True).start()

    def end_sentry(self) -> None:
        """The others end as they should."""
        self._ended.set()

    def _stand(self) -> None:
        while not self._ended.wait(_ROUND_S):
            if self.beat(Thread.SENTRY) > self._stall_s + LAST_RESORT_S:
                os._exit(EXIT_STALLED)
