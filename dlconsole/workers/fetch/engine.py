"""What a fetch engine is: URLs in, whole bodies or failures out. One interface for every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, NoReturn, Protocol, TypeVar

import msgspec

from dlconsole.errors import StoreError
from dlconsole.model import Failure
from dlconsole.workers.fetch.timings import Timings
from dlconsole.workers.fetch.turns import HostTurns
from dlconsole.workers.fetch.urls import Target

T = TypeVar("T")


class Spill(Protocol):
    """A body that is too large for memory, in a file that is gone when nobody holds this any more.
    Raises StoreError, whatever it is asked for.
    """

    def __len__(self) -> int: ...

    def append(self, data: bytes | bytearray) -> None:
        """Add a piece."""

    def read(self) -> bytes:
        """All of it, at once: whoever reads holds one at a time."""


class Buffers(NamedTuple):
    """How much of each body is kept in memory, and what makes the file that a larger one goes to. An engine
    may ask for both in any thread.
    """

    body_bytes: int
    new_spill: Callable[[], Spill]


def _no_spill() -> NoReturn:
    raise StoreError("there is no store")


IN_MEMORY: Final = Buffers(2**31, _no_spill)
"""For an engine that is used without a store: no body that it takes is as large."""


class Fetched(msgspec.Struct, frozen=True, gc=False):
    """A body that arrived whole with status 200, after redirects."""

    url: str
    status: int
    body: bytearray | Spill


class NotKept(msgspec.Struct, frozen=True, gc=False):
    """The store failed while a large body went into it. That says nothing of the task."""

    error: StoreError
    size_bytes: int


class TurnedAway(msgspec.Struct, frozen=True, gc=False):
    """The fetch ended in front of a host that is parked: one that was parked while it waited, or that a
    redirect led to.
    """


class Result(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One finished fetch, with the token that it was started with (which is in no cycle: gc=False), and the
    host that it was at in the end, after redirects; whether that host was asked, and the URL that it was at.
    """

    token: T
    outcome: Fetched | Failure | TurnedAway | NotKept
    host: str
    asked: bool
    url: str


class Hosts(Protocol):
    """What the caller knows of hosts, and is to know."""

    def is_parked(self, host: str) -> bool:
        """Whether it is not to be asked now."""

    def has_answered(self, host: str) -> None:
        """It gave an answer that is no refusal and in no result: a redirect, or a robots.txt."""

    def has_refused(self, host: str, answer: Failure) -> None:
        """It asked to be left alone (429, 503), in an answer that is in no result."""


class _AnyHosts:
    """For an engine that is used without a fleet."""

    def is_parked(self, _host: str) -> bool:
        """None is."""
        return False

    def has_answered(self, _host: str) -> None:
        """Nobody wants to know."""

    def has_refused(self, _host: str, _answer: Failure) -> None:
        """Nor that."""


ANY_HOSTS: Final = _AnyHosts()


class Engine(Protocol[T]):
    """Runs up to `concurrency` fetches at once, in the caller's thread; of one host as many as the settings
    allow, redirects included. Asks no host that is parked: that fetch ends as TurnedAway.
    """

    timings: Timings
    """How long the parts of the fetches took."""

    turns: HostTurns[Any]
    """Is to be told by the caller how hosts answer."""

    backlog: int
    """How many results the caller has not worked off: as many slots are left idle."""

    @property
    def free(self) -> int:
        """How many more fetches can be started now."""

    @property
    def running(self) -> int:
        """How many fetches are under way, those included whose host is being looked up."""

    @property
    def waiting(self) -> int:
        """How many more wait until it is their turn to ask their host."""

    def start(self, token: T, target: Target) -> None:
        """Begin one fetch as soon as it is its turn; `poll` gives its outcome. Needs `free` > 0, and nobody
        but the caller bounds how many wait.
        """

    def poll(self, timeout_s: float) -> list[Result[T]]:
        """Move on, waiting up to `timeout_s` for something to happen; what has finished."""

    def wake(self) -> None:
        """End a `poll` that waits; the one method that other threads may call."""

    def turn_away(self, host: str) -> None:
        """The host is parked now: those that wait for their turn end as TurnedAway."""

    def waiting_unbegun(self) -> list[T]:
        """The tokens of those that have never had a turn. Also for another thread, should this one hang."""

    def drop_unbegun(self) -> list[T]:
        """Forget the fetches whose own URL was not asked for yet, only their hosts' names and robots.txt;
        their tokens.
        """

    def cancel_all(self) -> list[T]:
        """Drop every running fetch; their tokens."""

    def close(self) -> None:
        """Free every resource."""
