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
from dlconsole.workers.images import SNIFF_BYTES, more_tells, not_image, sniff

_DISCARD_BYTES: Final = 16 * 1024
"""How much of what is no image is read, to keep the connection; more closes it."""
_WHOLE_HEAD: Final = (b"\r\n\r\n", b"\n\r\n", b"\n\n")
_ODD_END: Final = re.compile(rb"\n\r[^\n]*\n\Z")
"""What libcurl takes for the empty line, and RFC 9112, 2.2, does not."""
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_GOOD: Final = (b"HTTP/1.1 200 ", b"HTTP/1.0 200 ", b"HTTP/1.1 200\r")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?=[ \r\n])")
"""In capitals, RFC 9112, 2.3: what says `http/1.1`, libcurl takes for a 200, whatever its status."""
_LENGTH: Final = b"\ncontent-length"
_CODING: Final = b"\ntransfer-encoding"
_LATER_HEAD: Final = b"\nhttp/"
_MAX_DIGITS: Final = 19
_LENGTHS: Final = re.compile(rb"^content-length:([^\r\n]*)", re.MULTILINE)
_CODINGS: Final = re.compile(rb"^transfer-encoding:([^\r\n]*)", re.MULTILINE)
_DETACHED: Final = re.compile(rb"^(?:content-length|transfer-encoding)[ \t]+:", re.MULTILINE)
"""A field that says where the body ends, but that not everybody takes for it: RFC 9112, 5.1."""


class Receiver:
    """Takes in one answer at a time; `reset_answer` makes ready for the next."""

    __slots__ = (
        "_agent",
        "_begun",
        "_buffers",
        "_discarded",
        "_failure",
        "_fault",
        "_image_room",
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
        self._image_room = min(buffers.body_bytes, settings.max_bytes)
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
        self._room = min(self._buffers.body_bytes, text_bytes) if text_bytes else self._image_room
        """How large `body` may become before something is to be done about it."""
        self._not_kept: NotKept | None = None
        del self.headers[:]
        self.status = 0
        """Of the last head, once that is complete and has been looked at; 101 at most: no answer."""
        self._begun = False
        self._failure: Failure | None = None
        self._fault: Exception | None = None
        """What went wrong here and should not: a fault of ours, which `decided` raises."""
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
        try:
            self._failure = self._head_failure()
        except Exception as error:  # noqa: BLE001  (see `_fault`)
            self._fault = error
            self._refuse_rest()
        self._refused = self._refused or self._failure is not None or self.status != 200

    def _head_failure(self) -> Failure | None:
        """What the last head decides for the worse, but for its status; that is set."""
        headers = self.headers
        if len(headers) > self._max_header_bytes:
            return Failure(FailureKind.CONNECT, too_many_headers(self._max_header_bytes))
        head = headers.lower()
        at = _last_head(head)
        if at:
            del head[:at]
        if headers.startswith(_GOOD, at):
            self.status = 200
        else:
            match = _STATUS_LINE.match(headers, at)
            if match is None:
                return self._broken(f"no status line: {bytes(headers[at : at + 60])!r}")
            self.status = int(match[1])
            if self.status == 101:
                return self._broken("switches protocols, which was not asked for")
        if not headers.endswith(_WHOLE_HEAD) or (at and not headers.endswith(_WHOLE_HEAD, 0, at)):
            return self._broken("no empty line behind the headers")
        return self._framing_failure(head) or (self._opt_out(head) if self._wants_image else None)

    @property
    def _wants_image(self) -> bool:
        return self.status == 200 and not self._text_bytes

    @property
    def told_status(self) -> int | None:
        """The answer's, as far as one came: informational ones are none."""
        return self.status if self.status >= 200 else None

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
            return Failure(FailureKind.TIMEOUT, f"{came} bytes in {self._window_s:g} s", self.told_status)
        return None

    def write(self, data: bytes) -> int | None:
        """A piece of the body; 0 (libcurl's word for it): read no more. What is refused or does not begin as
        an image is not kept, and soon not read.
        """
        try:
            if not self._begun:
                self.look_at_headers()
            if self._refused:
                self._discarded += len(data)
                return 0 if self.enough else None
            body = self.body
            body += data
            if not self._sniffed and len(body) >= SNIFF_BYTES:
                self._sniffed = True
                if sniff(body) is not None:
                    pass
                elif more_tells(body):
                    self._sniffed = False
                else:
                    self._failure = not_image(body)
                    self._refused = True
                    self._discarded = len(body)
                    del body[SNIFF_BYTES:]
            if len(body) > self._room:
                return self._make_room()
        except Exception as error:  # noqa: BLE001  (libcurl, which calls this, would lose it)
            self._fault = error
            return self._refuse_rest()
        return None

    @property
    def _kept_bytes(self) -> int:
        spill = self._spill  # read once: with threads it may go meanwhile
        return len(self.body) + (0 if spill is None else len(spill))

    def _make_room(self) -> int | None:
        """For a body that has outgrown its share of memory, the cap, or what is wanted of a text."""
        most_bytes = self._text_bytes or self._max_bytes
        if self._kept_bytes > most_bytes:
            return self._cut_text() if self._text_bytes else self._too_large(f"more than {most_bytes} bytes")
        try:
            if self._spill is None:
                self._spill = self._buffers.new_spill()
            self._spill.append(self.body)
        except StoreError as error:
            # Its frames hold what holds it, and what the collector does not see would be there for ever.
            self._not_kept = NotKept(error.with_traceback(None), self._kept_bytes)
            return self._refuse_rest()
        self.body = bytearray()
        self._room = min(self._buffers.body_bytes, most_bytes - len(self._spill))
        return None

    def decided(self, url: str) -> Failure | NotKept | str | None:
        """What the head or the body's beginning decides alone: a failure, or the URL of a redirect; or that
        the store failed. None while the rest of the body matters, or the head is not complete. Raises
        whatever fault of ours it brought to light.
        """
        if self._not_kept is not None:
            return self._not_kept
        if not self._begun:
            self._cut_trailer()
            if self._is_head_over:
                self.look_at_headers()
        if self._fault is not None:
            raise self._fault
        if self._failure is not None or self.status <= 200:
            return self._failure
        if 300 <= self.status < 400:
            location = _value(self.headers, b"location")
            if location:
                return _joined(url, location)
        retry_after_s = _retry_after_s(self.headers)
        return Failure(FailureKind.HTTP_STATUS, f"HTTP {self.status}", self.status, retry_after_s)

    def outcome(self, url: str) -> Fetched | Failure | NotKept | str:
        """What becomes of one that came to its end; text is the URL of a redirect. Raises as `decided`."""
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

    @property
    def _is_head_over(self) -> bool:
        """Whether it is complete, or nothing can come of it any more."""
        headers = self.headers
        if headers.endswith(_WHOLE_HEAD) or len(headers) > self._max_header_bytes or _ODD_END.search(headers):
            return True
        at = _last_head(headers.lower())
        return headers.find(b"\n", at) >= 0 and _STATUS_LINE.match(headers, at) is None

    def _framing_failure(self, head: bytearray) -> Failure | None:
        """What is wrong with where the body is to end: what is not certain to everybody (RFC 9112, 6), or too
        far. Lengths that are none, or differ, the engines refuse.
        """
        at = head.find(_LENGTH)
        behind = at + len(_LENGTH)
        digits = head[behind + 1 : head.find(b"\n", behind)].strip()
        if head.find(_LENGTH, behind) < 0 and _CODING not in head and digits.isdigit():
            return self._length_failure(digits)
        return self._odd_framing_failure(head)

    def _odd_framing_failure(self, head: bytearray) -> Failure | None:
        """Of a head that has more or less than one length, and no coding."""
        if _DETACHED.search(head):
            return self._broken("a space in front of the colon of Content-Length or Transfer-Encoding")
        codings = _CODINGS.findall(head)
        told = _LENGTHS.findall(head)
        lengths = {one.strip().lstrip(b"0") for one in b",".join(told).split(b",")}  # RFC 9110, 8.6
        if len(lengths) > 1:
            return self._broken("lengths that differ")
        if codings and b",".join(codings).strip() != b"chunked":
            return self._broken(f"Transfer-Encoding that was not asked for: {bytes(codings[0][:60])!r}")
        if codings or not told:  # a coding overrides every length: RFC 9112, 6.3
            return None
        return self._length_failure(lengths.pop())

    def _length_failure(self, digits: bytes | bytearray) -> Failure | None:
        if len(digits) > _MAX_DIGITS:
            digits = digits.lstrip(b"0")
        if not self._wants_image or not digits.isdigit():
            return None
        if len(digits) > _MAX_DIGITS or int(digits) > self._max_bytes:
            self._too_large(f"{digits[:20].decode()} bytes, more than {self._max_bytes}")
        return self._failure

    def _broken(self, message: str) -> Failure:
        """Of an answer that is none: as one without a status, and nothing of its body is read."""
        self._refuse_rest()
        return Failure(FailureKind.CONNECT, message)

    def _cut_trailer(self) -> None:
        """Of an empty body, which leaves nothing between it and the head."""
        head_end = _HEAD_END.search(self.headers, _last_head(self.headers.lower()))
        if head_end is not None:
            del self.headers[head_end.end() :]

    @property
    def has_text(self) -> bool:
        """Whether all that is wanted of a text has come, although there is more."""
        return self._text_bytes > 0 and self._refused and self.status == 200

    def _cut_text(self) -> int:
        del self.body[self._text_bytes - (0 if self._spill is None else len(self._spill)) :]
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


def too_many_headers(most_bytes: int) -> str:
    """What is wrong with an answer, trailers included, whose headers go on behind so many bytes."""
    return f"more than {most_bytes} bytes of headers"


def _last_head(lower: bytearray) -> int:
    """Where the last head begins: before it may stand those of informational answers, or of a proxy."""
    return lower.rfind(_LATER_HEAD) + 1


def _value(headers: bytearray, name: bytes) -> bytes:
    """The first value of this name in the last head, or b''; of two Locations the engines refuse the head."""
    pattern = re.compile(rb"^" + name + rb"[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
    match = pattern.search(headers, _last_head(headers.lower()))
    return bytes(match[1]).strip() if match else b""


def _joined(url: str, location: bytes) -> str:
    """A redirect's target as an absolute URL; bytes that are no ASCII are sent on as they came."""
    text = re.sub(rb"[^!-~]", lambda match: b"%%%02X" % match[0][0], location).decode("ascii")
    try:
        return urljoin(url, text)
    except ValueError:  # a bracket that is not closed
        return text


def _retry_after_s(headers: bytearray) -> float | None:
    """Seconds, or a date (RFC 9110, 10.2.3); None where nothing is asked for."""
    value = _value(headers, b"retry-after")[:64].decode("latin-1")
    if value.isascii() and value.isdigit():
        return float(value) or None
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # of a year or a zone that no clock has
        return None
    wait_s = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, wait_s) or None
