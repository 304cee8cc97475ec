"""How long the parts of a fetch take, over all sessions: what their heartbeats say, added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from dlconsole.histogram import Histogram
from dlconsole.model import LookupResult, SessionStats

PARTS: Final = ("dns", "connect", "tls", "first_byte", "total")
"""As sessions name them: see `workers/fetch/timings.py`."""


@dataclass(slots=True)
class FetchTimes:
    """Of samples, since the sessions began; the lookups are all."""

    parts: dict[str, Histogram] = field(default_factory=dict)
    reused: int = 0
    opened: int = 0
    lookups: Counter[str] = field(default_factory=Counter)

    @property
    def reuse(self) -> float | None:
        """Of the sampled requests those on a connection that was open already, 0 to 1."""
        sampled = self.reused + self.opened
        return self.reused / sampled if sampled > 0 else None

    @property
    def lookup_failures(self) -> float | None:
        """Of the lookups those that gave no address, 0 to 1."""
        total = self.lookups.total()
        return 1 - self.lookups[LookupResult.FOUND] / total if total > 0 else None

    def percentile_s(self, part: str, percent: float) -> float | None:
        """See `Histogram`; None where nothing was sampled."""
        return self.parts[part].percentile_s(percent) if part in self.parts else None


def fetch_times(sessions: Iterable[SessionStats]) -> FetchTimes:
    """Add up what sessions say."""
    times = FetchTimes()
    for stats in sessions:
        times.reused += stats.reused
        times.opened += stats.opened
        times.lookups.update({result: stats.lookups.get(result, 0) for result in LookupResult})
        for part in PARTS:
            if part in stats.timings:
                times.parts.setdefault(part, Histogram()).absorb(Histogram(stats.timings[part]))
    return times
