"""What is ordered of the whole fleet: pause, resume, and ending legacy workers."""

from __future__ import annotations

import getpass
import socket
from typing import Final

import redis

from dlconsole.errors import RedisUnavailable
from dlconsole.services.connection import check_version, connect, translated
from dlconsole.services.keys import Keys
from dlconsole.services.objects import SENTINEL
from dlconsole.services.permission import require_writable
from dlconsole.services.scripts import script
from dlconsole.settings import Settings

MAX_SENTINELS: Final = 10_000
MAX_WORDS: Final = 500
_CLIENT_NAME: Final = "dlconsole-control"


def whoami() -> str:
    """'ana@web-1': who is named for a pause."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def pause(settings: Settings, *, why: str = "") -> bool:
    """Pause the whole fleet; whether it was paused before. What is fetched now is still finished.

    Raises ReadOnlyError, RedisUnavailable, RedisUnusable; may be repeated.
    """
    require_writable(settings, "pausing the fleet")
    with translated(settings.redis), _connect(settings) as client:
        names = [Keys(settings.dataset).control]
        was, _ = script("pause").run(client, names, whoami()[:MAX_WORDS], why[:MAX_WORDS])
    return bool(was)


def resume(settings: Settings) -> bool:
    """Let the fleet go on; whether it was paused. Raises as `pause`, and may be repeated."""
    require_writable(settings, "resuming the fleet")
    with translated(settings.redis), _connect(settings) as client:
        return bool(client.delete(Keys(settings.dataset).control))


def stop_legacy(settings: Settings, count: int) -> int:
    """Put `count` stop sentinels where they are taken next; how long the queue is then. Whoever takes
    one ends, also a worker of dlconsole.

    Raises as `pause`; must not be repeated: where no answer comes, that is said.
    """
    require_writable(settings, "stopping workers")
    if not 1 <= count <= MAX_SENTINELS:
        raise ValueError(f"expected 1 to {MAX_SENTINELS} sentinels")
    sent = False
    try:
        with translated(settings.redis), _connect(settings) as client:
            sent = True
            return int(client.rpush(Keys(settings.dataset).task, *[SENTINEL] * count))
    except RedisUnavailable as error:
        if not sent:
            raise
        raise RedisUnavailable(f"{error}\nthe sentinels may or may not be in the queue") from error


def _connect(settings: Settings) -> redis.Redis:
    client = connect(settings.redis, name=_CLIENT_NAME)
    try:
        check_version(client.info("server"), settings.redis)
    except BaseException:
        client.close()
        raise
    return client
