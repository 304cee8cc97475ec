"""What a fetch engine is: URLs in, whole bodies or failures out. One interface for every engine."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import msgspec

from dlconsole.model import Failure
from dlconsole.workers.fetch.timings import Timings
from dlconsole.workers.fetch.urls import Target

T = TypeVar("T")


class Fetched(msgspec.Struct, frozen=True, gc=False):
    """A body that arrived whole with status 200, after redirects."""

    url: str
    status: int
    body: bytearray


class TurnedAway(msgspec.Struct, frozen=True, gc=False):
    """A redirect led to a host that is not to be asked now, or one's robots.txt cannot be asked for now: the
    fetch ended in front of it.
    """


class Result(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One finished fetch, with the token that it was started with (which is in no cycle: gc=False), and the
    host that it was at in the end, after redirects.
    """

    token: T
    outcome: Fetched | Failure | TurnedAway
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

    def cancel_all(self) -> list[T]:
        """Drop every running fetch; their tokens."""

    def close(self) -> None:
        """Free every resource."""
