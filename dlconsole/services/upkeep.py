"""What every worker and console does for the fleet now and then: reap dead sessions, promote retries."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import Final

import redis

from dlconsole.services.connection import translated
from dlconsole.services.keys import Keys
from dlconsole.services.queue import MAX_DEATHS
from dlconsole.services.scripts import script

PERIOD_S: Final = 5.0
ROUND_S: Final = 0.5
STEP: Final = 100
"""Most items that one script call moves, so that Redis is never held up for long."""
CRASH_MEMORY_MS: Final = 24 * 3_600_000
"""How long after the last death it is remembered which items dead sessions held."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What one round did. `reaped` names the dead sessions whose tasks were given back."""

    reaped: tuple[str, ...] = ()
    given_back: int = 0
    promoted: int = 0
    more: bool = False
    """Whether the time was up before all was done."""


def next_round_s() -> float:
    """Seconds until the next round, with jitter, so that a large fleet does not call all at once."""
    return PERIOD_S * random.uniform(0.7, 1.3)  # noqa: S311


def keep(client: redis.Redis, keys: Keys, url: str, *, reap: bool = True, within_s: float = ROUND_S) -> Kept:
    """One round, in small steps, until nothing is left to do or the time is up: the caller has a lease of
    its own to renew. Raises RedisUnavailable, RedisUnusable.

    Who could not reach Redis for a while must not `reap` for the time of a lease: the others could not
    either, and must first have their chance to say that they live.
    """
    with translated(url):
        until = time.monotonic() + within_s
        kept = _reap(client, keys, until) if reap else Kept()
        promoted, more = _promote(client, keys, until)
        return replace(kept, promoted=promoted, more=kept.more or more)


def _reap(client: redis.Redis, keys: Keys, until: float) -> Kept:
    sessions: dict[str, None] = {}
    given_back = 0
    names = [keys.task, keys.lease, keys.sessions, keys.workers, keys.crash]
    more = 1
    while more and time.monotonic() < until:
        session_id, back, more = script("reap").run(
            client, names, keys.in_flight_prefix, STEP, MAX_DEATHS, CRASH_MEMORY_MS
        )
        if session_id:
            sessions[session_id.decode("utf-8", "replace")] = None
        given_back += back
    return Kept(tuple(sessions), given_back, more=bool(more))


def _promote(client: redis.Redis, keys: Keys, until: float) -> tuple[int, bool]:
    """How many, and whether more are due. One step at least: retries wait for no reaping."""
    promoted, more = 0, 1
    while more and (not promoted or time.monotonic() < until):
        moved, more = script("promote").run(client, [keys.task, keys.delayed], STEP)
        promoted += moved
    return promoted, bool(more)
