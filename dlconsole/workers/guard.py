"""Whether the store can be written: its filesystem's limits, and what happened at the last write."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import Final

from dlconsole.errors import StoreError
from dlconsole.services.disk import DiskGuard, DiskReading, read_now
from dlconsole.settings import GuardSettings
from dlconsole.workers.files import Store

_HEALS: Final = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ECONNABORTED,
        errno.ETIMEDOUT,
    }
)
"""What a store says at the start that may be well later; anything else a person must mend."""
_TRIAL_BYTES: Final = 2**20
"""A trial write is as large as what failed, but at least this: room for some images, not for one."""
_MAX_TRIAL_BYTES: Final = 32 * 2**20
_LONGEST_PAUSE_S: Final = 60.0
"""Longest time between two trials, and how long the store must be well for pauses to be short again."""
_LONGEST_PAUSE_CHECKS: Final = 20
"""The same, in checks."""


class StoreGuard:
    """For the fetch loop, which owns the store. Past a limit, or after a write that failed (full disk,
    quota, read-only, I/O error, gone), it says why to wait, until a trial write and the limits are well.
    """

    def __init__(
        self, settings: GuardSettings, store: Store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.why = ""
        """Why nothing may be started now; '' while the store is well."""
        self.reading: DiskReading | None = None
        """What the filesystem said last, for who must not ask it: that may hang."""
        self._store = store
        self._disk = DiskGuard(settings)
        self._clock = clock
        self._check_s = settings.check_s
        longest_s = min(_LONGEST_PAUSE_S, _LONGEST_PAUSE_CHECKS * settings.check_s)
        self._longest_s = max(settings.check_s, longest_s)
        self._look_at = 0.0
        self._failure = ""
        self._failures = 0
        self._trial_at = 0.0
        self._trial_bytes = _TRIAL_BYTES
        self._well_since = clock()

    @property
    def has_failed(self) -> bool:
        """Whether a write failed and none has done well since: unlike at a limit, nothing may be written."""
        return bool(self._failure)

    def open(self) -> None:
        """Open the store, or wait for it. Raises StoreError where waiting is of no use."""
        try:
            self._store.open()
        except StoreError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _HEALS:
                raise
            self.failed(error)

    def failed(self, error: StoreError, size_bytes: int = 0) -> None:
        """A write of `size_bytes` failed, maybe one of many at once: wait for a trial write to do well."""
        self._trial_bytes = min(max(size_bytes, _TRIAL_BYTES), _MAX_TRIAL_BYTES)
        if self._failure:
            return
        if self._clock() - self._well_since >= self._longest_s:
            self._failures = 0
        self._postpone()
        self.why = self._failure = str(error)

    def look(self) -> str:
        """Look at the store where it is time to; why to wait, or ''."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + self._check_s
            try:
                self.why = self._fault()
            except StoreError as error:
                self.failed(error)
        return self.why

    def _fault(self) -> str:
        """What failed and does not do well yet, and the limit that is past. Raises StoreError where the
        store is gone.
        """
        if self._failure:
            self._try()
        else:
            self._store.check()
        try:
            self.reading = read_now(self._store.root)
            full = self._disk.look(self.reading.usage)
        except OSError as error:
            full = "" if self._failure else f"store {self._store.root}: {error.strerror}"
        return f"{self._failure} ({full})" if self._failure and full else self._failure or full

    def _try(self) -> None:
        if self._clock() < self._trial_at:
            return
        try:
            self._store.try_write(self._trial_bytes)
        except StoreError as error:
            self._failure = str(error)
            self._postpone()
        else:
            self._failure = ""
            self._well_since = self._clock()

    def _postpone(self) -> None:
        """The next trial is later each time, for one that does well may be followed by a write that
        fails; with jitter, so that the workers of a host do not fill the last room at the same moment.
        """
        pause_s = min(self._longest_s, self._check_s * 2 ** min(self._failures, 10))
        self._failures += 1
        self._trial_at = self._clock() + pause_s * random.uniform(0.5, 1.0)  # noqa: S311
