"""Hosts that asked to be left alone (429, 503), and until when.

A host's Retry-After is kept to. Where it names none, the next pause is twice the last one, and each good
answer behind a pause makes it a little shorter: a host that refuses more than about a fifth is left alone
for ever longer, one that refuses now and then is hardly slowed down. Refused again at a pause's end, it gets
the pause that so many refusals in a row make, and those are the fleet's: each worker learns of all others'.
Pauses end later by a random part, so that a fleet does not come back at once.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from dlconsole.settings import FetchSettings, RetrySettings

REFUSALS: Final = frozenset({429, 503})
"""Statuses by which a host asks for a pause."""
MAX_KNOWN: Final = 20_000
"""Hosts remembered; the ones that were parked longest ago are forgotten first."""
_PATIENCE: Final = 5
"""After how many refusals in a row, each behind a pause, waiting tasks begin to lose attempts."""
_JITTER: Final = 0.25
"""The largest part of a pause that is added to it at random."""
_LEAST_LEARNT_S: Final = 0.5
"""A pause of others that is shorter is not learnt: it is nearly over."""
_MOST_DOUBLINGS: Final = 32
_EASE: Final = 0.5 ** (1 / 4)
"""What a good answer makes of the next pause: four of them halve it."""
_LEAST_PART: Final = 1 / 8
"""How short good answers make the next pause at most, as a part of the first one."""
_RETURN_PER_S: Final = 100.0
"""How many tasks that were put off come back a second behind the end of a pause, from one worker."""


class _Park:
    """One host's pauses: the end of the last one (this process's clock) and its length, the length of the
    next one (0: of a first one), how often in a row it refused at a pause's end, how many tasks were put off
    in this pause.
    """

    __slots__ = ("length_s", "next_s", "postponed", "refusals", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.length_s = 0.0
        self.next_s = 0.0
        self.refusals = 0
        self.postponed = 0


class Parks:
    """For the fetch loop. Times are seconds from now."""

    def __init__(
        self, fetch: FetchSettings, retry: RetrySettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first_s = fetch.park_s
        self._longest_s = max(fetch.park_s, retry.max_s)
        self._longest_asked_s = retry.retry_after_s
        self._longest_learnt_s = max(self._longest_s, self._longest_asked_s) * (1 + _JITTER)
        self._clock = clock
        self._parks: OrderedDict[str, _Park] = OrderedDict()

    def left_s(self, host: str) -> float:
        """How long the host stays parked; 0 where it is not."""
        park = self._parks.get(host) if self._parks else None
        return max(0.0, park.until - self._clock()) if park is not None else 0.0

    def is_parked(self, host: str) -> bool:
        """Whether nothing is to be asked of the host now."""
        return self.left_s(host) > 0

    def refused(self, host: str, retry_after_s: float | None) -> float:
        """The host answered 429 or 503: park it. How long, where that is longer than it was parked
        already, for others to be told; else 0.

        Answers to what was asked before the pause began do not make it grow.
        """
        left_s = self.left_s(host)
        length_s = min(retry_after_s or 0.0, self._longest_asked_s)
        if not length_s and not left_s and self._first_s:
            length_s = self._next_s(host)
        if length_s <= left_s:
            return 0.0
        pause_s = length_s * (1 + random.uniform(0, _JITTER))  # noqa: S311
        self._set(host, length_s, pause_s)
        if not left_s:
            self._parks[host].refusals += 1
        return pause_s

    def learn(self, host: str, left_s: float, refusals: int = 0) -> None:
        """The fleet has parked the host, and was refused there this often in a row; 0: nobody counted. What
        is nearly over is a pause that is known already, or not worth one. How long the next one is follows
        from the refusals: what is left of this one says nothing of its length.
        """
        left_s = min(left_s, self._longest_learnt_s)
        if left_s >= _LEAST_LEARNT_S and left_s > self.left_s(host):
            self._set(host, left_s, left_s)
        if refusals:
            self._park_of(host).refusals = refusals

    def answered(self, host: str) -> bool:
        """The host gave another answer: it is alive. Behind a pause that makes its next one shorter; inside
        of one it is an answer to what was asked before. Whether it had refused, so that others are to be
        told.
        """
        park = self._parks.get(host) if self._parks else None
        if park is None:
            return False
        had_refused, park.refusals = park.refusals > 0, 0
        if park.until <= self._clock():
            if park.next_s:
                park.next_s = max(self._first_s * _LEAST_PART, park.next_s * _EASE)
            else:  # others were refused: to us it is a host as any other
                del self._parks[host]
        return had_refused

    def return_in_s(self, host: str) -> float:
        """When a task of a parked host is to come back: some time behind the end of the pause, the later
        the more there are.
        """
        park = self._parks.get(host) or _Park()
        park.postponed += 1
        spread_s = park.length_s * _JITTER + park.postponed / _RETURN_PER_S
        return self.left_s(host) + random.uniform(0, spread_s)  # noqa: S311

    def is_given_up(self, host: str) -> bool:
        """Whether the host has done nothing but refuse the fleet, pause after pause: what waits for it would
        wait for ever.
        """
        park = self._parks.get(host)
        return park is not None and park.refusals > _PATIENCE

    def _next_s(self, host: str) -> float:
        """How long the pause is that begins now, which doubles the one behind it. After refusals in a row it
        is no less than so many make it: the pauses before may have been another worker's.
        """
        park = self._park_of(host)
        length_s = park.next_s or self._first_s
        if park.refusals:
            length_s = max(length_s, self._first_s * 2.0 ** min(park.refusals, _MOST_DOUBLINGS))
        length_s = min(self._longest_s, length_s)
        park.next_s = min(self._longest_s, 2 * length_s)
        return length_s

    def _park_of(self, host: str) -> _Park:
        park = self._parks.setdefault(host, _Park())
        self._parks.move_to_end(host)
        if len(self._parks) > MAX_KNOWN:
            self._parks.popitem(last=False)
        return park

    def _set(self, host: str, length_s: float, pause_s: float) -> None:
        park = self._park_of(host)
        now = self._clock()
        if park.until <= now:
            park.postponed = 0
            park.length_s = length_s
        park.length_s = max(park.length_s, length_s)
        park.until = max(park.until, now + pause_s)
