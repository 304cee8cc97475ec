"""What a fetch engine is: URLs in, whole bodies or failures out. One interface for every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, NamedTuple, NoReturn, Protocol, TypeVar

import msgspec

from dlconsole.errors import StoreError
from dlconsole.model import Failure
from dlconsole.workers.fetch.timings import Timings
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
    """A redirect led to a host that is not to be asked now, or one's robots.txt cannot be asked for now: the
    fetch ended in front of it.
    """


class Result(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One finished fetch, with the token that it was started with (which is in no cycle: gc=False), and the
    host that it was at in the end, after redirects.
    """

    token: T
    outcome: Fetched | Failure | TurnedAway | NotKept
    host: str


class Engine(Protocol[T]):
    """Runs up to `concurrency` fetches at once, in the caller's thread. Follows no redirect to a host that is
    parked: that fetch ends as TurnedAway.
    """

    timings: Timings
    """How long the parts of the fetches took."""

    @property
    def free(self) -> int:
        """How many more fetches can be started now."""

    @property
    def running(self) -> int:
        """How many fetches are under way, those included whose host is being looked up."""

    def start(self, token: T, target: Target) -> None:
        """Begin one fetch, whose outcome `poll` gives. Needs `free` > 0."""

    def poll(self, timeout_s: float) -> list[Result[T]]:
        """Move on, waiting up to `timeout_s` for something to happen; what has finished."""

    def wake(self) -> None:
        """End a `poll` that waits; the one method that other threads may call."""

    def drop_unbegun(self) -> list[T]:
        """Forget the fetches of which nothing was asked yet, only their hosts' names; their tokens."""

    def cancel_all(self) -> list[T]:
        """Drop every running fetch; their tokens."""

    def close(self) -> None:
        """Free every resource."""
