"""The hosts that a fleet leaves alone for now: one worker is refused, all of them wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import redis

from dlconsole.services.connection import translated
from dlconsole.services.keys import Keys
from dlconsole.services.scripts import script

MAX_SHARED: Final = 1000
"""Hosts that a fleet shares; of more, those that stay parked longest."""
LONGEST_MS: Final = 10 * 86_400_000
"""More than any worker's settings allow; what says more was not written by one."""


def exchange(client: redis.Redis, keys: Keys, url: str, parked_s: Mapping[str, float]) -> dict[str, float]:
    """Tell of hosts parked here (host → seconds from now), and learn of all. What is no host's name is left
    out. Raises RedisUnavailable, RedisUnusable.
    """
    arguments: list[str | int] = [MAX_SHARED, LONGEST_MS]
    for host, left_s in parked_s.items():
        arguments += (host, round(left_s * 1000))
    with translated(url):
        reply = script("park").run(client, [keys.parked], *arguments)
    found = {name: int(left_ms) / 1000 for name, left_ms in zip(reply[::2], reply[1::2], strict=True)}
    return {name.decode(): left_s for name, left_s in found.items() if name.isascii()}
