"""A fetch's way from URL to outcome, hop by hop: the same for every engine.

Each hop's host is looked up and checked before the engine is given it, so that a redirect passes the
same checks as the URL in the list, and names that nobody answers for hold none of the engine's slots.
Where robots.txt counts, a hop waits for its origin's in the same way, without a slot.
"""

from __future__ import annotations

import select
import ssl
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar, Final, Generic, TypeVar
from urllib.parse import urlsplit

from dlconsole.errors import ConfigError
from dlconsole.model import Failure, FailureKind, LookupResult
from dlconsole.settings import DnsSettings, FetchSettings
from dlconsole.workers.faults import OnFault, failure_of
from dlconsole.workers.fetch.address import AddressGuard
from dlconsole.workers.fetch.dns import Answer, Resolver
from dlconsole.workers.fetch.engine import Fetched, NotKept, Result, TurnedAway
from dlconsole.workers.fetch.lookahead import Lookahead
from dlconsole.workers.fetch.parks import REFUSALS
from dlconsole.workers.fetch.proxy_secrets import ProxySecrets
from dlconsole.workers.fetch.timings import Timings
from dlconsole.workers.fetch.urls import ROBOTS_TXT_BYTES, Origin, Target, origin_of, target_of

if TYPE_CHECKING:
    from dlconsole.workers.fetch.robots import Known, Robots

T = TypeVar("T")

MAX_ROBOTS_TXT: Final = 64
"""Texts that are read at once: unlike a body, each may be in memory as a whole."""


def nobody_is_parked(_host: str) -> bool:
    """For an engine that is used without a fleet."""
    return False


class Fetch(Generic[T]):
    """One fetch, from `start` to its outcome: where it is now, and how many redirects that took. Its time
    runs while it has a slot.
    """

    __slots__ = (
        "addresses",
        "deadline",
        "expected_since",
        "has_waited",
        "hops",
        "left_s",
        "target",
        "token",
    )

    text_bytes: ClassVar[int] = 0
    """How much of the body is wanted, where it is to be text and not an image; see `Receiver`."""

    def __init__(self, token: T, target: Target, left_s: float) -> None:
        self.token = token
        self.target = target
        self.addresses: tuple[str, ...] = ()
        """What its host's name stands for; nothing where that is an address, or a proxy's matter."""
        self.left_s = left_s
        """How much of its time is left; while it has a slot it ends at `deadline`."""
        self.deadline = 0.0
        self.has_waited = False
        """Whether it had to wait for a name."""
        self.expected_since = 0.0
        """Since when its name is being looked up, while an answer is likely; see `Hops._room`."""
        self.hops = 0

    @property
    def tokens(self) -> list[T]:
        """The tokens of all that end with it."""
        return [self.token]


class _RobotsFetch(Fetch[T]):
    """An origin's robots.txt on its way, and the fetches that wait for it, which have no slot; `token` is
    the first one's.
    """

    __slots__ = ("origin", "waiting")

    text_bytes = ROBOTS_TXT_BYTES

    def __init__(self, origin: Origin, first: Fetch[T], left_s: float) -> None:
        super().__init__(first.token, origin.robots_txt, left_s)
        self.origin = origin
        self.waiting = [first]

    @property
    def tokens(self) -> list[T]:
        return [fetch.token for fetch in self.waiting]


class Hops(ABC, Generic[T]):
    """What the engines have in common. An engine says how one hop is begun, and calls `_go_on` with what
    came of it.
    """

    def __init__(
        self,
        settings: FetchSettings,
        dns: DnsSettings,
        epoll: select.epoll,
        concurrency: int,
        is_parked: Callable[[str], bool],
        on_fault: OnFault,
    ) -> None:
        """`is_parked` says to which hosts no redirect is followed now; `on_fault` is told of faults of ours,
        which end one fetch each. Raises ConfigError where the file of certificate authorities cannot be read
        (with it every https task would fail), or a resolver cannot be used.
        """
        if settings.ca_file is not None:
            try:
                ssl.create_default_context(cafile=settings.ca_file)
            except OSError as error:  # SSLError is one
                raise ConfigError(f"fetch.ca_file {settings.ca_file}: {error.strerror or error}") from error
        self.timings = Timings()
        self._settings = settings
        self._is_parked = is_parked
        self._on_fault = on_fault
        self._guard = AddressGuard(settings.allow_networks, settings.allow_ports)
        timeout_s = min(dns.timeout_s, settings.deadline_s)  # a lookup is not left before it ends
        self._resolver = Resolver(dns.model_copy(update={"timeout_s": timeout_s}), epoll)
        self._secrets = ProxySecrets(settings.proxy)
        self._most_lookups = dns.lookups
        self._looked_up: dict[str, list[Fetch[T]]] = {}
        self._looking_up = 0
        """How many fetches wait for a name, or for a robots.txt."""
        self._ahead = Lookahead(concurrency)
        self._robots: Robots | None = None
        self._robots_fetches: dict[Origin, _RobotsFetch[T]] = {}
        self._robots_ready: deque[Fetch[T]] = deque()
        """Those that are ready, while so many others are being read."""
        self._robots_begun = 0
        if settings.robots:
            from dlconsole.workers.fetch.robots import Robots  # noqa: PLC0415  (most do without)

            self._robots = Robots(settings.user_agent)
        self._ready: deque[Fetch[T]] = deque()
        self._ended: list[Result[T]] = []

    @abstractmethod
    def _has_slot(self) -> bool:
        """Whether a hop can be begun now."""

    @abstractmethod
    def _begin(self, fetch: Fetch[T]) -> Failure | None:
        """Begin the fetch's next hop, or say why that cannot be done."""

    def _room(self, idle: int) -> int:
        """How many more fetches can be started where so many slots are idle. Those that are ready will need
        one, and those whose name is likely to be found soon; of these there are more than slots, so that
        none stays idle for want of a name. Dead names take up no room once they are late.
        """
        if self._looking_up >= self._most_lookups:
            return 0
        return max(0, idle - len(self._ready) + self._ahead.room)

    def start(self, token: T, target: Target) -> None:
        """Begin one fetch, whose outcome `poll` gives."""
        fetch = Fetch(token, target, self._settings.deadline_s)
        if self._robots is None:
            self._look_up(fetch)
        else:
            self._ask_robots(self._robots, fetch)
        self._launch()

    def drop_unbegun(self) -> list[T]:
        """Forget the fetches of which nothing was asked yet, only their hosts' names; their tokens."""
        dropped: list[Fetch[T]] = []
        for name, waiting in list(self._looked_up.items()):
            self._looked_up[name] = _without_unbegun(waiting, dropped)
        self._looking_up -= len(dropped)
        for fetch in dropped:
            self._ahead.remove(fetch)
        self._ready = deque(_without_unbegun(self._ready, dropped))
        return [fetch.token for fetch in dropped]

    def _launch(self) -> None:
        """Give the fetches that are ready a slot each, as far as there are any."""
        while (self._ready or self._robots_ready) and self._has_slot():
            fetch = self._next_ready()
            if fetch is None:
                return
            if fetch.has_waited and self._is_parked(fetch.target.host):  # meanwhile
                self._end(fetch, TurnedAway())
                continue
            fetch.deadline = time.monotonic() + fetch.left_s
            failure = self._begin(fetch)
            if failure is not None:
                self._end(fetch, failure)
            elif fetch.text_bytes:
                self._robots_begun += 1

    def _next_ready(self) -> Fetch[T] | None:
        has_room = self._robots_begun < MAX_ROBOTS_TXT
        if has_room and self._robots_ready:
            return self._robots_ready.popleft()
        while self._ready:
            fetch = self._ready.popleft()
            if has_room or not fetch.text_bytes:
                return fetch
            self._robots_ready.append(fetch)
        return None

    def _dns_due_at(self) -> float | None:
        due_in_s = self._resolver.due_in_s
        if due_in_s is None:
            return None
        return min(time.monotonic() + due_in_s, self._ahead.late_at)

    def _see_to_names(self, due_at: float | None) -> None:
        """Go on with the fetches whose hosts were found; `due_at` is from before the wait."""
        if due_at is None:
            return
        if time.monotonic() >= due_at:
            self._resolver.tick()
        for name, answer in self._resolver.take_found():
            self.timings.add_lookup(name, answer.asked_s, answer.result)
            if answer.result in {LookupResult.FOUND, LookupResult.NOT_FOUND}:
                self._ahead.learn(answer.asked_s)
            for fetch in self._looked_up.pop(name, ()):
                self._looking_up -= 1
                self._ahead.remove(fetch)
                self._use(fetch, answer)
        self._ahead.drop_late_ones()

    def _look_up(self, fetch: Fetch[T]) -> None:
        """Go on with a fetch once its host's addresses are known."""
        name = fetch.target.host
        if self._settings.proxy:
            refusal = self._guard.host_refusal(name, fetch.target.port)
            if refusal:
                self._end(fetch, Failure(FailureKind.BLOCKED_ADDRESS, refusal))
            else:
                self._ready.append(fetch)
        elif fetch.target.is_address:
            self._ahead.was_known()
            self._ready.append(fetch)
        else:
            answer = self._resolver.resolve(name)
            if answer is None:
                self._looked_up.setdefault(name, []).append(fetch)
                self._looking_up += 1
                self._ahead.add(fetch)
                fetch.has_waited = True
            else:
                self._ahead.was_known()
                self._use(fetch, answer)

    def _use(self, fetch: Fetch[T], answer: Answer) -> None:
        if answer.failure is None:
            fetch.addresses = answer.addresses
            self._ready.append(fetch)
        elif isinstance(fetch, _RobotsFetch):  # `Robots` says when it is asked for again
            self._end(fetch, answer.failure)
        else:
            self._end(fetch, answer.failure_now(answer.failure))

    def _go_on(self, fetch: Fetch[T], outcome: Fetched | Failure | NotKept | str) -> None:
        """A hop has ended; text is a redirect's target."""
        if fetch.text_bytes:
            self._robots_begun -= 1
        try:
            if isinstance(outcome, str):
                self._hop(fetch, outcome)
            else:
                self._end(fetch, outcome)
        except Exception as error:  # noqa: BLE001  (a fetch's end, not the worker's)
            self._end(fetch, self._fault(fetch, error))

    def _fault(self, fetch: Fetch[T], error: Exception) -> Failure:
        """The outcome of a fetch that brought a fault of ours to light."""
        self._on_fault(error, fetch.target.url)
        return failure_of(error)

    def _hop(self, fetch: Fetch[T], url: str) -> None:
        fetch.hops += 1
        fetch.left_s = fetch.deadline - time.monotonic()
        target = target_of(url)
        if fetch.hops > self._settings.max_redirects:
            most = self._settings.max_redirects
            self._end(fetch, Failure(FailureKind.REDIRECTS, f"more than {most} redirects"))
        elif target is None:
            message = f"redirected to what is no http URL ({_scheme_of(url)}:)"
            self._end(fetch, Failure(FailureKind.REDIRECTS, message))
        elif fetch.left_s <= 0:
            message = f"no whole answer within {self._settings.deadline_s:g} s"
            self._end(fetch, Failure(FailureKind.TIMEOUT, message))
        else:
            fetch.target, fetch.addresses = target, ()
            if self._is_parked(target.host):
                self._end(fetch, TurnedAway())
            elif self._robots is None or isinstance(fetch, _RobotsFetch):
                self._look_up(fetch)
            else:
                self._ask_robots(self._robots, fetch)

    def _ask_robots(self, robots: Robots, fetch: Fetch[T]) -> None:
        """Go on with a fetch where its origin's robots.txt allows it; where that is not known, once it is."""
        origin = origin_of(fetch.target)
        known = robots.known(origin)
        if known is not None:
            self._heed_robots(known, fetch)
            return
        self._looking_up += 1
        under_way = self._robots_fetches.get(origin)
        if under_way is not None:
            under_way.waiting.append(fetch)
            return
        robots_fetch = _RobotsFetch(origin, fetch, self._settings.deadline_s)
        self._robots_fetches[origin] = robots_fetch
        self._look_up(robots_fetch)

    def _heed_robots(self, known: Known, fetch: Fetch[T]) -> None:
        try:
            failure = known.refusal(fetch.target)
        except Exception as error:  # noqa: BLE001  (a fetch's end, not that of all that wait with it)
            failure = self._fault(fetch, error)
        if failure is None:
            self._look_up(fetch)
        else:
            self._end(fetch, failure)

    def _end_robots(
        self, robots: Robots, robots_fetch: _RobotsFetch[T], outcome: Fetched | Failure | TurnedAway
    ) -> None:
        """Go on with those that waited for a robots.txt. Where its host asks to be left alone, one of them
        ends with that answer, and the others in front of the host.
        """
        origin, waiting, host = robots_fetch.origin, robots_fetch.waiting, robots_fetch.target.host
        del self._robots_fetches[origin]
        self._looking_up -= len(waiting)
        if isinstance(outcome, TurnedAway):
            self._ended += [Result(fetch.token, outcome, host) for fetch in waiting]
        elif isinstance(outcome, Failure) and outcome.status in REFUSALS:
            first, *others = waiting
            self._ended.append(Result(first.token, robots.failure(origin, outcome), host))
            self._ended += [Result(fetch.token, TurnedAway(), host) for fetch in others]
        else:
            try:
                known = robots.learn(origin, outcome)
            except Exception as error:  # noqa: BLE001  (as above)
                known = robots.learn(origin, self._fault(robots_fetch, error))
            for fetch in waiting:
                if self._is_parked(fetch.target.host):
                    self._end(fetch, TurnedAway())
                else:
                    self._heed_robots(known, fetch)

    def _end(self, fetch: Fetch[T], outcome: Fetched | Failure | TurnedAway | NotKept) -> None:
        if isinstance(outcome, Failure):
            outcome = self._secrets.taken_out(outcome)
        if self._robots is not None and isinstance(fetch, _RobotsFetch):
            assert not isinstance(outcome, NotKept)  # a text goes on in no file
            self._end_robots(self._robots, fetch, outcome)
        else:
            self._ended.append(Result(fetch.token, outcome, fetch.target.host))

    def _take_ended(self) -> list[Result[T]]:
        ended, self._ended = self._ended, []
        return ended

    def _drop_waiting(self) -> list[T]:
        """Forget every fetch that has no slot, also those that have ended; their tokens."""
        without_slot = [fetch for waiting in self._looked_up.values() for fetch in waiting]
        without_slot += [*self._ready, *self._robots_ready]
        dropped = [token for fetch in without_slot for token in fetch.tokens]
        dropped += [ended.token for ended in self._take_ended()]
        self._looked_up.clear()
        self._robots_fetches.clear()
        self._robots_ready.clear()
        self._robots_begun = 0
        self._looking_up = 0
        self._ahead.clear()
        self._ready.clear()
        return dropped


def _without_unbegun(fetches: Iterable[Fetch[T]], dropped: list[Fetch[T]]) -> list[Fetch[T]]:
    """Those that go on; the others become `dropped`. For a robots.txt others wait."""
    kept: list[Fetch[T]] = []
    for fetch in fetches:
        begun = fetch.deadline or isinstance(fetch, _RobotsFetch)
        (kept if begun else dropped).append(fetch)
    return kept


def _scheme_of(url: str) -> str:
    try:
        return urlsplit(url).scheme[:20] or "?"
    except ValueError:
        return "?"
