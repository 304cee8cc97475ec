"""The one place that builds Redis clients.

redis-py's own retries are switched off everywhere: a claim or a push that is sent twice behind our
back loses or doubles tasks. Whoever calls decides what may be repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError as RedisConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError as LibraryError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
    TryAgainError,
)
from redis.retry import Retry

from dlconsole.errors import RedisError, RedisUnavailable, RedisUnusable
from dlconsole.settings import mask_url

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 10.0
MIN_VERSION: Final = (6, 2)

_PASSING: Final = re.compile(
    r"\b(OOM|MISCONF|LOADING|READONLY|NOREPLICAS|BUSY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN)\b"
)
"""Error replies that say «not now», also from inside a script: pause and try again. Never a task
failure, never an exit."""
_PASSING_TYPES: Final = (BusyLoadingError, ClusterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError)
"""Those of them that redis-py has a class for, and whose text it cuts the code off; MASTERDOWN's is a
ClusterDownError.
"""


def connect(url: str, *, name: str) -> redis.Redis:
    """A blocking client of one connection's worth; bytes in, bytes out."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **_options(name))


def connect_async(url: str, *, name: str) -> redis.asyncio.Redis:
    """As `connect`, for the event loop."""
    return redis.asyncio.Redis.from_url(url, retry=AsyncRetry(NoBackoff(), 0), **_options(name))


def _options(name: str) -> dict[str, Any]:
    return {
        "client_name": name,
        "protocol": 2,  # the same reply types on every server from 6.2 on, Valkey included
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": COMMAND_TIMEOUT_S,
    }


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn redis-py's exceptions into ours, with the server's name and without its password."""
    try:
        yield
    except LibraryError as error:
        raise translate(error, url) from error
    except OSError as error:
        raise RedisUnavailable(f"Redis at {mask_url(url)}: {error}") from error


def translate(error: LibraryError, url: str) -> RedisError:
    """Our error for one of redis-py's: whether trying again can help, and what to do."""
    where = f"Redis at {mask_url(url)}"
    if isinstance(error, RedisConnectionError) and isinstance(error.__cause__, LibraryError):
        error = error.__cause__  # redis.asyncio wraps what went wrong while connecting
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return RedisUnusable(f"{where} refuses the user or password: {error}")
    if isinstance(error, NoPermissionError):
        return RedisUnusable(f"{where}: this user's ACL does not allow it: {error}")
    if isinstance(error, _PASSING_TYPES):
        return RedisUnavailable(f"{where}: {error}")
    if isinstance(error, (RedisConnectionError, RedisTimeoutError)):
        return RedisUnavailable(f"{where} cannot be reached: {error}")
    if isinstance(error, ResponseError):
        text = str(error)
        if _PASSING.search(text):
            return RedisUnavailable(f"{where}: {text}")
        if "WRONGTYPE" in text:
            return RedisUnusable(f"{where}: a key of this dataset has another type than dlconsole's: {text}")
        return RedisUnusable(f"{where}: {text}")
    return RedisUnusable(f"{where}: {error}")


def check_version(info: dict[str, Any], url: str) -> str:
    """The server's version as text. Raises RedisUnusable below 6.2."""
    version = str(info.get("redis_version", "0"))
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if parts < MIN_VERSION:
        raise RedisUnusable(
            f"Redis at {mask_url(url)} is {version}; dlconsole needs 6.2 or newer (or Valkey): upgrade it"
        )
    return version
