"""The simulated web's sockets: an HTTP/1.1 origin server and forward proxy on one port.

A raw asyncio protocol: one object a connection, one request at a time on it, pipelined ones wait in the
buffer. The proxy never leaves this process: `GET http://host/path` is answered here, and CONNECT becomes
TLS with a certificate for the named host.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from typing import Final

from dlconsole.demo.answers import Answer, Answers, End, Piece, refusal, saying_close, without_body
from dlconsole.demo.behaviour import Plan
from dlconsole.demo.tls import TlsChannel
from dlconsole.demo.wire import HEAD_CAP_BYTES, Request, RequestError, parse_head

_BACKLOG: Final = 2048
_SEND_BUFFER_BYTES: Final = 256 * 1024
_LINGER_S: Final = 1.0
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_HEAD_END: Final = b"\r\n\r\n"


class WebServer:
    """All connections of the simulated web in the running event loop."""

    def __init__(
        self,
        plan: Callable[[str], Plan],
        answers: Answers,
        *,
        idle_timeout_s: float,
        context_for: Callable[[str], ssl.SSLContext] | None = None,
    ) -> None:
        """`plan` says what an absolute URL gets, `context_for` makes TLS for a host (None: no CONNECT)."""
        self.plan = plan
        self.answers = answers
        self.idle_timeout_s = idle_timeout_s
        self.context_for = context_for
        self.connections: set[Connection] = set()
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, hosts: tuple[str, ...], port: int) -> int:
        """Listen on each address, all on one port; 0 takes a free one. Returns the port.

        Raises OSError if an address cannot be had.
        """
        loop = asyncio.get_running_loop()
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # Set before listen() it is inherited: most pictures then leave in a single send().
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
                listener.bind((host, port))
                port = listener.getsockname()[1]
                server = await loop.create_server(lambda: Connection(self), sock=listener, backlog=_BACKLOG)
            except BaseException:
                listener.close()
                raise
            self._listeners.append(server)
        self._sweeper = loop.create_task(self._sweep())
        return port

    async def stop(self) -> None:
        """Stop listening and drop every connection, whatever it is doing."""
        for listener in self._listeners:
            listener.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)  # asyncio tells them in its next round
        for listener in self._listeners:
            await listener.wait_closed()

    async def _sweep(self) -> None:
        """One pass over all connections instead of a timer each."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self.idle_timeout_s / 2))
            oldest = loop.time() - self.idle_timeout_s
            for connection in list(self.connections):
                if connection.waiting_since < oldest:
                    connection.abort()


class Connection(asyncio.Protocol):
    """One client. It is answering, waiting for a request, or refused and about to be closed.

    A client that closes its sending side counts as gone: this is how running answers are cancelled.
    """

    def __init__(self, server: WebServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._pieces: Iterator[Piece] = iter(())
        self._end = End.KEEP
        self._busy = False
        self._refused = False
        self._writable = True
        self._paused = False
        self._timer: asyncio.Handle | None = None
        self._tunnel_host: str | None = None
        self._tls: TlsChannel | None = None
        self.waiting_since = self._loop.time()
        """Since when it waits for the client, in loop time; infinite while an answer is on its way."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, and with it whatever was being sent."""
        del exc
        self._drop_timer()
        self._busy = True
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of requests, any number and any part of them."""
        if self._refused:
            return
        self._buffer += data if self._tls is None else self._decrypt(data, self._tls)
        if self._busy:
            # A flood of pipelined requests waits in the client's kernel, not in our memory.
            if len(self._buffer) > HEAD_CAP_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            return
        self._serve_buffered()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write; if it stops altogether, the sweeper ends it."""
        self._writable = False
        self.waiting_since = self._loop.time()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._writable = True
        self.waiting_since = float("inf") if self._busy else self._loop.time()
        if self._timer is None:
            # Not from here: the transport is in the middle of a write, and another that fails now would
            # make asyncio close it twice.
            self._timer = self._loop.call_soon(self._go_on, b"")

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    def _serve_buffered(self) -> None:
        while not self._busy and self._writable and not self._refused and self._timer is None:
            try:
                request = self._next_request()
                if request is None:
                    break
                self._serve(request)
            except RequestError as error:
                self._refuse(error)
        if self._paused and not self._busy and not self._refused:
            self._paused = False
            self._transport.resume_reading()

    def _next_request(self) -> Request | None:
        end = self._buffer.find(_HEAD_END)
        if end > HEAD_CAP_BYTES or (end < 0 and len(self._buffer) > HEAD_CAP_BYTES):
            raise RequestError(431, "Request Header Fields Too Large")
        if end < 0:
            start = self._buffer[:3].lstrip(b"\r\n")
            if start and not start[:1].isalpha():  # TLS or garbage: no end of a head would ever come
                raise RequestError(400, "Bad Request")
            return None
        head = bytes(self._buffer[:end])
        del self._buffer[: end + len(_HEAD_END)]
        return parse_head(head)

    def _serve(self, request: Request) -> None:
        if request.method == b"CONNECT":
            self._tunnel(request.tunnel_host)
            return
        try:
            plan = self._server.plan(request.url(self._tunnel_host))
        except ValueError:
            raise RequestError(400, "Bad Request") from None
        answer = self._server.answers.build(plan)
        if request.method == b"HEAD":
            answer = without_body(answer)
        if request.close:
            answer = saying_close(answer)
        self._start(answer)

    def _start(self, answer: Answer) -> None:
        self._busy = True
        self.waiting_since = float("inf")
        self._pieces = iter(answer.pieces)
        self._end = answer.end
        self._advance()

    def _advance(self) -> None:
        """Send pieces until one has to wait, the client is slow, or the answer is complete."""
        while self._writable and not self._transport.is_closing():
            piece = next(self._pieces, None)
            if piece is None:
                self._finish()
                return
            delay_s, data = piece
            if delay_s > 0:
                self._timer = self._loop.call_later(delay_s, self._go_on, data)
                return
            self._send(data)

    def _go_on(self, data: bytes) -> None:
        self._timer = None
        self._send(data)
        if self._busy:
            self._advance()
        self._serve_buffered()

    def _finish(self) -> None:
        self.waiting_since = self._loop.time()
        if self._end is End.KEEP:
            self._busy = False
        elif self._end is End.CLOSE:
            self._say_goodbye()
            self._transport.close()
        else:
            # Without lingering the kernel sends RST instead of FIN.
            self._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER
            )
            self._transport.abort()

    def _refuse(self, error: RequestError) -> None:
        """Answer, then read on for a moment: closing with unread bytes would destroy the answer."""
        self._refused = True
        self._buffer.clear()
        self._send(refusal(error.status, error.reason))
        self._say_goodbye()
        self._transport.write_eof()
        self._timer = self._loop.call_later(_LINGER_S, self._transport.close)

    def _tunnel(self, host: str) -> None:
        context_for = self._server.context_for
        if context_for is None:
            raise RequestError(501, "Not Implemented")
        if self._tunnel_host is not None or self._buffer:
            raise RequestError(400, "Bad Request")
        self._send(_ESTABLISHED)
        self._tunnel_host = host
        self._tls = TlsChannel(context_for(host))
        self.waiting_since = self._loop.time()

    def _decrypt(self, data: bytes, tls: TlsChannel) -> bytes:
        try:
            plain = tls.receive(data)
        except ssl.SSLError:  # no TLS, or the client does not trust the certificate
            self._transport.abort()
            return b""
        if tls.ended:
            self._transport.abort()
        self._send(b"")
        return plain

    def _send(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(data if self._tls is None else self._tls.send(data))

    def _say_goodbye(self) -> None:
        if self._tls is not None and not self._transport.is_closing():
            self._transport.write(self._tls.close())

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
