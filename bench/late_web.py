"""A web that answers late: `python late_web.py PICTURES SECONDS`. It says its port once it serves.

It answers on every address of 127.0.0.0/8, keeps connections, and gives each request's picture that long
after the request came. Python and epoll, one thread: about 40 µs a picture, so one core is enough for ten times
what the benchmarks ask of it. It ends with its standard input.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

_BACKLOG: Final = 4096
_HEAD_END: Final = b"\r\n\r\n"


class LateWeb:
    """See above. A client asks one thing at a time on a connection."""

    def __init__(self, pictures: Path, latency_s: float) -> None:
        self._latency_s = latency_s
        self._answers = {path.stem.encode(): _answer(path.read_bytes()) for path in pictures.iterdir()}
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Every address of loopback, and none of another device.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        self._listener.bind(("0.0.0.0", 0))
        self._listener.listen(_BACKLOG)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(0, select.EPOLLIN)
        self._peers: dict[int, socket.socket] = {}
        self._heads: dict[int, bytes] = {}
        self._due: deque[tuple[float, socket.socket, bytes]] = deque()
        """The oldest first: all wait equally long."""
        self._unsent: dict[int, memoryview] = {}

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """Until standard input ends."""
        while True:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else -1
            for fd, events in self._epoll.poll(wait_s, 512):
                if fd == 0:
                    return
                if fd == self._listener.fileno():
                    self._accept()
                elif events & select.EPOLLOUT:
                    self._epoll.modify(fd, select.EPOLLIN)
                    self._send(self._peers[fd], self._unsent.pop(fd))
                else:
                    self._read(fd)
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, peer, answer = self._due.popleft()
                if peer.fileno() >= 0:
                    self._send(peer, memoryview(answer))

    def _accept(self) -> None:
        for _ in range(64):
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            peer.setblocking(False)
            self._peers[peer.fileno()] = peer
            self._epoll.register(peer, select.EPOLLIN)

    def _read(self, fd: int) -> None:
        peer = self._peers[fd]
        try:
            came = peer.recv(65_536)
        except ConnectionError:
            came = b""
        if not came:
            self._drop(peer)
            return
        head = self._heads.pop(fd, b"") + came
        if not head.endswith(_HEAD_END):
            self._heads[fd] = head
            return
        path = head.split(b" ", 2)[1]
        answer = self._answers[path[-6:-4]]
        self._due.append((time.monotonic() + self._latency_s, peer, answer))

    def _send(self, peer: socket.socket, answer: memoryview) -> None:
        fd = peer.fileno()
        try:
            sent = peer.send(answer)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            self._drop(peer)
            return
        if sent < len(answer):
            self._unsent[fd] = answer[sent:]
            self._epoll.modify(fd, select.EPOLLOUT)

    def _drop(self, peer: socket.socket) -> None:
        fd = peer.fileno()
        del self._peers[fd]
        self._heads.pop(fd, None)
        self._unsent.pop(fd, None)
        peer.close()


def _answer(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def main() -> None:
    """See above."""
    web = LateWeb(Path(sys.argv[1]), float(sys.argv[2]))
    print(web.port, flush=True)
    try:
        web.serve()
    finally:
        os._exit(0)  # thousands of connections need no goodbye


if __name__ == "__main__":
    main()
