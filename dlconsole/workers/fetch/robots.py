"""What the robots.txt of origins say, as far as it is known: RFC 9309.

An answer of the 4xx kind, and redirects that lead nowhere, are a site without one: everything is allowed.
Where it cannot be had (a 5xx, no connection, no name), nothing is fetched; that is not an opt-out but
a failure of the kind that it was, so that it heals as others do. `Crawl-delay` is no part of the RFC and
not read: `fetch.per_host_per_s` is the pace.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from dlconsole.model import Failure, FailureKind
from dlconsole.workers.fetch.engine import Fetched
from dlconsole.workers.fetch.opt_out import agent_token
from dlconsole.workers.fetch.robots_rules import Rules, canonical, parse
from dlconsole.workers.fetch.urls import Origin, Target, request_target

KEEP_S: Final = 86_400.0
"""How long a file is used at most: RFC 9309, 2.4."""
RETRY_S: Final = 60.0
"""How long one that could not be had is not asked for again."""
MAX_ORIGINS: Final = 20_000
MAX_BYTES: Final = 32 * 2**20
"""What is known of origins, together; those that were asked about longest ago are forgotten first."""
_PATH: Final = re.compile(r"[^:]*://[^/?#]*([^#]*)")
_ALL_ALLOWED: Final = Rules()


class Known:
    """What is known of one origin, until when."""

    __slots__ = ("_failure", "_origin", "_rules", "size_bytes", "until")

    def __init__(self, origin: Origin, rules: Rules, until: float, failure: Failure | None = None) -> None:
        self.until = until
        self.size_bytes = rules.size_bytes
        self._origin = origin
        self._rules = rules
        self._failure = failure

    def refusal(self, target: Target) -> Failure | None:
        """Why a URL of the origin is not to be fetched, if it is not."""
        if self._failure is not None or self._rules is _ALL_ALLOWED:
            return self._failure
        pattern = self._rules.disallowed_by(_path_of(target.url))
        if not pattern:
            return None
        return Failure(FailureKind.OPT_OUT, f"robots.txt of {self._origin}: disallow: {pattern[:200]}")


class Robots:
    """For one thread."""

    def __init__(self, user_agent: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = agent_token(user_agent)
        self._clock = clock
        self._known: OrderedDict[Origin, Known] = OrderedDict()
        self._size_bytes = 0

    def known(self, origin: Origin) -> Known | None:
        """What is known of an origin; None: its robots.txt is to be fetched, and to be learnt."""
        known = self._known.get(origin)
        if known is None:
            return None
        if self._clock() >= known.until:
            self._forget(origin)
            return None
        self._known.move_to_end(origin)
        return known

    def learn(self, origin: Origin, outcome: Fetched | Failure) -> Known:
        """What came of fetching its robots.txt. A fault of ours is not kept: the next fetch asks again."""
        now = self._clock()
        if isinstance(outcome, Fetched):
            body = outcome.body
            text = body if isinstance(body, bytearray) else body.read()
            known = Known(origin, parse(text, self._token), now + KEEP_S)
        elif _is_unavailable(outcome):
            known = Known(origin, _ALL_ALLOWED, now + KEEP_S)
        else:
            until = now + RETRY_S
            retry_after_s = RETRY_S if outcome.retry_after_s is None else outcome.retry_after_s
            known = Known(origin, _ALL_ALLOWED, until, self.failure(origin, outcome, retry_after_s))
        self._forget(origin)
        if isinstance(outcome, Failure) and outcome.kind is FailureKind.CRASHED:
            return known
        self._known[origin] = known
        self._size_bytes += known.size_bytes
        while len(self._known) > 1 and (len(self._known) > MAX_ORIGINS or self._size_bytes > MAX_BYTES):
            self._forget(next(iter(self._known)))
        return known

    def failure(self, origin: Origin, failure: Failure, retry_after_s: float | None) -> Failure:
        """What the URLs of an origin end with whose robots.txt ended with `failure`."""
        message = f"robots.txt of {origin}: {failure.message}"
        return Failure(failure.kind, message, failure.status, retry_after_s)

    def _forget(self, origin: Origin) -> None:
        known = self._known.pop(origin, None)
        if known is not None:
            self._size_bytes -= known.size_bytes


def _is_unavailable(failure: Failure) -> bool:
    """Whether the site has no robots.txt, unlike one that cannot be had: RFC 9309, 2.3.1.3."""
    if failure.kind is FailureKind.HTTP_STATUS:
        return failure.status is not None and failure.status < 500
    return failure.kind is FailureKind.REDIRECTS


def _path_of(url: str) -> str:
    """Path and query as they are sent, in the form in which rules are compared."""
    match = _PATH.match(url)
    path = match[1] if match is not None else ""
    if "/." in path or "/%2" in path:  # segments that may be dots
        path = request_target(url)
    return canonical(path if path.startswith("/") else f"/{path}")
