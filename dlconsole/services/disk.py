"""The store's filesystem: how full it is, and whether downloads may go on.

Limits are in bytes used (the legacy `stop_threshold`), in percent, and in bytes free, and there must be
inodes. Past one of them downloads wait, and go on when the filesystem is below that one by a margin, so
that they do not flap.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dlconsole.settings import GuardSettings
from dlconsole.units import format_bytes, format_count


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """A filesystem. `free_bytes` is what an ordinary user may still write."""

    total_bytes: int
    used_bytes: int
    free_bytes: int
    inodes_total: int
    inodes_free: int

    @property
    def used_percent(self) -> float:
        """Used of what can be used, as df(1) counts it: without the blocks kept for root."""
        usable = self.used_bytes + self.free_bytes
        return 100 * self.used_bytes / usable if usable else 100.0


@dataclass(frozen=True, slots=True)
class DiskReading:
    """What a filesystem said at a moment of the monotonic clock."""

    usage: DiskUsage
    read_at: float


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists. Raises OSError where none can be seen."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def usage_of(folder: Path) -> DiskUsage:
    """The filesystem of `folder`. Raises OSError."""
    stats = os.statvfs(folder)
    return DiskUsage(
        total_bytes=stats.f_blocks * stats.f_frsize,
        used_bytes=(stats.f_blocks - stats.f_bfree) * stats.f_frsize,
        free_bytes=stats.f_bavail * stats.f_frsize,
        inodes_total=stats.f_files,
        inodes_free=stats.f_favail,
    )


def read_now(folder: Path) -> DiskReading:
    """Ask the filesystem of `folder`, which may hang with it. Raises OSError."""
    return DiskReading(usage_of(folder), time.monotonic())


_SPARE_INODES: Final = 64
"""So few are none: workers that wait give some back, which would look like room."""


class DiskGuard:
    """Says why downloads must wait, if they must. Remembers past which limit they do, for the margin."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._past: _Limit | None = None

    def look(self, usage: DiskUsage) -> str:
        """Take in the filesystem's state; why downloads must wait, or ''."""
        for limit in _LIMITS:
            # To go on again, it must be below the limit by the margin.
            part = self._settings.margin_percent / 100 if limit is self._past else 0.0
            why = limit(usage, self._settings, part)
            if why:
                self._past = limit
                return why
        self._past = None
        return ""


# Each says what is wrong, or ''. `part` is the margin: of the filesystem's size, or of the limit where
# that is less, else a low limit on a large disk could never be met again.


def _used_bytes(usage: DiskUsage, settings: GuardSettings, part: float) -> str:
    margin = part * min(usage.total_bytes, settings.max_used_bytes)
    if not settings.max_used_bytes or usage.used_bytes + margin <= settings.max_used_bytes:
        return ""
    used, most = format_bytes(usage.used_bytes), format_bytes(settings.max_used_bytes)
    return f"{used} used of the allowed {most} (guard.max_used_bytes)"


def _used_percent(usage: DiskUsage, settings: GuardSettings, part: float) -> str:
    most = settings.max_used_percent
    if usage.used_percent + part * most <= most:
        return ""
    return f"{usage.used_percent:.1f} % used of the allowed {most:g} % (guard.max_used_percent)"


def _free_bytes(usage: DiskUsage, settings: GuardSettings, part: float) -> str:
    margin = part * min(usage.total_bytes, settings.min_free_bytes)
    if usage.free_bytes >= settings.min_free_bytes + margin:
        return ""
    free, least = format_bytes(usage.free_bytes), format_bytes(settings.min_free_bytes)
    return f"{free} free, less than {least} (guard.min_free_bytes)"


def _inodes(usage: DiskUsage, _settings: GuardSettings, part: float) -> str:
    """A filesystem that makes them as it needs them (btrfs) says that it has none in total."""
    least = min(_SPARE_INODES, usage.inodes_total / 100) + part * usage.inodes_total
    if not usage.inodes_total or usage.inodes_free > least:
        return ""
    free, total = format_count(usage.inodes_free), format_count(usage.inodes_total)
    return f"{free} of {total} inodes free: each image takes one"


_Limit = Callable[[DiskUsage, GuardSettings, float], str]
_LIMITS: Final[tuple[_Limit, ...]] = (_used_bytes, _used_percent, _free_bytes, _inodes)
