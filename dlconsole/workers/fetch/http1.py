"""HTTP/1.1 answers as the `requests` engine reads them (RFC 9112), as strictly as libcurl does.

`http.client` takes a negative length for none, a chunk of `-5` bytes for a chunk, and a hundred header
lines for too many; here what is no answer is an error, and nothing is read without a limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from typing import Any, Final

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n\0]*))?\r?\n", re.IGNORECASE)
_FIELD: Final = re.compile(rb"([^:\r\n\0]*?)([ \t]*):[ \t]*([^\r\n\0]*?)[ \t]*\r?\n")
"""Whatever its name is made of: libcurl and browsers do not mind."""
_CHUNK_SIZE: Final = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")
_CHUNK_BEGINS: Final = re.compile(rb"[ \t]*[0-9A-Fa-f]{0,16}[ \t]*(?:;[^\r\n]*)?\r?")
_BLANKS: Final = " \t\r\n"
_EMPTY: Final = (b"\r\n", b"\n")
_MAX_LINE_BYTES: Final = 4096
"""Of what frames a body: a chunk's size with its extensions."""
_NO_BODY: Final = frozenset({204, 304})
_DETACHED: Final = ("content-length ", "transfer-encoding ")
"""What ends where the body does, but that not everybody takes for it: RFC 9112, 5.1."""


class StrictResponse(HTTPResponse):
    """An answer whose head's lines are handed to `on_line` as they come, its last one when all is right with
    the head; what that raises ends it.
    """

    def __init__(self, sock: Any, on_line: Callable[[bytes], None], **more: Any) -> None:
        super().__init__(sock, **more)
        self._on_line = on_line
        self._chunk_left = 0
        self._is_read = False

    def begin(self) -> None:
        """Read the head. Raises HTTPException where it is none."""
        if self._is_read:
            return
        self._is_read = True
        self._read_head()
        while not self._is_last:
            self._read_head()
        self.will_close = self._check_close()  # type: ignore[attr-defined]
        if not self.chunked and self.length is None:
            self.will_close = True

    @property
    def _is_last(self) -> bool:
        """Whether no other head follows: RFC 9110, 15.2."""
        return self.status >= 200 or self.status == HTTPStatus.SWITCHING_PROTOCOLS

    def _read_head(self) -> None:
        """One head, and how its body is framed."""
        last_line = self._read_fields()
        is_tunnel = self._method == "CONNECT"  # type: ignore[attr-defined]
        if self._is_last and not is_tunnel:  # RFC 9110, 9.3.6
            self._look_at_framing()
        self._on_line(last_line)

    def _look_at_framing(self) -> None:
        """Where the body is to end. Raises HTTPException where that is not certain."""
        if len(set(filter(None, self.headers.get_all("location", [])))) > 1:
            raise HTTPException("more than one Location")
        if self.status in _NO_BODY:
            self.chunked, self.length = False, 0
            return
        _refuse_detached(self.headers)
        self.chunked = _is_chunked(self.headers)
        self.length = _length(self.headers)
        if self.chunked:
            self.length = None

    def _read_fields(self) -> bytes:
        """One head's lines, into `status` and `headers`; the empty one behind them."""
        first = self._line()
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise HTTPException(f"no status line: {first[:60]!r}")
        self.version = 10 + int(match[1])
        self.code = self.status = int(match[2])
        self.reason = (match[3] or b"").decode("latin-1").strip()
        self.headers = self.msg = HTTPMessage()
        fields: list[tuple[str, str]] = []
        while (line := self._line()) not in _EMPTY:
            if line[:1] in {b" ", b"\t"} and fields and b"\0" not in line:  # folded, RFC 9112, 5.2
                name, value = fields.pop()
                fields.append((name, f"{value} {line.decode('latin-1')}".strip(_BLANKS)))
            else:
                fields.append(_field(line))
        for name, value in fields:
            self.headers[name] = value
        return line

    def _line(self) -> bytes:
        """The next line of the head, handed over unless it is empty; its length is limited by `on_line`."""
        whole = b""
        while not whole.endswith(b"\n"):
            piece: bytes = self.fp.readline(_MAX_LINE_BYTES)
            if not piece:
                raise HTTPException("the connection was closed before the end of the headers")
            whole += piece
            if whole not in _EMPTY:
                self._on_line(piece)
        return whole

    def read1(self, n: int = -1) -> bytes:
        """Up to `n` bytes of the body, as soon as there are some; b'' at its end. Raises IncompleteRead where
        it ends too early, HTTPException where its chunks are none.
        """
        if self.isclosed():
            return b""
        if self.chunked and not self._chunk_left:
            self._chunk_left = self._next_chunk()
            if not self._chunk_left:
                self._end()
                return b""
        left = self._chunk_left if self.chunked else self.length
        data: bytes = self.fp.read1(n if left is None else min(n, left)) if left != 0 else b""
        if not data:
            if left:
                raise IncompleteRead(b"", left)
            self._end()
        elif self.chunked:
            self._chunk_left -= len(data)
            if not self._chunk_left and self._framing_line() not in _EMPTY:
                raise HTTPException("a chunk that is longer than it says")
        elif self.length is not None:
            self.length -= len(data)
            if not self.length:
                self._end()
        return data

    def _next_chunk(self) -> int:
        """The next chunk's size; 0: it was the last, and the trailer has been read."""
        line = self._framing_line()
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise HTTPException(f"no chunk size: {line[:60]!r}")
        size = int(match[1], 16)
        if not size:
            while (line := self._line()) not in _EMPTY:
                _field(line)
        return size

    def _framing_line(self) -> bytes:
        line: bytes = self.fp.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            if len(line) < _MAX_LINE_BYTES and _CHUNK_BEGINS.fullmatch(line):
                raise IncompleteRead(b"")
            raise HTTPException(f"no chunk size: {line[:60]!r}")
        return line

    def _end(self) -> None:
        self._close_conn()  # type: ignore[attr-defined]


def _field(line: bytes) -> tuple[str, str]:
    """Name and value; the name ends in a space where one stands in front of the colon."""
    match = _FIELD.fullmatch(line)
    if match is None:
        raise HTTPException(f"no header line: {line[:60]!r}")
    return match[1].decode("latin-1") + (" " if match[2] else ""), match[3].decode("latin-1")


def _refuse_detached(headers: HTTPMessage) -> None:
    """Raises HTTPException where a space stands in front of a colon that matters."""
    for name in _DETACHED:
        if name in headers:
            raise HTTPException(f"a space in front of the colon of {name.strip()}")


def _is_chunked(headers: HTTPMessage) -> bool:
    codings = headers.get_all("transfer-encoding")
    if codings is None:
        return False
    if ",".join(codings).lower() != "chunked":
        raise HTTPException(f"Transfer-Encoding that was not asked for: {codings[0][:60]!r}")
    return True


def _length(headers: HTTPMessage) -> int | None:
    """Of one, or of a list of equal ones (RFC 9110, 8.6). Raises HTTPException for what is none."""
    told = headers.get_all("content-length", [])
    if not told:
        return None
    lengths = [value.strip(" \t") for value in ",".join(told).split(",")]
    if not all(length.isascii() and length.isdigit() for length in lengths):
        raise HTTPException(f"no Content-Length: {told[0][:60]!r}")
    values = {length.lstrip("0") for length in lengths}
    if len(values) > 1:
        raise HTTPException("lengths that differ")
    return int(values.pop()[:20] or "0")  # with twenty digits far more than comes
