"""The hosts that a fleet leaves alone: told of at once, learnt at heartbeats."""

from __future__ import annotations

import time
from collections import deque

import redis

from dlconsole.errors import RedisUnavailable, RedisUnusable
from dlconsole.log import Logger
from dlconsole.services import parked
from dlconsole.services.keys import Keys
from dlconsole.settings import Settings


class SharedParks:
    """The fetch loop calls `park` and takes from `learnt`; the courier's thread exchanges the two."""

    def __init__(self, settings: Settings, client: redis.Redis, log: Logger) -> None:
        self.learnt: deque[tuple[str, float]] = deque()
        """Hosts that the fleet has parked, with the seconds that were left of it."""
        self._url = settings.redis
        self._keys = Keys(settings.dataset)
        self._client = client
        self._log = log
        self._untold: deque[tuple[str, float]] = deque()
        """Hosts parked here that the fleet is still to be told of, each with its end (`monotonic`)."""
        self._cannot_share = False

    @property
    def has_news(self) -> bool:
        """Whether there are hosts to tell of."""
        return bool(self._untold)

    def park(self, host: str, for_s: float) -> None:
        """A host asked this worker to be left alone; `exchange` will tell."""
        self._untold.append((host, time.monotonic() + for_s))

    def exchange(self) -> None:
        """Tell the fleet of the hosts that were parked here, and learn of all that are. Where that cannot be,
        the work goes on: each worker then learns by being refused itself.
        """
        ends = [self._untold.popleft() for _ in range(len(self._untold))]
        now = time.monotonic()
        new = {host: end - now for host, end in ends if end > now}
        try:
            found = parked.exchange(self._client, self._keys, self._url, new)
        except RedisUnavailable as error:
            self._untold.extendleft(reversed(ends))
            self._log.debug("parked hosts not shared", error=str(error))
            return
        except RedisUnusable as error:
            if not self._cannot_share:
                self._log.warning("parked hosts are not shared", error=str(error))
            self._cannot_share = True
            return
        self._cannot_share = False
        self.learnt.extend(found.items())
