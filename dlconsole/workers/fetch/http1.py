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

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n\0]*))?\r?\n")
_FIELD: Final = re.compile(rb"([^:\r\n\0]*?)([ \t]*):[ \t]*([^\r\n\0]*?)[ \t]*\r?\n")
"""Whatever its name is made of: libcurl and browsers do not mind."""
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,17})(?:[^0-9A-Fa-f].*)?", re.DOTALL)
"""What stands behind the size is nobody's matter, an extension or not."""
_CHUNK_END: Final = re.compile(rb"\r*\n?")
_TRAILER: Final = re.compile(rb"[^\r\n]{0,4093}\r?\n?")
_MAX_CHUNK_BYTES: Final = 2**63 - 1
_BLANKS: Final = (b" ", b"\t")
_DECISIVE: Final = frozenset({"content-length", "transfer-encoding", "location"})
_EMPTY: Final = (b"\r\n", b"\n")
_MAX_LINE_BYTES: Final = 4096
"""How much of a line is looked at at once; of a chunk's size no more is kept."""
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
        self._has_chunk = False
        self._is_read = False
        self._locations: set[str] = set()

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
        """Whether no other head follows: RFC 9110, 15.2. As with libcurl, no proxy has more than one."""
        return self._is_proxys or self.status >= 200 or self.status == HTTPStatus.SWITCHING_PROTOCOLS

    @property
    def _is_proxys(self) -> bool:
        return self._method == "CONNECT"  # type: ignore[attr-defined, no-any-return]

    def _read_head(self) -> None:
        """One head, and how its body is framed."""
        last_line = self._read_fields()
        self._look_at_framing()
        self._on_line(last_line)

    def _look_at_framing(self) -> None:
        """Where the body is to end. Raises HTTPException where that is not certain, or where the heads so far
        tell of more than one place to go on to, as libcurl does.
        """
        if self._is_proxys:  # its answer has no body: RFC 9110, 9.3.6
            return
        self._locations.update(filter(None, self.headers.get_all("location", [])))
        if len(self._locations) > 1:
            raise HTTPException("more than one Location")
        if not self._is_last:
            return
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
        while (line := self._line()) not in _EMPTY:
            if line.startswith(b"\r"):
                raise HTTPException(f"no header line: {line[:60]!r}")
            while self.fp.peek(1)[:1] in _BLANKS:  # folded, RFC 9112, 5.2
                line = line.removesuffix(b"\n").removesuffix(b"\r") + self._line()
            name, value = _field(line)
            self.headers[name] = value
            if name.lower() in _DECISIVE:  # as soon as it is there: the rest may never come
                self._look_at_framing()
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
        elif self.length is not None:
            self.length -= len(data)
            if not self.length:
                self._end()
        return data

    def _next_chunk(self) -> int:
        """The next chunk's size; 0: it was the last, and the trailer has been read."""
        if self._has_chunk:
            self._framing_line(_CHUNK_END)
        self._has_chunk = True
        line = self._framing_line(_CHUNK_SIZE)
        match = _CHUNK_SIZE.match(line)
        size = int(match[1], 16) if match else _MAX_CHUNK_BYTES + 1
        if size > _MAX_CHUNK_BYTES:
            raise HTTPException(f"no chunk size: {line[:60]!r}")
        if not size:
            while (line := self._framing_line(_TRAILER)) not in _EMPTY:
                self._on_line(line)
                _field(line)
        return size

    def _framing_line(self, form: re.Pattern[bytes]) -> bytes:
        """The next line of the body's framing. Raises HTTPException as soon as it has not this form, whether
        its end has come or not; IncompleteRead where it does not come.
        """
        line = b""
        while not line.endswith(b"\n"):
            here: bytes = self.fp.peek(1)
            if not here:
                raise IncompleteRead(b"")
            line = line[:_MAX_LINE_BYTES] + self.fp.read(here.find(b"\n") + 1 or len(here))
            if form.fullmatch(line) is None:
                raise HTTPException(f"no chunk: {line[:60]!r}")
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
