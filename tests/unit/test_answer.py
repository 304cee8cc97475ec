"""What a head decides, and that none, however odd, makes anything raise."""

from __future__ import annotations

import io
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.client import HTTPException
from typing import Any, NoReturn, cast

import pytest

from dlconsole.errors import StoreError
from dlconsole.model import Failure, FailureKind
from dlconsole.settings import FetchSettings
from dlconsole.workers.fetch.answer import Receiver
from dlconsole.workers.fetch.engine import IN_MEMORY, Buffers, Fetched, NotKept
from dlconsole.workers.fetch.http1 import StrictResponse
from dlconsole.workers.fetch.robots_rules import parse
from dlconsole.workers.fetch.urls import target_of

URL = "http://a.example/x"
SETTINGS = FetchSettings(max_header_bytes=16384)
PIECES = (
    "HTTP/1.1 200 OK", "HTTP/1.1 503 No", "HTTP/1.1 302 Found", "HTTP/1.1 103 Early", "HTTP/1.1 101 X", "\r\n", "\r\n", "\n", "\r", " ",
    "\t", ":", ",", ";", "=", "\0", "\xff", "Content-Length", "Transfer-Encoding: chunked", "Location: ", "http://", "//[", "::1]", "@",
    "%", "..", "Retry-After: ", "X-Robots-Tag: ", "tdm-reservation: ", "unavailable_after: ", "noindex", "Mon, ", "01 Jan 2030 ", "00:00:00 ",
    "99999999999999999999", "+9999", "-0000", "GMT", "0", "-1", "2147483648", "User-agent: *", "Disallow: /*$", "127.0.0.", "0x", "08", "x" * 5000,
)  # fmt: skip


def receiver_of(head: bytes) -> Receiver:
    receiver = Receiver(SETTINGS, IN_MEMORY)
    receiver.headers += head
    return receiver


def retry_after_of(value: str) -> float | None:
    head = f"HTTP/1.1 503 No\r\nRetry-After: {value}\r\n\r\n".encode("latin-1", "replace")
    outcome = receiver_of(head).outcome(URL)
    assert isinstance(outcome, Failure) and outcome.status == 503
    return outcome.retry_after_s


@pytest.mark.parametrize(
    "value",
    ["Mon, 01 Jan 2030 00:00:00 +99999999999999999999", "1 Jan 2030 99999999999999999999:0", "1 Jan 99999999999 00:00:00 GMT",
     "", "soon", "-5", "1e9", "\xb2"],
)  # fmt: skip
def test_a_retry_after_that_says_nothing_is_none(value: str) -> None:
    assert retry_after_of(value) is None


def test_a_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_of("120") == 120
    wait_s = retry_after_of(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))
    assert wait_s is not None and 3590 < wait_s <= 3600


def test_whatever_a_date_is_made_of_nothing_raises() -> None:
    chance = random.Random(7)
    parts = [
        "Mon, ",
        "1 ",
        "Jan ",
        "2030 ",
        "0 ",
        "-1 ",
        "99999 ",
        "9" * 20,
        "00:00:00 ",
        ":",
        "+",
        "-",
        "GMT",
        "EST ",
        "32 ",
        "\xff",
        "(",
        ")",
        ",",
        ".",
    ]
    for _ in range(20_000):
        retry_after_of("".join(chance.choices(parts, k=chance.randrange(9))))


def test_whatever_a_head_is_made_of_nothing_raises() -> None:
    chance = random.Random(11)
    for _ in range(8_000):
        text = "".join(chance.choices(PIECES, k=chance.randrange(40)))
        head = f"HTTP/1.1 {chance.choice((200, 302, 404, 429))} X\r\n{text}\r\n\r\n".encode("latin-1")
        receiver = receiver_of(head if chance.random() < 0.8 else head[chance.randrange(40) :])
        if chance.random() < 0.5:
            receiver.write(b"x" * chance.randrange(50))
        outcome = receiver.outcome(URL)
        assert isinstance(outcome, (Failure, Fetched, str))
        if isinstance(outcome, str):
            target_of(outcome)
        target_of(f"http://{text}/")
        parse(bytearray(text.encode()), "dlconsole")


class _Wire:
    """What `http.client` takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(cast("Any", io.BytesIO(self._data)))


def test_whatever_an_answer_is_made_of_it_is_read_or_is_no_http() -> None:
    chance = random.Random(13)
    for _ in range(4_000):
        text = "".join(chance.choices(PIECES, k=chance.randrange(30))).encode("latin-1")
        answer = StrictResponse(_Wire(b"HTTP/1.1 200 OK\r\n" + text + b"\r\n\r\n" + text), lambda _line: None)
        try:
            answer.begin()
            while answer.read1(100):
                pass
        except HTTPException:
            pass


@pytest.mark.parametrize("length", ["99999999999", "0" * 30 + "99999999999", "9" * 30])
def test_a_length_counts_in_the_answers_head_only(length: str) -> None:
    before = f"HTTP/1.1 103 Early\r\nContent-Length: {length}\r\nX-Robots-Tag: noai\r\n\r\n".encode()
    for early in (before, before.replace(b"103 Early", b"200 Connection established")):
        good = receiver_of(early + b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        good.look_at_headers()
        assert good.decided(URL) is None
        bad = receiver_of(before + f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode())
        bad.look_at_headers()
        decided = bad.decided(URL)
        assert isinstance(decided, Failure) and decided.kind is FailureKind.TOO_LARGE


def test_a_store_that_fails_is_told_without_the_frames_that_hold_the_answer() -> None:
    def fails() -> NoReturn:
        raise StoreError("no room")

    receiver = Receiver(FetchSettings(), Buffers(1024, fails))
    receiver.headers += b"HTTP/1.1 200 OK\r\n\r\n"
    assert receiver.write(b"\xff\xd8\xff" + bytes(2000)) == 0
    outcome = receiver.outcome("http://a/")
    assert isinstance(outcome, NotKept)
    assert str(outcome.error) == "no room" and outcome.error.__traceback__ is None


def test_an_image_whose_first_bytes_come_one_by_one_is_known_in_the_end() -> None:
    brands = b"\0\0\0\x28ftypmif1\0\0\0\0" + b"miaf" * 5 + b"avif"
    receiver = receiver_of(b"HTTP/1.1 200 OK\r\n\r\n")
    for byte in brands + b"x" * 100:
        receiver.write(bytes((byte,)))
    assert isinstance(receiver.outcome(URL), Fetched)
