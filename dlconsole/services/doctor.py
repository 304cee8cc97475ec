"""Looks for what is wrong before it hurts: Redis, disk, limits, DNS, clock, permissions."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import redis
from redis.exceptions import ResponseError

from dlconsole.errors import RedisError
from dlconsole.model import RedisInfo
from dlconsole.services import checks, descriptors
from dlconsole.services.connection import check_version, connect, translated
from dlconsole.services.disk import existing
from dlconsole.services.embedded import EmbeddedRedis
from dlconsole.services.hosts import GIB
from dlconsole.services.scripts import script
from dlconsole.settings import Settings, mask_url
from dlconsole.units import format_bytes, format_count

T = TypeVar("T")
Level = Literal["ok", "warning", "failure"]
PINGS: Final = 200
SLOW_MS: Final = 20.0
MAX_SKEW_S: Final = 2.0
FREE_RATIO: Final = 0.05
LOOKED_UP: Final = "example.com"
_LOOKUP_S: Final = 5.0
_DISK_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, how it is, and, unless it is ok, what to do."""

    name: str
    level: Level
    said: str
    todo: str = ""


def examine(settings: Settings, config: Path | None) -> Iterator[Check]:
    """Every check, each as soon as it is known; `config` is the settings file, if there is one."""
    yield from _redis(settings)
    yield from _disk_in_time(settings.worker.store_dir)
    yield _descriptors(settings)
    yield _dns()
    if config is not None:
        yield _permissions(config, settings)


# -- Redis -----------------------------------------------------------------------------------------


def _redis(settings: Settings) -> Iterator[Check]:
    if not settings.redis:
        own = EmbeddedRedis.of(settings)
        if not own.is_running():
            yield Check("redis", "ok", "the own Redis does not run; it is started when it is needed")
            return
        settings = settings.model_copy(update={"redis": own.url})
    where = mask_url(settings.redis)
    try:
        with translated(settings.redis), connect(settings.redis, name="dlconsole-doctor") as client:
            info = client.info()
            server = checks.redis_info(info, checks.appendfsync(client))
            yield Check("redis", "ok", f"{where} answers: {server.version}")
            check_version(info, settings.redis)
            yield from _server(server)
            yield _scripts(client, info)
            yield _latency(client)
            yield _clock(client)
    except RedisError as error:
        yield Check("redis", "failure", str(error), "start it, or correct 'redis' in the settings")


_SERVER: Final[dict[str, tuple[Level, Callable[[RedisInfo], str]]]] = {
    "aof": ("warning", lambda _info: "an append-only file is kept, and written"),
    "fsync": ("warning", lambda info: f"appendfsync is {info.fsync or 'not to be asked for'}"),
    "policy": ("failure", lambda info: f"maxmemory-policy is {info.policy or 'noeviction'}"),
    "role": ("failure", lambda _info: "it is a primary"),
    "memory": (
        "warning",
        lambda info: (
            f"{format_bytes(info.used_bytes)} of "
            + (format_bytes(info.max_bytes) if info.max_bytes else "no limit")
            + " used"
        ),
    ),
}
"""What `checks.findings` looks at: how bad it is, and what is said where nothing is found."""


def _server(info: RedisInfo) -> Iterator[Check]:
    found = {finding.name: finding for finding in checks.findings(info)}
    for name, (level, words) in _SERVER.items():
        if finding := found.get(name):
            worse = name == "aof" and not info.aof_ok
            yield Check(name, "failure" if worse else level, finding.said, finding.todo)
        else:
            yield Check(name, "ok", words(info))


def _scripts(client: redis.Redis, info: dict[str, Any]) -> Check:
    """Loading a script runs nothing, and needs the same right as running one."""
    if int(info.get("cluster_enabled", 0)):
        said = "this Redis is a cluster; datasets are kept on a single server"
        return Check("scripts", "failure", said, "name a server that is not part of a cluster")
    try:
        client.script_load(script("counts").source.decode())
    except ResponseError as error:
        return Check("scripts", "failure", f"scripts are refused: {error}", "grant this user +@scripting")
    return Check("scripts", "ok", "scripts may be run; it is not a cluster")


def _latency(client: redis.Redis) -> Check:
    times_ms = []
    for _ in range(PINGS):
        started = time.perf_counter()
        client.ping()
        times_ms.append(1000 * (time.perf_counter() - started))
    times_ms.sort()
    p50, p99 = times_ms[PINGS // 2], times_ms[PINGS * 99 // 100]
    said = f"{PINGS} pings: half within {p50:.2f} ms, 99 % within {p99:.2f} ms"
    if p99 <= SLOW_MS:
        return Check("latency", "ok", said)
    return Check("latency", "warning", said, "run workers nearer to Redis, or look for what keeps it busy")


def _clock(client: redis.Redis) -> Check:
    before = time.time()
    seconds, micros = client.time()
    after = time.time()
    theirs = seconds + micros / 1e6
    skew_s = max(0.0, before - theirs, theirs - after)
    said = f"{skew_s:.2f} s between this clock and that of Redis"
    if skew_s <= MAX_SKEW_S:
        return Check("clock", "ok", said)
    todo = "synchronise both (leases go by that of Redis; logs and file names by this one)"
    return Check("clock", "warning", said, todo)


# -- this host -------------------------------------------------------------------------------------


def _within(limit_s: float, ask: Callable[[], T]) -> T | None:
    """What it gives, or None after that time: for calls that cannot be given a deadline."""
    answers: list[T] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(limit_s)
    return answers[0] if answers else None


def _disk_in_time(store: Path) -> Iterator[Check]:
    checks = _within(_DISK_S, lambda: list(_disk(store)))
    if checks is not None:
        yield from checks
        return
    said = f"{store}: no answer in {_DISK_S:.0f} s: its disk hangs"
    yield Check("disk", "failure", said, "look for what its mount waits for, or name another store")


def _disk(store: Path) -> Iterator[Check]:
    try:
        place = existing(store)
        disk = os.statvfs(place)
    except OSError as error:
        yield Check("disk", "failure", f"{store}: {error.strerror}", "name another store")
        return
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    said = f"{format_bytes(free)} of {format_bytes(total)} free for {store}"
    if total and free < min(FREE_RATIO * total, GIB):
        yield Check("disk", "warning", said, "make room, or name another store")
    else:
        yield Check("disk", "ok", said)
    inodes = f"{format_count(disk.f_favail)} of {format_count(disk.f_files)} free"
    if disk.f_files and disk.f_favail < FREE_RATIO * disk.f_files:
        yield Check("inodes", "warning", inodes, "each image takes one: make room, or name another store")
    else:
        yield Check("inodes", "ok", inodes if disk.f_files else "this filesystem does not count them")
    yield _writing(place)


def _writing(place: Path) -> Check:
    """A file as the workers make it: written, synced, renamed; and taken away again."""
    token = secrets.token_hex(8)
    temporary, target = place / f".dlconsole-doctor-{token}.tmp", place / f".dlconsole-doctor-{token}"
    doing = "written"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, b"dlconsole")
            doing = "synced"
            os.fsync(handle)
        finally:
            os.close(handle)
        doing = "renamed"
        temporary.rename(target)
    except OSError as error:
        said = f"{place}: a file cannot be {doing}: {error.strerror}"
        return Check("store", "failure", said, "give this user the right, or name another store")
    finally:
        for left in (temporary, target):
            with suppress(OSError):
                left.unlink()
    return Check("store", "ok", f"{place}: files can be written, synced and renamed")


def _descriptors(settings: Settings) -> Check:
    """Workers raise their own limit to the hard one, and fetch less at once where that is too low."""
    fetches = settings.worker.concurrency
    allowed, wanted = descriptors.most(), descriptors.wanted(fetches)
    said = f"{allowed} open files allowed, {wanted} wanted for {fetches} fetches at once"
    if allowed >= wanted:
        return Check("descriptors", "ok", said)
    todo = f"raise the hard limit (LimitNOFILE={wanted} in its service, ulimit -Hn {wanted})"
    fewer = f"else a worker fetches {descriptors.affordable(fetches)} at once"
    return Check("descriptors", "failure", said, f"{todo}; {fewer}")


def _dns() -> Check:
    """One lookup, nothing more."""

    def look_up() -> str:
        try:
            socket.getaddrinfo(LOOKED_UP, 443, type=socket.SOCK_STREAM)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    started = time.monotonic()
    why = _within(_LOOKUP_S, look_up)
    if why == "":
        return Check("dns", "ok", f"{LOOKED_UP} found in {1000 * (time.monotonic() - started):.0f} ms")
    if why is None:
        why = f"no answer in {_LOOKUP_S:.0f} s"
    said = f"{LOOKED_UP} is not found: {why}"
    return Check(
        "dns", "warning", said, "without a network, or behind a proxy that looks names up, no matter"
    )


def _permissions(config: Path, settings: Settings) -> Check:
    try:
        found = config.stat()
    except OSError as error:
        return Check("config", "warning", f"{config}: {error.strerror}", "make it readable")
    mode = stat.S_IMODE(found.st_mode)
    urls = [settings.redis, *(context.redis or "" for context in settings.contexts.values())]
    has_secret = any("@" in url for url in [*urls, settings.fetch.proxy])
    if mode & 0o022 or found.st_uid not in {os.geteuid(), 0}:
        said = f"{config} can be changed by other users (mode {mode:o})"
        return Check("config", "failure", said, f"chmod 600 {config}")
    if mode & 0o044 and has_secret:
        said = f"{config} holds a password and can be read by other users (mode {mode:o})"
        return Check("config", "warning", said, f"chmod 600 {config}")
    return Check("config", "ok", f"{config} is closed to others as far as it needs to be (mode {mode:o})")
