"""The one loop that asks for the fleet's snapshot: one question at a time, so that ticks never pile up.

It knows no Textual: what it found goes to `publish`, at once and from the loop's own task.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from dlconsole.errors import RedisError
from dlconsole.model import FleetSnapshot
from dlconsole.picture import Link, LinkState

PATIENCE_S: Final = 3.0
"""An answer that takes longer than this is reported as missing, while the question stays open."""
FIRST_RETRY_S: Final = 0.5
LAST_RETRY_S: Final = 5.0
_JITTER: Final = 0.2


class SnapshotReader(Protocol):
    """Where snapshots come from: `services.fleet.FleetReader`, or a recording."""

    async def read_snapshot(self) -> FleetSnapshot:
        """The fleet now. Raises RedisError."""
        ...

    async def close(self) -> None:
        """Give the connection back."""
        ...


@dataclass(frozen=True, slots=True)
class Poll:
    """What one attempt gave. `snapshot` is the last good one, so a newer Poll replaces an older one."""

    snapshot: FleetSnapshot | None
    link: Link


class Poller:
    """Asks `reader` every `refresh_s` seconds; after a failure sooner, backing off with jitter."""

    def __init__(
        self,
        reader: SnapshotReader,
        publish: Callable[[Poll], None],
        *,
        refresh_s: float,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._reader = reader
        self._publish = publish
        self._refresh_s = refresh_s
        self._now = now
        self._chance = chance
        self._changed = asyncio.Event()
        self._snapshot: FleetSnapshot | None = None
        self._since_s = now()
        self._failures = 0

    @property
    def refresh_s(self) -> float:
        """Seconds from the start of one question to the start of the next."""
        return self._refresh_s

    @refresh_s.setter
    def refresh_s(self, seconds: float) -> None:
        self._refresh_s = seconds
        self._changed.set()

    async def run(self) -> None:
        """Ask for ever, until cancelled; then close the reader."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                started_s = loop.time()
                retry_s = await self._ask()
                await self._wait(started_s, retry_s)
        finally:
            await self._reader.close()

    async def _ask(self) -> float | None:
        """One question; None, or after a failure the seconds until the next try."""
        question = asyncio.ensure_future(self._reader.read_snapshot())
        try:
            await asyncio.wait({question}, timeout=PATIENCE_S)
            if not question.done():
                self._publish_lost(f"Redis has not answered for {PATIENCE_S:.0f} s", None)
            self._snapshot = await question
        except RedisError as error:
            return self._fail(str(error))
        except Exception as error:  # noqa: BLE001  (a fault of ours must be seen, not end the loop)
            return self._fail(f"a fault in dlconsole: {type(error).__name__}: {error}")
        finally:
            question.cancel()
        self._failures = 0
        self._since_s = self._now()
        self._publish(Poll(self._snapshot, Link(LinkState.LIVE, self._since_s)))
        return None

    def _fail(self, reason: str) -> float:
        delay_s: float = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(self._failures, 10))
        delay_s *= 1 - _JITTER + 2 * _JITTER * self._chance()
        self._failures += 1
        self._publish_lost(reason, self._now() + delay_s)
        return delay_s

    def _publish_lost(self, reason: str, next_try_s: float | None) -> None:
        self._publish(Poll(self._snapshot, Link(LinkState.LOST, self._since_s, reason, next_try_s)))

    async def _wait(self, started_s: float, retry_s: float | None) -> None:
        """Until the next question is due; a refresh interval changed meanwhile counts at once."""
        loop = asyncio.get_running_loop()
        ended_s = loop.time()
        while True:
            due_s = started_s + self._refresh_s if retry_s is None else ended_s + retry_s
            self._changed.clear()
            try:
                # Never 0: other tasks get their turn even when every question outlasts the interval.
                async with asyncio.timeout(max(0.01, due_s - loop.time())):
                    await self._changed.wait()
            except TimeoutError:
                return
