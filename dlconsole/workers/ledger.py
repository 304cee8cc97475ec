"""The ledger's writing side: one line for every final outcome, in the kernel's hands before its ack is sent.

`<store>/<dataset>/ledger/<session>-<n>.jsonl`; a session's id begins with its host's name. The fetch loop
writes, once a round for all that ended in it: the courier may not wait for a disk. What cannot be written
stays here, unacked. So a task may have two lines (its worker died between line and ack), and never none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from dlconsole.errors import StoreError
from dlconsole.model import Failure, LedgerLine, Outcome
from dlconsole.services.queue import Claimed
from dlconsole.services.retries import attempts_of
from dlconsole.services.tasks import key_of
from dlconsole.settings import LedgerSettings
from dlconsole.workers.attempt import NOWHERE, Attempt
from dlconsole.workers.files import Store
from dlconsole.workers.outbox import Report
from dlconsole.workers.places import LEDGER, Layout

_ENCODER: Final = msgspec.json.Encoder()


def now_ms() -> int:
    """The time by this host's clock, in ms since the epoch."""
    return time.time_ns() // 1_000_000


def folder_of(dataset: str) -> str:
    """The folder of a dataset's ledger, below the store."""
    return f"{dataset}/{LEDGER}"


def _clean(message: str) -> str:
    """Text that can be UTF-8, whatever a server said."""
    return message if message.isascii() else message.encode(errors="backslashreplace").decode()


class Ledger:
    """For the fetch loop. `hand_over` gets each report once its line is written; where the ledger is off,
    at once.
    """

    def __init__(
        self, settings: LedgerSettings, layout: Layout, store: Store, hand_over: Callable[[Report], None]
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._store = store
        self._hand_over = hand_over
        self._pending: list[Report] = []
        self._session_id = ""
        self._file = ""
        self._count = 0
        self._size_bytes = 0

    @property
    def pending(self) -> list[tuple[Claimed, int]]:
        """The tasks whose outcomes are not written yet, each with the epoch of its session. Also for another
        thread, should this one hang.
        """
        return [(report.claimed, report.epoch) for report in self._pending]

    @property
    def pending_bytes(self) -> int:
        """About how much is to be written."""
        return sum(len(report.claimed.raw) for report in self._pending)

    def __len__(self) -> int:
        return len(self._pending)

    def line_of(self, attempt: Attempt, outcome: Outcome, session_id: str) -> LedgerLine | None:
        """The line of an outcome that has just come; None where the ledger is off."""
        if not self._settings.enabled:
            return None
        task = attempt.task
        ended_ms = now_ms()
        attempts = 1 if task.history is msgspec.UNSET else 1 + (attempts_of(attempt.claimed.raw) or 0)
        if isinstance(outcome, Failure):
            place = attempt.place
            return LedgerLine(
                key_of(task),
                "failed",
                task.img_url,
                attempt.final_url,
                task.img_path if place is NOWHERE else f"/{self._layout.final(place).path}",
                outcome.status,
                outcome.kind,
                _clean(outcome.message),
                sha256=attempt.sha256,
                md5=attempt.md5,
                attempts=attempts,
                worker=session_id,
                started_ms=attempt.started_ms,
                ended_ms=ended_ms,
                caption=task.caption,
                id=task.id,
                hash=task.hash,
                columns=task.columns,
            )
        return LedgerLine(
            key_of(task),
            "stored",
            task.img_url,
            attempt.final_url,
            f"/{outcome.path}",
            200,
            None,
            "",
            outcome.size_bytes,
            outcome.format,
            outcome.width,
            outcome.height,
            attempt.sha256,
            attempt.md5,
            attempts,
            session_id,
            attempt.started_ms,
            ended_ms,
            task.caption,
            task.id,
            task.hash,
            task.columns,
        )

    def add(self, report: Report) -> None:
        """Take in the report of a final outcome."""
        if self._settings.enabled:
            self._pending.append(report)
        else:
            self._hand_over(report)

    def write(self, session_id: str) -> None:
        """Write what is pending, and hand it over. Raises StoreError; then all of it is pending still."""
        pending = self._pending
        lines = _ENCODER.encode_lines([report.line for report in pending])
        is_full = self._size_bytes + len(lines) > self._settings.max_file_bytes
        if session_id != self._session_id:
            self._session_id, self._file, self._count = session_id, "", 0
        if not self._file or (is_full and self._size_bytes):
            self._count += 1
            self._file, self._size_bytes = f"{session_id}-{self._count}.jsonl", 0
        try:
            self._store.append_lines(self._file, self._size_bytes, lines)
        except StoreError:
            self._file = ""  # whatever is in it now, nothing is appended to that
            raise
        self._size_bytes += len(lines)
        self._pending = []
        for report in pending:
            self._hand_over(report)

    def drop(self) -> None:
        """Forget what is pending: its session is lost, others do those tasks."""
        self._pending = []
