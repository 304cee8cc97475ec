"""The worker's thread for Redis: claims ahead, acks in batches, keeps the lease, reports.

It shares with the fetch loop four deques (tasks in, reports out; parked hosts in and out), one number
that counts sessions, and nothing else. Redis going away stops neither: the loop works through what it
has, and the courier tries again with growing pauses until the server is back.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

import redis

from dlconsole.errors import FencedError, RedisUnavailable
from dlconsole.log import Logger
from dlconsole.model import SessionStats
from dlconsole.services import checks, hosts, upkeep
from dlconsole.services.connection import check_version, connect, translated
from dlconsole.services.disk import DiskReading
from dlconsole.services.keys import Keys
from dlconsole.services.parked import Shared
from dlconsole.services.queue import Claimed, Session, new_session_id
from dlconsole.services.scripts import script
from dlconsole.settings import Settings
from dlconsole.workers.outbox import Outbox, Report
from dlconsole.workers.reporter import Reporter
from dlconsole.workers.shared_parks import SharedParks
from dlconsole.workers.tally import Tally
from dlconsole.workers.watchdog import EXIT_STALLED, Thread, Watchdog

LINGER_S: Final = 0.1
"""How long a report may wait for others to share its ack."""
_IDLE_CLAIM_S: Final = 0.5
"""How long to wait before asking an empty or paused queue again."""
_MAX_BACKOFF_S: Final = 5.0
_OPENING: Final = "the store is not open yet"
_MAX_WHY: Final = 300
"""Longest text of a heartbeat: a store's path can be of any length."""


class Ending(Enum):
    """Why no more tasks come."""

    NONE = "more may come"
    STOPPED = "asked to stop"
    SENTINEL = "a stop sentinel was taken from the queue"
    EMPTY = "the queue is empty"
    FAILED = "it cannot go on"


class Courier:
    """See above. The fetch loop takes from `tasks`, calls `report`, and reads `ending`. Nothing is claimed
    before its first `hold`, which says how the store is. Nothing here may ask the store's disk, which may
    hang: who watches the fetch loop would then hang with it.
    """

    def __init__(
        self,
        settings: Settings,
        tally: Tally,
        log: Logger,
        *,
        until_empty: bool,
        wake_loop: Callable[[], None],
        fetching: Callable[[], int],
        waiting: Callable[[], Sequence[tuple[Claimed, int]]],
        disk: Callable[[], DiskReading | None],
    ) -> None:
        """`wake_loop` ends a poll that waits; `fetching` is how many fetches run; `waiting` are the tasks
        that the loop has taken and does not work on (not started, or ended and not written down), each with
        its epoch; `disk` is the store's last reading.
        """
        self.tasks: deque[tuple[Claimed, int]] = deque()
        """What is to be fetched, each with the epoch that it was claimed in."""
        self.ending = Ending.NONE
        self.failure: Exception | None = None
        """Why the thread ended before its time."""
        self.epoch = 0
        """Counts sessions: tasks and reports of an earlier one are void."""
        self.state = "running"
        self._settings = settings
        self._keys = Keys(settings.dataset)
        self._tally = tally
        self._log = log
        self._until_empty = until_empty
        self._wake_loop = wake_loop
        self._fetching = fetching
        self._waiting = waiting
        self._outbox = Outbox(settings.worker.batch)
        self._held_up = _OPENING
        self._watchdog = Watchdog(settings.guard.stall_s)
        self._work = threading.Event()
        self._close_by: float | None = None
        self._lost: list[tuple[Session, dict[str, bytes]]] = []
        """Sessions that were fenced, and are not closed yet, with what they held."""
        self._held: dict[str, bytes] = {}
        """What the session has in flight, as far as it knows: field → raw item."""
        self._leased_until_s = 0.0
        self._closed = False
        self._abandoned = False
        self._claim_at = 0.0
        self._beat_at = 0.0
        self._upkeep_at = 0.0
        self._reap_from = 0.0
        self._solo: Claimed | None = None
        self._solo_runs = False
        self._server_ms = 0
        # Whatever is set: a lease that is renewed less than three times as often is not kept.
        self._heartbeat_s = min(settings.worker.heartbeat_s, settings.worker.lease_s / 3)
        name = f"dlconsole-worker-{hosts.host_name(settings)}"[:120]
        self._client: redis.Redis = connect(settings.redis, name=name)
        self._reporter = Reporter(settings, self._client, log, disk)
        self._shared_parks = SharedParks(settings, self._client, log)
        self._session = self._new_session(batch=0)
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        """Begin; the first session is opened by the thread."""
        self._thread.start()
        self._watchdog.start_sentry()

    def report(self, report: Report) -> None:
        """Say how a task ended."""
        self._outbox.reports.append(report)
        if self._outbox.has_batch:
            self._work.set()

    def give_back(self, claimed: Claimed, epoch: int) -> None:
        """Give one task back untouched, for another worker or a better time."""
        self._outbox.returns.append((claimed, epoch))

    def park(self, host: str, for_s: float) -> None:
        """Tell the fleet that a host asked to be left alone."""
        self._shared_parks.park(host, for_s)
        self._work.set()

    def answered(self, host: str) -> None:
        """Tell the fleet that a host which refused gave another answer."""
        self._shared_parks.answered(host)

    @property
    def session_id(self) -> str:
        """The session's id; not an older one's than `epoch` says."""
        return self._session.id

    @property
    def lease_holds(self) -> bool:
        """Whether the session cannot have been fenced yet, by this host's clock alone. An outcome that is
        older than that comes before those of whoever has its task next.
        """
        return _up_s() < self._leased_until_s

    @property
    def refused(self) -> deque[Report]:
        """Retries that the delayed set had no room for; the loop takes them out and ends them."""
        return self._outbox.refused

    @property
    def learnt(self) -> deque[tuple[str, Shared]]:
        """What the fleet knows of hosts that refuse; the loop takes them out."""
        return self._shared_parks.learnt

    def hold(self, why: str) -> None:
        """While there is a `why`, claim nothing, and give back what is not started."""
        if why == self._held_up:
            return
        if why:
            self._log.error("downloads wait for the store", why=why)
        elif self._held_up != _OPENING:
            self._log.info("the store is well again")
        self._held_up = why
        self._beat_at = 0.0  # the fleet is told at once
        self._work.set()

    def loop_moves(self) -> None:
        """Say that the fetch loop is alive. It ends the process where the courier is not."""
        silent_s = self._watchdog.beat(Thread.LOOP)
        if silent_s:
            self._log.critical("the courier has stalled; ending", silent_s=round(silent_s))
            os._exit(EXIT_STALLED)

    def nudge(self) -> None:
        """Say that `tasks` runs low."""
        self._work.set()

    def stop_claiming(self) -> None:
        """Claim no more; what is held may still be finished."""
        if self.ending is Ending.NONE:
            self.ending = Ending.STOPPED

    def abandon(self) -> None:
        """The loop met a fault: `finish` is then to keep what was being worked on, see `_give_up`. What waits
        is given back, also when the loop has forgotten it by then.
        """
        self._outbox.returns.extend(self._waiting())
        self._abandoned = True
        self.stop_claiming()

    def finish(self, *, within_s: float) -> bool:
        """Flush the reports, give the rest back, drop the lease; whether all that was done in time."""
        self._close_by = time.monotonic() + within_s
        self._work.set()
        self._thread.join(within_s + 15)
        self._client.close()
        self._watchdog.end_sentry()
        return self._closed

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        opened = False
        failures = 0
        while True:
            try:
                if not opened:
                    self._open()
                    opened = True
                if self._close_by is not None:
                    if self._abandoned:
                        self._give_up()
                    else:
                        self._close()
                    return
                self._step()
                if failures:
                    self._log.info("redis is back")
                    self._let_others_come_back()
                failures = 0
            except RedisUnavailable as error:
                failures += 1
                if self._close_by is not None and time.monotonic() >= self._close_by:
                    self._closed = not opened and not self._lost  # there was never anything to give back
                    if opened:
                        self._log.warning(
                            "stopped without giving tasks back", held=len(self._held), error=str(error)
                        )
                    return
                self._back_off(failures, error)
            except FencedError as error:
                self._replace_session(error)
                opened = False
            except Exception as error:  # noqa: BLE001  (RedisUnusable, or a fault of ours: the loop raises it)
                self.failure = error
                self.ending = Ending.FAILED
                self._wake_loop()
                return

    def _step(self) -> None:
        """Do what is due, then wait until something is."""
        now = time.monotonic()
        self._watch_loop()
        if now >= self._beat_at:
            self._beat()
        if self._shared_parks.has_news:
            self._shared_parks.exchange()
        if now >= self._upkeep_at:
            self._upkeep()
        if self._outbox.reports:
            self._flush()
        if self._outbox.returns or (self._held_up and (self.tasks or self._solo is not None)):
            self._give_back()
        self._begin_solo()
        if self._wants_tasks() and now >= self._claim_at:
            self._claim()
        if self._outbox.has_batch:
            return
        if self._wants_tasks():
            wait_s = min(LINGER_S, max(0.0, self._claim_at - time.monotonic()))
        else:
            wait_s = LINGER_S
        if self._work.wait(wait_s):
            self._work.clear()

    def _wants_tasks(self) -> bool:
        if self.ending is not Ending.NONE or self._held_up or self._solo is not None or self._solo_runs:
            return False
        return len(self.tasks) <= self._low_water

    @property
    def _low_water(self) -> int:
        return max(1, self._settings.worker.batch // 2)

    def _claim(self) -> None:
        claim = self._session.claim(self._settings.worker.batch)
        self._held.update((claimed.field, claimed.raw) for claimed in claim.items)
        if claim.solo and claim.items:
            self._solo = claim.items[0]
        else:
            self.tasks.extend((claimed, self.epoch) for claimed in claim.items)
        self.state = "paused" if claim.paused else "running" if claim.items else "idle"
        if claim.stop:
            self.ending = Ending.SENTINEL
        if claim.items:
            self._claim_at = 0.0
            self._wake_loop()
            return
        self._claim_at = time.monotonic() + _IDLE_CLAIM_S
        # Said by a claim that found nothing when nothing was held here any more, so that a task
        # given back by somebody meanwhile was seen.
        if self._until_empty and not self._held and not claim.paused and self.ending is Ending.NONE:
            self._end_if_empty()
        self._wake_loop()

    def _end_if_empty(self) -> None:
        """The queue is empty for good when nothing waits for its retry, and nobody holds a task that
        their death would bring back.
        """
        with translated(self._settings.redis):
            counts = script("counts").run(self._client, self._keys.counted, self._keys.in_flight_prefix)
        _, queued, in_flight, delayed, *_ = counts
        if queued == in_flight == delayed == 0:
            self.ending = Ending.EMPTY
        elif delayed:
            self._upkeep_at = 0.0  # one of them may be due

    def _begin_solo(self) -> None:
        """An item that sessions died holding is started when everything else is done and acked."""
        if self._solo is not None and len(self._held) == 1:
            self.tasks.append((self._solo, self.epoch))
            self._solo, self._solo_runs = None, True
            self._wake_loop()
        elif self._solo_runs and not self._held:
            self._solo_runs = False

    def _upkeep(self) -> None:
        may_reap = time.monotonic() >= self._reap_from
        kept = upkeep.keep(self._client, self._keys, self._settings.redis, reap=may_reap)
        self._upkeep_at = time.monotonic() + (0.0 if kept.more else upkeep.next_round_s())
        for session in kept.reaped:
            self._log.warning("dead session reaped", session=session)
        if kept.given_back or kept.promoted:
            self._log.info("upkeep", given_back=kept.given_back, promoted=kept.promoted)
        strays = self._session.give_back_strays(self._held)
        if strays:
            self._log.warning("redis has lost what it had answered; tasks given back", given_back=strays)

    def _let_others_come_back(self) -> None:
        """Redis was away, or this process was suspended: leases that have run out meanwhile say nothing."""
        self._reap_from = time.monotonic() + self._settings.worker.lease_s

    def _flush(self) -> None:
        put_back = ended = 0
        for counted in self._outbox.ack(self._session, self.epoch, self._held):
            put_back += counted.put_back
            ended += counted.stored + counted.failed
        if self._outbox.refused:
            self._wake_loop()
        if put_back and not ended:  # the queue may have nothing but such tasks
            self._claim_at = time.monotonic() + _IDLE_CLAIM_S
        elif self._until_empty and not self._held:
            self._claim_at = 0.0  # the claim that decides whether this is the end

    def _give_back(self) -> None:
        """Return tasks to the queue: those that the loop handed back and, while downloads wait, those
        that are not started.
        """
        if self._held_up:
            while self.tasks:
                try:
                    self._outbox.returns.append(self.tasks.popleft())
                except IndexError:  # the loop took the last one
                    break
            if self._solo is not None:
                self._outbox.returns.append((self._solo, self.epoch))
                self._solo = None
        self._outbox.give_back(self._session, self.epoch, self._held)

    def _give_up(self) -> None:
        """Ack what is done and give back what was not started. What was being worked on stays with the
        session, whose death then counts for it: else a task that does this would do it for ever.
        """
        self._flush()
        self._outbox.return_refused()
        self._outbox.returns.extend(self._waiting())
        self._held_up = self._held_up or "given up"
        self._give_back()

    def _watch_loop(self) -> None:
        """A fetch loop that has stalled (a hung disk, a fault) holds tasks that others could fetch: end,
        for the supervisor to start anew.
        """
        silent_s = self._watchdog.beat(Thread.COURIER)
        if not silent_s or self._close_by is not None:
            return
        self._log.critical("the fetch loop has stalled; giving up", silent_s=round(silent_s))
        try:
            self._give_up()
        finally:
            os._exit(EXIT_STALLED)

    def _beat(self) -> None:
        started, started_up_s = time.monotonic(), _up_s()
        self._server_ms = self._session.renew(self._stats(), self._tally.sites())
        self._leased_until_s = started_up_s + self._settings.worker.lease_s
        self._beat_at = started + self._heartbeat_s
        try:
            self._reporter.publish(self._server_ms)
        except RedisUnavailable as error:  # out of memory, say: the work goes on without it
            self._log.debug("nothing published", error=str(error))
        self._shared_parks.exchange()

    def _stats(self) -> SessionStats:
        return self._tally.stats(
            at_ms=self._server_ms,
            state=self._state(),
            waits=self._held_up[:_MAX_WHY],
            in_flight=len(self._held),
            fetching=self._fetching(),
        )

    def _state(self) -> str:
        if self.ending is not Ending.NONE:
            return "draining"
        return "no store" if self._held_up else self.state

    def _open(self) -> None:
        with translated(self._settings.redis):
            info = self._client.info()
            fsync = checks.appendfsync(self._client)
        check_version(info, self._settings.redis)
        for finding in checks.findings(checks.redis_info(info, fsync)):
            self._log.warning(finding.said, todo=finding.todo)
        if info.get("uptime_in_seconds", 0) < self._settings.worker.lease_s:
            self._let_others_come_back()
        while self._lost:
            # Closing gives back what nobody else has taken over. Nobody died, so what was taken over does
            # not count as the item's fault.
            session, held = self._lost[0]
            session.close()
            session.forgive(held.values())
            self._let_others_come_back()
            del self._lost[0]
        started_up_s = _up_s()
        self._server_ms = self._session.open()
        self._leased_until_s = started_up_s + self._settings.worker.lease_s
        self._tally.begin(self._server_ms)
        self._log.info("session opened", session=self._session.id)

    def _close(self) -> None:
        while self._outbox.reports:
            self._flush()
        given_back = self._session.close()
        self._held.clear()
        self._closed = True
        try:
            self._reporter.say_goodbye(self._server_ms)
        except RedisUnavailable as error:
            self._log.debug("nothing published", error=str(error))
        self._log.info("session closed", session=self._session.id, given_back=given_back)

    def _replace_session(self, error: FencedError) -> None:
        """The lease ran out (a suspended process, Redis away for long): drop everything, start anew.

        `_open` then sees to the old session.
        """
        self._log.warning("session replaced", error=str(error))
        self._lost.append((self._session, self._held))
        self._leased_until_s = 0.0
        self._session = self._new_session(batch=self._session.batch)
        self.tasks.clear()  # before the epoch moves: the loop must never take an old task for a new one
        self.epoch += 1
        self._outbox.clear()
        self._solo, self._solo_runs = None, False
        self._held = {}
        self._wake_loop()

    def _new_session(self, batch: int) -> Session:
        return Session(
            self._client,
            self._keys,
            new_session_id(self._reporter.host),
            lease_s=self._settings.worker.lease_s,
            url=self._settings.redis,
            batch=batch,
            max_delayed=self._settings.retry.max_delayed,
        )

    def _back_off(self, failures: int, error: RedisUnavailable) -> None:
        self.state = "no redis"
        self._reap_from = math.inf  # until it is back
        self._watch_loop()
        if failures == 1:
            self._log.warning("redis is away; waiting", error=str(error))
        wait_s = min(_MAX_BACKOFF_S, 0.2 * 2 ** min(failures, 6)) * random.uniform(0.5, 1.0)  # noqa: S311
        if self._close_by is not None:
            wait_s = min(wait_s, max(0.05, self._close_by - time.monotonic()))
        time.sleep(wait_s)


def _up_s() -> float:
    """A clock that goes on while the machine sleeps, as leases do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
