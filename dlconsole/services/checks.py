"""What is unsafe about a Redis, from its INFO: said by workers and feeders when they start, by
`dlconsole status` and by `dlconsole doctor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.exceptions import ResponseError

from dlconsole.model import RedisInfo
from dlconsole.services.connection import check_version, connect, translated
from dlconsole.settings import Settings
from dlconsole.units import format_bytes

MEMORY_RATIO: Final = 0.85
"""Above this share of `maxmemory` it is said: feeding and retries stop where it is reached."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something unsafe, and what to do about it; `name` says which check found it."""

    name: str
    said: str
    todo: str


def appendfsync(client: redis.Redis) -> str:
    """When the server syncs its append-only file, which INFO does not say; '' where we may not ask."""
    try:
        return str(client.config_get("appendfsync").get("appendfsync", ""))
    except ResponseError:
        return ""


def redis_info(info: dict[str, Any], fsync: str = "") -> RedisInfo:
    """What we keep of an INFO reply, and of `appendfsync`."""
    return RedisInfo(
        version=str(info.get("valkey_version") or info.get("redis_version", "")),
        used_bytes=int(info.get("used_memory", 0)),
        max_bytes=int(info.get("maxmemory", 0)),
        policy=str(info.get("maxmemory_policy", "")),
        aof=bool(info.get("aof_enabled", 0)),
        role=str(info.get("role", "master")),
        clients=int(info.get("connected_clients", 0)),
        aof_ok=info.get("aof_last_write_status", "ok") == "ok",
        fsync=fsync,
    )


def findings(redis: RedisInfo) -> tuple[Finding, ...]:
    """All that is unsafe about this server."""
    found = []
    if not redis.aof:
        said = "Redis keeps no append-only file: if it crashes, minutes of the queue may be lost"
        found.append(Finding("aof", said, "set 'appendonly yes'"))
    elif not redis.aof_ok:
        said = "Redis cannot write its append-only file"
        found.append(Finding("aof", said, "look at its log and its disk"))
    if redis.aof and redis.fsync == "no":
        said = "Redis leaves it to its system when its file is synced: a crash may lose half a minute"
        found.append(Finding("fsync", said, "set 'appendfsync everysec'"))
    if redis.policy not in {"noeviction", ""}:
        said = f"Redis may throw the queue away when its memory is full (maxmemory-policy {redis.policy})"
        found.append(Finding("policy", said, "set 'maxmemory-policy noeviction'"))
    if redis.role != "master":
        said = f"this Redis is a {redis.role}, which takes no writes and may lag behind"
        found.append(Finding("role", said, "name its primary"))
    if redis.max_bytes and redis.used_bytes >= MEMORY_RATIO * redis.max_bytes:
        full = f"{redis.used_bytes / redis.max_bytes:.0%} of {format_bytes(redis.max_bytes)}"
        said = f"Redis uses {full} (maxmemory): at its limit feeders and workers wait"
        found.append(Finding("memory", said, "raise maxmemory, or let the queue shrink"))
    return tuple(found)


def ask(settings: Settings) -> tuple[Finding, ...]:
    """The findings of the server that these settings name. Raises RedisUnavailable, RedisUnusable."""
    with translated(settings.redis), connect(settings.redis, name="dlconsole-checks") as client:
        info = client.info()
        fsync = appendfsync(client)
    check_version(info, settings.redis)
    return findings(redis_info(info, fsync))
