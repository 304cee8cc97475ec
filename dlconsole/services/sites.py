"""One round trip → what a fleet knows of the sites (hosts of URLs) that it fetches from.

Each session reports the sites that it fetches most from, and all others together (`workers/fetch/sites.py`).
So the fetches of all add up, but of one site there may be more than are named with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from dlconsole.histogram import Histogram
from dlconsole.model import SitesReport, SiteStats
from dlconsole.services.connection import check_version, connect, translated
from dlconsole.services.keys import Keys
from dlconsole.services.parked import LONGEST_MS
from dlconsole.services.scripts import script
from dlconsole.settings import Settings

MAX_REPORT_BYTES: Final = 64 * 1024
"""Longer reports are not ours."""
_REPORT: Final = msgspec.json.Decoder(SitesReport)


@dataclass(slots=True)
class SiteView:
    """One site, or several together, over all sessions. Counts are since the sessions began."""

    fetches: int = 0
    bytes: int = 0
    per_s: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    reused: int = 0
    opened: int = 0
    times: dict[str, Histogram] = field(default_factory=dict)
    """By part of a fetch: dns, connect, tls, first_byte."""
    parked_s: float = 0.0
    """For how long the fleet still leaves it alone."""

    @property
    def failed(self) -> int:
        """Fetches that ended as failures."""
        return sum(self.kinds.values())

    @property
    def reuse(self) -> float | None:
        """Of the sampled requests those on a connection that was open already, 0 to 1."""
        sampled = self.reused + self.opened
        return self.reused / sampled if sampled else None

    def percentile_s(self, part: str, percent: float) -> float | None:
        """See `Histogram`; None where nothing was sampled."""
        return self.times[part].percentile_s(percent) if part in self.times else None

    def add(self, stats: SiteStats) -> None:
        """Count what one session says."""
        self.fetches += stats.fetches
        self.bytes += stats.bytes
        self.per_s += stats.per_s
        self.kinds.update(stats.kinds)
        self.reused += stats.reused
        self.opened += stats.opened
        for part, counts in stats.timings.items():
            self.times.setdefault(part, Histogram()).absorb(Histogram(counts))


@dataclass(frozen=True, slots=True)
class SitesPicture:
    """All sites that are named or parked, those that are not named together, and how many living sessions
    there are, have reported, and have something that is no report.
    """

    dataset: str
    at_ms: int
    sites: dict[str, SiteView]
    others: SiteView
    sessions: int
    reporting: int
    unreadable: int


def read_sites(settings: Settings) -> SitesPicture:
    """The sites now. Raises RedisUnavailable or RedisUnusable."""
    keys = Keys(settings.dataset)
    with translated(settings.redis), connect(settings.redis, name="dlconsole-sites") as client:
        pipe = client.pipeline(transaction=False)
        pipe.info("server")
        names = (keys.lease, keys.parked)
        limits = (MAX_REPORT_BYTES, LONGEST_MS)
        pipe.execute_command("EVAL", script("sites").source, len(names), *names, keys.sites_prefix, *limits)
        info, reply = pipe.execute(raise_on_error=False)  # which would put the source into its message
        for answer in (info, reply):
            if isinstance(answer, Exception):
                raise answer
    check_version(info, settings.redis)
    return _picture(settings.dataset, *reply)


def _picture(dataset: str, at_ms: int, reports: list[bytes], parked: list[bytes]) -> SitesPicture:
    sites: dict[str, SiteView] = {}
    others = SiteView()
    reporting = unreadable = 0
    for raw in filter(None, reports):
        try:
            report = _REPORT.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            unreadable += 1
            continue
        reporting += 1
        for name, stats in report.sites.items():
            sites.setdefault(name, SiteView()).add(stats)
        others.add(report.others)
    for host, left_ms in zip(parked[::2], parked[1::2], strict=True):
        if host.isascii():
            sites.setdefault(host.decode(), SiteView()).parked_s = int(left_ms) / 1000
    return SitesPicture(dataset, at_ms, sites, others, len(reports), reporting, unreadable)


ORDERS: Final[dict[str, Callable[[SiteView], float]]] = {
    "rate": lambda site: site.per_s,
    "failures": lambda site: site.failed,
    "bytes": lambda site: site.bytes,
    "slow": lambda site: site.percentile_s("first_byte", 95) or 0.0,
}
"""What sites can be sorted by: the largest come first, of equals those with more fetches, then by name."""


def ordered(sites: Iterable[tuple[str, SiteView]], by: str) -> list[tuple[str, SiteView]]:
    """The sites sorted by one of `ORDERS`."""
    measure = ORDERS[by]
    return sorted(sites, key=lambda named: (-measure(named[1]), -named[1].fetches, named[0]))
