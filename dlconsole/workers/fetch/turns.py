"""Whose turn it is: how many fetches of one host run at once, and how quickly they follow each other.

A fetch whose host has enough running waits in that host's own queue; a host that may start one again
comes to the end of one line, so that hosts take turns. Every step costs the same, however many hosts
there are, and a host of which nothing runs or waits takes no memory, unless it refused.

A host that refused is asked as TCP sends where packets are lost (additive increase, multiplicative
decrease, RFC 5681): half as much at once as before, then one more for every so many good answers. Behind a
pause one fetch goes ahead, to see whether the host answers at all.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MAX_SLOWED: Final = 20_000
"""Hosts remembered that refused; the ones that did so longest ago are forgotten first."""
_ROUNDS: Final = 8
"""How often as many good answers as fetches run at once it takes until one more may."""


class _Slowed:
    """A host that refused: how many of its fetches may run at once, and whether its pause was the last that
    was heard of it.
    """

    __slots__ = ("is_tried", "limit")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.is_tried = True

    @property
    def most(self) -> int:
        return 1 if self.is_tried else int(self.limit)


class _Queue(Generic[T]):
    """What waits for one host: those that redirects led there and those that began with it, in turn. Each
    sort in its order, so that neither waits for the end of the other.
    """

    __slots__ = ("began_here", "led_here", "led_is_next")

    def __init__(self) -> None:
        self.began_here: deque[T] = deque()
        self.led_here: deque[T] = deque()
        self.led_is_next = True

    def __bool__(self) -> bool:
        return bool(self.began_here or self.led_here)

    def __iter__(self) -> Iterator[T]:
        yield from list(self.led_here)
        yield from list(self.began_here)

    def pop(self) -> T:
        """The next one. There is one."""
        led = self.led_here if self.led_is_next or not self.began_here else self.began_here
        self.led_is_next = not self.led_is_next
        return (led or self.began_here).popleft()


class HostTurns(Generic[T]):
    """For one thread. What `take` lets start, or `next` gives, has its host's turn until `done`. Between its
    turn and its request, which `began` tells of, names and more may have to be found out: the pace is that
    of requests, and with a pace the next one has its turn behind the request of the one before.
    """

    def __init__(
        self,
        per_host: int,
        per_host_per_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        *,
        beside: HostTurns[T] | None = None,
    ) -> None:
        """At most `per_host` at once and, where it is not 0, `per_host_per_s` starts a second; at hosts that
        refused those `beside` it as few as there, by what is told to either.
        """
        self.waiting = 0
        """How many fetches wait."""
        self._limit = per_host
        self._interval_s = 1 / per_host_per_s if per_host_per_s else 0.0
        self._clock = clock
        self._slowed: OrderedDict[str, _Slowed] = OrderedDict()
        self._sharing = [self]
        """All that keep what they know of `_slowed` hosts together."""
        if beside is not None:
            self._slowed, self._sharing = beside._slowed, beside._sharing  # noqa: SLF001  (of its own kind)
            self._sharing.append(self)
        self._running: dict[str, int] = {}
        self._queues: dict[str, _Queue[T]] = {}
        self._line: deque[str] = deque()
        """Hosts that may start one of their queue. One may stand here twice, or in vain: `next` looks."""
        self._paced: set[str] = set()
        """Hosts of which one is about to ask, or asked just now."""
        self._due: deque[tuple[float, str]] = deque()
        """When those of the second kind may be asked again, the first one first."""

    def take(self, host: str, task: T, *, led_here: bool = False) -> bool:
        """Whether it is the turn of `task` now; else it waits, and `next` will give it. What redirects
        `led_here` and what began here wait apart, and take turns.
        """
        running = self._running.get(host, 0)
        queue = self._queues.get(host)
        if queue is None and running < self._most(host) and host not in self._paced:
            self._running[host] = running + 1
            if self._interval_s:
                self._paced.add(host)
            return True
        if queue is None:
            queue = self._queues[host] = _Queue()
        (queue.led_here if led_here else queue.began_here).append(task)
        self.waiting += 1
        return False

    def next(self) -> T | None:
        """One that waited and whose turn it is now; None where there is none."""
        if self._due:
            self._pass_time()
        line, queues = self._line, self._queues
        while line:
            host = line.popleft()
            queue = queues.get(host)
            running = self._running.get(host, 0)
            if queue is None or running >= self._most(host) or host in self._paced:
                continue
            task = queue.pop()
            self.waiting -= 1
            self._running[host] = running + 1
            if self._interval_s:
                self._paced.add(host)
            if queue:
                line.append(host)  # it may be allowed more than the one that has ended
            else:
                del queues[host]
            return task
        return None

    def began(self, host: str) -> None:
        """The host is asked, by one whose turn it is."""
        if self._interval_s:
            self._pass_time()  # also where nothing ever waits
            self._due.append((self._clock() + self._interval_s, host))

    def done(self, host: str, *, has_begun: bool = True) -> None:
        """One that had the host's turn has ended; without `has_begun`, it never asked."""
        if not has_begun:
            self._paced.discard(host)
        running = self._running[host] - 1
        if running:
            self._running[host] = running
        else:
            del self._running[host]
        if self.waiting and host in self._queues:
            self._line.append(host)

    def refused(self, host: str) -> None:
        """The host asked for a pause: half as many at once, and one behind the pause. Once for each pause."""
        slowed = self._slowed_of(host)
        slowed.limit = max(1.0, slowed.limit / 2)

    def pause(self, host: str) -> None:
        """The host is left alone for a while: one fetch goes ahead behind that, until it has `answered` or
        `failed`.
        """
        self._slowed_of(host).is_tried = True

    def answered(self, host: str) -> None:
        """The host, which is in no pause, gave a good answer: in time it may be asked for more at once."""
        slowed = self._slowed.get(host) if self._slowed else None
        if slowed is None:
            return
        slowed.limit += 1 / (_ROUNDS * int(slowed.limit))
        self.failed(host)
        if slowed.limit >= self._limit:
            del self._slowed[host]

    def failed(self, host: str) -> None:
        """The host, which is in no pause, gave no answer; that is no refusal, and others may follow."""
        slowed = self._slowed.get(host) if self._slowed else None
        if slowed is None:
            return
        slowed.is_tried = False
        for turns in self._sharing:
            if host in turns._queues:  # noqa: SLF001  (as above)
                turns._line.append(host)  # noqa: SLF001

    def due_in_s(self) -> float | None:
        """Until when `next` gives nothing that it does not give now, unless one is `done`; None: for ever."""
        if not self.waiting or not self._due:
            return None
        return max(0.0, self._due[0][0] - self._clock())

    def drop(self, host: str) -> list[T]:
        """Take out what waits for one host, in its order."""
        dropped = list(self._queues.pop(host, ()))
        self.waiting -= len(dropped)
        return dropped

    def drop_where(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out what waits and is `unwanted`, in the order in which each host's came."""
        dropped: list[T] = []
        for host, queue in list(self._queues.items()):
            for waiting in (queue.led_here, queue.began_here):
                for _ in range(len(waiting)):
                    task = waiting.popleft()
                    (dropped if unwanted(task) else waiting).append(task)
            if not queue:
                del self._queues[host]
        self.waiting -= len(dropped)
        return dropped

    def peek(self) -> list[T]:
        """What waits. Also for another thread, should the one that owns this hang."""
        return [task for queue in list(self._queues.values()) for task in list(queue)]

    def clear(self) -> None:
        """Forget what waits and what runs; when, and by how many, a host may be asked is not forgotten."""
        self._queues.clear()
        self._line.clear()
        self._running.clear()
        self._paced = {host for _, host in self._due}
        self.waiting = 0

    def _most(self, host: str) -> int:
        slowed = self._slowed.get(host) if self._slowed else None
        return self._limit if slowed is None else slowed.most

    def _slowed_of(self, host: str) -> _Slowed:
        slowed = self._slowed.setdefault(host, _Slowed(self._limit))
        slowed.is_tried = True
        self._slowed.move_to_end(host)
        if len(self._slowed) > MAX_SLOWED:
            self._slowed.popitem(last=False)
        return slowed

    def _pass_time(self) -> None:
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            _, host = self._due.popleft()
            self._paced.discard(host)
            if host in self._queues:
                self._line.append(host)
