"""Whether the store can be written: its filesystem's limits, and what happened at the last write."""

from __future__ import annotations

import time

from dlconsole.errors import StoreError
from dlconsole.services.disk import DiskGuard, usage_of
from dlconsole.settings import Settings
from dlconsole.workers.files import Store


class StoreGuard:
    """For the fetch loop, which owns the store. Past a limit, or after a write that failed (full disk,
    quota, read-only, I/O error), it says why to wait, until the limits and a trial write are well.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.why = ""
        """Why nothing may be started now; '' while the store is well."""
        self._store = store
        self._disk = DiskGuard(settings.guard)
        self._check_s = settings.guard.check_s
        self._write_failed = False
        self._look_at = 0.0

    def failed(self, error: StoreError) -> None:
        """A write failed: wait at least until the next look."""
        self.why = str(error)
        self._write_failed = True
        self._look_at = time.monotonic() + self._check_s

    def look(self) -> str:
        """Look at the store where it is time to; why to wait, or ''."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + self._check_s
            self.why = self._fault()
        return self.why

    def _fault(self) -> str:
        try:
            full = self._disk.look(usage_of(self._store.root))
            if not full and self._write_failed:
                self._store.try_write()
                self._write_failed = False
        except (StoreError, OSError) as error:
            return str(error)
        return full
