"""The hosts that a fleet leaves alone: told of at once, learnt at heartbeats."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import redis

from dlconsole.errors import RedisUnavailable, RedisUnusable
from dlconsole.log import Logger
from dlconsole.services import parked
from dlconsole.services.keys import Keys
from dlconsole.services.parked import Shared
from dlconsole.settings import Settings

_MOMENT_S: Final = 0.001


class SharedParks:
    """The fetch loop calls `park` and `answered` and takes from `learnt`; the courier's thread exchanges."""

    def __init__(self, settings: Settings, client: redis.Redis, log: Logger) -> None:
        self.learnt: deque[tuple[str, Shared]] = deque()
        """Hosts that the fleet has parked, or was only refused by of late."""
        self._url = settings.redis
        self._keys = Keys(settings.dataset)
        self._client = client
        self._log = log
        self._untold: deque[tuple[str, float]] = deque()
        """What the fleet is still to be told: hosts parked here, each with its end (`monotonic`), and those
        that `ANSWERED`.
        """
        self.has_news = False
        """Whether there are hosts to tell of before the next heartbeat."""
        self._cannot_share = False

    def park(self, host: str, for_s: float) -> None:
        """A host asked this worker to be left alone; `exchange` will tell."""
        self._untold.append((host, time.monotonic() + for_s))
        self.has_news = True

    def answered(self, host: str) -> None:
        """A host that refused gave another answer; the next heartbeat will tell."""
        self._untold.append((host, parked.ANSWERED))

    def exchange(self) -> None:
        """Tell the fleet of the hosts that were parked here, and learn of all that are. Where that cannot be,
        the work goes on: each worker then learns by being refused itself.
        """
        had_news, self.has_news = self.has_news, False
        untold = [self._untold.popleft() for _ in range(len(self._untold))]
        now = time.monotonic()
        # A pause that ended before it was told counts as a refusal all the same.
        news = [(host, end if end == parked.ANSWERED else max(_MOMENT_S, end - now)) for host, end in untold]
        try:
            found = parked.exchange(self._client, self._keys, self._url, news)
        except RedisUnavailable as error:
            self._untold.extendleft(reversed(untold))
            self.has_news = self.has_news or had_news
            self._log.debug("parked hosts not shared", error=str(error))
            return
        except RedisUnusable as error:
            if not self._cannot_share:
                self._log.warning("parked hosts are not shared", error=str(error))
            self._cannot_share = True
            return
        self._cannot_share = False
        self.learnt.extend(found.items())
