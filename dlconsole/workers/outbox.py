"""What the fetch loop hands back, until Redis has it: how tasks ended, and tasks that others are to have.

The loop appends, the courier's thread takes out, and only what Redis has answered for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

from dlconsole.errors import FencedError
from dlconsole.model import LedgerLine
from dlconsole.services.queue import Claimed, Counted, Retry, Session


class Report(msgspec.Struct, frozen=True, gc=False):
    """An attempt's end: the task, the session it was claimed in, the error item where it failed, and the
    retry where it is to be tried again or was put off. `line` is what the ledger says of the outcome, once
    that is final.
    """

    claimed: Claimed
    epoch: int
    error_item: bytes | None = None
    retry: Retry | None = None
    line: LedgerLine | None = None


class Outbox:
    """Each entry has the epoch of its session; those of another than the one that is asked for are void.
    `held` is what the session has in flight, by field; what is done with leaves it.
    """

    def __init__(self, batch: int) -> None:
        self.reports: deque[Report] = deque()
        self.returns: deque[tuple[Claimed, int]] = deque()
        """Tasks to be given back untouched."""
        self.refused: deque[Report] = deque()
        """Retries that found the delayed set full: in flight still, for the loop to end."""
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
            retries, failed, stored = [], [], []
            for report in reports:
                if report.retry is not None:
                    retries.append(report.retry)
                elif report.error_item is not None:
                    failed.append((report.claimed.field, report.error_item))
                else:
                    stored.append(report.claimed.field)
            counted = session.ack(stored, failed, retries)
            if counted.fenced:
                raise FencedError(f"session {session.id}: its lease has run out")
            for _ in taken:
                self.reports.popleft()
            for report in reports:
                if report.claimed.field in counted.refused:
                    self.refused.append(report)
                else:
                    held.pop(report.claimed.field, None)
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

    def return_refused(self) -> None:
        """Nobody ends them any more: give them back as they are."""
        while self.refused:
            report = self.refused.popleft()
            self.returns.append((report.claimed, report.epoch))

    def clear(self) -> None:
        """Forget everything: the session that it belonged to is lost."""
        self.reports.clear()
        self.returns.clear()
        self.refused.clear()
