"""The store's filesystem: how full it is, and whether downloads may go on.

Limits are in bytes used (the legacy `stop_threshold`), in percent, and in bytes free; past one of them
downloads wait, and go on when the filesystem is below it by a margin, so that they do not flap.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dlconsole.settings import GuardSettings
from dlconsole.units import format_bytes


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


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists. Raises OSError where none can be seen."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def usage_of(folder: Path) -> DiskUsage:
    """The filesystem of `folder`, or of the nearest folder above it that exists. Raises OSError."""
    stats = os.statvfs(existing(folder))
    return DiskUsage(
        total_bytes=stats.f_blocks * stats.f_frsize,
        used_bytes=(stats.f_blocks - stats.f_bfree) * stats.f_frsize,
        free_bytes=stats.f_bavail * stats.f_frsize,
        inodes_total=stats.f_files,
        inodes_free=stats.f_favail,
    )


class DiskGuard:
    """Says why downloads must wait, if they must. Remembers whether they do, for the margin."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self.why = ""
        """Why downloads wait; '' while they may go on."""

    def look(self, usage: DiskUsage) -> str:
        """Take in the filesystem's state; why downloads must wait, or ''."""
        margin = 0.0
        if self.why:  # to go on again, it must be below the limits by the margin
            margin = self._settings.margin_percent
        self.why = self._fault(usage, margin)
        return self.why

    def _fault(self, usage: DiskUsage, margin_percent: float) -> str:
        settings = self._settings
        # Of the limit where that is less: else a low limit on a large disk could never be met again.
        part = margin_percent / 100
        used_margin = part * min(usage.total_bytes, settings.max_used_bytes)
        free_margin = part * min(usage.total_bytes, settings.min_free_bytes)
        if settings.max_used_bytes and usage.used_bytes + used_margin > settings.max_used_bytes:
            used, most = format_bytes(usage.used_bytes), format_bytes(settings.max_used_bytes)
            return f"{used} used of the allowed {most} (guard.max_used_bytes)"
        if usage.used_percent + margin_percent > settings.max_used_percent:
            most_percent = f"{settings.max_used_percent:g} %"
            return f"{usage.used_percent:.1f} % used of the allowed {most_percent} (guard.max_used_percent)"
        if usage.free_bytes < settings.min_free_bytes + free_margin:
            free, least = format_bytes(usage.free_bytes), format_bytes(settings.min_free_bytes)
            return f"{free} free, less than {least} (guard.min_free_bytes)"
        if usage.inodes_total and not usage.inodes_free:
            return "no inodes left"
        return ""
