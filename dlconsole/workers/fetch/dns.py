"""Names → addresses, thousands of lookups at once, in the fetch loop's own thread.

libcurl looks names up in a few threads, and each waits for its answer: a handful of dead domains stops
all others. c-ares (through pycares) asks over one socket and waits for as many answers as there are
questions. What it finds is kept for as long as the answer allows, within bounds; what it does not find
is kept for a while too, so that a dead domain is asked for once, not for each of its thousand pictures.
"""

from __future__ import annotations

import select
import socket
import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

import msgspec
import pycares
import pycares.errno

from dlconsole.errors import ConfigError
from dlconsole.model import Failure, FailureKind
from dlconsole.settings import DnsSettings

MAX_KEPT: Final = 100_000
"""Most names remembered; the one that was asked for longest ago is forgotten first."""
_MAX_ADDRESSES: Final = 8
_TRIES: Final = 4
"""c-ares asks again sooner where a server is usually quick, so a slow name needs several tries."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What is known of a name until `until` (monotonic): its addresses, or why there are none.
    `asked_s` is how long it took to find out.
    """

    addresses: tuple[str, ...]
    until: float
    failure: Failure | None = None
    asked_s: float = 0.0


class Resolver:
    """Looks names up. For one thread; `epoll` is told which descriptors to watch, and `fds` says which
    of those it reports are to be handed to `process`.
    """

    def __init__(self, settings: DnsSettings, epoll: select.epoll) -> None:
        """Raises ConfigError where a resolver of the settings cannot be used."""
        self.fds: set[int] = set()
        self._settings = settings
        self._closed = False
        self._epoll = epoll
        self._known: OrderedDict[str, Answer] = OrderedDict()
        self._asked: dict[str, float] = {}
        self._found: list[tuple[str, Answer]] = []
        try:
            self._channel = pycares.Channel(
                timeout=settings.timeout_s / (_TRIES + 1),
                tries=_TRIES,
                sock_state_cb=self._on_socket_state,
                domains=[],  # a name in a list is whole: no search domain of this host's is tried on it
                servers=settings.resolvers or None,
            )
        except pycares.AresError as error:
            raise ConfigError(f"dns.resolvers {', '.join(settings.resolvers)}: {error}") from error

    @property
    def pending(self) -> int:
        """How many names are being looked up."""
        return len(self._asked)

    @property
    def due_in_s(self) -> float | None:
        """In how many seconds `tick` is to be called at the latest; None while nothing is looked up."""
        if not self._asked:
            return None
        wanted_s: float = self._channel.timeout()  # type: ignore[no-untyped-call]
        return min(self._settings.timeout_s, wanted_s)

    def resolve(self, name: str) -> Answer | None:
        """What is known of a name; None while it is being looked up, then `take_found` has it later."""
        known = self._known.get(name)
        if known is not None and time.monotonic() < known.until:
            return known
        if name not in self._asked:
            self._asked[name] = time.monotonic()
            self._channel.getaddrinfo(
                name,
                None,
                type=socket.SOCK_STREAM,
                flags=socket.AI_ADDRCONFIG,
                callback=lambda result, error: self._on_answer(name, result, error),
            )
            if name not in self._asked:  # answered at once: by the hosts file, or from c-ares's own cache
                return self._found.pop()[1]
        return None

    def process(self, fd: int, events: int) -> None:
        """A descriptor is ready."""
        readable = fd if events & ~select.EPOLLOUT else pycares.ARES_SOCKET_BAD
        writable = fd if events & select.EPOLLOUT else pycares.ARES_SOCKET_BAD
        self._channel.process_fd(readable, writable)

    def tick(self) -> None:
        """See to what has waited for long: ask again, or give up."""
        self._channel.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)
        latest = time.monotonic() - self._settings.timeout_s
        late = []
        for name, since in self._asked.items():  # the oldest first
            if since > latest:
                break
            late.append(name)
        for name in late:
            self._fail(name, f"no answer within {self._settings.timeout_s:g} s")

    def take_found(self) -> list[tuple[str, Answer]]:
        """What was found out since the last call, good or bad."""
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        """Drop every lookup."""
        self._closed = True
        self._asked.clear()
        self._channel.close()

    def _on_answer(self, name: str, result: Any, error: int | None) -> None:
        """c-ares's callback; for a name that was given up meanwhile it still says what it knows."""
        if self._closed:
            return
        if error is not None:
            if name in self._asked:
                self._fail(name, _words(error))
            return
        addresses = tuple(dict.fromkeys(_address(node.addr[0]) for node in result.nodes))[:_MAX_ADDRESSES]
        ttl_s = min((node.ttl for node in result.nodes), default=0)
        if not addresses:
            self._fail(name, "the name has no address")
            return
        kept_s = min(max(ttl_s, self._settings.min_ttl_s), self._settings.max_ttl_s)
        self._keep(name, Answer(addresses, time.monotonic() + kept_s))

    def _fail(self, name: str, why: str) -> None:
        failure = Failure(FailureKind.DNS, f"{name[:255]}: {why}")
        self._keep(name, Answer((), time.monotonic() + self._settings.negative_ttl_s, failure))

    def _keep(self, name: str, answer: Answer) -> None:
        since = self._asked.pop(name, None)
        if since is not None:
            answer = msgspec.structs.replace(answer, asked_s=time.monotonic() - since)
            self._found.append((name, answer))
        self._known[name] = answer
        self._known.move_to_end(name)
        if len(self._known) > MAX_KEPT:
            self._known.popitem(last=False)

    def _on_socket_state(self, fd: int, readable: bool, writable: bool) -> None:
        """c-ares says which events of a descriptor it waits for; none: it is about to close it. A closed
        channel is taken down by a thread of pycares, when the epoll is no more.
        """
        if self._closed:
            return
        events = (select.EPOLLIN if readable else 0) | (select.EPOLLOUT if writable else 0)
        if not events:
            self.fds.discard(fd)
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass
        elif fd in self.fds:
            self._epoll.modify(fd, events)
        else:
            self.fds.add(fd)
            self._epoll.register(fd, events)


def _words(error: int) -> str:
    text = pycares.errno.strerror(error)
    return text.decode() if isinstance(text, bytes) else text


def _address(raw: bytes | str) -> str:
    """An address as libcurl takes it: IPv6 in brackets."""
    address = ip_address(raw if isinstance(raw, str) else raw.decode())
    return f"[{address}]" if isinstance(address, IPv6Address) else str(address)
