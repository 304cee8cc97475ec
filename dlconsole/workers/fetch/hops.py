"""A fetch's way from URL to outcome, hop by hop: the same for every engine.

Each hop waits for its turn to ask its host, then for its origin's robots.txt where that counts, then for
its host's addresses, which are checked, then for one of the engine's slots. So a redirect passes the same
checks as the URL in the list, and what nobody answers for holds up nothing but its own host.
"""

from __future__ import annotations

import select
import ssl
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from dlconsole.errors import ConfigError, StoreError
from dlconsole.model import Failure, FailureKind, LookupResult
from dlconsole.settings import DnsSettings, FetchSettings
from dlconsole.workers.faults import OnFault, failure_of
from dlconsole.workers.fetch.address import AddressGuard
from dlconsole.workers.fetch.dns import Answer, Resolver
from dlconsole.workers.fetch.engine import Fetched, Hosts, NotKept, Result, TurnedAway
from dlconsole.workers.fetch.fetch import Fetch, RobotsFetch, without_unbegun
from dlconsole.workers.fetch.lookahead import Lookahead
from dlconsole.workers.fetch.parks import REFUSALS
from dlconsole.workers.fetch.proxy_secrets import ProxySecrets
from dlconsole.workers.fetch.timings import Timings
from dlconsole.workers.fetch.turns import HostTurns
from dlconsole.workers.fetch.urls import ROBOTS_TXT_BYTES, Origin, Target, origin_of, target_of

if TYPE_CHECKING:
    from dlconsole.workers.fetch.robots import Known, Robots

T = TypeVar("T")


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
        hosts: Hosts,
        on_fault: OnFault,
    ) -> None:
        """`on_fault` is told of faults of ours,
        which end one fetch each. Raises ConfigError where the file of certificate authorities cannot be read
        (with it every https task would fail), or a resolver cannot be used.
        """
        if settings.ca_file is not None:
            try:
                ssl.create_default_context(cafile=settings.ca_file)
            except OSError as error:  # SSLError is one
                raise ConfigError(f"fetch.ca_file {settings.ca_file}: {error.strerror or error}") from error
        self.timings = Timings()
        self.turns: HostTurns[Fetch[T]] = HostTurns(settings.per_host, settings.per_host_per_s)
        self._text_turns: HostTurns[Fetch[T]] = HostTurns(settings.per_host, beside=self.turns)
        """Of robots.txt that redirects lead to: what has a host's turn may wait for one, but never the other
        way round. Without a pace: what waits for them takes up room that other hosts need.
        """
        self.backlog = 0
        self._settings = settings
        self._hosts = hosts
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
        self._robots_fetches: dict[Origin, RobotsFetch[T]] = {}
        self._orphans = 0
        """Texts that have a slot and that nobody waits for any more."""
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

    @property
    def waiting(self) -> int:
        """How many fetches wait until it is their turn to ask their host."""
        return self.turns.waiting

    @property
    def _without_slot(self) -> int:
        """How many fetches are under way and have no slot, less those that have one for nobody."""
        return len(self._ready) + self._looking_up + self._text_turns.waiting - self._orphans

    @property
    @abstractmethod
    def free(self) -> int:
        """How many more fetches can be started now: `_room` for the slots that are idle."""

    def _room(self, idle: int) -> int:
        """How many more fetches can be started where so many slots are idle. Those that are ready will need
        one, and those whose name is likely to be found soon; of these there are more than slots, so that
        none stays idle for want of a name. Dead names take up no room once they are late.
        """
        if self._looking_up >= self._most_lookups:
            return 0
        return max(0, idle - len(self._ready) + self._ahead.room - self.backlog)

    def start(self, token: T, target: Target) -> None:
        """Begin one fetch as soon as it is its turn; `poll` gives its outcome."""
        self._queue_up(Fetch(token, target, self._settings.deadline_s))

    def turn_away(self, host: str) -> None:
        """The host is parked now: those that wait for their turn end as TurnedAway."""
        for fetch in [*self.turns.drop(host), *self._text_turns.drop(host)]:
            self._end(fetch, TurnedAway())

    def waiting_unbegun(self) -> list[T]:
        """The tokens of those that have never had a turn. Also for another thread, should this one hang."""
        return [fetch.token for fetch in self.turns.peek() if not fetch.deadline]

    def drop_unbegun(self) -> list[T]:
        """Forget the fetches whose own URL was not asked for yet, only their hosts' names and robots.txt;
        their tokens.
        """
        dropped = self.turns.drop_where(lambda fetch: not fetch.deadline)
        waited: list[Fetch[T]] = []
        for robots_fetch in self._robots_fetches.values():
            had_any = bool(robots_fetch.waiting)
            robots_fetch.waiting = without_unbegun(robots_fetch.waiting, waited)
            if had_any and not robots_fetch.waiting and robots_fetch.deadline:
                self._orphans += 1
        for name, waiting in list(self._looked_up.items()):
            self._looked_up[name] = without_unbegun(waiting, waited)
        self._looking_up -= len(waited)
        ready: list[Fetch[T]] = []
        self._ready = deque(without_unbegun(self._ready, ready))
        for fetch in [*waited, *ready]:
            self._ahead.remove(fetch)
            self._leave(fetch)
            if isinstance(fetch, RobotsFetch):
                del self._robots_fetches[fetch.origin]
            else:
                dropped.append(fetch)
        return [fetch.token for fetch in dropped]

    def _queue_up(self, fetch: Fetch[T]) -> None:
        """Let a hop wait for its turn."""
        if self._turns_of(fetch).take(fetch.target.host, fetch, led_here=fetch.hops > 0):
            self._have_turn(fetch)

    def _have_turn(self, fetch: Fetch[T]) -> None:
        fetch.has_turn = True
        if self._robots is None or fetch.text_bytes:
            self._look_up(fetch)
        else:
            self._ask_robots(self._robots, fetch)

    def _leave(self, fetch: Fetch[T]) -> None:
        """A hop has ended: its turn is another's."""
        if fetch.has_turn:
            fetch.has_turn = False
            self._turns_of(fetch).done(fetch.target.host, has_begun=fetch.asked)

    def _turns_of(self, fetch: Fetch[T]) -> HostTurns[Fetch[T]]:
        return self._text_turns if fetch.text_bytes else self.turns

    def _launch(self) -> None:
        """Go on with those whose turn has come, and give those that are ready a slot each, as far as there
        are any.
        """
        while self.turns.waiting and self.free and (fetch := self.turns.next()) is not None:
            self._have_turn(fetch)
        # Whether there is room for more is no matter here: those that wait for a text take it up until then.
        while self._text_turns.waiting and (fetch := self._text_turns.next()) is not None:
            self._have_turn(fetch)
        while self._ready and self._has_slot():
            fetch = self._ready.popleft()
            ended = self._ask(fetch)
            if ended is not None:
                self._end(fetch, ended)

    def _ask(self, fetch: Fetch[T]) -> Failure | TurnedAway | None:
        """Begin a hop in one of the slots that are idle, or say what the fetch ends with instead."""
        try:
            if self._hosts.is_parked(fetch.target.host):  # meanwhile
                return TurnedAway()
            fetch.deadline = time.monotonic() + fetch.left_s
            fetch.asked = True
            if fetch.has_turn:
                self._turns_of(fetch).began(fetch.target.host)
            return self._begin(fetch)
        except Exception as error:  # noqa: BLE001  (a fetch's end, not the worker's)
            return self._fault(fetch, error)

    def _due_in_s(self, timeout_s: float, dns_due_at: float | None) -> float:
        """When there is something to do at the latest, but for what the engine itself waits for."""
        if self._ended:
            return 0.0
        turn_in_s = self.turns.due_in_s()
        if turn_in_s is not None and turn_in_s < timeout_s and self.free:
            timeout_s = turn_in_s
        if dns_due_at is not None:
            timeout_s = min(timeout_s, max(0.0, dns_due_at - time.monotonic()))
        return timeout_s

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
            else:
                self._ahead.was_known()
                self._use(fetch, answer)

    def _use(self, fetch: Fetch[T], answer: Answer) -> None:
        if answer.failure is None:
            fetch.addresses = answer.addresses
            self._ready.append(fetch)
        elif isinstance(fetch, RobotsFetch):  # `Robots` says when it is asked for again
            self._end(fetch, answer.failure)
        else:
            self._end(fetch, answer.failure_now(answer.failure))

    def _go_on(self, fetch: Fetch[T], outcome: Fetched | Failure | NotKept | str) -> None:
        """A hop has ended; text is a redirect's target."""
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
        most = max(self._settings.max_redirects, fetch.least_redirects)
        if fetch.hops > most:
            self._end_here(fetch, FailureKind.REDIRECTS, f"more than {most} redirects")
        elif target is None:
            message = f"redirected to what is no http URL ({_scheme_of(url)}:)"
            self._end_here(fetch, FailureKind.REDIRECTS, message)
        elif fetch.left_s <= 0:
            message = f"no whole answer within {self._settings.deadline_s:g} s"
            self._end_here(fetch, FailureKind.TIMEOUT, message)
        else:
            self._leave(fetch)
            fetch.go_on_to(target)
            if self._hosts.is_parked(target.host):
                self._end(fetch, TurnedAway())
            else:
                self._queue_up(fetch)

    def _end_here(self, fetch: Fetch[T], kind: FailureKind, message: str) -> None:
        """A redirect that is not followed is its host's last word in this fetch, and no refusal."""
        self._hosts.has_answered(fetch.target.host)
        self._end(fetch, Failure(kind, message))

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
            if not under_way.waiting:
                self._orphans -= 1
            under_way.waiting.append(fetch)
            return
        robots_fetch = RobotsFetch(origin, fetch, self._settings.deadline_s)
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
        self, robots: Robots, robots_fetch: RobotsFetch[T], outcome: Fetched | Failure | TurnedAway | NotKept
    ) -> None:
        """Go on with those that waited for a robots.txt."""
        origin, waiting, host = robots_fetch.origin, robots_fetch.waiting, robots_fetch.target.host
        is_heard = robots_fetch.asked or isinstance(outcome, TurnedAway)
        self._tell_of_redirects(robots_fetch, host, is_heard=is_heard)
        self._leave(robots_fetch)
        del self._robots_fetches[origin]
        self._looking_up -= len(waiting)
        if not waiting:
            self._orphans -= 1
        if isinstance(outcome, (TurnedAway, NotKept)):
            for fetch in waiting:
                self._end_at(host, fetch, outcome)
        elif isinstance(outcome, Failure) and outcome.status in REFUSALS:
            self._end_refused(robots, robots_fetch, outcome)
        else:
            if robots_fetch.asked and outcome.status is not None:
                self._hosts.has_answered(host)
            self._learn_robots(robots, robots_fetch, outcome)

    def _end_refused(self, robots: Robots, robots_fetch: RobotsFetch[T], refusal: Failure) -> None:
        """A robots.txt's host asks to be left alone: one of those that waited ends with that answer, and the
        others in front of the host.
        """
        host = robots_fetch.target.host
        if not robots_fetch.waiting:
            self._hosts.has_refused(host, refusal)
        answer: Failure | TurnedAway = robots.failure(robots_fetch.origin, refusal, refusal.retry_after_s)
        for fetch in robots_fetch.waiting:
            self._end_at(host, fetch, answer, asked=True)
            answer = TurnedAway()

    def _learn_robots(self, robots: Robots, robots_fetch: RobotsFetch[T], outcome: Fetched | Failure) -> None:
        """Go on by what came of a robots.txt. A fault of ours, which is not remembered, ends the first of
        those that waited, and the next one asks again.
        """
        origin, waiting, host = robots_fetch.origin, robots_fetch.waiting, robots_fetch.target.host
        try:
            known = robots.learn(origin, outcome)
        except StoreError as error:  # of the file that a large text went to
            for fetch in waiting:
                self._end_at(host, fetch, NotKept(error.with_traceback(None), ROBOTS_TXT_BYTES))
            return
        except Exception as error:  # noqa: BLE001  (a fetch's end, not the worker's)
            known = robots.learn(origin, self._fault(robots_fetch, error))
        for number, fetch in enumerate(waiting):
            if self._hosts.is_parked(fetch.target.host):
                self._end(fetch, TurnedAway())
            elif number:
                self._ask_robots(robots, fetch)
            else:
                self._heed_robots(known, fetch)

    def _end(self, fetch: Fetch[T], outcome: Fetched | Failure | TurnedAway | NotKept) -> None:
        if isinstance(outcome, Failure):
            outcome = self._secrets.taken_out(outcome)
        if self._robots is not None and isinstance(fetch, RobotsFetch):
            self._end_robots(self._robots, fetch, outcome)
        else:
            self._end_at(fetch.target.host, fetch, outcome, asked=fetch.asked)

    def _end_at(
        self,
        host: str,
        fetch: Fetch[T],
        outcome: Fetched | Failure | TurnedAway | NotKept,
        *,
        asked: bool = False,
    ) -> None:
        if fetch.led_by:
            self._tell_of_redirects(fetch, host, is_heard=asked or isinstance(outcome, TurnedAway))
        self._leave(fetch)
        self._ended.append(Result(fetch.token, outcome, host, asked, fetch.target.url))

    def _tell_of_redirects(self, fetch: Fetch[T], end: str, *, is_heard: bool) -> None:
        """Each host that redirected has answered; but where the end of the fetch speaks for its host, that
        alone does: behind a redirect of its own, that may be a refusal.
        """
        hosts, fetch.led_by = fetch.led_by, ()
        for host in hosts:
            if host != end or not is_heard:
                self._hosts.has_answered(host)

    def _take_ended(self) -> list[Result[T]]:
        ended, self._ended = self._ended, []
        return ended

    def _drop_waiting(self) -> list[T]:
        """Forget every fetch that has no slot, also those that have ended; their tokens."""
        without_slot = [fetch for waiting in self._looked_up.values() for fetch in waiting]
        without_slot += [*self._ready, *self.turns.peek(), *self._text_turns.peek()]
        dropped = [token for fetch in without_slot for token in fetch.tokens]
        dropped += [ended.token for ended in self._take_ended()]
        self._looked_up.clear()
        self._robots_fetches.clear()
        self._orphans = 0
        self._looking_up = 0
        self._ahead.clear()
        self._ready.clear()
        self.turns.clear()
        self._text_turns.clear()
        return dropped


def _scheme_of(url: str) -> str:
    try:
        return urlsplit(url).scheme[:20] or "?"
    except ValueError:
        return "?"
