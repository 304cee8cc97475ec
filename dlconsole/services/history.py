"""The fleet's history stream: one point every 10 s for 24 h, so a console opened now shows the past.

Whoever takes the turn (`SET NX PX`) writes the next point: a worker at its heartbeat, or a console,
so that a fleet of legacy scripts has a history too.
"""

from __future__ import annotations

from typing import Any, Final

import redis
from redis.asyncio.client import Pipeline

from dlconsole.model import HistoryPoint
from dlconsole.services.keys import Keys

PERIOD_MS: Final = 10_000
KEEP_POINTS: Final = 24 * 3600 * 1000 // PERIOD_MS


def add(client: redis.Redis | Pipeline, keys: Keys, point: HistoryPoint) -> Any:
    """Append one point; the stream is capped at a day. The server's clock gives its time."""
    fields = {"s": point.stored, "e": point.failed, "q": point.queued, "b": round(point.bytes_per_s)}
    return client.xadd(keys.history, fields, maxlen=KEEP_POINTS, approximate=True)  # type: ignore[arg-type]


def parse(point_id: bytes, fields: dict[bytes, bytes]) -> HistoryPoint | None:
    """A point as it was added, or None where it is not ours."""
    try:
        return HistoryPoint(
            at_ms=int(point_id.partition(b"-")[0]),
            stored=int(fields[b"s"]),
            failed=int(fields[b"e"]),
            queued=int(fields[b"q"]),
            bytes_per_s=float(fields.get(b"b", 0)),
        )
    except (KeyError, ValueError):
        return None
