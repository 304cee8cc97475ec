"""One worker process: claim → fetch → check → store → ack.

The fetch loop owns this thread, libcurl and the disk; the courier's thread owns Redis. Tasks are
claimed ahead of need and acked behind it, so the loop never waits for the queue. Between the two,
politeness: a task waits here until it is its host's turn, and in Redis while its host is parked.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from dlconsole.errors import BadPathError, SpillLost, StoreError
from dlconsole.log import Logger
from dlconsole.model import Failure, FailureKind, Outcome, Stored
from dlconsole.services import descriptors, hosts, retries
from dlconsole.services.queue import Claimed, Retry, decode_task, error_item
from dlconsole.settings import Settings
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
from dlconsole.workers.fetch.urls import Target, target_of
from dlconsole.workers.files import MISMATCHED, Place, Store, Unfinished, place_of
from dlconsole.workers.guard import StoreGuard
from dlconsole.workers.hashes import digest_of, wanted_digest
from dlconsole.workers.image_size import examined
from dlconsole.workers.images import not_image, sniff
from dlconsole.workers.outbox import Report
from dlconsole.workers.tally import Tally
from dlconsole.workers.verify import DecoderPool

_POLL_S: Final = 0.5
_WAITING_BATCHES: Final = 4
"""How many batches of tasks may wait for their host's turn before no more are taken."""
_CLOSE_S: Final = 5.0
"""How long reports and give-backs may take at the end, once fetching has stopped."""


class _Item(msgspec.Struct, eq=False, gc=False):
    """A task under way: what was claimed, in which session, where its image goes, what is fetched, its hash,
    and the host that answered, after redirects.
    """

    claimed: Claimed
    epoch: int
    place: Place
    target: Target
    hash: Any
    site: str = ""


class _Picture(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An image that has passed the checks so far, on its way into the store."""

    item: _Item
    body: bytearray | Spill
    format: str
    width: int
    height: int


def _engine(settings: Settings, hosts: Hosts, store: Store, on_fault: OnFault = unnoticed) -> Engine[_Item]:
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
        self._store = Store(settings.worker.store_dir, descriptors.folders(concurrency))
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
            waiting=lambda: [(item.claimed, item.epoch) for item in self._engine.waiting_unbegun()],
            disk=lambda: self._guard.reading,
        )
        self._decoders: DecoderPool[_Picture] | None = None
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
                self._courier.loop_moves()
                if self._courier.epoch != self._epoch:
                    self._drop_session()
                self._hold(self._guard.look())
                self._learn()
                if self._drain_by is None:
                    self._fill()
                else:  # what is not begun is given back
                    self._engine.drop_unbegun()
                for result in self._engine.poll(self._wait_s()):
                    self._settle(result)
                if self._decoders is not None:
                    for picture, verdict in self._decoders.take():
                        self._finish(picture.item, verdict or picture)
                    # An image that waits to be decoded takes up a slot, so that where decoding is slower
                    # than the web, fetching waits for it.
                    self._engine.backlog = self._decoders.pending
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

    def _is_over(self) -> bool:
        if self._courier.ending is Ending.NONE:
            return False
        if self._courier.ending is Ending.FAILED:
            return True
        is_idle = not (self._engine.running or self._engine.waiting or self._engine.backlog)
        if self._drain_by is not None:  # what was not started is given back
            return is_idle or time.monotonic() >= self._drain_by
        return is_idle and not self._courier.tasks

    def _wait_s(self) -> float:
        if self._drain_by is None:
            return _POLL_S
        return min(_POLL_S, max(0.0, self._drain_by - time.monotonic()))

    def _hold(self, why: str) -> None:
        """While there is a `why`, what is not started goes back."""
        self._courier.hold(why)
        if why:
            for item in self._engine.drop_unbegun():
                self._courier.give_back(item.claimed, item.epoch)

    def _learn(self) -> None:
        """Park the hosts that other workers were refused by, and count their refusals."""
        learnt = self._courier.learnt
        while learnt:
            host, shared = learnt.popleft()
            self._parks.learn(host, shared.left_s, shared.refusals)
            if self._parks.is_parked(host):
                self._turns.pause(host)
                self._engine.turn_away(host)

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
        """Start a task, or put it off."""
        task = decode_task(claimed.raw)
        if task is None:
            self._report(claimed, self._epoch, Failure(FailureKind.BAD_TASK, "not a task"))
            return
        try:
            place = place_of(task.img_path)
        except BadPathError as error:
            self._report(claimed, self._epoch, Failure(FailureKind.BAD_PATH, str(error)))
            return
        target = target_of(task.img_url)
        if target is None:
            self._report(claimed, self._epoch, Failure(FailureKind.BAD_TASK, "not an http or https URL"))
            return
        item = _Item(claimed, self._epoch, place, target, task.hash)
        if self._parks.is_parked(target.host):
            self._put_off(item, target.host)
        else:
            self._engine.start(item, target)

    def _settle(self, result: Result[_Item]) -> None:
        """Heed what the host asks for; check what came, then store it, or have it decoded first."""
        item, fetched = result.token, result.outcome
        if item.epoch != self._epoch:
            return
        if isinstance(fetched, TurnedAway):
            self._put_off(item, result.host)
            return
        if isinstance(fetched, NotKept):
            self._wait_for_store(item, fetched.error, fetched.size_bytes)
            return
        item.site = result.host
        if self._heed(result.host, fetched, asked=result.asked):
            self._put_off(item, result.host)
            return
        checked: _Picture | Failure
        if isinstance(fetched, Failure):
            checked = fetched
        else:
            try:
                checked = self._check(item, fetched.body)
            except StoreError as error:
                self._wait_for_store(item, error, len(fetched.body))
                return
            except Exception as error:  # noqa: BLE001  (one body's, of which none may end the worker)
                self._faults(error, fetched.url)
                checked = failure_of(error)
        if self._decoders is not None and isinstance(checked, _Picture):
            self._decoders.submit(checked, checked.body, checked.format)
        else:
            self._finish(item, checked)

    def _finish(self, item: _Item, checked: _Picture | Failure | StoreError) -> None:
        """Store an image that passed every check, and report how the task ended."""
        if item.epoch != self._epoch:
            return
        outcome: Outcome
        if isinstance(checked, StoreError):
            self._wait_for_store(item, checked, 0)
            return
        if isinstance(checked, Failure):
            outcome = checked
        else:
            try:
                outcome = self._keep(checked)
            except StoreError as error:
                self._wait_for_store(item, error, len(checked.body))
                return
        self._sites.add(item.site, outcome)
        self._report(item.claimed, item.epoch, outcome)

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

    def _put_off(self, item: _Item, host: str) -> None:
        """Let a task wait in Redis until its host may be asked again. That is no attempt, unless the host
        has been given up: else its tasks would wait for ever.
        """
        return_in_s = self._parks.return_in_s(host)
        if self._parks.is_given_up(host):
            message = f"{host} was not asked: it has refused everything for long"
            failure = Failure(FailureKind.HTTP_STATUS, message, 503, return_in_s)
            self._report(item.claimed, item.epoch, failure)
            return
        claimed = item.claimed
        later = Retry(claimed.field, round(return_in_s * 1000), claimed.raw)
        self._courier.report(Report(claimed.field, item.epoch, retry=later))

    def _wait_for_store(self, item: _Item, error: StoreError, size_bytes: int) -> None:
        """A store that fails is no fault of the task, which waits for it."""
        if not isinstance(error, SpillLost):
            self._guard.failed(error, size_bytes)
        self._courier.give_back(item.claimed, item.epoch)

    def _check(self, item: _Item, body: bytearray | Spill) -> _Picture | Failure:
        """All that can be said without decoding. Raises StoreError, where a file cannot be read or kept."""
        data = body if isinstance(body, bytearray) else body.read()
        image_format = sniff(data)
        if image_format is None:
            return not_image(data)
        whole, (width, height) = examined(data, image_format)
        if not whole:
            return Failure(FailureKind.TRUNCATED, f"{image_format} without its end, {len(data)} bytes", 200)
        algorithm = self._settings.worker.verify_hash
        wanted = self._wanted_digest(item) if algorithm != "off" else None
        if wanted is not None and (found := digest_of(data, algorithm)) != wanted:
            return self._mismatch(item, body, f"its {algorithm} is {found}")
        most = self._settings.worker.max_pixels
        if self._decoders is not None and width * height > most:
            message = f"{width} by {height} pixels, above the limit of {most}"
            return Failure(FailureKind.NOT_IMAGE, message, 200)
        return _Picture(item, body, image_format, width, height)

    def _wanted_digest(self, item: _Item) -> str | None:
        wanted = wanted_digest(item.hash, self._settings.worker.verify_hash)
        if wanted is None:
            self._log.debug("hash not verified: the task has none", field=item.claimed.field)
        return wanted

    def _mismatch(self, item: _Item, body: bytearray | Spill, found: str) -> Failure:
        """The failure of a body that is not the one its task's hash names. Raises StoreError where it is to
        be kept and the store fails.
        """
        kept = ""
        if self._settings.worker.keep_mismatched:
            place = Place(f"{MISMATCHED}/{item.place.folder}".rstrip("/"), item.place.name)
            try:
                self._put(place, body)
                kept = f"; kept as {place.folder}/{place.name}"
            except BadPathError as error:
                kept = f"; not kept: {error}"
        return Failure(FailureKind.HASH_MISMATCH, f"{found}{kept}", 200)

    def _keep(self, picture: _Picture) -> Outcome:
        """Into the store with it. Raises StoreError."""
        place = picture.item.place
        try:
            self._put(place, picture.body)
        except BadPathError as error:
            return Failure(FailureKind.BAD_PATH, str(error), 200)
        path = f"{place.folder}/{place.name}"
        return Stored(path, picture.format, len(picture.body), picture.width, picture.height)

    def _put(self, place: Place, body: bytearray | Spill) -> None:
        """Raises BadPathError, StoreError."""
        if isinstance(body, bytearray):
            self._store.write(place, body)
        else:
            assert isinstance(body, Unfinished)  # the store's own: see `_engine`
            self._store.finish(place, body)

    def _report(self, claimed: Claimed, epoch: int, outcome: Outcome) -> None:
        if epoch == self._courier.epoch:
            self._tally.add(outcome)
        if isinstance(outcome, Failure):
            self._courier.report(self._failure_report(claimed, epoch, outcome))
        else:
            self._courier.report(Report(claimed.field, epoch))

    def _failure_report(self, claimed: Claimed, epoch: int, failure: Failure) -> Report:
        """For good, or to be tried again: by its kind, and by how often it was tried."""
        retry = self._settings.retry
        before = retries.attempts_of(claimed.raw)
        error = error_item(claimed.raw, failure)
        if not failure.retryable or before is None or before + 1 >= retry.max_attempts:
            return Report(claimed.field, epoch, error_item=error)
        attempt = before + 1
        delay_ms = round(retries.delay_s(attempt, failure, retry) * 1000)
        item = retries.with_history(claimed.raw, attempt, failure)
        return Report(claimed.field, epoch, retry=Retry(claimed.field, delay_ms, item, error))

    def _drop_session(self) -> None:
        """The courier has a new session: whatever runs belonged to the old one."""
        self._epoch = self._courier.epoch
        self._engine.cancel_all()
        if self._decoders is not None:
            self._decoders.cancel_all()
