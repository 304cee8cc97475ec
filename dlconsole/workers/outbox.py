"""What the fetch loop hands back, until Redis has it: how tasks ended, and tasks that others are to have.

The loop appends, the courier's thread takes out, and only what Redis has answered for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

from dlconsole.errors import FencedError
from dlconsole.services.queue import Claimed, Counted, Retry, Session


class Report(msgspec.Struct, frozen=True, gc=False):
    """An attempt's end: the task's field, the session it was claimed in, and, where it failed or was put
    off, either the error item or the retry.
    """

    field: str
    epoch: int
    error_item: bytes | None = None
    retry: Retry | None = None


class Outbox:
    """Each entry has the epoch of its session; those of another than the one that is asked for are void.
    `held` is what the session has in flight, by field; what is done with leaves it.
    """

    def __init__(self, batch: int) -> None:
        self.reports: deque[Report] = deque()
        self.returns: deque[tuple[Claimed, int]] = deque()
        """Tasks to be given back untouched."""
        self._batch = batch

    @property
    def has_batch(self) -> bool:
        """Whether there are as many reports as one ack takes."""
        return len(self.reports) >= self._batch

    def ack(self, session: Session, epoch: int, held: dict[str, bytes]) -> Iterator[Counted]:
        """Ack all reports in batches. A batch leaves only when its ack was answered; sent twice it counts
        once. Raises FencedError, RedisUnavailable, RedisUnusable.
        """
        while self.reports:
            taken = [self.reports[i] for i in range(min(len(self.reports), self._batch))]
            reports = [report for report in taken if report.epoch == epoch]
            retries = [report.retry for report in reports if report.retry is not None]
            failed = [(r.field, r.error_item) for r in reports if r.error_item is not None]
            stored = [r.field for r in reports if r.retry is None and r.error_item is None]
            counted = session.ack(stored, failed, retries)
            if counted.fenced:
                raise FencedError(f"session {session.id}: its lease has run out")
            for _ in taken:
                self.reports.popleft()
            for report in reports:
                held.pop(report.field, None)
            yield counted

    def give_back(self, session: Session, epoch: int, held: dict[str, bytes]) -> None:
        """Give back all that is to be returned. Sent twice, it moves nothing more. Raises as `ack` does."""
        taken = list(self.returns)
        fields = [claimed.field for claimed, claimed_in in taken if claimed_in == epoch]
        if fields:
            session.give_back(fields)
            for field in fields:
                held.pop(field, None)
        for _ in taken:
            self.returns.popleft()

    def clear(self) -> None:
        """Forget everything: the session that it belonged to is lost."""
        self.reports.clear()
        self.returns.clear()
