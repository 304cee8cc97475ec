"""A name server of the tests' own: UDP and TCP on loopback, in threads; what it answers is a function's
choice.
"""

from __future__ import annotations

import heapq
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Self

_A: Final = 1
_CNAME: Final = 5
_AAAA: Final = 28
NXDOMAIN: Final = 3
SERVFAIL: Final = 2
REFUSED: Final = 5


@dataclass(frozen=True)
class Reply:
    """Addresses with a time to live in seconds, or an error code; no addresses: the name has none.

    With an `alias_ttl_s` they are those of an alias, which may be kept for that long. `cut`: whole only over
    TCP. `torn`: an address has one byte. `after_s`: so late.
    """

    addresses: tuple[str, ...] = ()
    ttl_s: int = 300
    code: int = 0
    alias_ttl_s: int | None = None
    cut: bool = False
    torn: bool = False
    after_s: float = 0.0


@dataclass
class NameServer:
    """`answer(name)` says what to reply, None for nothing at all. `asked` counts questions for addresses
    by name, `over_tcp` those of them that came that way. Port 0: one that is free.
    """

    answer: Callable[[str], Reply | None]
    at: tuple[str, int] = ("127.0.0.1", 0)
    asked: Counter[str] = field(default_factory=Counter)
    over_tcp: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        self._listener = self._bind()
        self._later = Later()
        self._threads = [
            threading.Thread(target=serve, daemon=True) for serve in (self._serve, self._serve_tcp)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._later.close()
        self._socket.close()
        self._listener.close()

    def _bind(self) -> socket.socket:
        """One port for both, which may take a few tries."""
        while True:
            self._socket.bind(self.at)
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                listener.bind(self._socket.getsockname())
            except OSError:
                listener.close()
                self._socket.close()
                self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                continue
            listener.listen()
            return listener

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(4096)
            if not question:
                return
            packed, after_s = self._reply(question)
            if packed is None:
                continue
            if after_s:
                self._later.call(after_s, partial(self._socket.sendto, packed, sender))
            else:
                self._socket.sendto(packed, sender)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the end
                return
            with connection, connection.makefile("rwb") as stream:
                while head := stream.read(2):
                    packed, _ = self._reply(stream.read(*struct.unpack(">H", head)), over_tcp=True)
                    if packed is not None:
                        stream.write(struct.pack(">H", len(packed)) + packed)
                        stream.flush()

    def _reply(self, question: bytes, *, over_tcp: bool = False) -> tuple[bytes | None, float]:
        labels, at = [], 12
        while size := question[at]:
            labels.append(question[at + 1 : at + 1 + size].decode())
            at += 1 + size
        (kind,) = struct.unpack_from(">H", question, at + 1)
        name = ".".join(labels).lower()
        if kind == _A:
            self.asked[name] += 1
            self.over_tcp[name] += over_tcp
        reply = self.answer(name)
        if reply is None:
            return None, 0.0
        family = {_A: socket.AF_INET, _AAAA: socket.AF_INET6}.get(kind)
        owner, records = 0xC00C, []  # what was asked for
        if reply.alias_ttl_s is not None:
            alias = b"\x05alias\x00"
            records.append(struct.pack(">HHHLH", owner, _CNAME, 1, reply.alias_ttl_s, len(alias)) + alias)
            owner = 0xC000 + at + 5 + 12
        records += [
            struct.pack(">HHHLH", owner, kind, 1, reply.ttl_s, len(packed)) + packed
            for address in reply.addresses
            if family == (socket.AF_INET6 if ":" in address else socket.AF_INET)
            for packed in [b"\x7f" if reply.torn else socket.inet_pton(family, address)]
        ]
        flags = 0x8180 | reply.code
        if reply.cut and not over_tcp:
            flags, records = flags | 0x0200, []
        header = struct.pack(">HHHHHH", *struct.unpack(">H", question[:2]), flags, 1, len(records), 0, 0)
        return header + question[12 : at + 5] + b"".join(records), reply.after_s


class Later:
    """Calls functions later, in one thread, in the order in which they are due."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def call(self, after_s: float, function: Callable[[], object]) -> None:
        with self._changed:
            self._count += 1
            heapq.heappush(self._due, (time.monotonic() + after_s, self._count, function))
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                if self._due and self._due[0][0] <= time.monotonic():
                    heapq.heappop(self._due)[2]()
                else:
                    self._changed.wait(max(0.0, self._due[0][0] - time.monotonic()) if self._due else None)
