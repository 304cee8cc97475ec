"""What a worker says beyond its own session: its host's state and, when it has the turn, the fleet's
history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import redis

from dlconsole.log import Logger
from dlconsole.model import HistoryPoint, SessionStats
from dlconsole.services import history, hosts
from dlconsole.services.connection import translated
from dlconsole.services.disk import DiskReading
from dlconsole.services.keys import Keys
from dlconsole.services.scripts import script
from dlconsole.settings import Settings

_MAX_SUMMED: Final = 2000
"""Sessions whose speeds a history point adds up; the points of a larger fleet have none."""


class Reporter:
    """For the courier's thread, at each heartbeat."""

    def __init__(
        self,
        settings: Settings,
        client: redis.Redis,
        log: Logger,
        disk: Callable[[], DiskReading | None],
    ) -> None:
        """`disk` gives what the store's filesystem said last, without asking it."""
        self.host = hosts.host_name(settings)
        """The name this host goes by."""
        self._url = settings.redis
        self._keys = Keys(settings.dataset)
        self._client = client
        self._log = log
        self._disk = disk
        self._sampler = hosts.HostSampler(settings)

    def publish(self, server_ms: int) -> None:
        """Write the host's record and, in turn, a history point. Raises RedisUnavailable, RedisUnusable."""
        sample = self._sampler.sample(server_ms, self._disk())
        with translated(self._url):
            hosts.publish(self._client, self._keys, self.host, sample)
            if self._client.set(self._keys.history_turn, b"1", nx=True, px=history.PERIOD_MS):
                self._add_history_point()

    def say_goodbye(self, server_ms: int) -> None:
        """The session ends in order: unless another one of this host goes on, its silence is meant."""
        sample = self._sampler.sample(server_ms, self._disk())
        with translated(self._url):
            hosts.publish(self._client, self._keys, self.host, msgspec.structs.replace(sample, ended=True))

    def _add_history_point(self) -> None:
        keys = self._keys
        counted = script("counts").run(self._client, keys.counted, keys.in_flight_prefix)
        at_ms, queued, _, _, stored, failed, *_ = counted
        bytes_per_s = 0.0
        if self._client.hlen(keys.workers) <= _MAX_SUMMED:
            for record in self._client.hvals(keys.workers):
                try:
                    bytes_per_s += msgspec.json.decode(record, type=SessionStats).bytes_per_s
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
        history.add(self._client, keys, HistoryPoint(at_ms, stored, failed, queued, bytes_per_s))
