"""One worker process: claim → fetch → check → store → write down → ack.

The fetch loop owns this thread, libcurl and the disk; the courier's thread owns Redis. Tasks are
claimed ahead of need and acked behind it, so the loop never waits for the queue. Between the two,
politeness: a task waits here until it is its host's turn, and in Redis while its host is parked.
"""

from __future__ import annotations

import time
from typing import Final

from dlconsole.errors import BadPathError, SpillLost, StoreError
from dlconsole.log import Logger
from dlconsole.model import Failure, FailureKind, Outcome, Stored
from dlconsole.services import descriptors, hosts, retries
from dlconsole.services.queue import MAX_DEATHS, Claimed, Retry, error_item
from dlconsole.services.tasks import decode_task, left_of
from dlconsole.settings import Settings
from dlconsole.workers.attempt import Attempt, Picture
from dlconsole.workers.checks import Checks
from dlconsole.workers.courier import Courier, Ending
from dlconsole.workers.faults import FaultLog, OnFault, failure_of, unnoticed
from dlconsole.workers.fetch.engine import (
    Buffers,
    Engine,
    Fetched,
    Hosts,
    NotKept,
    Result,
    Spill,
    TurnedAway,
)
from dlconsole.workers.fetch.parks import REFUSALS, Parks
from dlconsole.workers.fetch.urls import target_of
from dlconsole.workers.files import Store, Unfinished
from dlconsole.workers.guard import StoreGuard
from dlconsole.workers.ledger import Ledger, folder_of, now_ms
from dlconsole.workers.outbox import Report
from dlconsole.workers.places import Layout, Place
from dlconsole.workers.tally import Tally
from dlconsole.workers.verify import DecoderPool

_POLL_S: Final = 0.5
_WAITING_BATCHES: Final = 4
"""How many batches of tasks may wait for their host's turn before no more are taken."""
_CLOSE_S: Final = 5.0
"""How long reports and give-backs may take at the end, once fetching has stopped."""


def _engine(settings: Settings, hosts: Hosts, store: Store, on_fault: OnFault = unnoticed) -> Engine[Attempt]:
    """The engine that the settings name; the other one's library is not loaded. Raises ConfigError."""
    worker = settings.worker
    buffers = Buffers(worker.body_bytes, store.begin)
    if worker.engine == "requests":
        from dlconsole.workers.fetch.requests_engine import RequestsEngine  # noqa: PLC0415

        return RequestsEngine(settings.fetch, settings.dns, worker.concurrency, hosts, buffers, on_fault)
    from dlconsole.workers.fetch.curl import CurlEngine  # noqa: PLC0415

    return CurlEngine(settings.fetch, settings.dns, worker.concurrency, hosts, buffers, on_fault)


class Downloader:
    """Runs until stopped, until the queue is empty, or until a legacy sentinel ends it."""

    def __init__(self, settings: Settings, log: Logger, *, until_empty: bool = False) -> None:
        """Raises ConfigError where a setting names nothing."""
        self._settings = settings
        self._log = log
        concurrency = settings.worker.concurrency
        ledger = folder_of(settings.dataset) if settings.ledger.enabled else ""
        self._store = Store(settings.worker.store_dir, descriptors.folders(concurrency), ledger)
        self._layout = Layout(settings.worker)
        self._checks = Checks(settings, log, self._put)
        self._guard = StoreGuard(settings.guard, self._store)
        self._parks = Parks(settings.fetch, settings.retry)
        self._most_waiting = _WAITING_BATCHES * settings.worker.batch
        self._faults = FaultLog(log)
        self.is_parked = self._parks.is_parked
        self._engine = _engine(settings, self, self._store, self._faults)
        self._turns = self._engine.turns
        self._sites = self._engine.timings.sites
        self._tally = Tally(hosts.host_name(settings), settings.worker, self._engine.timings)
        self._courier = Courier(
            settings,
            self._tally,
            log,
            until_empty=until_empty,
            wake_loop=self._engine.wake,
            fetching=lambda: self._engine.running,
            waiting=self._waiting,
            disk=lambda: self._guard.reading,
        )
        self._ledger = Ledger(settings.ledger, self._layout, self._store, self._courier.report)
        self._decoders: DecoderPool[Picture] | None = None
        if settings.worker.verify == "decode":
            self._decoders = DecoderPool(settings.worker, log, self._engine.wake)
        self._epoch = 0
        self._drain_by: float | None = None

    def request_stop(self) -> None:
        """Claim and start no more, finish what runs, within `drain_s`. For signal handlers and threads."""
        if self._drain_by is None:
            self._drain_by = time.monotonic() + self._settings.worker.drain_s
            self._courier.stop_claiming()
            self._engine.wake()

    def run(self) -> bool:
        """Work until the end; whether everything held was acked or given back.

        Raises StoreError where the store is none, RedisUnusable or ConfigError where a person must act, or
        what else ended the courier, which begins before the store is opened: that may hang as well.
        """
        if self._decoders is not None:
            self._decoders.start()
        self._courier.start()
        try:
            self._guard.open()
            while not self._is_over():
                self._go_round()
        except StoreError:  # at its opening: nothing was begun
            raise
        except Exception:
            self._courier.abandon()
            raise
        finally:
            self._engine.cancel_all()
            if self._decoders is not None:
                self._decoders.close()
            try:
                self._store.close()  # while the courier still watches: it may hang
            finally:
                closed = self._courier.finish(within_s=_CLOSE_S)
                self._engine.close()
        if self._courier.failure is not None:
            raise self._courier.failure
        self._log.info(
            "done",
            why=self._courier.ending.value,
            stored=self._tally.stored,
            failed=self._tally.failed,
            all_given_back=closed,
        )
        return closed

    def _go_round(self) -> None:
        self._courier.loop_moves()
        if self._courier.epoch != self._epoch:
            self._drop_session()
        self._hold(self._guard.look())
        self._learn()
        self._end_refused()
        if self._drain_by is None:
            self._fill()
            self._write_down()  # what cannot be started has ended
        else:  # what is not begun is given back
            self._engine.drop_unbegun()
        for result in self._engine.poll(self._wait_s()):
            self._settle(result)
        if self._decoders is not None:
            for picture, verdict in self._decoders.take():
                self._finish(picture.attempt, verdict or picture)
            # An image that waits to be decoded takes up a slot, so that where decoding is slower
            # than the web, fetching waits for it.
            self._engine.backlog = self._decoders.pending
        self._write_down()

    def _is_over(self) -> bool:
        if self._courier.ending is Ending.NONE:
            return False
        if self._courier.ending is Ending.FAILED:
            return True
        is_idle = not (self._engine.running or self._engine.waiting or self._engine.backlog)
        # Outcomes that cannot be written now are not waited for: their tasks are given back.
        is_idle = is_idle and not (len(self._ledger) and self._may_write)
        if self._drain_by is not None:  # what was not started is given back
            return is_idle or time.monotonic() >= self._drain_by
        return is_idle and not self._courier.tasks

    def _wait_s(self) -> float:
        if self._drain_by is None:
            return _POLL_S
        return min(_POLL_S, max(0.0, self._drain_by - time.monotonic()))

    @property
    def _may_write(self) -> bool:
        """Whether outcomes may be written down: the store is well, and nobody else can have these tasks."""
        return not self._guard.has_failed and self._courier.lease_holds

    def _write_down(self) -> None:
        """Write down how tasks ended, then have it acked; what cannot be written waits."""
        if not len(self._ledger) or not self._may_write or self._courier.epoch != self._epoch:
            return
        try:
            self._ledger.write(self._courier.session_id)
        except StoreError as error:
            self._guard.failed(error, self._ledger.pending_bytes)

    def _waiting(self) -> list[tuple[Claimed, int]]:
        """Tasks that others may have should this thread hang, or end."""
        unbegun = [(attempt.claimed, attempt.epoch) for attempt in self._engine.waiting_unbegun()]
        return unbegun + self._ledger.pending

    def _hold(self, why: str) -> None:
        """While there is a `why`, what is not started goes back."""
        self._courier.hold(why)
        if why:
            for attempt in self._engine.drop_unbegun():
                self._courier.give_back(attempt.claimed, attempt.epoch)

    def _learn(self) -> None:
        """Park the hosts that other workers were refused by, and count their refusals."""
        learnt = self._courier.learnt
        while learnt:
            host, shared = learnt.popleft()
            self._parks.learn(host, shared.left_s, shared.refusals)
            if self._parks.is_parked(host):
                self._turns.pause(host)
                self._engine.turn_away(host)

    def _end_refused(self) -> None:
        """Retries that found the delayed set full have failed for good."""
        refused = self._courier.refused
        while refused:
            try:
                report = refused.popleft()
            except IndexError:  # the courier emptied it: the session was replaced
                return
            if report.epoch == self._epoch:
                self._ledger.add(Report(report.claimed, report.epoch, report.error_item, line=report.line))

    def _fill(self) -> None:
        """Start as many tasks as the engine has room for."""
        if self._guard.why:
            return
        tasks, engine = self._courier.tasks, self._engine
        taken = False
        while tasks and engine.free and engine.waiting < self._most_waiting:
            try:
                claimed, epoch = tasks.popleft()
            except IndexError:  # the courier emptied it: the session was replaced
                return
            if epoch > self._epoch:  # claimed by a new session, before the old one's fetches were dropped
                tasks.appendleft((claimed, epoch))
                return
            if epoch < self._epoch:
                continue
            self._learn()  # what the courier learnt before it claimed this one
            self._take(claimed)
            taken = True
        if taken and len(tasks) <= self._settings.worker.batch // 2:
            self._courier.nudge()

    def _take(self, claimed: Claimed) -> None:
        """Start a task, put it off, or end it where it cannot be one."""
        task = decode_task(claimed.raw)
        attempt = Attempt(claimed, self._epoch, task or left_of(claimed.raw), now_ms())
        if claimed.crashed:
            message = f"{MAX_DEATHS} sessions died holding it"
            self._report(attempt, Failure(FailureKind.CRASHED, message))
            return
        if task is None:
            self._report(attempt, Failure(FailureKind.BAD_TASK, "not a task"))
            return
        try:
            attempt.place = self._layout.place_of(task.img_path)
        except BadPathError as error:
            self._report(attempt, Failure(FailureKind.BAD_PATH, str(error)))
            return
        target = target_of(task.img_url)
        if target is None:
            self._report(attempt, Failure(FailureKind.BAD_TASK, "not an http or https URL"))
            return
        attempt.target = target
        if self._parks.is_parked(target.host):
            self._put_off(attempt, target.host)
        else:
            self._engine.start(attempt, target)

    def _settle(self, result: Result[Attempt]) -> None:
        """Heed what the host asks for; check what came, then store it, or have it decoded first."""
        attempt, fetched = result.token, result.outcome
        if attempt.epoch != self._epoch:
            return
        if isinstance(fetched, TurnedAway):
            self._put_off(attempt, result.host)
            return
        if isinstance(fetched, NotKept):
            self._wait_for_store(attempt, fetched.error, fetched.size_bytes)
            return
        attempt.site = result.host
        attempt.final_url = "" if result.url == attempt.target.url else result.url
        if self._heed(result.host, fetched, asked=result.asked):
            self._put_off(attempt, result.host)
            return
        checked: Picture | Failure
        if isinstance(fetched, Failure):
            checked = fetched
        else:
            try:
                checked = self._checks.check(attempt, fetched.body)
            except StoreError as error:
                self._wait_for_store(attempt, error, len(fetched.body))
                return
            except Exception as error:  # noqa: BLE001  (one body's, of which none may end the worker)
                self._faults(error, fetched.url)
                checked = failure_of(error)
        if self._decoders is not None and isinstance(checked, Picture):
            self._decoders.submit(checked, checked.body, checked.format)
        else:
            self._finish(attempt, checked)

    def _finish(self, attempt: Attempt, checked: Picture | Failure | StoreError) -> None:
        """Store an image that passed every check, and report how the task ended."""
        if attempt.epoch != self._epoch:
            return
        outcome: Outcome
        if isinstance(checked, StoreError):
            self._wait_for_store(attempt, checked, 0)
            return
        if isinstance(checked, Failure):
            outcome = checked
        else:
            try:
                outcome = self._keep(checked)
            except StoreError as error:
                self._wait_for_store(attempt, error, len(checked.body))
                return
        self._sites.add(attempt.site, outcome)
        self._report(attempt, outcome)

    def _heed(self, host: str, answer: Fetched | Failure, *, asked: bool) -> bool:
        """Park the host that asked for it, whoever redirected there; other answers forgive in time. Whether
        the task is to wait for the host: it was refused on its way while the host was parked already, which
        is no attempt, unless the host has been given up.
        """
        if not asked:  # a name that was not found, say, or an answer from before: that of robots.txt
            return False
        if answer.status is None:
            if not self._parks.is_parked(host):
                self._turns.failed(host)
            return False
        if isinstance(answer, Fetched) or answer.status not in REFUSALS:
            self.has_answered(host)
            return False
        was_parked = self._parks.is_parked(host)
        for_s = self._parks.refused(host, answer.retry_after_s)
        if for_s:
            self._log.info("host parked", site=host, status=answer.status, for_s=round(for_s, 1))
            self._courier.park(host, for_s)
            self._engine.turn_away(host)
            if not was_parked:
                self._turns.refused(host)
        return was_parked and not self._parks.is_given_up(host)

    def has_answered(self, host: str) -> None:
        """A host gave an answer that is no refusal."""
        if self._parks.answered(host):
            self._courier.answered(host)
        if not self._parks.is_parked(host):
            self._turns.answered(host)

    def has_refused(self, host: str, answer: Failure) -> None:
        """A host asked to be left alone, in an answer that no task waited for."""
        self._heed(host, answer, asked=True)

    def _put_off(self, attempt: Attempt, host: str) -> None:
        """Let a task wait in Redis until its host may be asked again. That is no attempt, unless the host
        has been given up: else its tasks would wait for ever.
        """
        return_in_s = self._parks.return_in_s(host)
        if self._parks.is_given_up(host):
            message = f"{host} was not asked: it has refused everything for long"
            failure = Failure(FailureKind.HTTP_STATUS, message, 503, return_in_s)
            self._report(attempt, failure)
            return
        claimed = attempt.claimed
        later = Retry(claimed.field, round(return_in_s * 1000), claimed.raw, tried=False)
        self._courier.report(Report(claimed, attempt.epoch, retry=later))

    def _wait_for_store(self, attempt: Attempt, error: StoreError, size_bytes: int) -> None:
        """A store that fails is no fault of the task, which waits for it."""
        if not isinstance(error, SpillLost):
            self._guard.failed(error, size_bytes)
        self._courier.give_back(attempt.claimed, attempt.epoch)

    def _keep(self, picture: Picture) -> Outcome:
        """Into the store with it. Raises StoreError."""
        place = self._layout.final(picture.attempt.place, picture.format)
        try:
            self._put(place, picture.body)
        except BadPathError as error:
            return Failure(FailureKind.BAD_PATH, str(error), 200)
        return Stored(place.path, picture.format, len(picture.body), picture.width, picture.height)

    def _put(self, place: Place, body: bytearray | Spill) -> None:
        """Raises BadPathError, StoreError."""
        if isinstance(body, bytearray):
            self._store.write(place, body)
        else:
            assert isinstance(body, Unfinished)  # the store's own: see `_engine`
            self._store.finish(place, body)

    def _report(self, attempt: Attempt, outcome: Outcome) -> None:
        """Say how an attempt ended: once it is written down where that is for good, else at once."""
        if attempt.epoch == self._courier.epoch:
            self._tally.add(outcome)
        claimed, error, retry = attempt.claimed, None, None
        if isinstance(outcome, Failure):
            error = error_item(claimed.raw, outcome)
            retry = self._retry_of(claimed, outcome)
        line = self._ledger.line_of(attempt, outcome, self._courier.session_id)
        report = Report(claimed, attempt.epoch, error, retry, line)
        if retry is None:
            self._ledger.add(report)
        else:
            self._courier.report(report)

    def _retry_of(self, claimed: Claimed, failure: Failure) -> Retry | None:
        """To be tried again, or for good: by its kind, and by how often it was tried."""
        settings = self._settings.retry
        before = retries.attempts_of(claimed.raw)
        if not failure.retryable or before is None or before + 1 >= settings.max_attempts:
            return None
        attempt = before + 1
        delay_ms = round(retries.delay_s(attempt, failure, settings) * 1000)
        return Retry(claimed.field, delay_ms, retries.with_history(claimed.raw, attempt, failure))

    def _drop_session(self) -> None:
        """The courier has a new session: whatever runs belonged to the old one."""
        self._epoch = self._courier.epoch
        self._ledger.drop()
        self._engine.cancel_all()
        if self._decoders is not None:
            self._decoders.cancel_all()
