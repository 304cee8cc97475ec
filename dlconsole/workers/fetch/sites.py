"""What a process knows of the sites (hosts of URLs) that it fetches from: counts, failures, times.

In bounded room: of many sites those with few fetches are thrown together from time to time. One that comes
back begins anew, so what is said of it is then too little, while what is said of all together stays right.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import msgspec

from dlconsole.histogram import Histogram
from dlconsole.model import Failure, Outcome, SitesReport, SiteStats

MAX_KNOWN: Final = 4096
"""Sites that are told apart; half of them go when there are more."""
MAX_REPORTED: Final = 32
"""Sites that a report names."""
MAX_REPORT_BYTES: Final = 24 * 1024
"""A report that would be larger names fewer."""
_MAX_NAME: Final = 255
"""No name in DNS is longer; a URL's can be."""
_ENCODER: Final = msgspec.json.Encoder()


class _Site(msgspec.Struct, gc=False):
    """One site, or several together. `told` is how many fetches the last report had of it."""

    fetches: int = 0
    told: int = 0
    bytes: int = 0
    reused: int = 0
    opened: int = 0
    kinds: dict[str, int] = {}
    timings: dict[str, Histogram] = {}

    def add_time(self, part: str, duration_s: float) -> None:
        histogram = self.timings.get(part)
        if histogram is None:
            histogram = self.timings[part] = Histogram()
        histogram.add(duration_s)

    def absorb(self, other: _Site) -> None:
        self.fetches += other.fetches
        self.told += other.told
        self.bytes += other.bytes
        self.reused += other.reused
        self.opened += other.opened
        if other.kinds:
            for kind, count in other.kinds.copy().items():
                self.kinds[kind] = self.kinds.get(kind, 0) + count
        if other.timings:
            for part, histogram in other.timings.copy().items():
                self.timings.setdefault(part, Histogram()).absorb(histogram)

    def stats(self, elapsed_s: float) -> SiteStats:
        return SiteStats(
            fetches=self.fetches,
            bytes=self.bytes,
            per_s=round(max(0, self.fetches - self.told) / elapsed_s, 2),
            kinds=dict(self.kinds),
            reused=self.reused,
            opened=self.opened,
            timings={part: histogram.counts for part, histogram in self.timings.copy().items()},
        )


class Sites:
    """The fetch loop's thread adds; another one may ask for a `report`, in which what is added at that very
    moment may be missing, or be twice. What it reads it copies first, in one step: a list of a dict's items
    takes several, between which the other thread may add.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Site] = {}
        self._others = _Site()
        self._reported_at = time.monotonic()

    def add(self, name: str, outcome: Outcome) -> None:
        """A fetch that ended at this site became this."""
        site = self._known.get(name) or self._meet(name)
        site.fetches += 1
        if isinstance(outcome, Failure):
            site.kinds[outcome.kind] = site.kinds.get(outcome.kind, 0) + 1
        else:
            site.bytes += outcome.size_bytes

    def add_lookup(self, name: str, duration_s: float) -> None:
        """The site's name was looked up."""
        (self._known.get(name) or self._meet(name)).add_time("dns", duration_s)

    def add_sample(
        self, name: str, *, opened: bool, connect_s: float, tls_s: float, first_byte_s: float
    ) -> None:
        """What one request took there, see `Timings.add_fetch`."""
        site = self._known.get(name) or self._meet(name)
        if opened:
            site.opened += 1
            site.add_time("connect", connect_s)
            if tls_s > 0:
                site.add_time("tls", tls_s)
        else:
            site.reused += 1
        site.add_time("first_byte", first_byte_s)

    def report(self) -> bytes:
        """The sites most fetched from, and all others together: a `SitesReport` as JSON, of at most
        `MAX_REPORT_BYTES`. Rates are those since the last one.
        """
        now = time.monotonic()
        elapsed_s = max(now - self._reported_at, 1e-3)
        self._reported_at = now
        ranked = _ranked(self._known.copy().items())
        # A site that only redirects has no fetch that ended there.
        named = [known for known in ranked[:MAX_REPORTED] if known[1].fetches]
        others = _Site()
        for rest in (self._others, *(site for _, site in ranked[len(named) :])):
            others.absorb(rest)
        while True:
            sites = {name: site.stats(elapsed_s) for name, site in named}
            report = _ENCODER.encode(SitesReport(sites, others.stats(elapsed_s)))
            if len(report) <= MAX_REPORT_BYTES or not named:
                break
            fewer = len(named) // 2
            for _, site in named[fewer:]:
                others.absorb(site)
            named = named[:fewer]
        for site in (self._others, *(site for _, site in ranked)):
            site.told = site.fetches
        return report

    def _meet(self, name: str) -> _Site:
        """A site that is not known yet; `_others` where that cannot be a site's name."""
        if len(name) > _MAX_NAME:
            return self._others
        if len(self._known) >= MAX_KNOWN:
            ranked = _ranked(self._known.items())
            self._known = dict(reversed(ranked[: MAX_KNOWN // 2]))
            for _, site in ranked[MAX_KNOWN // 2 :]:
                self._others.absorb(site)
        site = self._known[name] = _Site()
        return site


def _ranked(sites: Iterable[tuple[str, _Site]]) -> list[tuple[str, _Site]]:
    """Those most fetched from first; of equals, the one that was met last."""
    latest_first = list(sites)[::-1]
    return sorted(latest_first, key=lambda known: known[1].fetches, reverse=True)
