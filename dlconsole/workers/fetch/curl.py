"""The fast engine: libcurl's multi interface, driven by epoll through `socket_action`.

One thread, no callbacks into asyncio. `socket_action` costs per ready socket, where `perform` costs
per open one, and epoll has no limit of 1,024 descriptors, where `CurlMulti.select` has.

Redirects are followed here, not by libcurl, so that every hop passes the same checks.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

import certifi
import pycurl

from dlconsole.errors import ConfigError
from dlconsole.model import Failure, FailureKind
from dlconsole.settings import DnsSettings, FetchSettings
from dlconsole.workers.fetch.address import AddressGuard, is_address
from dlconsole.workers.fetch.dns import Answer, Resolver
from dlconsole.workers.fetch.engine import Fetched, Result
from dlconsole.workers.fetch.opt_out import agent_token, opt_out_of
from dlconsole.workers.fetch.urls import Target, target_of
from dlconsole.workers.images import SNIFF_BYTES, not_image, sniff

T = TypeVar("T")

BUFFER_BYTES: Final = 256 * 1024
"""libcurl's receive buffer; one is shared by all transfers of a multi handle."""
_DISCARD_BYTES: Final = 16 * 1024
"""How much of what is no image is read, to keep the connection; more closes it."""
_MAX_EVENTS: Final = 256

_EPOLL_FOR: Final = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}

_KINDS: Final = {
    pycurl.E_URL_MALFORMAT: FailureKind.BAD_TASK,
    pycurl.E_COULDNT_RESOLVE_HOST: FailureKind.DNS,
    pycurl.E_OPERATION_TIMEDOUT: FailureKind.TIMEOUT,
    pycurl.E_FILESIZE_EXCEEDED: FailureKind.TOO_LARGE,
    pycurl.E_PARTIAL_FILE: FailureKind.TRUNCATED,
    pycurl.E_SSL_CONNECT_ERROR: FailureKind.TLS,
    pycurl.E_PEER_FAILED_VERIFICATION: FailureKind.TLS,
    pycurl.E_SSL_CERTPROBLEM: FailureKind.TLS,
    pycurl.E_SSL_CIPHER: FailureKind.TLS,
}
"""libcurl's error codes → ours; every other one is a connection that broke: `connect`."""


class _Descriptor:
    """What pycurl takes for a socket: it asks for the descriptor, duplicates it, and drops this."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd


class _Fetch(Generic[T]):
    """One fetch, from `start` to its outcome: where it is now, and how many redirects that took."""

    __slots__ = ("addresses", "deadline", "hops", "target", "token")

    def __init__(self, token: T, target: Target, deadline: float) -> None:
        self.token = token
        self.target = target
        self.addresses: tuple[str, ...] = ()
        self.deadline = deadline
        self.hops = 0


class _Transfer(Generic[T]):
    """One easy handle with the fetch that it is running, if any; used again for the next."""

    __slots__ = (
        "_agent",
        "_max_header_bytes",
        "begun",
        "blocked",
        "body",
        "discarded",
        "fetch",
        "handle",
        "headers",
        "opt_out",
        "refused",
        "sniffed",
    )

    def __init__(self, settings: FetchSettings, guard: AddressGuard) -> None:
        self.handle = pycurl.Curl()
        self.handle.transfer = self
        self.fetch: _Fetch[T] | None = None
        self.headers = bytearray()
        self._max_header_bytes = settings.max_header_bytes
        self._agent = agent_token(settings.user_agent) if settings.honour_opt_outs else None
        self.reset_answer()
        _configure(self.handle, settings)
        self.handle.setopt(pycurl.WRITEFUNCTION, self.write)
        # Called for each line, ten times a fetch: no Python in it. libcurl ends an answer at 300 KB of them.
        self.handle.setopt(pycurl.HEADERFUNCTION, self.headers.extend)
        if not settings.proxy:
            self.handle.setopt(pycurl.OPENSOCKETFUNCTION, self._socket_opener(guard))

    def reset_answer(self) -> None:
        self.body = bytearray()
        del self.headers[:]
        self.opt_out = ""
        self.begun = False
        self.sniffed = False
        self.refused = False
        self.discarded = 0
        self.blocked = ""

    def _look_at_headers(self) -> None:
        """Once they are complete: what is too long or opts out is not read on."""
        if len(self.headers) > self._max_header_bytes:
            self.refused = True
        elif self._agent is not None:
            self.opt_out = opt_out_of(self.headers, self._agent)
            self.refused = bool(self.opt_out)

    def write(self, data: bytes) -> int | None:
        """libcurl's write callback. What opts out or does not begin as an image is not kept, and soon not
        read.
        """
        if not self.begun:
            self.begun = True
            self._look_at_headers()
        if self.refused:
            self.discarded += len(data)
            return 0 if self.discarded > _DISCARD_BYTES else None
        body = self.body
        body += data
        if not self.sniffed and len(body) >= SNIFF_BYTES:
            self.sniffed = True
            if sniff(body) is None:
                self.refused = True
                self.discarded = len(body)
                del body[SNIFF_BYTES:]
        return None

    def _socket_opener(self, guard: AddressGuard) -> Callable[[int, Any], Any]:
        def open_socket(_purpose: int, address: Any) -> Any:
            ip, port = address.addr[:2]
            self.blocked = guard.refusal(ip if isinstance(ip, str) else ip.decode(), port)
            if self.blocked:
                return pycurl.SOCKET_BAD
            return _Descriptor(socket.socket(address.family, address.socktype, address.protocol).detach())

        return open_socket


def _configure(handle: Any, settings: FetchSettings) -> None:
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.BUFFERSIZE, BUFFER_BYTES)
    handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    handle.setopt(pycurl.FOLLOWLOCATION, 0)
    handle.setopt(pycurl.CONNECTTIMEOUT_MS, _ms(settings.connect_timeout_s))
    handle.setopt(pycurl.MAXFILESIZE_LARGE, settings.max_bytes)
    handle.setopt(pycurl.USERAGENT, settings.user_agent)
    handle.setopt(pycurl.LOW_SPEED_LIMIT, settings.min_bytes_per_s)
    handle.setopt(pycurl.LOW_SPEED_TIME, round(settings.min_rate_window_s))
    # Nothing is unpacked here: what comes packed all the same does not begin as a picture does.
    handle.setopt(pycurl.HTTPHEADER, ["Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"])
    handle.setopt(pycurl.CAINFO, str(settings.ca_file or certifi.where()))
    # An empty text, unlike none at all, also switches off what the environment's variables say.
    handle.setopt(pycurl.PROXY, settings.proxy)
    handle.setopt(pycurl.NOPROXY, "")


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


class CurlEngine(Generic[T]):
    """See `Engine`. Owns `concurrency` easy handles and one multi handle."""

    def __init__(self, settings: FetchSettings, dns: DnsSettings, concurrency: int) -> None:
        """Raises ConfigError where the file of certificate authorities cannot be read (with it every https
        task would fail), or a resolver cannot be used.
        """
        if settings.ca_file is not None:
            try:
                ssl.create_default_context(cafile=settings.ca_file)
            except OSError as error:  # SSLError is one
                raise ConfigError(f"fetch.ca_file {settings.ca_file}: {error.strerror or error}") from error
        self._settings = settings
        self._guard = AddressGuard(settings.allow_networks, settings.allow_ports)
        self._multi = pycurl.CurlMulti()
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._resolver = Resolver(dns, self._epoll)
        self._most_lookups = dns.lookups
        self._looked_up: dict[str, list[_Fetch[T]]] = {}
        self._looking_up = 0
        self._ready: deque[_Fetch[T]] = deque()
        self._ended: list[Result[T]] = []
        self._timer_at: float | None = None
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, max(16, 2 * concurrency))
        self._all: list[_Transfer[T]] = [_Transfer(settings, self._guard) for _ in range(concurrency)]
        self._idle = list(self._all)
        self._idle_fds: set[int] = set()

    @property
    def free(self) -> int:
        """How many more fetches can be started now. Those whose host is being looked up need no handle
        yet, so that dead domains hold up nothing but themselves.
        """
        if self._looking_up >= self._most_lookups:
            return 0
        return max(0, len(self._idle) - len(self._ready))

    @property
    def running(self) -> int:
        """How many fetches are under way, those included whose host is being looked up."""
        return len(self._all) - len(self._idle) + len(self._ready) + self._looking_up

    def start(self, token: T, target: Target) -> None:
        """Begin one fetch, whose outcome `poll` gives."""
        self._look_up(_Fetch(token, target, time.monotonic() + self._settings.deadline_s))
        self._launch()

    def poll(self, timeout_s: float) -> list[Result[T]]:
        """Move on, waiting up to `timeout_s` for something to happen; what has finished."""
        dns_due_at = self._dns_due_at()
        action = self._multi.socket_action
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
        if self._timer_at is not None and time.monotonic() >= self._timer_at:
            self._timer_at = None
            action(pycurl.SOCKET_TIMEOUT, 0)
        if dns_due_at is not None:
            if time.monotonic() >= dns_due_at:
                self._resolver.tick()
            self._take_found()
        self._collect()
        self._launch()
        return self._take_ended()

    def _wait_s(self, timeout_s: float, dns_due_at: float | None) -> float:
        if self._ended:
            return 0.0
        due_at = min((at for at in (self._timer_at, dns_due_at) if at is not None), default=None)
        return timeout_s if due_at is None else min(timeout_s, max(0.0, due_at - time.monotonic()))

    def _dns_due_at(self) -> float | None:
        due_in_s = self._resolver.due_in_s
        return None if due_in_s is None else time.monotonic() + due_in_s

    def wake(self) -> None:
        """End a `poll` that waits; other threads and signal handlers may call this, also too late."""
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def cancel_all(self) -> list[T]:
        """Drop every running fetch; their tokens."""
        dropped = [fetch for waiting in self._looked_up.values() for fetch in waiting]
        dropped += self._ready
        self._looked_up.clear()
        self._looking_up = 0
        self._ready.clear()
        for transfer in self._all:
            if transfer.fetch is not None:
                dropped.append(transfer.fetch)
                self._multi.remove_handle(transfer.handle)
                self._release(transfer)
        return [fetch.token for fetch in dropped] + [ended.token for ended in self._take_ended()]

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

    def _take_ended(self) -> list[Result[T]]:
        ended, self._ended = self._ended, []
        return ended

    def _look_up(self, fetch: _Fetch[T]) -> None:
        """Go on with a fetch once its host's addresses are known."""
        name = fetch.target.host
        if self._settings.proxy:
            refusal = self._guard.host_refusal(name, fetch.target.port)
            if refusal:
                self._end(fetch, Failure(FailureKind.BLOCKED_ADDRESS, refusal))
            else:
                self._ready.append(fetch)
        elif is_address(name):
            self._ready.append(fetch)
        else:
            answer = self._resolver.resolve(name)
            if answer is None:
                self._looked_up.setdefault(name, []).append(fetch)
                self._looking_up += 1
            else:
                self._use(fetch, answer)

    def _take_found(self) -> None:
        for name, answer in self._resolver.take_found():
            for fetch in self._looked_up.pop(name, ()):
                self._looking_up -= 1
                self._use(fetch, answer)

    def _use(self, fetch: _Fetch[T], answer: Answer) -> None:
        if answer.failure is not None:
            self._end(fetch, answer.failure)
        else:
            fetch.addresses = answer.addresses
            self._ready.append(fetch)

    def _launch(self) -> None:
        """Give the fetches that are ready a handle each, as far as there are any."""
        while self._ready and self._idle:
            fetch = self._ready.popleft()
            failure = self._begin(self._idle[-1], fetch)
            if failure is not None:
                self._end(fetch, failure)
            else:
                self._idle.pop()

    def _begin(self, transfer: _Transfer[T], fetch: _Fetch[T]) -> Failure | None:
        left_s = fetch.deadline - time.monotonic()
        if left_s <= 0:
            return Failure(FailureKind.TIMEOUT, f"no answer within {self._settings.deadline_s:g} s")
        transfer.reset_answer()
        target, handle = fetch.target, transfer.handle
        try:
            handle.setopt(pycurl.URL, target.url)
            handle.setopt(pycurl.TIMEOUT_MS, _ms(left_s))
            # What libcurl would look up itself is told to it, until it wants to forget it (`+`).
            known = [f"+{target.host}:{target.port}:{','.join(fetch.addresses)}"] if fetch.addresses else []
            handle.setopt(pycurl.RESOLVE, known)
            self._multi.add_handle(handle)
        except (pycurl.error, UnicodeError, ValueError) as error:
            return Failure(FailureKind.BAD_TASK, f"URL refused: {error}")
        transfer.fetch = fetch
        return None

    def _collect(self) -> None:
        left = 1
        while left:
            left, succeeded, failed = self._multi.info_read()
            for handle in succeeded:
                self._finish(handle.transfer, self._answer(handle.transfer))
            for handle, code, message in failed:
                self._finish(handle.transfer, self._failure(handle.transfer, code, message))

    def _finish(self, transfer: _Transfer[T], outcome: Fetched | Failure | str) -> None:
        """Hand out the outcome and free the handle; text is a redirect's target: go on with it."""
        self._multi.remove_handle(transfer.handle)
        fetch = transfer.fetch
        self._release(transfer)
        if fetch is None:
            return
        if isinstance(outcome, str):
            self._hop(fetch, outcome)
        else:
            self._end(fetch, outcome)

    def _hop(self, fetch: _Fetch[T], url: str) -> None:
        fetch.hops += 1
        target = target_of(url)
        if fetch.hops > self._settings.max_redirects:
            most = self._settings.max_redirects
            self._end(fetch, Failure(FailureKind.REDIRECTS, f"more than {most} redirects"))
        elif target is None:
            scheme = urlsplit(url).scheme[:20] if "://" in url[:30] else "?"
            message = f"redirected to what is no http URL ({scheme}:)"
            self._end(fetch, Failure(FailureKind.REDIRECTS, message))
        else:
            fetch.target, fetch.addresses = target, ()
            self._look_up(fetch)

    def _end(self, fetch: _Fetch[T], outcome: Fetched | Failure) -> None:
        self._ended.append(Result(fetch.token, outcome))

    def _answer(self, transfer: _Transfer[T]) -> Fetched | Failure | str:
        handle = transfer.handle
        status = handle.getinfo(pycurl.RESPONSE_CODE)
        if len(transfer.headers) > self._settings.max_header_bytes:
            message = f"more than {self._settings.max_header_bytes} bytes of headers"
            return Failure(FailureKind.CONNECT, message, status)
        if status == 200:
            if transfer.opt_out:
                return Failure(FailureKind.OPT_OUT, transfer.opt_out, status)
            if transfer.refused:
                return not_image(transfer.body)
            assert transfer.fetch is not None
            return Fetched(transfer.fetch.target.url, status, transfer.body)
        if 300 <= status < 400:
            target = handle.getinfo(pycurl.REDIRECT_URL)
            if target:
                return str(target)
        return self._http_failure(handle, status)

    def _http_failure(self, handle: Any, status: int) -> Failure:
        retry_after = handle.getinfo(pycurl.RETRY_AFTER) or None
        return Failure(FailureKind.HTTP_STATUS, f"HTTP {status}", status, retry_after)

    def _failure(self, transfer: _Transfer[T], code: int, message: str) -> Fetched | Failure | str:
        if transfer.blocked and code == pycurl.E_COULDNT_CONNECT:
            return Failure(FailureKind.BLOCKED_ADDRESS, transfer.blocked)
        if code == pycurl.E_WRITE_ERROR and transfer.refused:  # enough of an error page was read
            return self._answer(transfer)
        kind = _KINDS.get(code, FailureKind.CONNECT)
        status = transfer.handle.getinfo(pycurl.RESPONSE_CODE) or None
        return Failure(kind, message or f"libcurl error {code}", status)

    def _release(self, transfer: _Transfer[T]) -> None:
        transfer.fetch = None
        transfer.body = bytearray()
        self._idle.append(transfer)

    def _on_socket(self, what: int, fd: int, _multi: Any, _data: Any) -> None:
        """libcurl says which events of a descriptor it waits for.

        A connection that goes idle stays registered: the next fetch on it then costs one system call,
        not two. Only `poll` takes it out, should it speak unasked.
        """
        if what == pycurl.POLL_REMOVE:
            self._idle_fds.add(fd)
            return
        self._idle_fds.discard(fd)
        mask = _EPOLL_FOR.get(what, 0)
        try:
            self._epoll.modify(fd, mask)
        except FileNotFoundError:  # new, or a new socket under an old number
            self._epoll.register(fd, mask)

    def _forget_idle(self, fd: int) -> None:
        """The other side closed an idle connection; libcurl finds out when it wants to use it again."""
        self._idle_fds.discard(fd)
        try:
            self._epoll.unregister(fd)
        except OSError:  # closed meanwhile, which unregistered it
            pass

    def _on_timer(self, timeout_ms: int) -> None:
        """libcurl says when it wants to be called again; -1: not at all."""
        self._timer_at = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1000
