"""How far lookups run ahead of the slots: far enough that no slot waits for a name, and no further.

A fetch whose name is being looked up has no slot, but will soon want one. Where all were started that could
be, the answers to hundreds of names would come at once, and their fetches wait longer for a slot than they
take; where none were, each slot would stand idle for a lookup's time. So there are at most as many ahead as
there are slots, fewer the more often a name is known already; and those whose answer is overdue do not
count, since that is what dead names look like.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

_LEAST: Final = 16
"""How many may be ahead where there are fewer slots."""
_FIRST_S: Final = 0.5
"""What a lookup is taken to last before any is known."""
_LATE: Final = 2.0
"""An answer is overdue after this many times as long as usual."""
_SHORTEST_S: Final = 0.01
_JUMP: Final = 4.0
"""What takes longer than this many times as long as usual counts as that: it tells little of others."""
_WEIGHT: Final = 1 / 16
"""How much the last one counts for what is usual."""


class Waiting(Protocol):
    """A fetch that waits for a name; 0: it does not, or its answer is overdue."""

    expected_since: float


class Lookahead:
    """For one thread; what it does for a name that is known costs next to nothing."""

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.expected = 0
        """How many fetches wait for a name that is likely to be found soon."""
        self._most = max(slots, _LEAST)
        self._clock = clock
        self._unknown = 0.0
        """Which part of the names were not known of late."""
        self._usual_s = _FIRST_S
        self._waiting: deque[tuple[float, Waiting]] = deque()
        """The oldest first; also those that were answered meanwhile."""

    @property
    def room(self) -> int:
        """How many more may be ahead; below 0: those that are will need idle slots."""
        return int(self._most * self._unknown) - self.expected

    @property
    def late_at(self) -> float:
        """When the next answer is overdue; infinite where none is expected."""
        return self._waiting[0][0] + _LATE * self._usual_s if self._waiting else math.inf

    def was_known(self) -> None:
        """A fetch needed no lookup."""
        self._unknown -= self._unknown * _WEIGHT

    def add(self, waiting: Waiting) -> None:
        """A fetch waits for a name."""
        self._unknown += (1 - self._unknown) * _WEIGHT
        now = waiting.expected_since = self._clock()
        self.expected += 1
        self._waiting.append((now, waiting))

    def remove(self, waiting: Waiting) -> None:
        """It waits no longer."""
        if waiting.expected_since:
            waiting.expected_since = 0.0
            self.expected -= 1

    def learn(self, duration_s: float) -> None:
        """A name server took so long for an answer."""
        counted_s = max(_SHORTEST_S, min(duration_s, self._usual_s * _JUMP))
        self._usual_s += (counted_s - self._usual_s) * _WEIGHT

    def drop_late_ones(self) -> None:
        """Expect no more what is overdue."""
        now = self._clock()
        while self._waiting:
            since, waiting = self._waiting[0]
            is_expected = waiting.expected_since == since
            if is_expected and now < since + _LATE * self._usual_s:
                return
            self._waiting.popleft()
            if is_expected:
                self.remove(waiting)

    def clear(self) -> None:
        """Nothing waits any more."""
        for _, waiting in self._waiting:
            waiting.expected_since = 0.0
        self._waiting.clear()
        self.expected = 0
