"""A name server of the tests' own: UDP on loopback, in a thread; what it answers is a function's choice."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

_A: Final = 1
_AAAA: Final = 28
NXDOMAIN: Final = 3
SERVFAIL: Final = 2


@dataclass(frozen=True)
class Reply:
    """Addresses with a time to live in seconds, or an error code; no addresses: the name has none."""

    addresses: tuple[str, ...] = ()
    ttl_s: int = 300
    code: int = 0


@dataclass
class NameServer:
    """`answer(name)` says what to reply, None for nothing at all. `asked` counts questions for addresses
    by name.
    """

    answer: Callable[[str], Reply | None]
    asked: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(4096)
            if not question:
                return
            reply = self._reply(question)
            if reply is not None:
                self._socket.sendto(reply, sender)

    def _reply(self, question: bytes) -> bytes | None:
        labels, at = [], 12
        while size := question[at]:
            labels.append(question[at + 1 : at + 1 + size].decode())
            at += 1 + size
        (kind,) = struct.unpack_from(">H", question, at + 1)
        name = ".".join(labels).lower()
        if kind == _A:
            self.asked[name] += 1
        reply = self.answer(name)
        if reply is None:
            return None
        family = {_A: socket.AF_INET, _AAAA: socket.AF_INET6}.get(kind)
        records = [
            struct.pack(">HHHLH", 0xC00C, kind, 1, reply.ttl_s, len(packed)) + packed
            for address in reply.addresses
            if family == (socket.AF_INET6 if ":" in address else socket.AF_INET)
            for packed in [socket.inet_pton(family, address)]
        ]
        header = struct.pack(
            ">HHHHHH", *struct.unpack(">H", question[:2]), 0x8180 | reply.code, 1, len(records), 0, 0
        )
        return header + question[12 : at + 5] + b"".join(records)
