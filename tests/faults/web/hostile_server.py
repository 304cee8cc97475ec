"""A server of the tests' own: each case listens on a port of its own and does with a connection what it likes."""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Self

TICK_S = 0.2
"""Between two bytes of what is stuttered; far longer than a byte takes, far shorter than any deadline."""


class Peer:
    """One connection, from the server's side. Everything ends quietly when the other side has had enough."""

    def __init__(self, sock: socket.socket, over: threading.Event) -> None:
        self.sock = sock
        self._over = over

    def request(self) -> bytes:
        """The request's head."""
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.sock.recv(65536)
            if not piece:
                raise ConnectionError
            head += piece
        return head

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def stutter(self, data: bytes) -> None:
        """A byte at a time, for as long as the other side listens."""
        for byte in data:
            self.sock.sendall(bytes((byte,)))
            self.wait(TICK_S)

    def repeat(self, piece: bytes, times: int = 1 << 40, pause_s: float = 0.0) -> None:
        """The same again and again, until the other side has had enough."""
        for _ in range(times):
            self.sock.sendall(piece)
            if pause_s:
                self.wait(pause_s)

    def wait(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise ConnectionError

    def hang(self) -> None:
        """Say nothing until the other side closes."""
        while self.sock.recv(65536):
            pass

    def reset(self) -> None:
        """End the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def cut(self) -> None:
        """End the connection with FIN, without TLS's goodbye."""
        self.sock.shutdown(socket.SHUT_RDWR)


Handler = Callable[[Peer], None]


class HostileServer:
    """Listens on loopback, one port a handler."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()
        with self._lock:
            for sock in self._open:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    @property
    def connections(self) -> int:
        """How many are open now."""
        with self._lock:
            return len(self._open)

    def listen(self, handler: Handler, context: ssl.SSLContext | None = None) -> int:
        """Serve every connection to the port that is returned with `handler`, TLS first where there is a context."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, (handler, context))
        return listener.getsockname()[1]

    def _accept(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                try:
                    sock, _ = key.fileobj.accept()
                except OSError:
                    continue
                threading.Thread(target=self._serve, args=(sock, *key.data), daemon=True).start()

    def _serve(self, sock: socket.socket, handler: Handler, context: ssl.SSLContext | None) -> None:
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if context is not None:
                sock = context.wrap_socket(sock, server_side=True)
            with self._lock:
                self._open.add(sock)
            handler(Peer(sock, self._over))
        except (OSError, ValueError):  # ssl's errors are of both kinds
            pass
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()
