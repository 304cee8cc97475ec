"""Names → addresses, thousands of lookups at once, in the fetch loop's own thread.

libcurl looks names up in a few threads, and each waits for its answer: a handful of dead domains stops
all others. c-ares (through pycares) asks over one socket and waits for as many answers as there are
questions. But it hears an answer only until it asks again, and that is soon where most names come quickly:
a name that takes its time is asked for once more in a way that waits. What is found is kept for as long as
the answer allows, within bounds; that there is no such name is kept for a while too. Where only no answer
could be had, that is kept for no longer than the trouble has lasted, so that a dead domain is not asked for
with each of its thousand pictures, and a short outage is over when it is over.
"""

from __future__ import annotations

import select
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

import msgspec
import pycares
import pycares.errno

from dlconsole.errors import ConfigError
from dlconsole.model import Failure, FailureKind, LookupResult
from dlconsole.settings import DnsSettings

MAX_BYTES: Final = 32 * 2**20
"""What is remembered of names, together; the one that was asked for longest ago is forgotten first."""
_ENTRY_BYTES: Final = 450
_ADDRESS_BYTES: Final = 64
"""About what a name takes, and each of its addresses."""
_MAX_ADDRESSES: Final = 8
_TRIES: Final = 4
"""c-ares asks again sooner where a server is usually quick, so a question that was lost is put again soon."""
_PATIENT_AFTER: Final = 1 / 8
"""The part of a lookup's time after which its name is asked for patiently. Those that have waited for half of
that are asked for with it: so no more than 14 such lines are open at once.
"""
_PATIENCE: Final = 0.85
"""The part of that time for which it then listens: in the end, addresses of one family alone will do."""
_LONGEST_TRY_S: Final = 5.0
"""c-ares's own limit on the first of its tries; each of the others may be twice as long."""
_TROUBLE_S: Final = (1.0, 30.0)
"""How long it is kept at least and at most that no answer could be had."""
_RECEIVE_BYTES: Final = 4 * 2**20
"""Room for answers that come at once: what does not fit is lost, and asked for again after a timeout."""
_CHANNEL_S: Final = 1.0
"""The shortest life of a channel; each reads this host's resolv.conf anew."""
_DEFAULT_SERVERS: Final = ("127.0.0.1",)
"""Who is asked where this host has never named a server: resolv.conf(5)."""
_ALONE: Final = 16
"""How many names are asked for at once over a channel of their own."""
_NO_SUCH_NAME: Final = frozenset(
    {pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA, pycares.errno.ARES_EBADNAME}
)
_FLAGS: Final = (
    pycares.ARES_FLAG_EDNS  # c-ares's own default
    # A name in a list is whole: no search domain of this host's, and no alias of the environment's.
    | pycares.ARES_FLAG_NOSEARCH
    | pycares.ARES_FLAG_NOALIASES
)


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What is known of a name until `until` (monotonic): its addresses, or why there are none.
    `asked_s` is how long it took to find out; `failing_since` is when trouble with it began, if there is any.
    """

    addresses: tuple[str, ...]
    until: float
    failure: Failure | None = None
    asked_s: float = 0.0
    result: LookupResult = LookupResult.FOUND
    failing_since: float = 0.0

    def failure_now(self, failure: Failure) -> Failure:
        """Its `failure` for a task that ends with it now: where it is the servers' trouble, with the moment
        from which on the name is asked for again, so that each attempt puts a question.
        """
        if not self.failing_since:
            return failure
        return msgspec.structs.replace(failure, retry_after_s=max(0.0, self.until - time.monotonic()))


class _Lookup(msgspec.Struct, gc=False):
    """A name that is being looked up."""

    since: float
    owed: int = 0
    """How many lines may still answer, one that it waits for included."""
    is_suspect: bool = False
    """An answer that could not be read came for it, or for another over the same socket."""


class _Line:
    """One channel of c-ares: its sockets, and the answers that it owes."""

    def __init__(
        self,
        settings: DnsSettings,
        watch: Callable[[_Line, int, int], None],
        servers: Sequence[str] = (),
        *,
        try_s: float | None = None,
        tries: int = _TRIES,
    ) -> None:
        """`watch` is told which events of a descriptor it waits for, 0: none. Without `servers` those of this
        host's resolv.conf are asked. The first try lasts for `try_s` while no answers say how quick the
        servers are. Raises AresError, also where resolv.conf cannot be read or names nobody.
        """
        self.fds: set[int] = set()
        self.pending = 0
        self.born = self._asked_at = time.monotonic()
        self._timeout_s = settings.timeout_s
        self.closed = False
        self._watch = watch
        self._channel = pycares.Channel(
            flags=_FLAGS | (0 if servers else pycares.ARES_FLAG_NO_DFLT_SVR),
            timeout=try_s or settings.timeout_s / (_TRIES + 1),
            tries=tries,
            sock_state_cb=self._on_socket_state,
            servers=servers or None,
            socket_receive_buffer_size=_RECEIVE_BYTES,
        )
        if not any(self.servers):  # each is at a network interface of which nothing can be learnt now
            raise pycares.AresError("no server can be used")

    @property
    def due_in_s(self) -> float:
        """When `process` is to be called; only while something is pending."""
        wanted_s: float = self._channel.timeout()  # type: ignore[no-untyped-call]
        return wanted_s

    @property
    def servers(self) -> list[str]:
        """Who is asked; those first that have answered lately."""
        servers: list[str] = self._channel.servers
        return servers

    @property
    def is_done(self) -> bool:
        """Whether nobody waits for an answer of it any more."""
        return not self.pending or time.monotonic() - self._asked_at > self._timeout_s

    def ask(self, name: str, answered: Callable[[Any, int | None], None]) -> None:
        def on_answer(result: Any, error: int | None) -> None:
            if not self.closed:  # a closed channel calls from a thread of pycares
                self.pending -= 1
                answered(result, error)

        self.pending += 1
        self._asked_at = time.monotonic()
        self._channel.getaddrinfo(
            name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG, callback=on_answer
        )

    def process(
        self, readable: int = pycares.ARES_SOCKET_BAD, writable: int = pycares.ARES_SOCKET_BAD
    ) -> None:
        self._channel.process_fd(readable, writable)

    def close(self) -> None:
        for fd in list(self.fds):
            self._watch(self, fd, 0)
        self.closed = True
        self._channel.close()

    def _on_socket_state(self, fd: int, readable: bool, writable: bool) -> None:
        """c-ares says which events of a descriptor it waits for; none: it is about to close it. A closed
        channel is taken down by a thread of pycares, when the epoll may be no more.
        """
        if not self.closed:
            self._watch(self, fd, (select.EPOLLIN if readable else 0) | (select.EPOLLOUT if writable else 0))


class Resolver:
    """Looks names up. For one thread; `epoll` is told which descriptors to watch, and `fds` says which
    of those it reports are to be handed to `process`.
    """

    def __init__(self, settings: DnsSettings, epoll: select.epoll) -> None:
        """Raises ConfigError where a resolver of the settings cannot be used."""
        self.fds: dict[int, _Line] = {}
        self._settings = settings
        self._epoll = epoll
        self._known: OrderedDict[str, Answer] = OrderedDict()
        self._size_bytes = 0
        self._asked: dict[str, _Lookup] = {}
        self._impatient: deque[tuple[str, _Lookup]] = deque()
        """What was not asked for patiently yet, the oldest first; some of it was found meanwhile."""
        self._patient_after_s = settings.timeout_s * _PATIENT_AFTER
        self._patience_s = settings.timeout_s * _PATIENCE
        self._patient_tries = 1 if self._patience_s <= _LONGEST_TRY_S else _TRIES
        self._found: list[tuple[str, Answer]] = []
        # c-ares remembers answers as well, for as long as they allow: a channel that lives no longer than
        # ours may be kept answers none of them again, and what it remembers does not grow without end.
        self._channel_s = max(_CHANNEL_S, min(settings.max_ttl_s, settings.negative_ttl_s))
        self._retired: list[_Line] = []
        self._patient: list[_Line] = []
        self._alone: dict[str, _Line] = {}
        self._to_ask_alone: deque[tuple[str, _Lookup]] = deque()
        try:
            self._line, self._renew_at = self._new_line(_DEFAULT_SERVERS)
        except pycares.AresError as error:
            raise ConfigError(f"dns.resolvers {', '.join(settings.resolvers)}: {error}") from error

    @property
    def pending(self) -> int:
        """How many names are being looked up."""
        return len(self._asked)

    @property
    def due_in_s(self) -> float | None:
        """In how many seconds `tick` is to be called at the latest; None while nothing is looked up."""
        if self._found:
            return 0.0
        if not self._asked:
            return None
        now = time.monotonic()
        oldest = next(iter(self._asked.values()))
        lines = [self._line, *self._retired, *self._alone.values()]
        if self._patient_tries > 1:  # else nothing is due there before the end of the lookup
            lines += self._patient
        waits_s = [line.due_in_s for line in lines if line.pending]
        if self._impatient:
            waits_s.append(self._impatient[0][1].since + self._patient_after_s - now)
        return max(0.0, min([oldest.since + self._settings.timeout_s - now, *waits_s]))

    def resolve(self, name: str) -> Answer | None:
        """What is known of a name; None while it is being looked up, then `take_found` has it later."""
        known = self._known.get(name)
        if known is not None and time.monotonic() < known.until:
            return known
        if name not in self._asked:
            if not _is_name(name):
                return _no_answer(name, "no name of a host", LookupResult.NOT_FOUND, until=0.0)
            lookup = self._asked[name] = _Lookup(time.monotonic())
            self._ask(self._current_line(), name, lookup)
            if name not in self._asked:  # answered at once: by the hosts file, or from c-ares's own cache
                return self._take_last(name)
            self._impatient.append((name, lookup))
        return None

    def process(self, fd: int, events: int) -> None:
        """A descriptor is ready."""
        readable = fd if events & ~select.EPOLLOUT else pycares.ARES_SOCKET_BAD
        writable = fd if events & select.EPOLLOUT else pycares.ARES_SOCKET_BAD
        line = self.fds.get(fd)
        if line is not None:  # else it was closed by what was ready before it
            line.process(readable, writable)
            self._ask_alone()

    def tick(self) -> None:
        """See to what has waited for long: ask again, or give up."""
        for line in self._lines():
            line.process()
        latest = time.monotonic() - self._settings.timeout_s
        late = []
        for name, lookup in self._asked.items():  # the oldest first
            if lookup.since > latest:
                break
            late.append(name)
        for name in late:
            self._fail(name, f"no answer within {self._settings.timeout_s:g} s", LookupResult.TIMEOUT)
        self._ask_patiently()
        self._ask_alone()

    def take_found(self) -> list[tuple[str, Answer]]:
        """What was found out since the last call, good or bad."""
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        """Drop every lookup."""
        self._asked.clear()
        for line in self._lines():
            line.close()

    def _lines(self) -> list[_Line]:
        return [self._line, *self._retired, *self._patient, *self._alone.values()]

    def _current_line(self) -> _Line:
        """The one that is asked now, a new one from time to time."""
        if time.monotonic() >= self._renew_at:
            last = self._line
            try:
                self._line, self._renew_at = self._new_line(last.servers)
                self._retired.append(last)
            except pycares.AresError:
                self._renew_at = time.monotonic() + _CHANNEL_S
            _close_done(self._retired)
        return self._line

    def _new_line(self, last_servers: Sequence[str]) -> tuple[_Line, float]:
        """One to the servers of the settings or of this host, and when the next is due. Where resolv.conf
        names none now (it is being written, or there is no descriptor left to read it with), one to those
        that were asked last, for a moment. Raises AresError.
        """
        now = time.monotonic()
        try:
            return _Line(self._settings, self._watch, self._settings.resolvers), now + self._channel_s
        except pycares.AresError:
            if self._settings.resolvers:
                raise
            return _Line(self._settings, self._watch, last_servers), now + _CHANNEL_S

    def _ask(self, line: _Line, name: str, lookup: _Lookup) -> None:
        lookup.owed += 1
        line.ask(name, lambda result, error: self._on_answer(name, lookup, result, error))

    def _take_last(self, name: str) -> Answer:
        """What was found last for a name that was found: others may have been at the same moment."""
        at = max(at for at, (found, _) in enumerate(self._found) if found == name)
        return self._found.pop(at)[1]

    def _ask_patiently(self) -> None:
        """Ask once more for what has waited for a while, over a line of its own, and listen there until the
        end. No other questions follow over it: as soon as c-ares knows servers as quick, it waits for none
        of them any more.
        """
        _close_done(self._patient)
        now = time.monotonic()
        if not self._impatient or now - self._impatient[0][1].since < self._patient_after_s:
            return
        waiting = []
        while self._impatient and now - self._impatient[0][1].since >= self._patient_after_s / 2:
            name, lookup = self._impatient.popleft()
            if self._asked.get(name) is lookup and not lookup.is_suspect:
                waiting.append((name, lookup))
        if waiting:
            try_s, tries = self._patience_s, self._patient_tries
            try:
                line = _Line(self._settings, self._watch, self._line.servers, try_s=try_s, tries=tries)
            except pycares.AresError:  # the line that they were asked over first may still answer
                return
            self._patient.append(line)
            for name, lookup in waiting:
                self._ask(line, name, lookup)

    def _ask_alone(self) -> None:
        """One answer that cannot be read fails everything that c-ares has asked over the same socket, several
        times. So names that failed in that way are asked for once more, each over a socket of its own.
        """
        for name in [name for name in self._alone if name not in self._asked]:
            self._alone.pop(name).close()
        while self._to_ask_alone and len(self._alone) < _ALONE:
            name, lookup = self._to_ask_alone.popleft()
            lookup.owed -= 1
            if self._asked.get(name) is not lookup:
                continue
            try:
                self._alone[name] = _Line(self._settings, self._watch, self._line.servers)
            except pycares.AresError as error:
                self._fail(name, str(error), LookupResult.TROUBLE)
            else:
                self._ask(self._alone[name], name, lookup)

    def _on_answer(self, name: str, lookup: _Lookup, result: Any, error: int | None) -> None:
        """c-ares's callback; for a name that was given up meanwhile it still says what it knows. Trouble is
        the answer when no other line may have a better one.
        """
        lookup.owed -= 1
        if error is None:
            self._learn(name, result)
        elif self._asked.get(name) is not lookup:
            return
        elif error in _NO_SUCH_NAME:
            self._fail(name, _words(error), LookupResult.NOT_FOUND)
        elif error == pycares.errno.ARES_EBADRESP and not lookup.is_suspect:
            lookup.is_suspect = True
            lookup.owed += 1
            self._to_ask_alone.append((name, lookup))
        elif error != pycares.errno.ARES_ETIMEOUT and not lookup.owed:  # `tick` says when it is too late
            self._fail(name, _words(error), LookupResult.TROUBLE)

    def _learn(self, name: str, result: Any) -> None:
        addresses = tuple(dict.fromkeys(_address(node.addr[0]) for node in result.nodes))[:_MAX_ADDRESSES]
        if not addresses:
            self._fail(name, "the name has no address", LookupResult.NOT_FOUND)
            return
        ttl_s = min(part.ttl for part in (*result.nodes, *result.cnames))
        kept_s = min(max(ttl_s, self._settings.min_ttl_s), self._settings.max_ttl_s)
        self._keep(name, Answer(addresses, time.monotonic() + kept_s))

    def _fail(self, name: str, why: str, result: LookupResult) -> None:
        now, most_s = time.monotonic(), self._settings.negative_ttl_s
        if result is LookupResult.NOT_FOUND:
            self._keep(name, _no_answer(name, why, result, now + most_s))
            return
        known = self._known.get(name)
        since = (known.failing_since if known is not None else 0.0) or self._asked[name].since
        least_s, longest_s = _TROUBLE_S
        kept_s = min(max(now - since, least_s), longest_s, most_s)
        answer = _no_answer(name, why, result, now + kept_s)
        self._keep(name, msgspec.structs.replace(answer, failing_since=since))

    def _keep(self, name: str, answer: Answer) -> None:
        lookup = self._asked.pop(name, None)
        if lookup is not None:
            answer = msgspec.structs.replace(answer, asked_s=time.monotonic() - lookup.since)
            self._found.append((name, answer))
        self._forget(name)
        self._known[name] = answer
        self._size_bytes += _size_bytes(name, answer)
        while self._size_bytes > MAX_BYTES:
            self._forget(next(iter(self._known)))

    def _forget(self, name: str) -> None:
        known = self._known.pop(name, None)
        if known is not None:
            self._size_bytes -= _size_bytes(name, known)

    def _watch(self, line: _Line, fd: int, events: int) -> None:
        if not events:
            line.fds.discard(fd)
            self.fds.pop(fd, None)
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass
        elif fd in self.fds:
            self._epoll.modify(fd, events)
        else:
            line.fds.add(fd)
            self.fds[fd] = line
            self._epoll.register(fd, events)


def _close_done(lines: list[_Line]) -> None:
    for line in [line for line in lines if line.is_done]:
        lines.remove(line)
        line.close()


def _is_name(name: str) -> bool:
    """Whether a server could be asked for it at all: RFC 1035, 2.3.4."""
    return len(name) <= 253 and all(0 < len(label) <= 63 for label in name.split("."))


def _no_answer(name: str, why: str, result: LookupResult, until: float) -> Answer:
    return Answer((), until, Failure(FailureKind.DNS, f"{name[:255]}: {why}"), result=result)


def _size_bytes(name: str, answer: Answer) -> int:
    return _ENTRY_BYTES + len(name) + _ADDRESS_BYTES * len(answer.addresses)


def _words(error: int) -> str:
    text = pycares.errno.strerror(error)
    return text.decode() if isinstance(text, bytes) else text


def _address(raw: bytes | str) -> str:
    """An address as libcurl takes it: IPv6 in brackets."""
    address = ip_address(raw if isinstance(raw, str) else raw.decode())
    return f"[{address}]" if isinstance(address, IPv6Address) else str(address)
