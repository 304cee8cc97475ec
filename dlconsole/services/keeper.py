"""A console's upkeep: what workers do for the fleet, also where no worker is alive to do it.

Leases run out by the server's clock, also while the server is away, or everything on a laptop sleeps.
Whoever reaps right after that takes for dead what only had no chance to renew its lease. So a console
reaps only when it has seen one server at work, without a gap, for as long as a lease lasts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import redis

from dlconsole.errors import RedisError
from dlconsole.services import upkeep
from dlconsole.services.connection import connect, translated
from dlconsole.services.keys import Keys
from dlconsole.services.upkeep import Kept
from dlconsole.settings import Settings

_LOOK_SHARE: Final = 1 / 4
_GAP_SHARE: Final = 1 / 2
"""Of a lease: how often the server is looked at, at least; how long between two looks is a gap. Leases are
renewed every third of their time, so while there is no gap none runs out that could be renewed.
"""


def run(settings: Settings, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Keep the dataset until `stop` is set; nothing in a read-only context. Never raises: while Redis is
    away or unusable, which the picture shows, nothing is done. `say` is told what was reaped.
    """
    if settings.read_only:
        return
    lease_s, url, keys = settings.worker.lease_s, settings.redis, Keys(settings.dataset)
    calm = _Calm(lease_s)
    try:
        with connect(url, name="dlconsole-upkeep") as client:
            while True:
                wait_s = min(upkeep.next_round_s(), lease_s * _LOOK_SHARE)
                try:
                    if calm.lasts(*_look(client, url)):
                        kept = upkeep.keep(client, keys, url)
                        _tell(kept, say)
                        wait_s = 0.0 if kept.more else wait_s
                except RedisError:
                    calm.broken()
                if stop.wait(wait_s):
                    return
    except Exception as error:  # noqa: BLE001  (a fault of ours must be seen, not written over the picture)
        say(f"dead sessions are not looked for, a fault in dlconsole: {type(error).__name__}: {error}")


def _look(client: redis.Redis, url: str) -> tuple[str, int]:
    """Which server it is, new at each restart, and its clock in ms."""
    with translated(url):
        info: dict[str, Any] = client.info("server")
        seconds, micros = client.time()
    return str(info.get("run_id", "")), seconds * 1000 + micros // 1000


def _tell(kept: Kept, say: Callable[[str], None]) -> None:
    if not kept.reaped:
        return
    count = len(kept.reaped)
    who = "1 dead session" if count == 1 else f"{count:,} dead sessions"
    say(f"{who} found; tasks back in the queue: {kept.given_back:,}")


class _Calm:
    """Whether one server has been at work for a whole lease, as far as looks at it can tell.

    By the server's clock: it also tells of the time that this process was suspended.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_ms = lease_s * 1000
        self._gap_ms = self._lease_ms * _GAP_SHARE
        self._server: str | None = None
        self._seen_ms = self._since_ms = 0

    def lasts(self, server: str, now_ms: int) -> bool:
        """Take in a look; whether there has been calm for a lease."""
        if server != self._server or not 0 <= now_ms - self._seen_ms <= self._gap_ms:
            self._since_ms = now_ms
        self._server, self._seen_ms = server, now_ms
        return now_ms - self._since_ms >= self._lease_ms

    def broken(self) -> None:
        """Redis did not answer, or not well: the calm begins anew with the next look."""
        self._server = None
