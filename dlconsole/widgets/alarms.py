"""What a person should know before it costs tasks: read from a snapshot, shown on one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dlconsole.model import FleetSnapshot, Pause
from dlconsole.widgets.sheet import Line, Piece, Sheet
from dlconsole.widgets.text import clean, fit

MEMORY_LIMIT: Final = 0.9
"""Share of `maxmemory` from which on it is said."""
DISK_LIMIT: Final = 0.95
SILENT_S: Final = 120
"""A host of ours that has said nothing for so long, and whose sessions did not end in order."""
GONE_S: Final = 24 * 3600
"""After so long it was taken down on purpose, and is no longer called anything."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that is wrong; `urgent` ones are drawn in red and come first."""

    words: str
    urgent: bool = False


def alarms_of(snapshot: FleetSnapshot) -> list[Alarm]:
    """What holds the fleet, then everything that is wrong on this picture, the urgent first."""
    found = [*_redis_alarms(snapshot), *_host_alarms(snapshot)]
    if snapshot.unreadable:
        found.append(Alarm(f"{snapshot.unreadable} records in Redis are not readable"))
    found.sort(key=lambda alarm: not alarm.urgent)
    return [_pause_alarm(snapshot.pause), *found] if snapshot.pause else found


def _pause_alarm(pause: Pause) -> Alarm:
    by, why = clean(pause.by), clean(pause.why)
    return Alarm("fleet PAUSED" + (f" by {by}" if by else "") + (f": {why}" if why else ""))


def _redis_alarms(snapshot: FleetSnapshot) -> list[Alarm]:
    redis, found = snapshot.redis, []
    if redis.max_bytes and redis.used_bytes >= MEMORY_LIMIT * redis.max_bytes:
        share = redis.used_bytes / redis.max_bytes
        found.append(Alarm(f"Redis memory {share:.0%} of maxmemory", urgent=True))
    if redis.policy not in {"", "noeviction"}:
        found.append(
            Alarm(f"maxmemory-policy {clean(redis.policy)} can evict tasks, set noeviction", urgent=True)
        )
    if redis.role not in {"", "master"}:
        found.append(Alarm(f"this Redis is a {clean(redis.role)}: it takes no writes", urgent=True))
    if redis.version and not redis.aof:
        found.append(Alarm("AOF off: a crash of Redis loses minutes of tasks"))
    return found


def _host_alarms(snapshot: FleetSnapshot) -> list[Alarm]:
    waiting: dict[str, list[str]] = {}
    for host in snapshot.hosts:
        if host.waits:
            waiting.setdefault(host.waits, []).append(host.name)
    full = [host for host in snapshot.hosts if (host.disk_ratio or 0) >= DISK_LIMIT and not host.waits]
    silent = [
        host
        for host in snapshot.hosts
        if host.seen_ms is not None
        and not (host.stats and host.stats.ended)
        and SILENT_S <= (snapshot.at_ms - host.seen_ms) / 1000 < GONE_S
    ]
    found = [
        Alarm(f"{_names(hosts[0], len(hosts))} {_wait(len(hosts))} store: {clean(why)}", urgent=True)
        for why, hosts in waiting.items()
    ]
    if full:
        found.append(Alarm(f"disk nearly full on {_names(full[0].name, len(full))}", urgent=True))
    if silent:
        found.append(Alarm(f"silent: {_names(silent[0].name, len(silent))}"))
    return found


def _wait(count: int) -> str:
    return "waits for its" if count == 1 else "wait for their"


def _names(first: str, count: int) -> str:
    name = clean(first)[:30]
    return name if count == 1 else f"{name} and {count - 1} more"


class AlarmLine(Sheet):
    """All alarms on one line; gone from the screen when there are none."""

    def __init__(self) -> None:
        super().__init__()
        self._alarms: list[Alarm] = []
        self.display = False

    def show_alarms(self, alarms: list[Alarm]) -> None:
        """Take over what is wrong now."""
        if alarms == self._alarms:
            return
        self._alarms = alarms
        self.display = bool(alarms)
        self.redraw()

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """One line, cut at the edge."""
        del height
        pieces: list[Piece] = []
        room = width - 1
        for alarm in self._alarms:
            words = f" ▲ {alarm.words} "
            if room < 6:
                break
            text = fit(words, min(room, len(words)))
            pieces.append(Piece(text, "alert" if alarm.urgent else "warn"))
            room -= len(text)
        return [tuple(pieces)]
