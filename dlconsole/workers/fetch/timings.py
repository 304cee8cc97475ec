"""How long the parts of a fetch take, for the heartbeat. Counted from samples: at most two thousand a
second, so that a fast worker does not pay for what a slow one needs.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

from dlconsole.histogram import Histogram
from dlconsole.model import LookupResult
from dlconsole.workers.fetch.sites import Sites

_SAMPLE_EVERY_S: Final = 0.0005
PARTS: Final = ("dns", "connect", "tls", "first_byte", "total")
"""Each is the time from the end of the part before it; `dns` is a lookup's, whoever waited for it, and
`total` all of one request, redirects apart.
"""


class Timings:
    """Histograms of `PARTS`, and how often a connection was used again. For one thread to write."""

    def __init__(self) -> None:
        self.sites = Sites()
        """The same by site, with what their fetches gave."""
        self.reused = 0
        self.opened = 0
        """Sampled fetches on a connection that was open already, and on a new one."""
        self.lookups: Counter[str] = Counter()
        """How many names were looked up, by `LookupResult`."""
        self._histograms = {part: Histogram() for part in PARTS}
        self._sample_at = 0.0

    @property
    def wants_sample(self) -> bool:
        """Whether the fetch that has just ended is to be counted."""
        return time.monotonic() >= self._sample_at

    def add_lookup(self, site: str, duration_s: float, result: LookupResult) -> None:
        """A site's name was looked up."""
        self.lookups[result] += 1
        self._histograms["dns"].add(duration_s)
        self.sites.add_lookup(site, duration_s)

    def add_fetch(
        self, site: str, *, opened: bool, connect_s: float, tls_s: float, first_byte_s: float, total_s: float
    ) -> None:
        """A fetch from `site` has ended. `connect_s` and `tls_s` count where a connection was opened; 0:
        without TLS.
        """
        self._sample_at = time.monotonic() + _SAMPLE_EVERY_S
        if opened:
            self.opened += 1
            self._histograms["connect"].add(connect_s)
            if tls_s > 0:
                self._histograms["tls"].add(tls_s)
        else:
            self.reused += 1
        self._histograms["first_byte"].add(first_byte_s)
        self._histograms["total"].add(total_s)
        self.sites.add_sample(
            site, opened=opened, connect_s=connect_s, tls_s=tls_s, first_byte_s=first_byte_s
        )

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """The histograms that are not empty, as `Histogram.counts`, by part."""
        return {part: histogram.counts for part, histogram in self._histograms.items() if histogram.total}
