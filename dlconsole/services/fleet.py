"""One pipelined round trip → one FleetSnapshot: what every console and every status command shows."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError

from dlconsole.model import (
    Counts,
    FleetSnapshot,
    HistoryPoint,
    HostStats,
    HostView,
    Pause,
    Rates,
    SessionStats,
    SessionView,
)
from dlconsole.services import history
from dlconsole.services.checks import redis_info
from dlconsole.services.connection import check_version, connect_async, translated
from dlconsole.services.keys import LEGACY_DISK, Keys
from dlconsole.services.scripts import script
from dlconsole.settings import Settings

GIB: Final = 2**30
RATE_WINDOW_MS: Final = 12_000
"""Speeds are taken over this much time: long enough to be calm, short enough to be now."""
HOST_FRESH_MS: Final = 24 * 3_600_000
"""Hosts that were last heard of longer ago are not shown."""
_RECORD_BYTES: Final = 64 * 1024
"""Longer session and host records are not ours."""

R = TypeVar("R")
_SESSION: Final = msgspec.json.Decoder(SessionStats)
_HOST: Final = msgspec.json.Decoder(HostStats)


@dataclass(frozen=True, slots=True)
class _Sample:
    """The counters at one moment; two of them make a speed."""

    at_ms: int
    stored: int
    failed: int


class FleetReader:
    """Reads snapshots of one dataset, and keeps what a speed needs of the past. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis
        self._keys = Keys(settings.dataset)
        self._client = connect_async(settings.redis, name="dlconsole-console")
        self._read_only = settings.read_only
        self._samples: deque[_Sample] = deque(maxlen=256)
        self._history: deque[HistoryPoint] = deque(maxlen=history.KEEP_POINTS)
        self._history_id = "-"
        self._due_point: HistoryPoint | None = None

    async def read_snapshot(self) -> FleetSnapshot:
        """The fleet now, in one round trip. Raises RedisUnavailable or RedisUnusable.

        Where nobody else does, it also writes the fleet's history: the turn is taken in one poll and
        the point goes along with the next. A read-only reader writes nothing.
        """
        with translated(self._url):
            try:
                replies = await self._ask()
            except NoScriptError:
                await self._client.script_load(script("counts").source.decode())
                replies = await self._ask()
        return self._assemble(replies)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _ask(self) -> list[Any]:
        keys = self._keys
        pipe: Pipeline = self._client.pipeline(transaction=False)
        counts = script("counts")
        pipe.execute_command("EVALSHA", counts.sha, len(keys.counted), *keys.counted, keys.in_flight_prefix)
        pipe.zrange(keys.lease, 0, -1, withscores=True)
        pipe.hgetall(keys.workers)
        pipe.hgetall(keys.hosts)
        pipe.hgetall(LEGACY_DISK)
        pipe.hgetall(keys.control)
        pipe.xrange(keys.history, min=self._history_id, count=history.KEEP_POINTS)
        pipe.info()
        if not self._read_only:
            pipe.set(keys.history_turn, b"1", nx=True, px=history.PERIOD_MS)
            if self._due_point is not None:
                history.add(pipe, keys, self._due_point)
        replies: list[Any] = await pipe.execute()
        self._due_point = None
        return replies

    def _assemble(self, replies: list[Any]) -> FleetSnapshot:
        counted, leases, workers, hosts, legacy_disk, control, points, info, *rest = replies
        turn = bool(rest and rest[0])
        check_version(info, self._url)
        at_ms, queued, in_flight, delayed, stored, failed, fed, error_list = counted
        counts = Counts(queued, in_flight, delayed, stored, failed, fed, error_list)
        session_stats, bad_sessions = _decode_all(workers, _SESSION)
        host_stats, bad_hosts = _decode_all(hosts, _HOST)
        sessions = _sessions(session_stats, leases, at_ms)
        self._remember(points)
        bytes_per_s = sum(s.stats.bytes_per_s for s in sessions if s.alive) if sessions else None
        rates = self._rates(at_ms, counts, bytes_per_s)
        if turn:
            self._due_point = HistoryPoint(at_ms, stored, failed, queued, bytes_per_s or 0.0)
        return FleetSnapshot(
            dataset=self._keys.dataset,
            at_ms=at_ms,
            counts=counts,
            rates=rates,
            hosts=_hosts(host_stats, legacy_disk, sessions, at_ms),
            sessions=sessions,
            history=tuple(self._history),
            redis=redis_info(info),
            pause=_pause(control),
            unreadable=bad_sessions + bad_hosts,
        )

    def _remember(self, points: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        for point_id, fields in points:
            self._history_id = "(" + point_id.decode()
            point = history.parse(point_id, fields)
            if point is not None:
                self._history.append(point)

    def _rates(self, at_ms: int, counts: Counts, bytes_per_s: float | None) -> Rates:
        """Speeds from the counters, which legacy workers move as well as ours.

        A first poll has no earlier one; the newest history point stands in for it.
        """
        samples = self._samples
        now = _Sample(at_ms, counts.stored, counts.failed)
        if samples and (now.stored < samples[-1].stored or now.failed < samples[-1].failed):
            samples.clear()  # the counters were reset
        samples.append(now)
        while len(samples) > 2 and samples[1].at_ms <= at_ms - RATE_WINDOW_MS:
            samples.popleft()
        first = samples[0]
        if len(samples) == 1 and self._history:
            last = self._history[-1]
            first = _Sample(last.at_ms, last.stored, last.failed)
        elapsed_s = (at_ms - first.at_ms) / 1000
        if elapsed_s < 0.2 or elapsed_s > 120 or now.stored < first.stored or now.failed < first.failed:
            return Rates(bytes_per_s=bytes_per_s)
        stored, failed = now.stored - first.stored, now.failed - first.failed
        done_per_s = (stored + failed) / elapsed_s
        return Rates(
            stored_per_s=stored / elapsed_s,
            failed_per_s=failed / elapsed_s,
            bytes_per_s=bytes_per_s,
            success_ratio=stored / (stored + failed) if stored + failed else None,
            finish_s=counts.outstanding / done_per_s if done_per_s else None,
        )


def _decode_all(records: dict[bytes, bytes], decoder: msgspec.json.Decoder[R]) -> tuple[dict[str, R], int]:
    """The records that are ours to read, by name, and how many were not."""
    found: dict[str, R] = {}
    for name, value in records.items():
        try:
            if len(value) <= _RECORD_BYTES:
                found[name.decode()] = decoder.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return found, len(records) - len(found)


def _sessions(
    stats: dict[str, SessionStats], leases: list[tuple[bytes, float]], at_ms: int
) -> tuple[SessionView, ...]:
    deadlines = {name.decode("utf-8", "replace"): int(deadline) for name, deadline in leases}
    views = [SessionView(name, record, deadlines.get(name, at_ms) - at_ms) for name, record in stats.items()]
    return tuple(sorted(views, key=lambda view: (view.stats.host, view.id)))


def _hosts(
    records: dict[str, HostStats],
    legacy_disk: dict[bytes, bytes],
    sessions: tuple[SessionView, ...],
    at_ms: int,
) -> tuple[HostView, ...]:
    """Our host records, then the hosts that only the legacy hash knows; each sorted by name."""
    running: dict[str, list[SessionStats]] = {}
    for view in sessions:
        if view.alive:
            running.setdefault(view.stats.host, []).append(view.stats)
    ours = [
        HostView(
            name=name,
            ip=record.ip,
            disk_used_bytes=record.disk_used_bytes,
            disk_total_bytes=record.disk_total_bytes,
            seen_ms=record.at_ms,
            sessions=len(running.get(name, ())),
            stored_per_s=sum(stats.stored_per_s for stats in running.get(name, ())),
            bytes_per_s=sum(stats.bytes_per_s for stats in running.get(name, ())),
            stats=record,
            waits=next((stats.waits for stats in running.get(name, ()) if stats.waits), ""),
        )
        for name, record in sorted(records.items())
        if at_ms - record.at_ms < HOST_FRESH_MS
    ]
    known = {view.ip for view in ours}
    legacy = [
        HostView(ip, ip, used, None, None, sessions=0, stored_per_s=0.0, bytes_per_s=0.0)
        for ip, used in sorted(_legacy_disks(legacy_disk).items())
        if ip not in known
    ]
    return (*ours, *legacy)


def _legacy_disks(legacy_disk: dict[bytes, bytes]) -> dict[str, int]:
    found = {}
    for field, value in legacy_disk.items():
        try:
            found[field.decode().replace("_", ".")] = max(0, int(float(value) * GIB))
        except (ValueError, OverflowError):  # not a legacy field
            continue
    return found


def _pause(control: dict[bytes, bytes]) -> Pause | None:
    if control.get(b"paused") != b"1":
        return None
    at = control.get(b"at", b"")
    return Pause(
        by=control.get(b"by", b"").decode("utf-8", "replace"),
        why=control.get(b"why", b"").decode("utf-8", "replace"),
        at_ms=int(at) if at.isdigit() else 0,
    )


def read_now(settings: Settings) -> FleetSnapshot:
    """One snapshot, for commands without an event loop of their own."""

    async def read() -> FleetSnapshot:
        reader = FleetReader(settings)
        try:
            return await reader.read_snapshot()
        finally:
            await reader.close()

    return asyncio.run(read())
