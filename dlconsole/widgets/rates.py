"""From counters that were written down now and then to speeds at regular times. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from dlconsole.model import HistoryPoint

_MINUTE_MS: Final = 60_000
_STEPS: Final = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True, slots=True)
class Window:
    """A span that a plot can show, and the parts in which its time axis reads well."""

    minutes: int
    parts: int

    @property
    def ms(self) -> int:
        """Its length."""
        return self.minutes * _MINUTE_MS


WINDOWS: Final = tuple(
    Window(minutes, parts)
    for minutes, parts in (
        (1, 4),
        (2, 4),
        (5, 5),
        (10, 5),
        (20, 4),
        (30, 3),
        (60, 4),
        (120, 4),
        (180, 3),
        (360, 3),
        (720, 4),
        (1440, 4),
    )
)


def window_for(points: Sequence[HistoryPoint], at_ms: int) -> Window:
    """How far back the plot goes: the shortest window that holds the whole history."""
    age_ms = at_ms - points[0].at_ms if points else 0
    return next((window for window in WINDOWS if window.ms >= age_ms), WINDOWS[-1])


def stored_rates(
    points: Sequence[HistoryPoint], at_ms: int, window_ms: int, columns: int
) -> list[float | None]:
    """Images per second in each of `columns` equal slices of the window that ends at `at_ms`.

    Between two points the speed is their difference over their distance, so slices may be shorter or
    longer than it. None where there are no points, and where a counter went back (it was reset).
    Slices start at multiples of their length, so that the picture moves by whole columns.
    """
    slice_ms = window_ms / columns
    first_ms = (math.floor(at_ms / slice_ms) + 1 - columns) * slice_ms
    stored = [0.0] * columns
    covered_ms = [0.0] * columns
    for before, after in pairwise(points):
        span_ms = after.at_ms - before.at_ms
        gained = after.stored - before.stored
        if span_ms <= 0 or gained < 0 or after.at_ms <= first_ms:
            continue
        start = max(0, math.floor((before.at_ms - first_ms) / slice_ms))
        stop = min(columns - 1, math.floor((after.at_ms - first_ms) / slice_ms))
        for column in range(start, stop + 1):
            left = max(before.at_ms, first_ms + column * slice_ms)
            overlap_ms = min(after.at_ms, first_ms + (column + 1) * slice_ms) - left
            if overlap_ms > 0:
                stored[column] += gained * overlap_ms / span_ms
                covered_ms[column] += overlap_ms
    return [1000 * s / ms if ms else None for s, ms in zip(stored, covered_ms, strict=True)]


def round_up(value: float) -> float:
    """The next value that reads well at the top of an axis, as its half does below it."""
    if value <= 1:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _STEPS if step * power >= value * 0.999_999)
