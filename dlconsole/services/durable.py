"""Whether Redis has what was written to it on disk, and not only in memory.

A feed of the last second is what a Redis with `appendfsync everysec` loses with its machine. So a list
counts as done only after this. Redis 7.2 and newer say so themselves (`WAITAOF`). Older ones only tell
whether an fsync is under way; from two such answers, far enough apart, it follows. Neither covers a
server with `appendfsync no`, which leaves the moment to its system, or one without an append-only file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError, ResponseError

from dlconsole.errors import RedisUnavailable

_WAITAOF_MS: Final = 500
_FSYNC_BEGINS_S: Final = 1.5
"""`everysec`: while none is under way, an fsync of what is new begins within 1.1 s."""
_POLL_S: Final = 0.05


def wait_until_on_disk(client: redis.Redis, may_wait: Callable[[], bool]) -> bool:
    """Wait until all that `client`, which has one connection, wrote before is on the server's disk.

    False where `may_wait`, asked again and again, says no. True at once where there is no append-only
    file to wait for. Raises RedisUnavailable where the server cannot write, and as the client does.
    """
    persistence = _persistence(client)
    if not persistence["aof_enabled"]:
        return True
    while may_wait():
        try:
            on_disk, _ = client.execute_command("WAITAOF", 1, 0, _WAITAOF_MS)  # type: ignore[no-untyped-call]
        except NoPermissionError:
            return _wait_for_fsyncs(client, may_wait)
        except ResponseError as error:
            if "unknown command" in str(error).lower():
                return _wait_for_fsyncs(client, may_wait)
            raise
        if on_disk:
            return True
    return False


def _wait_for_fsyncs(client: redis.Redis, may_wait: Callable[[], bool]) -> bool:
    """Once no fsync is under way, one of all that was written before begins within 1.1 s, or nothing
    is new; so when again none is under way after that, it is done.
    """
    if not _wait_for_idle(client, may_wait):
        return False
    until = time.monotonic() + _FSYNC_BEGINS_S
    while (left_s := until - time.monotonic()) > 0:
        if not may_wait():
            return False
        time.sleep(min(_POLL_S, left_s))
    return _wait_for_idle(client, may_wait)


def _wait_for_idle(client: redis.Redis, may_wait: Callable[[], bool]) -> bool:
    while may_wait():
        found = _persistence(client)
        if found.get("aof_last_write_status", "ok") != "ok":
            raise RedisUnavailable("the server cannot write its append-only file: is its disk full?")
        if not int(found.get("aof_pending_bio_fsync", 0)):
            return True
        time.sleep(_POLL_S)
    return False


def _persistence(client: redis.Redis) -> dict[str, Any]:
    found: dict[str, Any] = client.info("persistence")
    return found
