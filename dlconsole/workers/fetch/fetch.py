"""A fetch on its way: where it is now, and what it still has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Generic, TypeVar

from dlconsole.workers.fetch.urls import ROBOTS_TXT_BYTES, Origin, Target

T = TypeVar("T")


class Fetch(Generic[T]):
    """One fetch, from `start` to its outcome: where it is now, and how many redirects that took. Its time
    runs while it has a slot.
    """

    __slots__ = (
        "addresses",
        "asked",
        "deadline",
        "expected_since",
        "has_turn",
        "hops",
        "led_by",
        "left_s",
        "target",
        "token",
    )

    text_bytes: ClassVar[int] = 0
    """How much of the body is wanted, where it is to be text and not an image; see `Receiver`."""

    least_redirects: ClassVar[int] = 0
    """How many redirects are followed at least, whatever the settings say."""

    def __init__(self, token: T, target: Target, left_s: float) -> None:
        self.token = token
        self.target = target
        self.addresses: tuple[str, ...] = ()
        """What its host's name stands for; nothing where that is an address, or a proxy's matter."""
        self.left_s = left_s
        """How much of its time is left; while it has a slot it ends at `deadline`."""
        self.deadline = 0.0
        self.has_turn = False
        """Whether it counts as one of its host's; a robots.txt does not."""
        self.asked = False
        """Whether this hop's host was asked."""
        self.expected_since = 0.0
        """Since when its name is being looked up, while an answer is likely; see `Hops._room`."""
        self.hops = 0
        self.led_by: tuple[str, ...] = ()
        """The hosts that redirected, each once."""

    def go_on_to(self, target: Target) -> None:
        """A redirect led there."""
        if self.target.host not in self.led_by:
            self.led_by += (self.target.host,)
        self.target, self.addresses, self.asked = target, (), False

    @property
    def tokens(self) -> list[T]:
        """The tokens of all that end with it."""
        return [self.token]


class RobotsFetch(Fetch[T]):
    """An origin's robots.txt on its way, and the fetches that wait for it, which have no slot; `token` is
    the first one's.
    """

    __slots__ = ("origin", "waiting")

    text_bytes = ROBOTS_TXT_BYTES
    least_redirects = 5  # RFC 9309, 2.3.1.2

    def __init__(self, origin: Origin, first: Fetch[T], left_s: float) -> None:
        super().__init__(first.token, origin.robots_txt, left_s)
        self.origin = origin
        self.waiting = [first]

    @property
    def tokens(self) -> list[T]:
        return [fetch.token for fetch in self.waiting]


def without_unbegun(fetches: Iterable[Fetch[T]], dropped: list[Fetch[T]]) -> list[Fetch[T]]:
    """Those that go on; the others become `dropped`. A robots.txt goes on for those that wait for it."""
    kept: list[Fetch[T]] = []
    for fetch in fetches:
        goes_on = fetch.deadline or (isinstance(fetch, RobotsFetch) and fetch.waiting)
        (kept if goes_on else dropped).append(fetch)
    return kept
