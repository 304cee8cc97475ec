"""One worker process: claim → fetch → check → store → ack.

The fetch loop owns this thread, libcurl and the disk; the courier's thread owns Redis. Tasks are
claimed ahead of need and acked behind it, so the loop never waits for the queue.
"""

from __future__ import annotations

import time
from typing import Final

from dlconsole.errors import BadPathError, StoreError
from dlconsole.log import Logger
from dlconsole.model import Failure, FailureKind, Outcome, Stored
from dlconsole.services import descriptors, hosts, retries
from dlconsole.services.queue import Claimed, Retry, decode_task, error_item
from dlconsole.settings import Settings
from dlconsole.workers.courier import Courier, Ending, Report
from dlconsole.workers.fetch.curl import CurlEngine
from dlconsole.workers.fetch.engine import Engine, Fetched
from dlconsole.workers.files import Place, Store, place_of
from dlconsole.workers.guard import StoreGuard
from dlconsole.workers.images import is_whole, not_image, sniff
from dlconsole.workers.tally import Tally

_POLL_S: Final = 0.5
_CLOSE_S: Final = 5.0
"""How long reports and give-backs may take at the end, once fetching has stopped."""


class _Item:
    """A task under way: what was claimed, where its image goes, and in which session."""

    __slots__ = ("claimed", "epoch", "place", "url")

    def __init__(self, claimed: Claimed, epoch: int, place: Place, url: str) -> None:
        self.claimed = claimed
        self.epoch = epoch
        self.place = place
        self.url = url


class Downloader:
    """Runs until stopped, until the queue is empty, or until a legacy sentinel ends it."""

    def __init__(self, settings: Settings, log: Logger, *, until_empty: bool = False) -> None:
        """Raises ConfigError where a setting names nothing."""
        self._settings = settings
        self._log = log
        concurrency = settings.worker.concurrency
        self._store = Store(settings.worker.store_dir, descriptors.folders(concurrency))
        self._guard = StoreGuard(settings.guard, self._store)
        self._engine: Engine[_Item] = CurlEngine(settings.fetch, concurrency)
        self._tally = Tally(hosts.host_name(settings), concurrency)
        self._courier = Courier(
            settings,
            self._tally,
            log,
            until_empty=until_empty,
            wake_loop=self._engine.wake,
            fetching=lambda: self._engine.running,
            disk=lambda: self._guard.reading,
        )
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

        Raises StoreError where the store is none, RedisUnusable where a person must act, or what else
        ended the courier, which begins before the store is opened: that may hang as well.
        """
        self._courier.start()
        try:
            self._guard.open()
            while not self._is_over():
                self._courier.loop_moves()
                if self._courier.epoch != self._epoch:
                    self._drop_session()
                self._courier.hold(self._guard.look())
                self._fill()
                for result in self._engine.poll(self._wait_s()):
                    self._settle(result.token, result.outcome)
        except StoreError:  # at its opening: nothing was begun
            raise
        except Exception:
            self._courier.abandon()
            raise
        finally:
            self._engine.cancel_all()
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
        if self._drain_by is not None:  # what was not started is given back
            return self._engine.running == 0 or time.monotonic() >= self._drain_by
        return self._engine.running == 0 and not self._courier.tasks

    def _wait_s(self) -> float:
        if self._drain_by is not None:
            return min(_POLL_S, max(0.0, self._drain_by - time.monotonic()))
        return _POLL_S

    def _fill(self) -> None:
        """Start fetches for as many waiting tasks as there are free handles."""
        if self._drain_by is not None or self._guard.why:
            return
        tasks, engine = self._courier.tasks, self._engine
        started = False
        while engine.free and tasks:
            try:
                claimed, epoch = tasks.popleft()
            except IndexError:  # the courier emptied it: the session was replaced
                return
            if epoch > self._epoch:  # claimed by a new session, before the old one's fetches were dropped
                tasks.appendleft((claimed, epoch))
                return
            if epoch < self._epoch:
                continue
            self._start(claimed)
            started = True
        if started and len(tasks) <= self._settings.worker.batch // 2:
            self._courier.nudge()

    def _start(self, claimed: Claimed) -> None:
        task = decode_task(claimed.raw)
        if task is None:
            self._report(claimed, self._epoch, Failure(FailureKind.BAD_TASK, "not a task"))
            return
        try:
            place = place_of(task.img_path)
        except BadPathError as error:
            self._report(claimed, self._epoch, Failure(FailureKind.BAD_PATH, str(error)))
            return
        refused = self._engine.start(_Item(claimed, self._epoch, place, task.img_url), task.img_url)
        if refused is not None:
            self._report(claimed, self._epoch, refused)

    def _settle(self, item: _Item, fetched: Fetched | Failure) -> None:
        """Check and store what came; a store that fails is no fault of the task, which waits for it."""
        if item.epoch != self._epoch:
            return
        outcome: Outcome
        if isinstance(fetched, Failure):
            outcome = fetched
        else:
            try:
                outcome = self._keep(item, fetched)
            except StoreError as error:
                self._guard.failed(error, len(fetched.body))
                self._courier.give_back(item.claimed, item.epoch)
                return
        self._report(item.claimed, item.epoch, outcome)

    def _keep(self, item: _Item, fetched: Fetched) -> Outcome:
        body = fetched.body
        image_format = sniff(body)
        if image_format is None:
            return not_image(body)
        if not is_whole(body, image_format):
            return Failure(FailureKind.TRUNCATED, f"{image_format} without its end, {len(body)} bytes", 200)
        try:
            self._store.write(item.place, body)
        except BadPathError as error:
            return Failure(FailureKind.BAD_PATH, str(error), 200)
        return Stored(f"{item.place.folder}/{item.place.name}", image_format, len(body))

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
