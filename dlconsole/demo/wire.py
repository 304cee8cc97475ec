"""Reading HTTP/1.1 request heads (RFC 9112): the small, strict part that a picture server needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

HEAD_CAP_BYTES: Final = 16 * 1024
"""Longest request line with its header fields; more is answered 431."""

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET: Final = re.compile(rb"[!-~\x80-\xff]+")
_ABSOLUTE: Final = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
_HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[^\x00-\x20\x7f/?#@\\:\[\]]+)(?::[0-9]*)?")
_CONNECT: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):[0-9]{1,5}")
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
_METHODS: Final = frozenset({b"GET", b"HEAD", b"CONNECT"})


class RequestError(Exception):
    """A request that is refused: `status` and `reason` make the answer's status line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `target` is the whole URL in absolute form, `host:port` after CONNECT, else a path.

    `host` is the Host field, `close` whether the client wants the connection closed after the answer.
    """

    method: bytes
    target: bytes
    host: bytes
    close: bool

    @property
    def tunnel_host(self) -> str:
        """The name that a CONNECT asks for, without brackets and port."""
        match = _CONNECT.fullmatch(self.target)
        if match is None:
            raise RequestError(400, "Bad Request")
        return match[1].strip(b"[]").decode().lower()

    def url(self, tunnel_host: str | None) -> str:
        """The absolute URL that is asked for: in a tunnel https on the tunnel's host."""
        if tunnel_host is not None:
            host = f"[{tunnel_host}]" if ":" in tunnel_host else tunnel_host
            return f"https://{host}" + _text(self._path())
        if _ABSOLUTE.match(self.target):
            return _text(self.target)
        return "http://" + _text(self.host) + _text(self._path())

    def _path(self) -> bytes:
        if not self.target.startswith(b"/"):
            raise RequestError(400, "Bad Request")
        return self.target


def parse_head(head: bytes) -> Request:
    """A request from its head without the empty line at its end. Raises RequestError."""
    line, *fields = head.lstrip(b"\r\n").split(b"\r\n")
    method, target, old = _request_line(line)
    host: bytes | None = None
    close = False
    for field in fields:
        name, colon, value = field.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise RequestError(400, "Bad Request")
        name = name.lower()
        if name == b"host":
            if host is not None:
                raise RequestError(400, "Bad Request")
            host = value.strip()
        elif name == b"connection":
            close = close or b"close" in value.lower()
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            raise RequestError(413, "Content Too Large")  # nothing here takes a body
    if host is None and old:  # only 1.1 asks for it
        host = b""
    elif host is None or not _HOST.fullmatch(host):
        raise RequestError(400, "Bad Request")
    return Request(method, target, host, close)


def _request_line(line: bytes) -> tuple[bytes, bytes, bool]:
    """Method, target, and whether it is HTTP/1.0: in that Python's own client asks for tunnels."""
    parts = line.split(b" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not _VERSION.fullmatch(parts[2]):
        raise RequestError(400, "Bad Request")
    method, target, version = parts
    old = version == b"HTTP/1.0" and method == b"CONNECT"
    if version != b"HTTP/1.1" and not old:
        raise RequestError(505, "HTTP Version Not Supported")
    if method not in _METHODS:
        raise RequestError(405, "Method Not Allowed")
    if not _TARGET.fullmatch(target):
        raise RequestError(400, "Bad Request")
    return method, target, old


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
