"""A list that is fetched over http(s), streamed, and gone on with after a cut connection.

Nothing here says a URL: it may hold a password or a signature. Errors of `requests` do, so only their kind is
told on.
"""

from __future__ import annotations

import hashlib
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from dlconsole.services.manifests.places import Remote
from dlconsole.services.manifests.rows import Idle, Stopped, Unreadable

_TIMEOUT_S: Final = (10.0, 30.0)
"""For the connection, and for each wait for bytes."""
_TRIES: Final = 6
"""How often it is asked for without one byte coming: about 15 s of pauses."""
_FIRST_PAUSE_S: Final = 0.5
_IDLE_S: Final = 0.2
_AHEAD: Final = 4
"""Pieces that are fetched ahead of their use."""
_PIECE_BYTES: Final = 256 * 1024
_STRONG_S: Final = 60
"""A Last-Modified so much older than its answer stands for these very bytes (RFC 9110, 8.8.2.2)."""
_MAY_HEAL: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_CHANGED: Final = (
    "was changed while it was fed, so it is another list now: look at what of it is in the queue before you "
    "feed it again"
)


class _Cut(Exception):
    """An answer that did not come, or not to its end, and may another time; why, without the URL."""


class _Head(NamedTuple):
    """An answer's beginning."""

    status: int
    headers: Mapping[str, str]


class _Version(NamedTuple):
    """What a server says of the content."""

    etag: str
    modified: str
    length: int | None


class RemoteOrigin:
    """See Origin. `id` is of the URL without user, password and fragment, and of what the server says of the
    content: ETag, Last-Modified, length; of the URL's query only where there is no ETag, because signatures
    change. Where it says neither ETag nor Last-Modified the list is a stream: nobody could tell whether a
    second answer is the same list.
    """

    def __init__(self, place: Remote, idle: Idle, *, may_be_gzip: bool) -> None:
        self._url = place.url
        self._may_be_gzip = may_be_gzip
        self._answer: _Answer | None = None
        self._version: _Version | None = None
        self._validator = ""
        self._drop = 0
        """Bytes that come once more, from a server that knows no ranges."""
        self._is_over = False
        self.at = 0
        self._try(self._ask, idle)
        version = self._version or _Version("", "", None)
        self.size: int | None = version.length
        self.is_stream = not version.etag and not version.modified
        self.id = f"stream-{secrets.token_hex(8)}" if self.is_stream else _identity(place, version)

    def read(self, idle: Idle) -> bytes:
        """See Origin."""
        return self._try(self._read, idle)

    def seek(self, at: int) -> None:
        """See Origin."""
        if at != self.at:
            self._stop()
            self.at, self._is_over = at, False

    def is_changed(self) -> bool:
        """See Origin: each further answer is looked at when it comes."""
        return False

    def close(self) -> None:
        """See Origin."""
        self._stop()

    def _try(self, call: Callable[[Idle], bytes], idle: Idle) -> bytes:
        """What `call` gives, asked for again where the connection is cut."""
        for number in range(1, _TRIES + 1):
            try:
                return call(idle)
            except _Cut as cut:
                self._stop()
                why = (
                    f"broke off after {self.at:,} bytes ({cut})" if self.at else f"cannot be fetched ({cut})"
                )
                if self._version is not None and self.is_stream:
                    raise Unreadable(f"{why}; nothing says how to go on: fetch it to a file") from None
                if number == _TRIES:
                    raise Unreadable(f"{why}; the same command goes on there") from None
                _pause(_FIRST_PAUSE_S * 2 ** (number - 1), idle)
        raise AssertionError

    def _read(self, idle: Idle) -> bytes:
        if self._is_over:
            return b""
        if self._answer is None:
            self._ask(idle)
        while True:
            data = self._answer.take(idle) if self._answer is not None else b""
            if not data and self._drop:
                raise Unreadable("is shorter than when it was begun, so it is another list now")
            self._is_over = not data
            dropped = min(self._drop, len(data))
            self._drop -= dropped
            if dropped < len(data) or not data:
                self.at += len(data) - dropped
                return data[dropped:]

    def _ask(self, idle: Idle) -> bytes:
        """Begin an answer, from where we are."""
        try:
            self._begin(idle)
        except Unreadable:
            self._stop()  # nobody reads on in another list
            raise
        return b""

    def _begin(self, idle: Idle) -> None:
        headers = {"Accept-Encoding": "identity", "User-Agent": "dlconsole"}
        if self.at and self._validator:
            headers |= {"Range": f"bytes={self.at}-", "If-Range": self._validator}
        self._answer = answer = _Answer(self._url, headers)
        head = answer.head(idle)
        if head.status in _MAY_HEAL:
            raise _Cut(f"HTTP {head.status}")
        if head.status not in {200, 206}:
            raise Unreadable(_CHANGED if head.status == 416 else f"cannot be fetched: HTTP {head.status}")
        packed = head.headers.get("Content-Encoding", "identity").lower()
        if packed != "identity" and not (self._may_be_gzip and packed in {"gzip", "x-gzip"}):
            raise Unreadable(f"comes packed ({packed}) although that was not asked for: fetch it to a file")
        begins, version = _begins(head), _version(head)
        if self._version is None:
            self._version, self._validator = version, _validator(head)
        if version != self._version or begins > self.at:
            raise Unreadable(_CHANGED)
        self._drop = self.at - begins

    def _stop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None


class _Answer:
    """One answer, read in a thread, so that waiting for it can be ended."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._pieces: queue.Queue[bytes | _Head | Exception] = queue.Queue(_AHEAD)
        self._over = threading.Event()
        threading.Thread(target=self._run, args=(url, headers), daemon=True).start()

    def head(self, idle: Idle) -> _Head:
        """Raises _Cut, Unreadable, Stopped."""
        found = self._next(idle)
        assert isinstance(found, _Head)
        return found

    def take(self, idle: Idle) -> bytes:
        """What comes next; nothing at the end. Raises _Cut, Unreadable, Stopped."""
        found = self._next(idle)
        assert isinstance(found, bytes)
        return found

    def close(self) -> None:
        """Of no more use."""
        self._over.set()

    def _next(self, idle: Idle) -> bytes | _Head:
        while True:
            try:
                found = self._pieces.get(timeout=_IDLE_S)
            except queue.Empty:
                if not idle():
                    raise Stopped from None
                continue
            if isinstance(found, Exception):
                raise found
            return found

    def _run(self, url: str, headers: dict[str, str]) -> None:
        try:
            with (
                requests.Session() as session,
                session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response,
            ):
                self._put(_Head(response.status_code, response.headers))
                if response.ok:
                    for piece in response.raw.stream(_PIECE_BYTES, decode_content=False):
                        if piece and not self._put(piece):
                            return
                self._put(b"")
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            self._put(_failure(error))

    def _put(self, piece: bytes | _Head | Exception) -> bool:
        while not self._over.is_set():
            try:
                self._pieces.put(piece, timeout=_IDLE_S)
                return True
            except queue.Full:
                continue
        return False


def _failure(error: Exception) -> Exception:
    kind = type(error).__name__
    if isinstance(error, requests.exceptions.SSLError):
        return Unreadable(f"cannot be fetched: TLS failed ({kind}): is its certificate good?")
    if isinstance(
        error, (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    ) or not isinstance(error, (requests.RequestException, ValueError)):
        return _Cut(kind)
    return Unreadable(f"cannot be fetched: {kind}")


def _begins(head: _Head) -> int:
    """The offset of an answer's first byte."""
    if head.status == 200:
        return 0
    found = _RANGE.match(head.headers.get("Content-Range", ""))
    if found is None:
        raise Unreadable("cannot be gone on with: its server answers with a range that it does not name")
    return int(found[1])


def _version(head: _Head) -> _Version:
    headers = head.headers
    length = headers.get("Content-Length", "")
    if head.status == 206 and (found := _RANGE.match(headers.get("Content-Range", ""))):
        length = found[2]
    known = int(length) if length.isascii() and length.isdecimal() else None
    return _Version(headers.get("ETag", ""), headers.get("Last-Modified", ""), known)


def _validator(head: _Head) -> str:
    """What says that the bytes are still the same (RFC 9110, 13.1.5): a strong ETag, or an old date."""
    etag, modified = head.headers.get("ETag", ""), head.headers.get("Last-Modified", "")
    if etag:
        return etag if etag.startswith('"') else ""
    try:
        age = parsedate_to_datetime(head.headers.get("Date", "")) - parsedate_to_datetime(modified)
    except (TypeError, ValueError):
        return ""
    return modified if age.total_seconds() >= _STRONG_S else ""


def _identity(place: Remote, version: _Version) -> str:
    query = "" if version.etag else urlsplit(place.url).query
    said = "\n".join([str(place), query, version.etag, version.modified, str(version.length)])
    return hashlib.sha256(said.encode()).hexdigest()


def _pause(seconds: float, idle: Idle) -> None:
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        if not idle():
            raise Stopped
        time.sleep(min(_IDLE_S, left_s))
