"""The server's side of TLS between bytes and bytes: what came from the client in, what goes to it out.

asyncio's own `start_tls` is not used: it answers a client that leaves in the middle of a large body with
errors in the log, and it pauses its writers by rules of its own.
"""

from __future__ import annotations

import ssl
from typing import Final

_READ_BYTES: Final = 64 * 1024


class TlsChannel:
    """TLS on one connection. It does no I/O: the caller moves the bytes."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._established = False
        self.ended = False
        """Whether the client has said that it sends no more."""

    def receive(self, data: bytes) -> bytes:
        """The plain bytes in what the client sent; empty during the handshake.

        Raises ssl.SSLError if the client speaks no TLS or does not accept the certificate.
        """
        self._incoming.write(data)
        plain = b""
        try:
            if not self._established:
                self._tls.do_handshake()
                self._established = True
            while part := self._tls.read(_READ_BYTES):
                plain += part
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        return plain

    def send(self, data: bytes) -> bytes:
        """What has to go to the client for these plain bytes, and whatever else has to go there."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        return self._outgoing.read()

    def close(self) -> bytes:
        """What has to go to the client as a goodbye (RFC 8446, 6.1)."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:  # it waits for the client's goodbye: we do not
            pass
        return self._outgoing.read()
