"""A web of the tests' own with several hosts, that knows who asked when and how many at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Self

from PIL import Image


def _picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


PICTURE = _picture()


@dataclass(frozen=True)
class Reply:
    """A status and headers; with 200 a picture follows, or what else is said; pieces come without a length."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | Iterable[bytes] = PICTURE


@dataclass
class Host:
    """One address; `answer(path)` is called in a thread of the request's own, and may wait."""

    answer: Callable[[str], Reply] = lambda _path: Reply()
    origin: str = ""
    times: list[float] = field(default_factory=list)
    """When each request came (`monotonic`)."""
    paths: list[str] = field(default_factory=list)
    """What each asked for."""
    agents: set[str] = field(default_factory=set)
    running: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, path: str, agent: str) -> Reply:
        with self.lock:
            self.times.append(time.monotonic())
            self.paths.append(path)
            self.agents.add(agent)
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            return self.answer(path)
        finally:
            with self.lock:
                self.running -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away in between is no matter."""


class HostWeb:
    """`hosts[i]` answers on 127.0.1.<i + 1>, each on a port of its own."""

    def __init__(self, *hosts: Host) -> None:
        self.hosts = hosts
        self._servers = [_Server((f"127.0.1.{i}", 0), _handler(host)) for i, host in enumerate(hosts, 1)]
        for host, server in zip(hosts, self._servers, strict=True):
            host.origin = f"http://{server.server_address[0]}:{server.server_address[1]}"

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


def _handler(host: Host) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            reply = host.serve(self.path, self.headers["User-Agent"])
            body = reply.body if reply.status == 200 else b""
            self.close_connection = not isinstance(body, bytes)
            length = (("Content-Length", str(len(body))),) if isinstance(body, bytes) else ()
            self.send_response(reply.status)
            for name, value in (*reply.headers, *length):
                self.send_header(name, value)
            self.end_headers()
            for piece in (body,) if isinstance(body, bytes) else body:
                self.wfile.write(piece)

        def log_message(self, *_arguments: object) -> None:
            """Not to the test's output."""

    return Handler
