"""What goes over the wire for each behaviour: pieces of bytes with the time to wait before each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from itertools import repeat
from math import log
from typing import TYPE_CHECKING, Final, NamedTuple

from dlconsole.demo.behaviour import Behaviour, Plan

if TYPE_CHECKING:
    from dlconsole.demo.pictures import Picture  # it needs numpy

_CHUNK_BYTES: Final = 64 * 1024
_DRIP: Final = (0.1, bytes(64))
_SLOW_PIECES: Final = 10
_CUTS_PERCENT: Final = (20, 40, 60, 80, 95)
_LATENCY_CAP: Final = 4
_REDIRECTS: Final = (301, 302, 307, 308)

Piece = tuple[float, bytes]
"""Seconds to wait, then bytes to send. The first piece of an answer begins with its whole head."""


class End(Enum):
    """What happens to the connection after the last piece."""

    KEEP = "keep"
    CLOSE = "close"
    RESET = "reset"


class Answer(NamedTuple):
    """One response: its pieces in order (endless for `never_ending`), then the connection's end."""

    pieces: Iterable[Piece]
    end: End = End.KEEP


@dataclass(frozen=True, slots=True)
class Pace:
    """How late and how large: seconds and bytes. Latencies are exponential, capped at four means."""

    latency_s: float
    slow_from_s: float
    slow_to_s: float
    oversized_bytes: int
    retry_after_s: int


class Answers:
    """Builds answers. The common ones, whole pictures, are bytes prepared once."""

    def __init__(self, pictures: tuple[Picture, ...], pace: Pace) -> None:
        self._pictures = pictures
        self._pace = pace
        self._whole = [
            _head(200, picture.media_type, len(picture.body)) + picture.body for picture in pictures
        ]
        self._errors = {b: self._error(b) for b in Behaviour if b.status}

    def build(self, plan: Plan) -> Answer:
        """The answer to a GET."""
        late = self._latency(plan.spread)
        match plan.behaviour:
            case Behaviour.GOOD:
                return Answer(((late, plan.choose(self._whole)),))
            case Behaviour.RESET:
                return Answer(((late, b""),), End.RESET)
            case Behaviour.REDIRECT | Behaviour.REDIRECT_LOOP:
                return Answer(((late, _redirect(plan)),))
            case Behaviour.HTML:
                return Answer(((late, _HTML),))
            case Behaviour.OVERSIZED | Behaviour.OVERSIZED_CHUNKED | Behaviour.NEVER_ENDING:
                return self._large(plan, late)
            case Behaviour.SLOW | Behaviour.TRUNCATED | Behaviour.CUT_IMAGE:
                return self._hampered(plan, late)
        return Answer(((late, self._errors[plan.behaviour]),))

    def _latency(self, spread: float) -> float:
        return self._pace.latency_s * min(_LATENCY_CAP, -log(1 - spread))

    def _hampered(self, plan: Plan, late: float) -> Answer:
        picture = plan.choose(self._pictures)
        body = picture.body
        if plan.behaviour is Behaviour.SLOW:
            head = _head(200, picture.media_type, len(body))
            return Answer(tuple(_drip_whole(head, body, self._slow(plan.spread))))
        part = body[: len(body) * plan.choose(_CUTS_PERCENT) // 100]
        if plan.behaviour is Behaviour.TRUNCATED:
            return Answer(((late, _head(200, picture.media_type, len(body)) + part),), End.CLOSE)
        return Answer(((late, _head(200, picture.media_type, len(part)) + part),))

    def _slow(self, spread: float) -> float:
        return self._pace.slow_from_s + spread * (self._pace.slow_to_s - self._pace.slow_from_s)

    def _large(self, plan: Plan, late: float) -> Answer:
        """Bodies that begin as a picture, so that only their size or their time can give them away."""
        picture = plan.choose(self._pictures)
        if plan.behaviour is Behaviour.NEVER_ENDING:
            start = _head(200, picture.media_type, None) + picture.body[:1024]
            return Answer(_then((late, start), repeat(_DRIP)), End.CLOSE)
        padding = max(0, self._pace.oversized_bytes - len(picture.body))
        if plan.behaviour is Behaviour.OVERSIZED:
            start = _head(200, picture.media_type, len(picture.body) + padding) + picture.body
            return Answer(_then((late, start), _blocks(padding)))
        start = _chunked_head(picture.media_type) + _chunk(picture.body)
        return Answer(_then((late, start), _chunks(padding)))

    def _error(self, behaviour: Behaviour) -> bytes:
        status = behaviour.status or 500
        extra = f"Retry-After: {self._pace.retry_after_s}\r\n" if status == 429 else ""
        body = f"{status} {HTTPStatus(status).phrase}\n".encode()
        return _head(status, "text/plain", len(body), extra) + body


def refusal(status: int, reason: str) -> bytes:
    """The answer to a request that is not served; the connection closes after it."""
    return f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()


def without_body(answer: Answer) -> Answer:
    """The same answer to HEAD: the head only (RFC 9110, 9.3.2)."""
    late, first = next(iter(answer.pieces))
    head, empty_line, _ = first.partition(b"\r\n\r\n")
    return Answer(((late, head + empty_line),), answer.end)


def saying_close(answer: Answer) -> Answer:
    """The same answer with `Connection: close` in its head, and the connection closed after it."""
    pieces = iter(answer.pieces)
    late, first = next(pieces)
    end = End.CLOSE if answer.end is End.KEEP else answer.end
    return Answer(_then((late, first.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)), pieces), end)


def _head(status: int, media_type: str, length: int | None, extra: str = "") -> bytes:
    framing = "Connection: close" if length is None else f"Content-Length: {length}"
    phrase = HTTPStatus(status).phrase
    return f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {media_type}\r\n{framing}\r\n{extra}\r\n".encode()


def _chunked_head(media_type: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


_PAGE: Final = (
    b"<!DOCTYPE html>\n<html><head><title>Moved</title></head><body>The picture is gone.</body></html>\n"
)
_HTML: Final = _head(200, "image/jpeg", len(_PAGE)) + _PAGE


def _redirect(plan: Plan) -> bytes:
    """To another URL of the same host: a good picture of its own, or one that leads to itself."""
    target = "redirect_loop/again"
    if plan.behaviour is Behaviour.REDIRECT:
        target = f"good/{plan.number:08x}"
    status = plan.choose(_REDIRECTS)
    return _head(status, "text/plain", 0, f"Location: /as/{target}.jpg\r\n")


def _drip_whole(head: bytes, body: bytes, total_s: float) -> Iterator[Piece]:
    """Half of the time nothing at all, in the other half the picture in small pieces."""
    yield total_s / 2, head
    step = len(body) // _SLOW_PIECES + 1
    count = -(-len(body) // step)
    for start in range(0, len(body), step):
        yield total_s / 2 / count, body[start : start + step]


def _then(first: Piece, rest: Iterable[Piece]) -> Iterator[Piece]:
    yield first
    yield from rest


def _blocks(total_bytes: int) -> Iterator[Piece]:
    block = bytes(_CHUNK_BYTES)
    for start in range(0, total_bytes, _CHUNK_BYTES):
        yield 0.0, block[: total_bytes - start]


def _chunks(total_bytes: int) -> Iterator[Piece]:
    for _, block in _blocks(total_bytes):
        yield 0.0, _chunk(block)
    yield 0.0, b"0\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
