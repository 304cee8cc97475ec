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
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

import certifi
import pycurl

from dlconsole.errors import ConfigError
from dlconsole.model import Failure, FailureKind
from dlconsole.services import descriptors
from dlconsole.settings import FetchSettings
from dlconsole.workers.fetch.address import AddressGuard
from dlconsole.workers.fetch.engine import Fetched, Result
from dlconsole.workers.fetch.urls import host_of, normalized
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


class _Transfer(Generic[T]):
    """One easy handle with the fetch that it is running; used again for the next fetch."""

    __slots__ = (
        "blocked",
        "body",
        "deadline",
        "discarded",
        "handle",
        "hops",
        "refused",
        "sniffed",
        "token",
        "url",
    )

    def __init__(self, settings: FetchSettings, guard: AddressGuard) -> None:
        self.handle = pycurl.Curl()
        self.handle.transfer = self
        self.token: T | None = None
        self.url = ""
        self.reset_answer()
        self.hops = 0
        self.deadline = 0.0
        _configure(self.handle, settings)
        self.handle.setopt(pycurl.WRITEFUNCTION, self.write)
        if not settings.proxy:
            self.handle.setopt(pycurl.OPENSOCKETFUNCTION, self._socket_opener(guard))

    def reset_answer(self) -> None:
        self.body = bytearray()
        self.sniffed = False
        self.refused = False
        self.discarded = 0
        self.blocked = ""

    def write(self, data: bytes) -> int | None:
        """libcurl's write callback. What does not begin as an image is not kept, and soon not read."""
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
            ip = address.addr[0]
            if not guard.allows(ip if isinstance(ip, str) else ip.decode()):
                self.blocked = str(ip)
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
    handle.setopt(pycurl.HTTPHEADER, ["Accept: image/*,*/*;q=0.5"])
    handle.setopt(pycurl.CAINFO, str(settings.ca_file or certifi.where()))
    # An empty text, unlike none at all, also switches off what the environment's variables say.
    handle.setopt(pycurl.PROXY, settings.proxy)
    handle.setopt(pycurl.NOPROXY, "")


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


class CurlEngine(Generic[T]):
    """See `Engine`. Owns `concurrency` easy handles and one multi handle."""

    def __init__(self, settings: FetchSettings, concurrency: int) -> None:
        """Raises ConfigError where the file of certificate authorities cannot be read: with it every
        https task would fail.
        """
        if settings.ca_file is not None:
            try:
                ssl.create_default_context(cafile=settings.ca_file)
            except OSError as error:  # SSLError is one
                raise ConfigError(f"fetch.ca_file {settings.ca_file}: {error.strerror or error}") from error
        self._settings = settings
        self._guard = AddressGuard(settings.allow_networks)
        self._multi = pycurl.CurlMulti()
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._timer_at: float | None = None
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, descriptors.kept_connections(concurrency))
        self._all: list[_Transfer[T]] = [_Transfer(settings, self._guard) for _ in range(concurrency)]
        self._idle = list(self._all)
        self._idle_fds: set[int] = set()

    @property
    def free(self) -> int:
        """How many more fetches can be started now."""
        return len(self._idle)

    @property
    def running(self) -> int:
        """How many fetches are under way."""
        return len(self._all) - len(self._idle)

    def start(self, token: T, url: str) -> Failure | None:
        """Begin one fetch; a Failure at once where the URL is refused."""
        transfer = self._idle[-1]
        transfer.deadline = time.monotonic() + self._settings.deadline_s
        transfer.hops = 0
        failure = self._begin(transfer, url)
        if failure is None:
            transfer.token = token
            self._idle.pop()
        return failure

    def poll(self, timeout_s: float) -> list[Result[T]]:
        """Move on, waiting up to `timeout_s` for something to happen; what has finished."""
        if self._timer_at is not None:
            timeout_s = min(timeout_s, max(0.0, self._timer_at - time.monotonic()))
        action = self._multi.socket_action
        for fd, events in self._epoll.poll(timeout_s, _MAX_EVENTS):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
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
        return self._collect()

    def wake(self) -> None:
        """End a `poll` that waits; other threads and signal handlers may call this, also too late."""
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def cancel_all(self) -> list[T]:
        """Drop every running fetch; their tokens."""
        idle = set(map(id, self._idle))
        running = [transfer for transfer in self._all if id(transfer) not in idle]
        tokens = []
        for transfer in running:
            if transfer.token is not None:
                tokens.append(transfer.token)
            self._multi.remove_handle(transfer.handle)
            self._release(transfer)
        return tokens

    def close(self) -> None:
        """Free every resource."""
        self.cancel_all()
        for transfer in self._all:
            transfer.handle.close()
            del transfer.handle.transfer  # breaks the cycle
        self._multi.close()
        self._epoll.close()
        wake_fd, self._wake_fd = self._wake_fd, -1
        os.close(wake_fd)

    def _begin(self, transfer: _Transfer[T], url: str) -> Failure | None:
        """Add the transfer's handle for `url`, unless the URL, or its host behind a proxy, is refused."""
        target = normalized(url)
        if target is None:
            return Failure(FailureKind.BAD_TASK, "not an http or https URL")
        if self._settings.proxy and not self._guard.allows_host(host_of(target)):
            return Failure(FailureKind.BLOCKED_ADDRESS, f"{host_of(target)} is not a public address")
        left_s = transfer.deadline - time.monotonic()
        if left_s <= 0:
            return Failure(FailureKind.TIMEOUT, f"no answer within {self._settings.deadline_s:g} s")
        transfer.url = target
        transfer.reset_answer()
        try:
            transfer.handle.setopt(pycurl.URL, target)
            transfer.handle.setopt(pycurl.TIMEOUT_MS, _ms(left_s))
            self._multi.add_handle(transfer.handle)
        except (pycurl.error, UnicodeError, ValueError) as error:
            return Failure(FailureKind.BAD_TASK, f"URL refused: {error}")
        return None

    def _collect(self) -> list[Result[T]]:
        results: list[Result[T]] = []
        while True:
            left, succeeded, failed = self._multi.info_read()
            for handle in succeeded:
                self._finish(handle.transfer, self._answer(handle.transfer), results)
            for handle, code, message in failed:
                self._finish(handle.transfer, self._failure(handle.transfer, code, message), results)
            if not left:
                return results

    def _finish(
        self, transfer: _Transfer[T], outcome: Fetched | Failure | str, results: list[Result[T]]
    ) -> None:
        """Hand out the outcome and free the handle; text is a redirect's target: go on with it."""
        self._multi.remove_handle(transfer.handle)
        if isinstance(outcome, str):
            refused = self._hop(transfer, outcome)
            if refused is None:
                return
            outcome = refused
        token = transfer.token
        self._release(transfer)
        if token is not None:
            results.append(Result(token, outcome))

    def _hop(self, transfer: _Transfer[T], target: str) -> Failure | None:
        transfer.hops += 1
        if transfer.hops > self._settings.max_redirects:
            return Failure(FailureKind.REDIRECTS, f"more than {self._settings.max_redirects} redirects")
        failure = self._begin(transfer, target)
        if failure is not None and failure.kind is FailureKind.BAD_TASK:
            scheme = urlsplit(target).scheme[:20] if "://" in target[:30] else "?"
            return Failure(FailureKind.REDIRECTS, f"redirected to what is no http URL ({scheme}:)")
        return failure

    def _answer(self, transfer: _Transfer[T]) -> Fetched | Failure | str:
        handle = transfer.handle
        status = handle.getinfo(pycurl.RESPONSE_CODE)
        if status == 200:
            if transfer.refused:
                return not_image(transfer.body)
            return Fetched(transfer.url, status, transfer.body)
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
            return Failure(FailureKind.BLOCKED_ADDRESS, f"{transfer.blocked} is not a public address")
        if code == pycurl.E_WRITE_ERROR and transfer.refused:  # enough of an error page was read
            return self._answer(transfer)
        kind = _KINDS.get(code, FailureKind.CONNECT)
        status = transfer.handle.getinfo(pycurl.RESPONSE_CODE) or None
        return Failure(kind, message or f"libcurl error {code}", status)

    def _release(self, transfer: _Transfer[T]) -> None:
        transfer.token = None
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
