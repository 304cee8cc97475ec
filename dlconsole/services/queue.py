"""The queue as a worker's session sees it: open, claim, ack, renew, close.

Every call is one script (`lua/`), and every script is safe to repeat, so after a lost connection the
caller simply calls again with the same arguments. Errors of the server come as RedisUnavailable
(pause, try again) or RedisUnusable (a person must act).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import redis

from dlconsole.errors import FencedError
from dlconsole.model import STATUS_NONE, Failure, SessionStats
from dlconsole.services.connection import translated
from dlconsole.services.keys import Keys
from dlconsole.services.objects import read_object, write_object
from dlconsole.services.scripts import script

MAX_DEATHS: Final = 3
"""An item that this many sessions died holding ends as `crashed`; with one less it is worked on alone."""

_STATS: Final = msgspec.json.Encoder()


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """An item in flight: its field in the in-flight hash, and its bytes exactly as they were fed. `crashed`:
    it has had its deaths, and is to be ended as that without being worked on.
    """

    field: str
    raw: bytes
    crashed: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """One claimed batch. `paused`: the fleet is paused. `stop`: a legacy sentinel was consumed.
    `solo`: its one item is to be worked on alone, because sessions died holding it; where those were too
    many, the item itself says so.
    """

    items: tuple[Claimed, ...]
    paused: bool = False
    stop: bool = False
    solo: bool = False


@dataclass(frozen=True, slots=True)
class Counted:
    """What an ack counted. `put_back`: were put off and found the delayed set full. `refused`: the fields of
    retries that did, and are still in flight: they fail for good, which is to be acked. `fenced`: the
    lease has run out, whatever else is held is lost.
    """

    stored: int
    failed: int
    delayed: int
    put_back: int
    fenced: bool
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Retry:
    """A task to be tried again: its field, in how long, and the item with its history. One that was not
    `tried` was only put off: where the delayed set is full it goes to the queue's far end.
    """

    field: str
    delay_ms: int
    item: bytes
    tried: bool = True


def new_session_id(host: str) -> str:
    """An id that no other session ever has, which begins with the host's name."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', host)[:64]}-{secrets.token_hex(6)}"


def error_item(raw: bytes, failure: Failure) -> bytes:
    """The error list's item: the task's own object plus `status` and `error_msg`, as legacy writes it.

    Unknown keys reappear as they were. An item that is not a JSON object is wrapped as `{"raw": …}`.
    """
    tail: dict[str, Any] = {
        "status": STATUS_NONE if failure.status is None else failure.status,
        "error_msg": f"{failure.kind}: {failure.message}",
    }
    body = raw.strip()
    fields = read_object(body)
    if fields is None:
        return write_object({"raw": raw.decode("utf-8", "backslashreplace")} | tail)
    if fields.keys().isdisjoint(tail):  # the usual case: keep every byte of the task
        joint = b", " if fields else b""
        return body[:-1] + joint + write_object(tail)[1:]
    return write_object(fields | tail)


class Session:
    """One worker process's life in the queue. Not thread-safe: one thread owns it.

    `lease_s` is how long it may be silent; every claim, ack and renewal starts that time anew.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        session_id: str,
        *,
        lease_s: float,
        url: str,
        batch: int = 0,
        max_delayed: int = 1_000_000,
    ) -> None:
        """`max_delayed` caps the delayed set: more fail for good. `batch` is where batch numbers go on
        from: a process that begins a second session passes the last one's, so that no field ever names
        two items.
        """
        self.id = session_id
        self._client = client
        self._keys = keys
        self._in_flight = keys.in_flight(session_id)
        self._ttl_ms = round(lease_s * 1000)
        self._max_delayed = max_delayed
        self._url = url
        self.batch = batch
        self._claim_count = 0
        self._claim_answered = True

    def open(self) -> int:
        """Register and take a lease; the server's clock in ms."""
        return int(self._run("open", [self._keys.lease, self._keys.sessions], self.id, self._ttl_ms))

    def claim(self, count: int) -> Claim:
        """Take up to `count` tasks. Raises FencedError.

        After an error, the next call asks for the same batch again, at its own size, so a lost reply
        costs nothing.
        """
        if self._claim_answered:
            self.batch += 1
            self._claim_count = count
            self._claim_answered = False
        batch = str(self.batch)
        keys = [self._keys.task, self._keys.lease, self._in_flight, self._keys.control, self._keys.crash]
        arguments = (self.id, batch, self._claim_count, self._ttl_ms, MAX_DEATHS)
        code, flag, *values = self._run("claim", keys, *arguments)
        self._claim_answered = True
        if code == b"FENCED":
            raise FencedError(f"session {self.id}: its lease has run out")
        crashed = flag == b"crashed"
        if code == b"REPLAY":
            pairs = zip(values[::2], values[1::2], strict=True)
            items = tuple(Claimed(f"{batch}:{index.decode()}", raw, crashed) for index, raw in pairs)
        else:
            items = tuple(Claimed(f"{batch}:{i}", raw, crashed) for i, raw in enumerate(values))
        return Claim(items, paused=code == b"PAUSED", stop=flag == b"stop", solo=flag == b"solo")

    def ack(
        self, stored: Sequence[str], failed: Sequence[tuple[str, bytes]] = (), retries: Sequence[Retry] = ()
    ) -> Counted:
        """Count tasks by their fields; failed ones come with their error item."""
        arguments: list[str | bytes | int] = [
            self._ttl_ms,
            self._max_delayed,
            len(stored),
            len(failed),
            *stored,
        ]
        for pair in failed:
            arguments += pair
        for retry in retries:
            arguments += (retry.field, retry.delay_ms, retry.item, b"1" if retry.tried else b"")
        keys = [
            self._in_flight,
            self._keys.stored,
            self._keys.failed,
            self._keys.error,
            self._keys.lease,
            self._keys.delayed,
            self._keys.crash,
            self._keys.task,
        ]
        code, n_stored, n_failed, n_delayed, n_put_back, *full = self._run("ack", keys, self.id, *arguments)
        refused = frozenset(field.decode() for field in full)
        return Counted(n_stored, n_failed, n_delayed, n_put_back, code == b"FENCED", refused)

    def renew(self, stats: SessionStats, sites: bytes = b"") -> int:
        """Renew the lease and publish statistics, also a report of sites where there is one; the server's
        clock in ms. Raises FencedError.
        """
        keys = [self._keys.lease, self._keys.workers, self._keys.sites(self.id)]
        code, now_ms = self._run("renew", keys, self.id, self._ttl_ms, _STATS.encode(stats), sites)
        if code == b"FENCED":
            raise FencedError(f"session {self.id}: its lease has run out")
        return int(now_ms)

    def give_back(self, fields: Sequence[str]) -> int:
        """Give tasks back to the tail of the queue, the first field's to be taken first; how many."""
        return int(self._run("give_back", [self._keys.task, self._in_flight], *fields))

    def give_back_strays(self, held: Container[str]) -> int:
        """Give back what is in flight in this session and is none of the `held` fields; how many.

        A Redis that lost its last second has undone acks and give-backs of a session that lives on: without
        this their tasks would wait for its end. What a claim took whose reply was lost goes back as well, as
        it may not be repeated for long: the repeat then brings nothing.
        """
        with translated(self._url):
            found: Any = self._client.hkeys(self._in_flight)
        fields = [name.decode() for name in found]
        strays = [field for field in fields if field != "_last" and field not in held]
        strays.sort(key=lambda field: [int(number) for number in field.split(":")])
        return self.give_back(strays) if strays else 0

    def forgive(self, items: Iterable[bytes]) -> int:
        """Take the death of this session, which lives after all, off the items that it held; off how
        many. Close it first, so that nobody can count it again.
        """
        digests = [hashlib.sha1(item, usedforsecurity=False).hexdigest() for item in items]
        return int(self._run("forgive", [self._keys.crash], self.id, *digests)) if digests else 0

    def close(self) -> int:
        """Give back what is in flight, in its order, and drop the lease; how many went back."""
        keys = [
            self._keys.task,
            self._in_flight,
            self._keys.lease,
            self._keys.sessions,
            self._keys.workers,
            self._keys.sites(self.id),
        ]
        return int(self._run("close", keys, self.id))

    def _run(self, name: str, keys: list[str], *args: str | bytes | int) -> Any:
        with translated(self._url):
            return script(name).run(self._client, keys, *args)
