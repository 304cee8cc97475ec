"""Errors taken out of the error list, and not yet safe elsewhere: the spool, and who may own one.

A drainer (an export into one folder, or a requeue) takes a batch into a spool of its own and drops it
when its errors are safe. What it took when it died is still there: an export goes on with it in the same
folder; a requeue's is put back by anyone, which fences it should it still live.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis

from dlconsole.errors import FencedError
from dlconsole.services.connection import translated
from dlconsole.services.keys import Keys
from dlconsole.services.scripts import script

EXPORT: Final = "export"
REQUEUE: Final = "requeue"
MAX_BATCH_BYTES: Final = 8 << 20
SILENT_MS: Final = 60_000
"""A drainer that was not seen for so long may be given up. Safe at any time; this is for good manners."""


@dataclass(frozen=True, slots=True)
class Spool:
    """A batch of errors, the oldest first. `batch` 0: there is none."""

    batch: int
    items: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Holder:
    """A drainer that is known to Redis, and how many errors its spool holds."""

    id: str
    kind: str
    host: str
    place: str
    held: int
    silent_ms: int


class Drainer:
    """One drainer's calls. Each may be repeated; raises RedisUnavailable, RedisUnusable, FencedError."""

    def __init__(self, client: redis.Redis, keys: Keys, drainer_id: str, *, url: str) -> None:
        """`url` is for messages."""
        self.id = drainer_id
        self._run_token = secrets.token_hex(8)
        self._client = client
        self._keys = keys
        self._url = url
        self._hash = keys.drainer(drainer_id)
        self._identity = ("", "", "")

    def enlist(self, kind: str, host: str, place: str) -> None:
        """Become findable; from now on an earlier process of the same drainer is fenced."""
        self._identity = (kind, host, place)
        self._run("enlist", [self._keys.drainers, self._hash], self.id, self._run_token, *self._identity)

    def take(self, batch: int, count: int) -> Spool:
        """The open spool, else a new one with up to `count` errors; with 0 only look."""
        arguments = (self._run_token, self._keys.spool_prefix(self.id), batch, count, MAX_BATCH_BYTES)
        code, number, *items = self._run("spool", [self._keys.error, self._hash], *arguments)
        if code == b"UNKNOWN":
            self.enlist(*self._identity)
            code, number, *items = self._run("spool", [self._keys.error, self._hash], *arguments)
        self._check(code)
        return Spool(int(number or 0), tuple(items))

    def drop(self, batch: int) -> int:
        """Forget a spool whose errors are safe; how many it held, 0 where it was given back or lost."""
        keys = [self._hash, self._keys.spool(self.id, batch)]
        code, dropped = self._run("unspool", keys, self._run_token, batch)
        if code != b"UNKNOWN":
            self._check(code)
        return int(dropped)

    def requeue(self, batch: int, chosen: Sequence[tuple[int, bytes]]) -> int:
        """Decide on a spool: (index from 0, queue item) of each error that is a task again; how many."""
        arguments: list[str | bytes | int] = [self._run_token, batch]
        for index, item in chosen:
            arguments += (index + 1, item)
        keys = self._keys
        names = [keys.task, keys.error, keys.failed, keys.fed, self._hash, keys.spool(self.id, batch)]
        code, moved = self._run("requeue", names, *arguments)
        self._check(code)
        return int(moved)

    def leave(self) -> None:
        """End; a spool that is still open keeps it findable."""
        self._run("leave", [self._keys.drainers, self._hash], self.id, self._run_token)

    def _check(self, code: bytes) -> None:
        if code != b"OK":
            raise FencedError(f"drainer {self.id}: its errors went to another process or back to the list")

    def _run(self, name: str, keys: list[str], *args: str | bytes | int) -> Any:
        with translated(self._url):
            return script(name).run(self._client, keys, *args)


def source_id(client: redis.Redis, keys: Keys, url: str) -> str:
    """The random name of this error list, made on first use."""
    with translated(url):
        found: Any = script("source").run(client, [keys.drain_source], secrets.token_hex(8))
    return bytes(found).decode()


def holders(client: redis.Redis, keys: Keys, url: str) -> list[Holder]:
    """Every known drainer; those with errors in their spools first."""
    with translated(url):
        members: Any = client.smembers(keys.drainers)
        found = [_holder(client, keys, member.decode()) for member in sorted(members)]
    return sorted(found, key=lambda holder: -holder.held)


def _holder(client: redis.Redis, keys: Keys, drainer_id: str) -> Holder:
    record: Any = client.hgetall(keys.drainer(drainer_id))
    text = {name.decode(): value.decode("utf-8", "replace") for name, value in record.items()}
    held: Any = client.llen(keys.spool_prefix(drainer_id) + text["open"]) if "open" in text else 0
    seconds, micros = client.time()
    silent_ms = seconds * 1000 + micros // 1000 - int(text.get("seen", 0))
    return Holder(
        drainer_id, text.get("kind", ""), text.get("host", ""), text.get("place", ""), held, silent_ms
    )


def give_back(
    client: redis.Redis, keys: Keys, url: str, drainer_id: str, *, silent_ms: int = SILENT_MS
) -> int | None:
    """Put a drainer's spool back into the error list; how many, or None where it is not silent enough."""
    names = [keys.error, keys.drainers, keys.drainer(drainer_id)]
    with translated(url):
        code, count = script("restore").run(
            client, names, drainer_id, keys.spool_prefix(drainer_id), silent_ms
        )
    return None if code == b"BUSY" else int(count)


def tidy(client: redis.Redis, keys: Keys, url: str) -> int:
    """Put back what requeues held that died; how many errors. An export's spool waits for its folder:
    only there can be seen which of its errors are written.
    """
    dead = [h for h in holders(client, keys, url) if h.kind == REQUEUE and h.silent_ms >= SILENT_MS]
    return sum(give_back(client, keys, url, holder.id, silent_ms=SILENT_MS) or 0 for holder in dead)
