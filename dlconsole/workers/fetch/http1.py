"""HTTP/1.1 answers as the `requests` engine reads them (RFC 9112), as strictly as libcurl does.

`http.client` takes a negative length for none, a chunk of `-5` bytes for a chunk, and a hundred header
lines for too many; here what is no answer is an error, and nothing is read without a limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from typing import Any, Final

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([0-9]{3})(?: ([^\r\n]*))?\r?\n", re.IGNORECASE)
_FIELD: Final = re.compile(rb"([!-9;-~]+)[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?\n")
_CHUNK_SIZE: Final = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")
_MAX_LINE_BYTES: Final = 4096
"""Of what frames a body: a chunk's size with its extensions."""
_NO_BODY: Final = frozenset({204, 304})


class StrictResponse(HTTPResponse):
    """An answer whose head's lines are handed to `on_line` as they come; what that raises ends it."""

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
        while not self._read_head():  # informational, RFC 9110, 15.2
            pass
        self.will_close = self._check_close()  # type: ignore[attr-defined]
        self.chunked = self._is_chunked()
        self.length = None if self.chunked else _length(self.headers)
        if self.status in _NO_BODY:
            self.chunked, self.length = False, 0
        if not self.chunked and self.length is None:
            self.will_close = True

    def _read_head(self) -> bool:
        """One head; whether it is the last."""
        first = self._line()
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise HTTPException(f"no status line: {first[:60]!r}")
        self.version = 10 + int(match[1])
        self.code = self.status = int(match[2])
        self.reason = (match[3] or b"").decode("latin-1").strip()
        self.headers = self.msg = HTTPMessage()
        name = ""
        while (line := self._line()) not in {b"\r\n", b"\n"}:
            if line[:1] in {b" ", b"\t"} and name:  # folded, RFC 9112, 5.2
                folded = f"{self.headers[name]} {line.strip().decode('latin-1')}"
                self.headers.replace_header(name, folded)
                continue
            field = _FIELD.fullmatch(line)
            if field is None or b"\0" in line:
                raise HTTPException(f"no header line: {line[:60]!r}")
            name = field[1].decode("latin-1")
            self.headers[name] = field[2].decode("latin-1")
        return self.status >= 200

    def _line(self) -> bytes:
        """The next line of the head; the limit on its length is `on_line`'s."""
        whole = b""
        while not whole.endswith(b"\n"):
            piece: bytes = self.fp.readline(_MAX_LINE_BYTES)
            if not piece:
                raise HTTPException("the connection was closed before the end of the headers")
            self._on_line(piece)
            whole += piece
        return whole

    def _is_chunked(self) -> bool:
        codings = ",".join(self.headers.get_all("transfer-encoding", [])).lower()
        if not codings:
            return False
        if [coding.strip() for coding in codings.split(",")] != ["chunked"]:
            raise HTTPException(f"Transfer-Encoding that was not asked for: {codings[:60]!r}")
        return True

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
            if not self._chunk_left and self._framing_line() not in {b"\r\n", b"\n"}:
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
            while self._line() not in {b"\r\n", b"\n"}:
                pass
        return size

    def _framing_line(self) -> bytes:
        line: bytes = self.fp.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            if len(line) < _MAX_LINE_BYTES:
                raise IncompleteRead(b"")
            raise HTTPException(f"no chunk size: {line[:60]!r}")
        return line

    def _end(self) -> None:
        self._close_conn()  # type: ignore[attr-defined]


def _length(headers: HTTPMessage) -> int | None:
    values = {value.strip() for value in headers.get_all("content-length", [])}
    if not values:
        return None
    value = values.pop()
    if values or not (value.isascii() and value.isdigit()):
        raise HTTPException(f"no Content-Length: {value[:60]!r}")
    return int(value[:4000])
