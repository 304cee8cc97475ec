"""What the engine `requests` fetches over: sessions, their connections, and how the loop cuts them.

A read that waits cannot be told to stop, so for each connection a second descriptor is kept: the loop
cuts the connection through it when a limit is reached, and the thread's read ends.

requests is used for its sessions and adapters. What it does beyond them is left out: cookies, `.netrc`,
the environment's proxies, redirects (which it would read whole, unpacked, before they are followed).
"""

from __future__ import annotations

import base64
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final, Generic, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

import certifi
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.poolmanager import PoolManager, ProxyManager
from urllib3.util.ssltransport import SSLTransport

from dlconsole.model import Failure, FailureKind
from dlconsole.settings import FetchSettings
from dlconsole.workers.fetch.address import AddressGuard, literal_address
from dlconsole.workers.fetch.answer import Receiver, too_many_headers
from dlconsole.workers.fetch.engine import Buffers
from dlconsole.workers.fetch.fetch import Fetch
from dlconsole.workers.fetch.http1 import StrictResponse
from dlconsole.workers.fetch.timings import Timings
from dlconsole.workers.fetch.urls import request_target

T = TypeVar("T")

_POOLS: Final = 2
"""Hosts of which a thread keeps its connection."""

# It warns of odd answers; what matters of them is in the outcome.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)


class Cut(Exception):
    """The loop has ended this hop."""


class _Cord:
    """A second descriptor of a connection's socket, by which another thread cuts it. TLS makes a new object
    of the first in the middle of its handshake, and closes it as it likes.
    """

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock.dup()

    def __del__(self) -> None:
        self._socket.close()

    def cut(self) -> None:
        """End what waits on the connection, now and later."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # not connected yet, or no more
            pass


class Hop(Generic[T]):
    """One hop under way. The thread that runs it writes it; the loop reads it, and may `cut` it."""

    def __init__(self, fetch: Fetch[T], settings: FetchSettings) -> None:
        now = time.monotonic()
        self.fetch = fetch
        self.connect_by = min(fetch.deadline, now + settings.connect_timeout_s)
        self.began_at = now
        self.connected_at = 0.0
        self.ready_at = 0.0
        """When it was connected, TLS included: from here on the rate counts."""
        self.first_byte_at = 0.0
        self.reused = False
        self.in_tls = False
        """TCP is connected, to the host itself or through a proxy, or to a proxy that speaks TLS: what
        fails now, before `ready_at`, is TLS.
        """
        self.receiver: Receiver | None = None
        self.failure: Failure | None = None
        """Why it ended, where that is known better than the exception tells."""
        self._lock = threading.Lock()
        self._cord: _Cord | None = None
        self._settings = settings

    @property
    def connect_left_s(self) -> float:
        return max(0.001, self.connect_by - time.monotonic())

    @property
    def may_try_again(self) -> bool:
        """Whether an end without any answer may be that of an idle connection, closed meanwhile."""
        return self.reused and self.failure is None and time.monotonic() < self.fetch.deadline

    def hold(self, cord: _Cord) -> None:
        """The thread goes on over this connection. Raises Cut."""
        with self._lock:
            if self.failure is not None:
                raise Cut
            self._cord = cord

    def let_go(self) -> None:
        """The thread has ended with it; the connection may be used for another."""
        with self._lock:
            self._cord = None

    def cut(self, failure: Failure) -> None:
        """End it, whatever it waits for; the first reason counts."""
        with self._lock:
            self.failure = self.failure or failure
            if self._cord is not None:
                self._cord.cut()

    def sample(self, timings: Timings) -> None:
        """Count what it took; it has ended."""
        tls = self.fetch.target.url[:5].lower() == "https"
        timings.add_fetch(
            self.fetch.target.host,
            opened=not self.reused,
            connect_s=max(0.0, self.connected_at - self.began_at),
            tls_s=max(0.0, self.ready_at - self.connected_at) if tls else 0.0,
            first_byte_s=self.first_byte_at - self.ready_at,
            total_s=time.monotonic() - self.began_at,
        )

    def limit_reached(self, now: float) -> Failure | None:
        """Which limit on time it has reached, if any."""
        settings = self._settings
        if now >= self.fetch.deadline:
            return Failure(FailureKind.TIMEOUT, f"no whole answer within {settings.deadline_s:g} s")
        if not self.ready_at:
            if now < self.connect_by:
                return None
            return Failure(FailureKind.TIMEOUT, f"no connection within {settings.connect_timeout_s:g} s")
        return self.receiver.too_slow(now) if self.receiver is not None else None


class Line:
    """What a thread's session, its connections and its answers know of each other."""

    def __init__(self, settings: FetchSettings, guard: AddressGuard, buffers: Buffers) -> None:
        self.hop: Hop[Any]
        self.receiver = Receiver(settings, buffers)
        self._guard = guard
        self._max_header_bytes = settings.max_header_bytes

    def take_header(self, line: bytes) -> None:
        """Raises Cut where it is one too many."""
        self.hop.first_byte_at = self.hop.first_byte_at or time.monotonic()
        headers = self.receiver.headers
        if line[:1] in {b" ", b"\t"} and headers.endswith(b"\n"):  # folded: as libcurl hands it over
            del headers[-2 if headers.endswith(b"\r\n") else -1 :]
            line = b" " + line.lstrip(b" \t")
        headers += line
        if len(headers) > self._max_header_bytes:
            raise Cut(too_many_headers(self._max_header_bytes))

    def proxy_header_taker(self) -> Callable[[bytes], None]:
        """Takes the lines of a proxy's own answer; raises Cut where it is one too many."""
        left = self._max_header_bytes

        def take(line: bytes) -> None:
            nonlocal left
            left -= len(line)
            if left < 0:
                raise Cut(too_many_headers(self._max_header_bytes))

        return take

    def connect(self, port: int) -> tuple[socket.socket, _Cord]:
        """To one of the addresses of the hop's host that may be fetched from. Raises OSError, Cut."""
        hop = self.hop
        addresses, refusal = self._checked_addresses(port)
        error = OSError("no address")
        for tried, address in enumerate(addresses):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                cord = _Cord(sock)
                hop.hold(cord)
                sock.settimeout(hop.connect_left_s / (len(addresses) - tried))
                sock.connect((address, port))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as failed:
                error = failed
                sock.close()
            except Cut:
                sock.close()
                raise
            else:
                return sock, cord
        if refusal:
            hop.cut(Failure(FailureKind.BLOCKED_ADDRESS, refusal))
        raise error

    def _checked_addresses(self, port: int) -> tuple[list[str], str]:
        """Those that may be fetched from, and why another may not."""
        fetch = self.hop.fetch
        literal = literal_address(fetch.target.host)
        known = [literal] if literal is not None else [text.strip("[]") for text in fetch.addresses]
        refusals = {address: self._guard.refusal(address, port) for address in known}
        refusal = next((why for why in refusals.values() if why), "")
        return [address for address, why in refusals.items() if not why], refusal


class _OnLine:
    """What our connections have in common: whom they ask to connect, and who reads their answers."""

    def __init__(self, line: Line, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._line = line
        self._cord: _Cord | None = None
        self.response_class: Any = partial(StrictResponse, on_line=line.take_header)

    def _new_conn(self) -> socket.socket:
        hop = self._line.hop
        if self.proxy is None:  # type: ignore[attr-defined]
            sock, self._cord = self._line.connect(self.port)  # type: ignore[attr-defined]
        else:
            sock = super()._new_conn()  # type: ignore[misc]
            self._cord = _Cord(sock)
            hop.hold(self._cord)
        sock.settimeout(hop.connect_left_s)
        hop.connected_at = time.monotonic()
        hop.in_tls = self.proxy is None or self.proxy.scheme == "https"  # type: ignore[attr-defined]
        return sock

    def _tunnel(self) -> None:
        """Ask the proxy for the host; behind its answer the host's handshake begins. It is read as
        strictly as any: `http.client` takes one that breaks off for a whole one. Raises OSError,
        HTTPException, Cut.
        """
        line, name = self._line, str(self._tunnel_host)  # type: ignore[attr-defined]
        line.hop.in_tls = False
        host = f"[{name}]:{self._tunnel_port}" if ":" in name else f"{name}:{self._tunnel_port}"  # type: ignore[attr-defined]
        told = [f"{key}: {value}" for key, value in self._tunnel_headers.items()]  # type: ignore[attr-defined]
        ask = "\r\n".join([f"CONNECT {host} HTTP/1.1", f"Host: {host}", *told, "", ""])
        self.send(ask.encode("latin-1"))  # type: ignore[attr-defined]
        sock = self.sock  # type: ignore[attr-defined]
        with closing(StrictResponse(sock, on_line=line.proxy_header_taker(), method="CONNECT")) as answer:
            answer.begin()
        if answer.status // 100 != 2:  # RFC 9110, 9.3.6
            raise OSError(f"the proxy answered {answer.status} {answer.reason}")
        line.hop.in_tls = True

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        if isinstance(self.sock, (ssl.SSLSocket, SSLTransport)):  # type: ignore[attr-defined]
            # An end without goodbye is no end: RFC 9112, 9.8.
            self.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined, union-attr]
        hop = self._line.hop
        self.sock.settimeout(max(0.001, hop.fetch.deadline - time.monotonic()))  # type: ignore[attr-defined]
        hop.ready_at = time.monotonic()

    def putrequest(self, method: str, url: str, *args: Any, **more: Any) -> None:
        """Every request begins here, also over a connection that is used again."""
        hop = self._line.hop
        if self._cord is not None and not hop.ready_at:
            hop.hold(self._cord)
            hop.ready_at, hop.reused = time.monotonic(), True
        # As it stands in the URL: urllib3 would encode it once more.
        if url.startswith("/"):
            url = request_target(hop.fetch.target.url)
        super().putrequest(method, url, *args, **more)  # type: ignore[misc]

    def close(self) -> None:
        self._cord = None
        super().close()  # type: ignore[misc]


class _Plain(_OnLine, HTTPConnection):
    pass


class _Secure(_OnLine, HTTPSConnection):
    pass


class _Pools(PoolManager):
    def __init__(self, line: Line, **more: Any) -> None:
        super().__init__(**more)
        self._line = line

    def _new_pool(self, scheme: str, *args: Any, **more: Any) -> HTTPConnectionPool:
        return _on_line(self._line, scheme, super()._new_pool(scheme, *args, **more))


class _ProxyPools(ProxyManager):
    def __init__(self, line: Line, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._line = line

    def _new_pool(self, scheme: str, *args: Any, **more: Any) -> HTTPConnectionPool:
        return _on_line(self._line, scheme, super()._new_pool(scheme, *args, **more))


def _on_line(line: Line, scheme: str, pool: HTTPConnectionPool) -> HTTPConnectionPool:
    pool.ConnectionCls = partial(_Secure if scheme == "https" else _Plain, line)  # type: ignore[assignment]
    return pool


class _Adapter(HTTPAdapter):
    """requests' own, over our connections."""

    def __init__(self, line: Line, context: ssl.SSLContext) -> None:
        self._line = line
        self._context = context
        super().__init__(pool_connections=_POOLS, pool_maxsize=1)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> None:
        self.poolmanager = _Pools(
            self._line, num_pools=connections, maxsize=maxsize, block=block, ssl_context=self._context, **more
        )

    def proxy_manager_for(self, proxy: str, **more: Any) -> ProxyManager:
        if proxy not in self.proxy_manager:
            self.proxy_manager[proxy] = _ProxyPools(
                self._line,
                proxy,
                proxy_headers=self.proxy_headers(proxy),
                num_pools=_POOLS,
                maxsize=1,
                ssl_context=self._context,
                proxy_ssl_context=self._context,
                **more,
            )
        manager: ProxyManager = self.proxy_manager[proxy]
        return manager

    def cert_verify(self, *_: Any, **__: Any) -> None:
        """Nothing: the context has the authorities, read once instead of for each connection."""


class Session(requests.Session):
    """One thread's: it keeps connections and nothing else."""

    def __init__(self, line: Line, context: ssl.SSLContext, settings: FetchSettings) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._plain_headers = {
            "User-Agent": settings.full_user_agent,
            "Accept": "image/*,*/*;q=0.5",
            "Accept-Encoding": "identity",
        }
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(line, context))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """None: whatever it is told, the session follows nothing."""
        del resp
        return None

    def get_plainly(self, url: str, timeout_s: tuple[float, float], proxy: str) -> requests.Response:
        """The answer to a GET of just this URL, which requests would mend; its body is not read yet."""
        request = requests.PreparedRequest()
        request.method, request.url = "GET", url
        request.headers = CaseInsensitiveDict(self._plain_headers)
        request.hooks = {"response": []}
        authorization = _authorization(url)
        if authorization:
            request.headers["Authorization"] = authorization
        proxies = {"http": proxy, "https": proxy} if proxy else {}
        return self.send(request, stream=True, allow_redirects=False, timeout=timeout_s, proxies=proxies)


def tls_context(settings: FetchSettings) -> ssl.SSLContext:
    """As libcurl's: TLS 1.2 at least, HTTP/1.1 only, no authorities but those of the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["http/1.1"])
    context.load_verify_locations(settings.ca_file or certifi.where())
    return context


def _authorization(url: str) -> str:
    """What libcurl makes of a user and a password in a URL, or ''."""
    user_info, at, _ = urlsplit(url).netloc.rpartition("@")
    if not at:
        return ""
    user, _, password = user_info.partition(":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return f"Basic {base64.b64encode(pair).decode()}"
