"""The fast engine: libcurl's multi interface, driven by epoll through `socket_action`.

One thread, no callbacks into asyncio. `socket_action` costs per ready socket, where `perform` costs
per open one, and epoll has no limit of 1,024 descriptors, where `CurlMulti.select` has.

Redirects are followed here, not by libcurl, so that every hop passes the same checks.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import certifi
import pycurl

from dlconsole.model import Failure, FailureKind
from dlconsole.services import descriptors
from dlconsole.settings import DnsSettings, FetchSettings
from dlconsole.workers.faults import OnFault, unnoticed
from dlconsole.workers.fetch.address import AddressGuard
from dlconsole.workers.fetch.answer import Receiver, too_many_headers
from dlconsole.workers.fetch.engine import ANY_HOSTS, IN_MEMORY, Buffers, Fetched, Hosts, NotKept, Result
from dlconsole.workers.fetch.fetch import Fetch
from dlconsole.workers.fetch.hops import Hops
from dlconsole.workers.fetch.urls import Target

T = TypeVar("T")

BUFFER_BYTES: Final = 256 * 1024
"""libcurl's receive buffer; one is shared by all transfers of a multi handle."""
_MAX_EVENTS: Final = 256
_LOOK_S: Final = 0.25
"""How often what runs is looked at; the shortest window of a rate is four times as long."""
_MAX_TOLD: Final = 256
"""Names whose addresses libcurl is to know at least, those last used; others it is told to forget."""

_LAST_HEADS: Final = frozenset({200, 101})
"""Statuses that are not of an informational head, nor of a proxy's, behind which another comes."""

_EPOLL_FOR: Final = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}

_KINDS: Final = {
    pycurl.E_URL_MALFORMAT: FailureKind.BAD_TASK,
    pycurl.E_COULDNT_RESOLVE_HOST: FailureKind.DNS,
    pycurl.E_OPERATION_TIMEDOUT: FailureKind.TIMEOUT,
    pycurl.E_PARTIAL_FILE: FailureKind.TRUNCATED,
    pycurl.E_SSL_CONNECT_ERROR: FailureKind.TLS,
    pycurl.E_PEER_FAILED_VERIFICATION: FailureKind.TLS,
    pycurl.E_SSL_CERTPROBLEM: FailureKind.TLS,
    pycurl.E_SSL_CIPHER: FailureKind.TLS,
}
"""libcurl's error codes → ours; every other one is a connection that broke: `connect`."""
_TOO_LARGE: Final = 100
"""CURLE_TOO_LARGE, for which pycurl has no name and libcurl no words: a line of more than 100 KiB, say."""
_TLS_CUT: Final = "unexpected eof"
"""OpenSSL's words for an end without TLS's goodbye, which is no end: RFC 9112, 9.8."""


class _Descriptor:
    """What pycurl takes for a socket: it asks for the descriptor, duplicates it, and drops this."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd


class _Transfer(Receiver, Generic[T]):
    """One easy handle with the fetch that it is running, if any; used again for the next."""

    __slots__ = ("blocked", "fetch", "handle", "left_s", "resolved")

    def __init__(
        self,
        settings: FetchSettings,
        guard: AddressGuard,
        buffers: Buffers,
        on_new_socket: Callable[[], None],
    ) -> None:
        super().__init__(settings, buffers)
        self.handle = pycurl.Curl()
        self.handle.transfer = self
        self.fetch: Fetch[T] | None = None
        self.blocked = ""
        self.resolved = False
        self.left_s = 0.0
        """What the handle's time limit is; a fetch's is nearly always that of the one before it."""
        _configure(self.handle, settings)
        self.handle.setopt(pycurl.WRITEFUNCTION, self.write)
        self.handle.setopt(pycurl.HEADERFUNCTION, _header_taker(self.headers, settings.max_header_bytes))
        if not settings.proxy:
            self.handle.setopt(pycurl.OPENSOCKETFUNCTION, self._socket_opener(guard, on_new_socket))

    def _socket_opener(
        self, guard: AddressGuard, on_new_socket: Callable[[], None]
    ) -> Callable[[int, Any], Any]:
        def open_socket(_purpose: int, address: Any) -> Any:
            on_new_socket()
            ip, port = address.addr[:2]
            refusal = guard.refusal(ip if isinstance(ip, str) else ip.decode(), port)
            if refusal:
                self.blocked = refusal
                return pycurl.SOCKET_BAD
            return _Descriptor(socket.socket(address.family, address.socktype, address.protocol).detach())

        return open_socket


def _header_taker(headers: bytearray, most_bytes: int) -> Callable[[bytes], int | None]:
    """Called for each line, ten times a fetch: as little Python as can be. Without it libcurl goes on up to
    300 KB, and keeps as much once more for itself.
    """

    def take(line: bytes) -> int | None:
        headers.extend(line)
        return 0 if len(headers) > most_bytes else None

    return take


def _configure(handle: Any, settings: FetchSettings) -> None:
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.BUFFERSIZE, BUFFER_BYTES)
    # What it is told stays all the same; addresses in URLs, which it would keep for ever, go at once.
    handle.setopt(pycurl.DNS_CACHE_TIMEOUT, 0)
    handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    handle.setopt(pycurl.FOLLOWLOCATION, 0)
    handle.setopt(pycurl.CONNECTTIMEOUT_MS, _ms(settings.connect_timeout_s))
    handle.setopt(pycurl.USERAGENT, settings.full_user_agent)
    # Nothing is unpacked here: what comes packed all the same does not begin as a picture does.
    handle.setopt(pycurl.HTTPHEADER, ["Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"])
    for authorities in (pycurl.CAINFO, pycurl.PROXY_CAINFO):
        handle.setopt(authorities, str(settings.ca_file or certifi.where()))
    # An empty text, unlike none at all, also switches off what the environment's variables say.
    handle.setopt(pycurl.PROXY, settings.proxy)
    handle.setopt(pycurl.NOPROXY, "")


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


class CurlEngine(Hops[T]):
    """See `Engine`. Owns `concurrency` easy handles and one multi handle."""

    def __init__(
        self,
        settings: FetchSettings,
        dns: DnsSettings,
        concurrency: int,
        hosts: Hosts = ANY_HOSTS,
        buffers: Buffers = IN_MEMORY,
        on_fault: OnFault = unnoticed,
    ) -> None:
        """Raises ConfigError, see `Hops`."""
        self._epoll = select.epoll()
        super().__init__(settings, dns, self._epoll, concurrency, hosts, on_fault)
        self._multi = pycurl.CurlMulti()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._told: OrderedDict[tuple[str, int], tuple[str, ...]] = OrderedDict()
        self._most_told = max(_MAX_TOLD, 4 * concurrency)
        self._look_at = 0.0
        self._masks: dict[int, int] = {}
        """What epoll waits for, by descriptor, as far as it is certain; see `_on_socket`."""
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_MAXCONNECTS, descriptors.kept_connections(concurrency))
        self._all: list[_Transfer[T]] = [
            _Transfer(settings, self._guard, buffers, self._masks.clear) for _ in range(concurrency)
        ]
        self._idle = list(self._all)
        self._idle_fds: set[int] = set()

    @property
    def free(self) -> int:
        """How many more fetches can be started now. Those whose host is being looked up need no handle
        yet, so that dead domains hold up nothing but themselves.
        """
        return self._room(len(self._idle))

    @property
    def running(self) -> int:
        """How many fetches are under way, those included whose host is being looked up."""
        return len(self._all) - len(self._idle) + self._without_slot

    def poll(self, timeout_s: float) -> list[Result[T]]:
        """Move on, waiting up to `timeout_s` for something to happen; what has finished."""
        self._launch()
        dns_due_at = self._dns_due_at()
        multi = self._multi
        action = multi.socket_action
        for fd, events in self._epoll.poll(self._wait_s(timeout_s, dns_due_at), _MAX_EVENTS):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
                continue
            if fd in self._resolver.fds:
                self._resolver.process(fd, events)
                continue
            if fd in self._idle_fds:
                self._forget_idle(fd)
                continue
            mask = pycurl.CSELECT_IN if events & ~select.EPOLLOUT else 0
            if events & select.EPOLLOUT:
                mask |= pycurl.CSELECT_OUT
            action(fd, mask)
        if multi.timeout() == 0:  # asked for once a poll: its timer callback would be called twice a fetch
            action(pycurl.SOCKET_TIMEOUT, 0)
        if time.monotonic() >= self._look_at:
            self._end_lost_ones()
        self._see_to_names(dns_due_at)
        self._collect()
        return self._take_ended()

    def _wait_s(self, timeout_s: float, dns_due_at: float | None) -> float:
        libcurl_ms = self._multi.timeout()  # -1: none
        if libcurl_ms >= 0:
            timeout_s = min(timeout_s, libcurl_ms / 1000)
        return min(self._due_in_s(timeout_s, dns_due_at), _LOOK_S)

    def _end_lost_ones(self) -> None:
        """End what is too slow, and what its head refuses although nothing of its body has come: libcurl
        tells of a head's end only by the body's first piece.
        """
        now = time.monotonic()
        self._look_at = now + _LOOK_S
        for transfer in self._all:
            fetch = transfer.fetch
            if fetch is None or not transfer.handle.getinfo(pycurl.PRETRANSFER_TIME):
                continue
            try:
                lost = self._lost(transfer, fetch.target.url, now)
            except Exception as error:  # noqa: BLE001  (a fetch's end, not the worker's)
                lost = self._fault(fetch, error)
            if lost is not None:
                self._finish(transfer, lost)

    def _lost(self, transfer: _Transfer[T], url: str, now: float) -> Failure | NotKept | str | None:
        """What a fetch ends with that need not go on, if so."""
        if not transfer.has_body and transfer.handle.getinfo(pycurl.RESPONSE_CODE) in _LAST_HEADS:
            decided = transfer.decided(url)
            if decided is not None and transfer.enough:
                return decided
        slow = transfer.too_slow(now)
        return slow and (transfer.decided(url) or slow)

    def wake(self) -> None:
        """End a `poll` that waits; other threads and signal handlers may call this, also too late."""
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def cancel_all(self) -> list[T]:
        """Drop every running fetch; their tokens."""
        dropped = self._drop_waiting()
        for transfer in self._all:
            if transfer.fetch is not None:
                dropped += transfer.fetch.tokens
                self._multi.remove_handle(transfer.handle)
                self._release(transfer)
        return dropped

    def close(self) -> None:
        """Free every resource."""
        self.cancel_all()
        for transfer in self._all:
            transfer.handle.close()
            del transfer.handle.transfer  # breaks the cycle
        self._multi.close()
        self._resolver.close()
        self._epoll.close()
        wake_fd, self._wake_fd = self._wake_fd, -1
        os.close(wake_fd)

    def _has_slot(self) -> bool:
        return bool(self._idle)

    def _begin(self, fetch: Fetch[T]) -> Failure | None:
        transfer = self._idle[-1]
        transfer.blocked = ""
        target, handle = fetch.target, transfer.handle
        try:
            handle.setopt(pycurl.URL, target.url)
            if fetch.left_s != transfer.left_s:
                handle.setopt(pycurl.TIMEOUT_MS, _ms(fetch.left_s))
                transfer.left_s = fetch.left_s
            # What libcurl would look up itself is told to it, once for each answer.
            if fetch.addresses and self._is_news(target, fetch.addresses):
                handle.setopt(pycurl.RESOLVE, self._tell(target, fetch.addresses))
                transfer.resolved = True
            elif transfer.resolved:
                handle.setopt(pycurl.RESOLVE, [])
                transfer.resolved = False
            self._multi.add_handle(handle)
        except (pycurl.error, UnicodeError, ValueError) as error:
            return Failure(FailureKind.BAD_TASK, f"URL refused: {error}")
        if fetch.text_bytes:
            transfer.reset_answer(fetch.text_bytes)
        transfer.fetch = fetch
        self._idle.pop()
        return None

    def _is_news(self, target: Target, addresses: tuple[str, ...]) -> bool:
        name = (target.host, target.port)
        if self._told.get(name) is not addresses:
            return True
        self._told.move_to_end(name)
        return False

    def _tell(self, target: Target, addresses: tuple[str, ...]) -> list[str]:
        """A name's addresses for libcurl's cache, where they stay until it is told to forget them."""
        words = [f"{target.host}:{target.port}:{','.join(addresses)}"]
        self._told[target.host, target.port] = addresses
        self._told.move_to_end((target.host, target.port))
        if len(self._told) > self._most_told:
            (host, port), _ = self._told.popitem(last=False)
            words.append(f"-{host}:{port}")
        return words

    def _collect(self) -> None:
        left = 1
        while left:
            left, succeeded, failed = self._multi.info_read()
            for handle in succeeded:
                try:
                    outcome = self._answer(handle.transfer)
                except Exception as error:  # noqa: BLE001  (a fetch's end, not the worker's)
                    outcome = self._fault(handle.transfer.fetch, error)
                self._finish(handle.transfer, outcome)
            for handle, code, message in failed:
                try:
                    outcome = self._failure(handle.transfer, code, message)
                except Exception as error:  # noqa: BLE001  (as above)
                    outcome = self._fault(handle.transfer.fetch, error)
                self._finish(handle.transfer, outcome)

    def _finish(self, transfer: _Transfer[T], outcome: Fetched | Failure | NotKept | str) -> None:
        """Free the handle, and go on."""
        fetch = transfer.fetch
        if fetch is not None and self.timings.wants_sample:
            self._sample(fetch.target.host, transfer.handle)
        self._multi.remove_handle(transfer.handle)
        self._release(transfer)
        if fetch is not None:
            self._go_on(fetch, outcome)

    def _sample(self, site: str, handle: Any) -> None:
        connect_s, tls_s = handle.getinfo(pycurl.CONNECT_TIME), handle.getinfo(pycurl.APPCONNECT_TIME)
        first_byte_s = handle.getinfo(pycurl.STARTTRANSFER_TIME)
        if not handle.getinfo(pycurl.RESPONSE_CODE):  # nothing came; times are not 0 for that
            return
        self.timings.add_fetch(
            site,
            opened=handle.getinfo(pycurl.NUM_CONNECTS) > 0,
            connect_s=connect_s,
            tls_s=tls_s - connect_s if tls_s else 0.0,
            first_byte_s=first_byte_s - handle.getinfo(pycurl.PRETRANSFER_TIME),
            total_s=handle.getinfo(pycurl.TOTAL_TIME),
        )

    def _answer(self, transfer: _Transfer[T]) -> Fetched | Failure | NotKept | str:
        assert transfer.fetch is not None
        return transfer.outcome(transfer.fetch.target.url)

    def _failure(self, transfer: _Transfer[T], code: int, message: str) -> Fetched | Failure | NotKept | str:
        if transfer.blocked and code == pycurl.E_COULDNT_CONNECT:
            return Failure(FailureKind.BLOCKED_ADDRESS, transfer.blocked)
        assert transfer.fetch is not None
        # Without a status there was no answer: the headers, if any, are those of a proxy that refused.
        answered = transfer.handle.getinfo(pycurl.RESPONSE_CODE) > 0
        most_bytes = self._settings.max_header_bytes
        if len(transfer.headers) > most_bytes:  # `decided` takes trailers out
            message = too_many_headers(most_bytes)
        elif code == _TOO_LARGE:
            message = message or "a line that is longer than libcurl takes"
        decided = transfer.decided(transfer.fetch.target.url) if answered else None
        if decided is not None:
            return decided
        if transfer.has_text:
            return self._answer(transfer)
        kind = _KINDS.get(code, FailureKind.CONNECT)
        if transfer.status == 200:
            if code == pycurl.E_RECV_ERROR and _TLS_CUT in message:
                kind = FailureKind.TRUNCATED
        elif kind is FailureKind.TRUNCATED:  # not of the body: the head broke off behind its length
            kind = FailureKind.CONNECT
        return Failure(kind, message or f"libcurl error {code}", transfer.told_status)

    def _release(self, transfer: _Transfer[T]) -> None:
        transfer.fetch = None
        transfer.reset_answer()  # an idle handle holds nothing
        self._idle.append(transfer)

    def _on_socket(self, what: int, fd: int, _multi: Any, _data: Any) -> None:
        """libcurl says which events of a descriptor it waits for.

        A connection that goes idle stays registered, so that the next fetch on it costs no system call. Only
        `poll` takes it out, should it speak unasked. A new socket may have an old one's number, which only
        the kernel knows: behind each all are looked at again (behind a proxy always: libcurl opens those).
        """
        if what == pycurl.POLL_REMOVE:
            self._idle_fds.add(fd)
            return
        self._idle_fds.discard(fd)
        mask = _EPOLL_FOR.get(what, 0)
        if self._masks.get(fd) == mask:
            return
        try:
            self._epoll.modify(fd, mask)
        except FileNotFoundError:  # new, or a new socket under an old number
            self._epoll.register(fd, mask)
        if not self._settings.proxy:
            self._masks[fd] = mask

    def _forget_idle(self, fd: int) -> None:
        """The other side closed an idle connection; libcurl finds out when it wants to use it again."""
        self._idle_fds.discard(fd)
        self._masks.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except OSError:  # closed meanwhile, which unregistered it
            pass
