"""Durations in a few dozen counts: small enough for a heartbeat, and histograms of many workers add up.

Four buckets an octave from 0.1 ms on, so a percentile read from it is off by at most 10 % either way (the
idea of HDR histograms: Tene, 2014, with fewer bits).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

_FIRST_S: Final = 1e-4
_PER_OCTAVE: Final = 4
_LAST: Final = 96
"""Number of the last bucket, which begins at 0.1 ms * 2**24, half an hour."""


class Histogram:
    """Counts of durations; what is empty takes no room. One thread may add while another reads."""

    __slots__ = ("_buckets",)

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        """From what `counts` gave, maybe elsewhere: numbers that are no bucket's are left out."""
        self._buckets: dict[int, int] = {}
        for bucket, count in (counts or {}).items():
            if bucket.isascii() and bucket.isdecimal() and int(bucket) <= _LAST and count > 0:
                self._buckets[int(bucket)] = count

    @property
    def counts(self) -> dict[str, int]:
        """The buckets that are not empty, by their number (as text, for JSON)."""
        return {str(bucket): count for bucket, count in self._sorted()}

    @property
    def total(self) -> int:
        """How many durations are in it."""
        return sum(count for _, count in self._sorted())

    def add(self, duration_s: float) -> None:
        """Count one duration, in seconds."""
        bucket = _bucket_of(duration_s)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def absorb(self, other: Histogram) -> None:
        """Count all that `other` counted."""
        for bucket, count in other._buckets.copy().items():  # at once: another thread may add meanwhile
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count

    def merge(self, others: Iterable[Histogram]) -> Histogram:
        """One histogram of all."""
        merged = Histogram()
        for histogram in (self, *others):
            merged.absorb(histogram)
        return merged

    def percentile_s(self, percent: float) -> float | None:
        """The duration that `percent` % are not above, in seconds; None where it is empty."""
        left = self.total * percent / 100
        for bucket, count in self._sorted():
            left -= count
            if left <= 0:
                return _middle_s(bucket)
        return None

    def _sorted(self) -> list[tuple[int, int]]:
        # Taken at once: another thread may add meanwhile.
        return sorted(list(self._buckets.items()))  # noqa: C414


def _bucket_of(duration_s: float) -> int:
    if duration_s <= _FIRST_S:
        return 0
    return 1 + int(min(_LAST - 1.0, _PER_OCTAVE * math.log2(duration_s / _FIRST_S)))


def _middle_s(bucket: int) -> float:
    """A bucket's geometric middle; the first one's end."""
    return _FIRST_S if bucket == 0 else float(_FIRST_S * 2 ** ((bucket - 0.5) / _PER_OCTAVE))
