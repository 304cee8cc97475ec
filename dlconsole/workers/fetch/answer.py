"""One answer as it comes in, and what becomes of it: the same for every engine.

An engine puts the head's lines into `headers` as they came and hands the body's pieces to `write`; how
they travel is its own matter. Of a body that grows large only the last piece is in memory, the rest in a
file. What the head alone decides (an error status, an opt-out, a length that
is too large) stays decided, however the body goes wrong.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urljoin

from dlconsole.errors import StoreError
from dlconsole.model import Failure, FailureKind
from dlconsole.settings import FetchSettings
from dlconsole.workers.fetch.engine import Buffers, Fetched, NotKept, Spill
from dlconsole.workers.fetch.opt_out import agent_token, opt_out_of
from dlconsole.workers.images import SNIFF_BYTES, not_image, sniff

_DISCARD_BYTES: Final = 16 * 1024
"""How much of what is no image is read, to keep the connection; more closes it."""
_WHOLE_HEAD: Final = (b"\r\n\r\n", b"\n\r\n", b"\n\n")
_GOOD: Final = (b"HTTP/1.1 200 ", b"HTTP/1.0 200 ", b"HTTP/1.1 200\r")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?=[ \r\n])", re.IGNORECASE)
_LENGTH: Final = b"\ncontent-length:"


class Receiver:
    """Takes in one answer at a time; `reset_answer` makes ready for the next."""

    __slots__ = (
        "_agent",
        "_begun",
        "_buffers",
        "_discarded",
        "_failure",
        "_least_bytes",
        "_max_bytes",
        "_max_header_bytes",
        "_not_kept",
        "_refused",
        "_room",
        "_sniffed",
        "_spill",
        "_text_bytes",
        "_window_at",
        "_window_bytes",
        "_window_s",
        "body",
        "headers",
        "status",
    )

    def __init__(self, settings: FetchSettings, buffers: Buffers) -> None:
        self.headers = bytearray()
        self._buffers = buffers
        self._least_bytes = settings.min_bytes_per_s * settings.min_rate_window_s
        self._window_s = settings.min_rate_window_s
        self._max_bytes = settings.max_bytes
        self._max_header_bytes = settings.max_header_bytes
        self._agent = agent_token(settings.user_agent) if settings.honour_opt_outs else None
        self.reset_answer()

    def reset_answer(self, text_bytes: int = 0) -> None:
        """Forget the last answer; `headers` stays the same object. The next one is to be an image; or, where
        `text_bytes` is not 0, anything, of which so much is wanted.
        """
        self.body = bytearray()
        """What of it is not in the file."""
        self._text_bytes = text_bytes
        self._spill: Spill | None = None
        self._room = text_bytes or min(self._buffers.body_bytes, self._max_bytes)
        """How large `body` may become before something is to be done about it."""
        self._not_kept: NotKept | None = None
        del self.headers[:]
        self.status = 0
        """Of the last head, once that is complete and has been looked at."""
        self._begun = False
        self._failure: Failure | None = None
        self._sniffed = text_bytes > 0
        self._refused = False
        self._discarded = 0
        self._window_at = 0.0
        self._window_bytes = 0

    @property
    def enough(self) -> bool:
        """Whether nothing of the body is wanted any more."""
        return self._refused and self._discarded >= _DISCARD_BYTES

    @property
    def has_body(self) -> bool:
        """Whether anything of a body has come that is kept."""
        return bool(self.body) or self._spill is not None

    def look_at_headers(self) -> None:
        """Once they are complete: of what they refuse, little more is read. More than once does nothing."""
        if self._begun:
            return
        self._begun = True
        headers = self.headers
        if len(headers) > self._max_header_bytes:
            message = f"more than {self._max_header_bytes} bytes of headers"
            self._failure = Failure(FailureKind.CONNECT, message)
        else:
            self.status = self._status_of_last_head()
            if self.status == 200:
                if not self._text_bytes:
                    lower = headers.lower()
                    self._failure = self._length_failure(lower) or self._opt_out(lower)
            elif not self.status:
                self._failure = Failure(FailureKind.CONNECT, f"no status line: {bytes(headers[:60])!r}")
        self._refused = self._refused or self._failure is not None or self.status != 200

    def _status_of_last_head(self) -> int:
        at = _last_head(self.headers)
        if self.headers.startswith(_GOOD, at):
            return 200
        match = _STATUS_LINE.match(self.headers, at)
        return int(match[1]) if match else 0

    def too_slow(self, now: float) -> Failure | None:
        """Whether too little of the body came in the last `min_rate_window_s`. To be asked for the first time
        when the request is on its way, then several times a window. (libcurl's own measure begins with
        the first byte.)
        """
        received = self._kept_bytes + self._discarded
        if not self._window_at or received - self._window_bytes >= self._least_bytes:
            self._window_at, self._window_bytes = now, received
        elif now - self._window_at >= self._window_s:
            came = received - self._window_bytes
            return Failure(FailureKind.TIMEOUT, f"{came} bytes in {self._window_s:g} s", self.status or None)
        return None

    def write(self, data: bytes) -> int | None:
        """A piece of the body; 0 (libcurl's word for it): read no more. What is refused or does not begin as
        an image is not kept, and soon not read.
        """
        if not self._begun:
            self.look_at_headers()
        if self._refused:
            self._discarded += len(data)
            return 0 if self.enough else None
        body = self.body
        body += data
        if not self._sniffed and len(body) >= SNIFF_BYTES:
            self._sniffed = True
            if sniff(body) is None:
                self._failure = not_image(body)
                self._refused = True
                self._discarded = len(body)
                del body[SNIFF_BYTES:]
        if len(body) > self._room:
            return self._make_room()
        return None

    @property
    def _kept_bytes(self) -> int:
        return len(self.body) + (len(self._spill) if self._spill is not None else 0)

    def _make_room(self) -> int | None:
        """For a body that has outgrown its share of memory, the cap, or what is wanted of a text."""
        if self._text_bytes:
            return self._cut_text()
        if self._kept_bytes > self._max_bytes:
            return self._too_large(f"more than {self._max_bytes} bytes")
        try:
            if self._spill is None:
                self._spill = self._buffers.new_spill()
            self._spill.append(self.body)
        except StoreError as error:
            self._not_kept = NotKept(error, self._kept_bytes)
            return self._refuse_rest()
        self.body = bytearray()
        self._room = min(self._buffers.body_bytes, self._max_bytes - len(self._spill))
        return None

    def decided(self, url: str) -> Failure | NotKept | str | None:
        """What the head or the body's beginning decides alone: a failure, or the URL of a redirect; or that
        the store failed. None while the rest of the body matters, or the head is not complete.
        """
        if self._not_kept is not None:
            return self._not_kept
        if self.headers.endswith(_WHOLE_HEAD) or len(self.headers) > self._max_header_bytes:
            self.look_at_headers()
        if self._failure is not None or self.status <= 200:
            return self._failure
        if 300 <= self.status < 400:
            location = _header(self.headers, b"location")
            if location:
                return _joined(url, location)
        retry_after_s = _retry_after_s(self.headers)
        return Failure(FailureKind.HTTP_STATUS, f"HTTP {self.status}", self.status, retry_after_s)

    def outcome(self, url: str) -> Fetched | Failure | NotKept | str:
        """What becomes of an answer that came to its end; text is the URL of a redirect."""
        decided = self.decided(url)
        if decided is not None:
            return decided
        if self.status != 200:
            return Failure(FailureKind.CONNECT, "the connection was closed before the end of the headers")
        if self._spill is None:
            return Fetched(url, 200, self.body)
        if self.body:
            self._make_room()
        return self._not_kept or Fetched(url, 200, self._spill)

    def _length_failure(self, lower: bytearray) -> Failure | None:
        """Of a length that is one, and too large; those that are none, or differ, the engines refuse."""
        at = lower.find(_LENGTH)
        if at < 0 or b"\ntransfer-encoding:" in lower:  # which overrides it: RFC 9112, 6.3
            return None
        digits = lower[at + len(_LENGTH) : lower.find(b"\n", at + 1)].strip()
        if digits.isdigit() and (len(digits) > 19 or int(digits) > self._max_bytes):
            self._too_large(f"{digits[:20].decode()} bytes, more than {self._max_bytes}")
            return self._failure
        return None

    @property
    def has_text(self) -> bool:
        """Whether all that is wanted of a text has come, although there is more."""
        return self._text_bytes > 0 and self._refused and self.status == 200

    def _cut_text(self) -> int:
        del self.body[self._text_bytes :]
        self._refused = True
        self._discarded = _DISCARD_BYTES
        return 0

    def _too_large(self, message: str) -> int:
        self._failure = Failure(FailureKind.TOO_LARGE, message, 200)
        return self._refuse_rest()

    def _refuse_rest(self) -> int:
        self._refused = True
        self._discarded = _DISCARD_BYTES
        self.body = bytearray()
        self._spill = None
        return 0

    def _opt_out(self, lower: bytearray) -> Failure | None:
        opt_out = opt_out_of(lower, self._agent) if self._agent is not None else ""
        return Failure(FailureKind.OPT_OUT, opt_out, 200) if opt_out else None


def _last_head(headers: bytes | bytearray) -> int:
    """Where the last head begins: before it may stand those of informational answers, or of a proxy."""
    return headers.rfind(b"\nHTTP/") + 1


def _header(headers: bytes | bytearray, name: bytes) -> bytes:
    """The first value of this name in the last head, or b''."""
    pattern = re.compile(rb"^" + name + rb"[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
    match = pattern.search(headers, _last_head(headers))
    return bytes(match[1]).strip() if match else b""


def _joined(url: str, location: bytes) -> str:
    """A redirect's target as an absolute URL; bytes that are no ASCII are sent on as they came."""
    text = re.sub(rb"[^!-~]", lambda match: b"%%%02X" % match[0][0], location).decode("ascii")
    try:
        return urljoin(url, text)
    except ValueError:  # a bracket that is not closed
        return text


def _retry_after_s(headers: bytes | bytearray) -> float | None:
    """Seconds, or a date (RFC 9110, 10.2.3); None where nothing is asked for."""
    value = _header(headers, b"retry-after")[:64].decode("latin-1")
    if value.isascii() and value.isdigit():
        return float(value) or None
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    wait_s = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, wait_s) or None
