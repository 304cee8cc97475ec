"""Which headers say that a picture is not to be collected."""

from __future__ import annotations

import pytest

from dlconsole.workers.fetch.opt_out import agent_token, opt_out_of

OURS = "dlconsole"


@pytest.mark.parametrize(
    "line",
    [
        b"X-Robots-Tag: noai",
        b"x-robots-tag:NoImageAI",
        b"X-ROBOTS-TAG: nofollow, noindex",
        b"X-Robots-Tag:   noimageindex  ",
        b"X-Robots-Tag: none",
        b"X-Robots-Tag: dlconsole: noindex",
        b"X-Robots-Tag: *: noai",
        b"X-Robots-Tag: googlebot: nofollow, dlconsole: noarchive, noai",
        b"X-Robots-Tag: unavailable_after: 25 Jun 2030 15:00:00 PST, noindex",
        b"X-Robots-Tag: max-snippet: 5, noai",
        b"X-Robots-Tag: unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT, noindex",
        b"X-Robots-Tag: unavailable_after: Sunday, 06-Nov-94 08:49:37 GMT, noai",
        b"X-Robots-Tag:\r\n noindex",
        b"X-Robots-Tag: all,\n\tnoai",
        b"X-Robots-Tag: all\r\nX-Robots-Tag: noai",
        b"TDM-Reservation: 1",
        b"tdm-reservation:1\r\ntdm-policy: https://a.example/p",
    ],
)
def test_an_opt_out_is_seen(line: bytes) -> None:
    headers = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n" + line + b"\r\n\r\n"
    assert opt_out_of(headers.lower(), OURS).startswith(("x-robots-tag: ", "tdm-reservation: 1"))


@pytest.mark.parametrize(
    "line",
    [
        b"X-Robots-Tag: all",
        b"X-Robots-Tag: nofollow, noarchive",
        b"X-Robots-Tag: googlebot: noindex",
        b"X-Robots-Tag: googlebot: noindex, noai",
        b"X-Robots-Tag: noairplanes",
        b"X-Robots-Tag:",
        b"X-Robots-Tag-Old: noai",
        b"Comment: X-Robots-Tag: noai",
        b"TDM-Reservation: 0",
        b"TDM-Reservation: 11",
        b"Content-Type: noai",
    ],
)
def test_what_is_no_opt_out_or_meant_for_others_is_none(line: bytes) -> None:
    headers = b"HTTP/1.1 200 OK\r\n" + line + b"\r\n\r\n"
    assert opt_out_of(headers.lower(), OURS) == ""


@pytest.mark.parametrize(
    ("agent", "token"),
    [
        ("dlconsole (dataset downloader)", "dlconsole"),
        ("MyBot/1.0; +https://a.example", "mybot"),
        ("Mozilla/5.0 (X11)", "mozilla"),
    ],
)
def test_the_token_of_a_user_agent(agent: str, token: str) -> None:
    assert agent_token(agent) == token
