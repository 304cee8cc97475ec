"""The hosts that a fleet leaves alone for now: one worker is refused, all of them wait."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import redis

from dlconsole.services.connection import translated
from dlconsole.services.keys import Keys
from dlconsole.services.scripts import script

MAX_SHARED: Final = 1000
"""Hosts that a fleet shares; of more, those that stay parked longest, and those that refused most often."""
LONGEST_MS: Final = 10 * 86_400_000
"""More than any worker's settings allow; what says more was not written by one."""
_REMEMBER_MS: Final = 86_400_000
"""How long refusals are remembered after a fleet's last one."""
ANSWERED: Final = 0.0
"""Told in place of a pause: the host gave another answer than a refusal."""


class Shared(NamedTuple):
    """What the fleet knows of a host: how long it stays parked, 0 where it is not any more, and how often in
    a row it refused, pause after pause; 0 where that was not counted.
    """

    left_s: float
    refusals: int


def exchange(
    client: redis.Redis, keys: Keys, url: str, news: Iterable[tuple[str, float]] = ()
) -> dict[str, Shared]:
    """Tell of hosts parked here (host, seconds from now) and of those that answered (host, `ANSWERED`), in
    the order in which that happened; learn of all. What is no host's name is left out. Raises
    RedisUnavailable, RedisUnusable.
    """
    arguments: list[str | int] = [MAX_SHARED, LONGEST_MS, _REMEMBER_MS]
    for host, left_s in news:
        arguments += (host, 0 if left_s == ANSWERED else max(1, round(left_s * 1000)))
    with translated(url):
        reply = script("park").run(client, [keys.parked, keys.refused], *arguments)
    return {
        name.decode(): Shared(int(left_ms) / 1000, int(refusals))
        for name, left_ms, refusals in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        if name.isascii()
    }
