"""A feeder's connection to Redis, on which blocks go out before earlier ones are answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import redis

from dlconsole.errors import RedisUnavailable, RedisUnusable
from dlconsole.services.connection import check_version, connect, translated
from dlconsole.services.feed_report import Position, parse_position
from dlconsole.services.keys import Keys
from dlconsole.services.scripts import script
from dlconsole.settings import Settings

if TYPE_CHECKING:
    from dlconsole.services.seen import Digests

CLIENT_NAME: Final = "dlconsole-feed"


@dataclass(frozen=True, slots=True)
class Push:
    """A part of a window on its way: from position `before` to `after`, as text and as numbers. So many of
    the list's tasks lie in front of that window's end: `window_end`.
    """

    before: bytes
    before_line: int
    after: bytes
    to: Position
    items: list[bytes]
    digests: Digests | None
    window_end: int
    too_large: Mapping[str, int]


class Link:
    """One connection to Redis, used as a pipe: blocks go out before earlier ones are answered.

    Every method raises RedisUnavailable or RedisUnusable; then it is of no more use.
    """

    def __init__(self, settings: Settings, list_id: str) -> None:
        self._url = settings.redis
        self._keys = Keys(settings.dataset)
        self._id = list_id
        self._script = script("push")

    def __enter__(self) -> Self:
        self._client: redis.Redis = connect(self._url, name=CLIENT_NAME)
        try:
            with translated(self._url):
                check_version(self._client.info("server"), self._url)
                self._connection: Any = self._client.connection_pool.get_connection()
                self._call("SCRIPT", "LOAD", self._script.source)
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.disconnect()  # answers may still be on their way
        self._client.connection_pool.release(self._connection)
        self._client.close()

    def stands(self) -> bytes:
        """The list's position in Redis, b'' for none."""
        with translated(self._url):
            return self._call("HGET", self._keys.feed, self._id) or b""

    def knows(self, path: str) -> bool:
        """Whether Redis has the position of any list that was fed from that path."""
        cursor = b"0"
        with translated(self._url):
            while True:
                cursor, found = self._call("HSCAN", self._keys.feed, cursor, "COUNT", "1000")
                if any(_is_of(position, path) for position in found[1::2]):
                    return True
                if cursor == b"0":
                    return False

    def send(self, push: Push) -> None:
        """Send a block, with the positions in front of it and behind it."""
        keys = self._keys
        with translated(self._url):
            words = ("EVALSHA", self._script.sha, 3, keys.task, keys.fed, keys.feed)
            command = self._connection.pack_command(*words, self._id, push.before, push.after, *push.items)
            self._connection.send_packed_command(command, check_health=False)

    def depth(self) -> int:
        """How many tasks are queued."""
        with translated(self._url):
            return int(self._call("LLEN", self._keys.task))

    def answer(self) -> tuple[int, bytes, int]:
        """The answer to the oldest block that has none yet: whether it was applied, where the list stands,
        how many tasks are queued.

        Raises RedisUnavailable also where the server has lost the script: the next link loads it again.
        """
        with translated(self._url):
            try:
                applied, stands, depth = self._connection.read_response()
            except redis.exceptions.NoScriptError as error:
                raise RedisUnavailable(f"the server lost its scripts: {error}") from error
        return int(applied), bytes(stands), int(depth)

    def forget(self) -> None:
        """Drop the position: of a stream nobody can go on."""
        with translated(self._url):
            self._call("HDEL", self._keys.feed, self._id)

    def _call(self, *words: str | bytes) -> Any:
        self._connection.send_command(*words, check_health=False)
        return self._connection.read_response()


def _is_of(position: bytes, path: str) -> bool:
    try:
        found = parse_position(position)
    except RedisUnusable:  # somebody else's
        return False
    return found is not None and found.path == path
