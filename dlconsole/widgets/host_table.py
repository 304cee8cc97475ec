"""The fleet's hosts: disk, sessions, speed, and when each was last heard of."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Final

from dlconsole.model import FleetSnapshot, HostView
from dlconsole.units import format_bytes, format_duration, format_short
from dlconsole.widgets.alarms import DISK_LIMIT
from dlconsole.widgets.bar import bar
from dlconsole.widgets.sheet import Line, Piece
from dlconsole.widgets.table import Cell, Column, Table
from dlconsole.widgets.text import UNKNOWN, clean, fit

LIVE_S: Final = 30
"""A host heard of within so many seconds is called live: no count of seconds that would tick."""
_DISK_WARN: Final = 0.85
_UNKNOWN: Final = Piece(UNKNOWN, "dim")
_COLUMNS: Final = (
    Column("HOST", 14, grow=2, most=34),
    Column("DISK", 16, grow=3, most=46),
    Column("USED", 8, right=True),
    Column("OF", 8, right=True),
    Column("SESS", 4, right=True),
    Column("IMG/S", 6, right=True),
    Column("SEEN", 8),
    Column("DATA/S", 10, right=True),
)


class HostTable(Table):
    """One row a host: ours, then those that run legacy scripts only; each in the order of their names,
    `node-2` before `node-10`.
    """

    def __init__(self) -> None:
        super().__init__(_COLUMNS, id="hosts")
        self._hosts: tuple[HostView, ...] = ()
        self._rows: dict[Hashable, int] = {}
        self._at_ms = 0

    def show_snapshot(self, snapshot: FleetSnapshot) -> None:
        """Take over the hosts of a new picture; the cursor stays on its host."""
        key = self.cursor_key()
        self._at_ms = snapshot.at_ms
        self._hosts = tuple(sorted(snapshot.hosts, key=_order))
        self._rows = {(host.name, host.ip): row for row, host in enumerate(self._hosts)}
        self.follow(key)
        self.redraw()

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """The table, or what to do while there are no hosts."""
        lines = super().draw(width, height)
        if self._hosts:
            return lines
        hint = " No hosts yet. Start downloading on one: "
        return [*lines, (Piece(hint, "dim"), Piece("dlconsole --worker", "code"))]

    def row_count(self) -> int:
        """How many hosts."""
        return len(self._hosts)

    def row_key(self, row: int) -> Hashable:
        """A host is its name and address."""
        host = self._hosts[row]
        return (host.name, host.ip)

    def find_row(self, key: Hashable) -> int | None:
        """Where the host is now."""
        return self._rows.get(key)

    def cell(self, row: int, column: int, width: int) -> Cell:
        """One fact of one host."""
        host = self._hosts[row]
        match _COLUMNS[column].title:
            case "HOST":
                return (Piece(fit(clean(host.name or host.ip), width)),)
            case "DISK":
                return _disk(host, width)
            case "USED":
                return _bytes(host.disk_used_bytes)
            case "OF":
                return _bytes(host.disk_total_bytes)
            case "SESS":
                return (Piece(format_short(host.sessions), "plain" if host.sessions else "dim"),)
            case "IMG/S":
                return _speed(host, format_short(host.stored_per_s), host.stored_per_s)
            case "DATA/S":
                return _speed(host, format_bytes(host.bytes_per_s), host.bytes_per_s)
            case _:
                return (_seen(host, self._at_ms),)


@lru_cache(maxsize=20_000)
def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Numbers in a name compare as numbers."""
    parts = re.split(r"(\d{1,18})", name)
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)


def _order(host: HostView) -> tuple[bool, tuple[tuple[int, str], ...], str]:
    return host.stats is None, _natural(host.name or host.ip), host.ip


def _disk(host: HostView, width: int) -> Cell:
    ratio = host.disk_ratio
    if ratio is None:
        return (Piece(fit("", width)),)
    tone = "bad" if ratio >= DISK_LIMIT else "warn" if ratio >= _DISK_WARN else "accent"
    percent = f"{max(0, min(100 if ratio >= 1 else 99, round(ratio * 100)))} %"
    return (
        *bar(ratio, width - 6, tone),
        Piece(fit(percent, 6, right=True), "plain" if tone == "accent" else tone),
    )


def _bytes(size: int | None) -> Cell:
    return (Piece(format_bytes(size)) if size is not None else _UNKNOWN,)


def _speed(host: HostView, words: str, per_s: float) -> Cell:
    """A host that runs no sessions of ours reports no speed."""
    if not host.sessions:
        return (_UNKNOWN,)
    return (Piece(words, "plain" if per_s else "dim"),)


def _seen(host: HostView, at_ms: int) -> Piece:
    if host.seen_ms is None:
        return Piece("legacy", "dim") if host.stats is None else _UNKNOWN
    ago_s = (at_ms - host.seen_ms) / 1000
    if ago_s < LIVE_S and host.waits:
        return Piece("waits", "bad")
    if ago_s < LIVE_S:
        return Piece("live", "good")
    # Whole minutes, hours or days: coarse, so that a silent fleet does not repaint.
    step = 60 if ago_s < 3600 else 3600 if ago_s < 86400 else 86400
    return Piece(f"{format_duration(max(1, ago_s // step) * step)} ago", "warn")
