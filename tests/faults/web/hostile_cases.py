"""The table of the hostile web: what a server, a name or a URL does, and which outcome is right, and why.

Kinds are those of the worker. Where the server is at fault and what it sent is no HTTP, the kind is
`connect`: the connection gave nothing, another attempt may. `None`: the picture is stored.
"""

from __future__ import annotations

import gzip
import os
import socket
import ssl
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trustme
from bombs import gzip_bomb
from hostile_server import Handler, Peer

from dlconsole.demo.pictures import make_pictures
from dlconsole.model import FailureKind as Kind

PICTURE = make_pictures(1, count=1)[0].body
MAX_BYTES = 256 * 1024
MAX_HEADER_BYTES = 64 * 1024

OPEN = "127.0.0.1"
"""The one address that may be fetched from."""
SHUT = "127.0.0.2"

Contexts = dict[str, ssl.SSLContext]


@dataclass(frozen=True)
class Case:
    """`url` has `{port}` where the port of `serve` goes; `slow`: only a limit on time can end it."""

    name: str
    kind: Kind | None
    why: str
    serve: Handler | None = None
    url: str = "http://127.0.0.1:{port}/x"
    tls: str = ""
    slow: bool = False


# -- what servers do ------------------------------------------------------------------------------


def sends(*pieces: bytes) -> Handler:
    """These bytes as the answer to a request, then the end of the connection."""

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(*pieces)

    return serve


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *lines, "")).encode("latin-1")


SIZED = f"Content-Length: {len(PICTURE)}"
CHUNKED = "Transfer-Encoding: chunked"
LONG_LINE = "one line is beyond it already, and beyond what libcurl takes"
HEADER_CAP = "beyond fetch.max_header_bytes, which the message says"


def good(*lines: str, status: str = "200 OK", body: bytes = PICTURE) -> bytes:
    """A sound answer."""
    return head(f"Content-Length: {len(body)}", *lines, status=status) + body


def then(*pieces: bytes, act: Callable[[Peer], None]) -> Handler:
    """The request is read, these bytes are sent, and then `act`."""

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(*pieces)
        act(peer)

    return serve


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def moved(location: str | bytes, *lines: str) -> Handler:
    """A redirect to `location`; `{port}` is this server's."""

    def serve(peer: Peer) -> None:
        peer.request()
        to = location if isinstance(location, bytes) else location.encode()
        to = to.replace(b"{port}", b"%d" % peer.sock.getsockname()[1])
        more = "".join(f"{line}\r\n" for line in lines).encode()
        peer.send(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n" + more + b"Location: " + to + b"\r\n\r\n")

    return serve


def first_then(first: Handler, target: str) -> Handler:
    """`first` for every path but `target`, where the picture is."""

    def serve(peer: Peer) -> None:
        waiting = peer.request()
        if waiting.split(b" ")[1] == target.encode():
            peer.send(good("Connection: close"))
        else:
            peer.request = lambda: waiting
            first(peer)

    return serve


def expects(*parts: bytes, without: bytes = b"\0") -> Handler:
    """The picture for a request with all these parts and without that one; 418 for any other."""

    def serve(peer: Peer) -> None:
        asked = peer.request()
        right = all(part in asked for part in parts) and without not in asked.lower()
        peer.send(good("Connection: close") if right else good(status="418 No", body=b""))

    return serve


def hops(most: int) -> Handler:
    """A chain of redirects, each to the next number."""

    def serve(peer: Peer) -> None:
        number = int(peer.request().split(b" ")[1].strip(b"/x") or b"0")
        if number < most:
            to = f"Location: /x{number + 1}"
            peer.send(good(to, "Connection: close", status="301 Moved", body=b""))
        else:
            peer.send(good("Connection: close"))

    return serve


BOMB = gzip_bomb(100)
"""What unpacks it, feels it."""


def many_hundred_headers(peer: Peer) -> None:
    peer.repeat(b"X-Header: " + b"x" * 1000 + b"\r\n")


def hang(peer: Peer) -> None:
    peer.hang()


def reset(peer: Peer) -> None:
    peer.reset()


def cut(peer: Peer) -> None:
    peer.cut()


# -- the table ------------------------------------------------------------------------------------


def status_lines() -> Iterator[Case]:
    none = "no status line of HTTP/1: the server's fault"
    for name, line in {
        "words": "this is no answer at all",
        "ssh": "SSH-2.0-OpenSSH_9.2",
        "letters for a status": "HTTP/1.1 abc OK",
        "two digits": "HTTP/1.1 20 OK",
        "four digits": "HTTP/1.1 2000 OK",
        "no status": "HTTP/1.1 ",
        "no version": "HTTP 200 OK",
        "another protocol": "HTTQ/1.1 200 OK",
        "version 9.9": "HTTP/9.9 200 OK",
        "version 3": "HTTP/3.0 200 OK",
        "a negative status": "HTTP/1.1 -200 OK",
        "status 099": "HTTP/1.1 099 OK",
        "status 000": "HTTP/1.1 000 OK",
        "a NUL": "HTTP/1.1 200 a\0b",
        "an empty line first": "\r\nHTTP/1.1 200 OK",
        "small letters": "http/1.1 200 OK",
        "small letters behind early hints": "HTTP/1.1 103 Early\r\n\r\nhttp/1.1 200 OK",
        "small letters in early hints": "http/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK",
    }.items():
        yield Case(
            f"status line: {name}", Kind.CONNECT, none, sends(f"{line}\r\n{SIZED}\r\n\r\n".encode(), PICTURE)
        )
    early = b"http/1.1 103 Early\r\n\r\n"
    yield Case("early hints in small letters, and silence", Kind.CONNECT, none, then(early, good(), act=hang))
    yield Case("status line: small letters, and silence", Kind.CONNECT, none,
               then(b"http/1.1 200 OK\r\nX: y\r\n", act=hang))  # fmt: skip
    yield Case(
        "status line: none, the picture at once", Kind.CONNECT, "HTTP/0.9 is not taken", sends(PICTURE)
    )
    for name, line in {
        "no reason": "HTTP/1.1 200",
        "version 1.0": "HTTP/1.0 200 OK",
        "odd reason": "HTTP/1.1 200 \xff",
    }.items():
        answer = f"{line}\r\n{SIZED}\r\n\r\n".encode("latin-1")
        yield Case(f"status line: {name}", None, "sound, if unusual", sends(answer, PICTURE))
    for status in (204, 206, 300, 304, 305, 400, 404, 451, 500, 503, 599, 999):
        body = b"" if status in (204, 304) else b"x"
        yield Case(
            f"status {status}",
            Kind.HTTP_STATUS,
            "only 200 has the whole picture",
            sends(good(status=f"{status} X", body=body)),
        )
    yield Case("bare LF", None, "RFC 9112, 2.2: may be taken for a line's end",
               sends(f"HTTP/1.1 200 OK\n{SIZED}\n\n".encode(), PICTURE))  # fmt: skip
    yield Case(
        "100 first",
        None,
        "informational answers come before the answer",
        sends(head(status="100 Continue"), good()),
    )
    yield Case("103 first", None, "as 100", sends(head("Link: </x>", status="103 Early Hints"), good()))
    yield Case("100 for ever", Kind.CONNECT, "all heads count towards the header cap",
               then(act=lambda peer: peer.repeat(head("X: " + "x" * 900, status="100 Continue"))))  # fmt: skip
    yield Case("100 and the end", Kind.CONNECT, "no answer came", sends(head(status="100 Continue")))


def stutters() -> Iterator[Case]:
    late = "each byte comes in time, the whole does not: the deadline is for the whole"
    whole = head(SIZED) + PICTURE
    yield Case(
        "stutter: status line", Kind.TIMEOUT, late, then(act=lambda peer: peer.stutter(whole)), slow=True
    )
    yield Case("stutter: headers", Kind.TIMEOUT, late,
               then(b"HTTP/1.1 200 OK\r\n", act=lambda peer: peer.stutter(b"X: " + b"x" * 10000)), slow=True)  # fmt: skip
    yield Case(
        "stutter: body",
        Kind.TIMEOUT,
        late,
        then(head(SIZED), PICTURE[:100], act=lambda peer: peer.stutter(PICTURE)),
        slow=True,
    )
    yield Case("stutter: chunk size", Kind.TIMEOUT, late,
               then(head(CHUNKED), chunk(PICTURE), act=lambda peer: peer.stutter(b"0" * 10000)), slow=True)  # fmt: skip
    yield Case("stutter: trailer", Kind.TIMEOUT, late,
               then(head(CHUNKED), chunk(PICTURE), b"0\r\n", act=lambda peer: peer.stutter(b"X: " + b"x" * 10000)), slow=True)  # fmt: skip
    yield Case("silence: before the request is read", Kind.TIMEOUT, late, hang, slow=True)
    yield Case("silence: after the request", Kind.TIMEOUT, late, then(act=hang), slow=True)
    yield Case("silence: in the status line", Kind.TIMEOUT, late, then(b"HTTP/1.1 2", act=hang), slow=True)
    yield Case(
        "silence: in the headers",
        Kind.TIMEOUT,
        late,
        then(b"HTTP/1.1 200 OK\r\nX: y\r\n", act=hang),
        slow=True,
    )
    yield Case(
        "silence: in the body", Kind.TIMEOUT, late, then(head(SIZED), PICTURE[:200], act=hang), slow=True
    )
    yield Case(
        "silence: before the last chunk",
        Kind.TIMEOUT,
        late,
        then(head(CHUNKED), chunk(PICTURE), act=hang),
        slow=True,
    )
    yield Case("a stream of pictures", Kind.TIMEOUT, "MJPEG never ends by itself",
               then(head(), act=lambda peer: peer.repeat(PICTURE[:100], pause_s=0.1)), slow=True)  # fmt: skip


def headers() -> Iterator[Case]:
    none = "RFC 9112, 5: no field line; the server's fault"
    for name, line in {
        "no colon": "no colon here",
        "a NUL": "X: a\0b",
        "folded at once": " folded",
        "a CR alone": "\r",
        "a CR first": "\rX: y",
        "a second status line": "HTTP/1.1 200 OK: x",
    }.items():
        yield Case(f"header: {name}", Kind.CONNECT, none, sends(head(line, SIZED), PICTURE))
    for status in ("204 No", "304 No"):
        answer = head("no colon here", status=status)
        yield Case(f"header: no colon in a {status}", Kind.CONNECT, none, sends(answer))
        answer = head("\r", status=status)
        yield Case(f"header: a CR alone in a {status}", Kind.CONNECT, none, sends(answer))
    yield Case("headers that end in CR CR LF", Kind.CONNECT, none,
               sends(f"HTTP/1.1 200 OK\r\n{SIZED}\r\n\r\r\n".encode(), PICTURE))  # fmt: skip
    yield Case("headers that end in CR CR LF, and silence", Kind.CONNECT, none,
               then(f"HTTP/1.1 200 OK\r\n{SIZED}\r\n\r\r\n".encode(), act=hang))  # fmt: skip
    for name, lines in {
        "150 of them": [f"X-{i}: y" for i in range(150)],
        "60 KB in one": ["X: " + "x" * 60_000],
        "not ASCII": ["X: \xe9\xff"],
        "folded": ["X: a", " b"],
        "no value": ["X:"],
        "twice the same length": [SIZED],
        "cookies": ["Set-Cookie: a=b; Path=/; Domain=127.0.0.1"] * 20,
    }.items():
        yield Case(f"header: {name}", None, "sound, if unusual", sends(head(SIZED, *lines), PICTURE))
    for name, lines in {
        "folded": ["X-Robots-Tag:", " noindex"],
        "behind a date": ["X-Robots-Tag: unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT, noindex"],
    }.items():
        yield Case(
            f"opt-out {name}", Kind.OPT_OUT, "however it is written", sends(head(*lines, SIZED), PICTURE)
        )
    for name, line in {
        "without a name": ": x",
        "with a name of bytes": "X\xe9: y",
        "with a space": "X Y: z",
    }.items():
        yield Case(f"header: {name}", None, "it concerns nobody", sends(head(line, SIZED), PICTURE))
    for value in (
        "Mon, 01 Jan 2030 00:00:00 +99999999999999999999",
        "1 Jan 2030 99999999999999999999:0",
        "9" * 99,
    ):
        yield Case(
            f"retry-after {value[:40]}",
            Kind.HTTP_STATUS,
            "the status decides, whatever else is said",
            sends(good(f"Retry-After: {value}", status="404 No", body=b"")),
        )
    cap, line = HEADER_CAP, LONG_LINE
    yield Case(
        "headers without end", Kind.CONNECT, cap, then(b"HTTP/1.1 200 OK\r\n", act=many_hundred_headers)
    )
    yield Case("a header of 100 MB", Kind.CONNECT, line,
               then(b"HTTP/1.1 200 OK\r\nX: ", act=lambda peer: peer.repeat(b"x" * 65536, 1600)))  # fmt: skip
    yield Case(
        "a status line without end",
        Kind.CONNECT,
        line,
        then(b"HTTP/1.1 200 ", act=lambda peer: peer.repeat(b"x" * 65536)),
    )
    yield Case("headers just too large", Kind.CONNECT, cap,
               sends(head(*["X: " + "x" * 1000] * (MAX_HEADER_BYTES // 1000 + 1), SIZED), PICTURE))  # fmt: skip
    yield Case("headers too large, then silence", Kind.CONNECT, "nobody waits for more of them",
               then(b"HTTP/1.1 200 OK\r\n" + (b"X: " + b"x" * 1000 + b"\r\n") * (MAX_HEADER_BYTES // 1000 + 9),
                    act=hang))  # fmt: skip
    yield Case(
        "trailers without end",
        Kind.CONNECT,
        cap,
        then(head(CHUNKED), chunk(PICTURE), b"0\r\n", act=many_hundred_headers),
    )
    yield Case(
        "trailers without end behind nothing",
        Kind.CONNECT,
        cap,
        then(head(CHUNKED), b"0\r\n", act=many_hundred_headers),
    )


def lengths() -> Iterator[Case]:
    yield Case(
        "length 10 GB, and silence",
        Kind.TOO_LARGE,
        "said beforehand, and no piece of the body is waited for",
        then(head("Content-Length: 10000000000"), act=hang),
    )
    yield Case(
        "length 10 GB behind early hints, and silence",
        Kind.TOO_LARGE,
        "RFC 8297: the answer comes behind them",
        then(
            b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", head("Content-Length: 10000000000"), act=hang
        ),
    )
    yield Case(
        "length 10 GB in early hints",
        None,
        "RFC 8297: what counts is said by the answer",
        sends(head("Content-Length: 10000000000", status="103 Early Hints"), good()),
    )
    for name, value in {
        "a list of equal ones": f"{len(PICTURE)}, {len(PICTURE)}",
        "with zeros": "0" * 24 + str(len(PICTURE)),
        "with 5,000 zeros": "0" * 5000 + str(len(PICTURE)),
        "folded": f"\r\n {len(PICTURE)}",
    }.items():
        why = "RFC 9110, 8.6: one length, oddly written"
        yield Case(f"length {name}", None, why, then(head(f"Content-Length: {value}"), PICTURE, act=hang))
    detached = "RFC 9112, 5.1: some take it for a length, some do not"
    for name, lines in {
        "a space in front of its colon": [f"Content-Length : {len(PICTURE)}"],
        "a tab in front of its colon": [f"Content-Length\t: {len(PICTURE)}"],
        "a second one with a space": [SIZED, "Content-Length : 5"],
    }.items():
        yield Case(f"length with {name}", Kind.CONNECT, detached, then(head(*lines), PICTURE, act=hang))
    yield Case(
        "two lengths, one beyond 2^64",
        Kind.CONNECT,
        "they differ",
        sends(head(SIZED, f"Content-Length: {2**64}"), PICTURE),
    )
    invalid = "RFC 9112, 6.3: a length that is none is unrecoverable"
    for value in (
        "",
        f"{len(PICTURE)}x",
        f"{len(PICTURE)}, 5",
        f"+{len(PICTURE)}",
        "-5",
        "-",
        "+5",
        "0x10",
        "abc",
        "1 2",
        "1,2",
        "5.0",
        "1e3",
    ):
        yield Case(f"length {value}", Kind.CONNECT, invalid, sends(head(f"Content-Length: {value}"), PICTURE))
    yield Case("length abc, and silence in the headers", Kind.CONNECT, invalid,
               then(b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\nX: y", act=hang))  # fmt: skip
    yield Case("two lengths", Kind.CONNECT, invalid, sends(head(SIZED, "Content-Length: 5"), PICTURE))
    yield Case(
        "two lengths, the right one last",
        Kind.CONNECT,
        invalid,
        sends(head("Content-Length: 5", SIZED), PICTURE),
    )
    yield Case(
        "length too long",
        Kind.TRUNCATED,
        "less came than was said",
        sends(head(f"Content-Length: {len(PICTURE) + 9}"), PICTURE),
    )
    yield Case("length too short", Kind.TRUNCATED, "the body is what the length says: a picture without its end",
               sends(head(f"Content-Length: {len(PICTURE) - 9}"), PICTURE))  # fmt: skip
    yield Case("length 0", Kind.NOT_IMAGE, "an empty body", sends(head("Content-Length: 0"), PICTURE))
    for name, value in {
        "the cap and 1": MAX_BYTES + 1,
        "10 GB": 10**10,
        "2^63": 2**63,
        "10^40": 10**40,
    }.items():
        yield Case(
            f"length {name}",
            Kind.TOO_LARGE,
            "said beforehand: the body is not read",
            then(head(f"Content-Length: {value}"), PICTURE, act=hang),
        )
    yield Case("length and chunked", None, "RFC 9112, 6.3: the chunks count",
               sends(head("Content-Length: 5", CHUNKED), chunk(PICTURE), b"0\r\n\r\n"))  # fmt: skip
    yield Case("no length", None, "until the connection ends", sends(head(), PICTURE))


def chunks() -> Iterator[Case]:
    none = "RFC 9112, 7.1: no chunk"
    for name, size in {
        "letters": "xyz",
        "negative": "-5",
        "0x": "0x10",
        "empty": "",
        "17 digits": "1" * 17,
        "a sign": "+5",
        "behind a space": " 63",
        "2^63": "8000000000000000",
        "18 digits": "0" * 16 + "63",
    }.items():
        body = f"{size}\r\n".encode() + PICTURE + b"\r\n0\r\n\r\n"
        yield Case(f"chunk size: {name}", Kind.CONNECT, none, sends(head(CHUNKED), chunk(PICTURE[:99]), body))
    unread = "what stands behind the size is not looked at"
    for name, size in {
        "words": " x",
        "letters": "x",
        "a CR": "\r",
        "an extension of 5,000 bytes": ";" + "a" * 5000,
    }.items():
        body = f"{len(PICTURE):x}{size}\r\n".encode() + PICTURE + b"\r\r\n0\r\n\r\n"
        yield Case(f"chunk size and {name}", None, unread, sends(head(CHUNKED), body))
    yield Case("chunk size without end of its line, cut", Kind.TRUNCATED, unread,
               sends(head(CHUNKED), chunk(PICTURE[:99]), b"63x"))  # fmt: skip
    yield Case("chunk extension without end", Kind.TIMEOUT, unread,
               then(head(CHUNKED), b"63;", act=lambda peer: peer.repeat(b"x" * 9999, pause_s=0.1)), slow=True)  # fmt: skip
    for name, wrong in {"letters": b"xyz", "nothing": b"\r", "19 digits": b"0" * 19}.items():
        yield Case(f"chunk size: {name}, and silence", Kind.CONNECT, none,
                   then(head(CHUNKED), chunk(PICTURE[:99]), wrong, act=hang))  # fmt: skip
    yield Case("chunk longer than its size, and silence", Kind.CONNECT, none,
               then(head(CHUNKED), b"63\r\n" + PICTURE[:0x64], act=hang))  # fmt: skip
    yield Case(
        "chunk of a page longer than its size",
        Kind.NOT_IMAGE,
        "the body's beginning decides, whatever comes of the rest",
        sends(head(CHUNKED), b"63\r\n" + b"<html>" * 99, b"0\r\n\r\n"),
    )
    yield Case(
        "chunk longer than its size",
        Kind.CONNECT,
        none,
        sends(head(CHUNKED), b"63\r\n" + PICTURE, b"0\r\n\r\n"),
    )
    yield Case("chunk of 2^63", Kind.TRUNCATED, "less came than was said",
               sends(head(CHUNKED), b"7fffffffffffffff\r\n", PICTURE))  # fmt: skip
    yield Case("no last chunk", Kind.TRUNCATED, "the end is missing", sends(head(CHUNKED), chunk(PICTURE)))
    yield Case("chunks of a byte", None, "sound, if unusual",
               sends(head(CHUNKED), *(chunk(PICTURE[i : i + 1]) for i in range(300)), chunk(PICTURE[300:]), b"0\r\n\r\n"))  # fmt: skip
    yield Case("chunk with an extension and a trailer", None, "sound, if unusual",
               sends(head(CHUNKED), b"%x;a=b\r\n" % len(PICTURE), PICTURE, b"\r\n0\r\nX: y\r\n\r\n"))  # fmt: skip
    yield Case(
        "a chunk size without end",
        Kind.CONNECT,
        none,
        then(head(CHUNKED), act=lambda peer: peer.repeat(b"0" * 65536)),
    )
    once = "RFC 9112, 6.1: chunked, and once, is all that is asked for"
    for name, lines in {
        "chunked twice": [CHUNKED, CHUNKED],
        "chunked twice in a list": ["Transfer-Encoding: chunked, chunked"],
        "identity": ["Transfer-Encoding: identity", SIZED],
        "none": ["Transfer-Encoding:", SIZED],
        "behind a space": ["Transfer-Encoding : chunked"],
    }.items():
        body = chunk(PICTURE) + b"0\r\n\r\n"
        yield Case(f"transfer coding {name}", Kind.CONNECT, once, then(head(*lines), body, act=hang))
    yield Case("transfer coding identity, and silence", Kind.CONNECT, once,
               then(head("Transfer-Encoding: identity", SIZED), act=hang))  # fmt: skip
    yield Case("a trailer that is cut", Kind.TRUNCATED, "the end is missing",
               sends(head(CHUNKED), chunk(PICTURE), b"0\r\nX: y\r\n"))  # fmt: skip
    yield Case("no chunk but a trailer that is cut", Kind.TRUNCATED, "the end is missing",
               sends(head(CHUNKED), b"0\r\nX: y\r\n"))  # fmt: skip
    yield Case("a trailer of 5,000 bytes", Kind.CONNECT, "more than libcurl takes",
               sends(head(CHUNKED), chunk(PICTURE), b"0\r\nX: " + b"y" * 5000 + b"\r\n\r\n"))  # fmt: skip
    yield Case("a trailer that is none", Kind.CONNECT, none,
               sends(head(CHUNKED), chunk(PICTURE), b"0\r\nno colon\r\n\r\n"))  # fmt: skip
    yield Case(
        "no chunk but a trailer", Kind.NOT_IMAGE, "an empty body", sends(head(CHUNKED), b"0\r\nX: y\r\n\r\n")
    )
    yield Case("transfer coding gzip", Kind.CONNECT, "not asked for, and nothing is unpacked",
               sends(head("Transfer-Encoding: gzip, chunked"), chunk(gzip.compress(PICTURE)), b"0\r\n\r\n"))  # fmt: skip


def bodies() -> Iterator[Case]:
    cap = "the cap holds while streaming, whatever was said"
    packed, unasked = "Content-Encoding: gzip", "nothing is unpacked, and what is packed is no picture"
    yield Case(
        "endless picture",
        Kind.TOO_LARGE,
        cap,
        then(head(), PICTURE, act=lambda peer: peer.repeat(bytes(65536))),
    )
    yield Case(
        "endless chunks",
        Kind.TOO_LARGE,
        cap,
        then(head(CHUNKED), chunk(PICTURE), act=lambda peer: peer.repeat(chunk(bytes(65536)))),
    )
    yield Case("endless page", Kind.NOT_IMAGE, "of what is no picture, little is read",
               then(head(), act=lambda peer: peer.repeat(b"<html>" * 9999)))  # fmt: skip
    yield Case("endless body behind a small length", Kind.TRUNCATED, "the body is what the length says",
               then(head("Content-Length: 999"), PICTURE, act=lambda peer: peer.repeat(bytes(65536))))  # fmt: skip
    yield Case("gzip bomb", Kind.NOT_IMAGE, unasked, sends(good(packed, body=BOMB)))
    yield Case("gzip bomb that is not called one", Kind.NOT_IMAGE, unasked, sends(good(body=BOMB)))
    yield Case(
        "gzip bomb in chunks",
        Kind.NOT_IMAGE,
        unasked,
        sends(head(packed, CHUNKED), chunk(BOMB), b"0\r\n\r\n"),
    )
    for coding, body in {
        "gzip, gzip": gzip.compress(BOMB),
        "deflate": zlib.compress(bytes(1 << 20), 9) * 9,
        "br": b"\x5b\xff\xff\xff" + bytes(999),
        "zstd": b"\x28\xb5\x2f\xfd" + bytes(999),
    }.items():
        answer = good(f"Content-Encoding: {coding}", body=body)
        yield Case(f"bomb in {coding}", Kind.NOT_IMAGE, unasked, sends(answer))
    yield Case("picture that is called packed", None, "what came is a picture", sends(good(packed)))
    yield Case("identity is asked for", None, "so that a sound server packs nothing",
               expects(b"\r\nAccept-Encoding: identity\r\n", without=b"gzip"))  # fmt: skip
    status = "the status decides, whatever the body does"
    yield Case(
        "404 with an endless body",
        Kind.HTTP_STATUS,
        status,
        then(head(status="404 No"), act=lambda peer: peer.repeat(bytes(65536))),
    )
    yield Case("404 with an endless picture", Kind.HTTP_STATUS, status,
               then(head(status="404 No"), PICTURE, act=lambda peer: peer.repeat(bytes(65536))))  # fmt: skip
    yield Case(
        "404 of 10 GB",
        Kind.HTTP_STATUS,
        status,
        then(head("Content-Length: 10000000000", status="404 No"), act=cut),
    )
    yield Case(
        "404 that is cut",
        Kind.HTTP_STATUS,
        status,
        sends(head("Content-Length: 500", status="404 No"), b"gone"),
    )
    yield Case(
        "404 that is reset",
        Kind.HTTP_STATUS,
        status,
        then(head("Content-Length: 500", status="404 No"), b"gone", act=reset),
    )
    yield Case(
        "404 that stalls",
        Kind.HTTP_STATUS,
        status,
        then(head("Content-Length: 500", status="404 No"), b"gone", act=hang),
        slow=True,
    )


def redirects() -> Iterator[Case]:
    http = "only http and https are followed"
    for to in ("file:///etc/passwd", "gopher://127.0.0.1/x", "ftp://127.0.0.1/x", "javascript:alert(1)", "data:image/png;base64,xx",
               "http://", "http:///x", "http://[::1", "http://127.0.0.1:99999/x", "http://127.0.0.1:0/x", "http://%00/x", "http://%ff/x"):  # fmt: skip
        yield Case(f"redirect to {to}", Kind.REDIRECTS, http, moved(to))
    shut = "no address that may be fetched from, checked at every hop"
    for to in ("http://169.254.169.254/latest/meta-data", f"http://{SHUT}/x", "http://10.0.0.1/x", "http://[::1]:1/x", "http://0x7f.2/x",
               "http://2130706434/x", "http://[::ffff:127.0.0.2]/x", "http://0.0.0.0/x", f"http://{OPEN}@{SHUT}/x", "https://169.254.169.254/",
               "http://%31%32%37.0.0.2/x", "http://\u2460\u2461\u2466.0.0.2/x"):  # fmt: skip
        yield Case(f"redirect to {to}", Kind.BLOCKED_ADDRESS, shut, moved(to))
    many = "more than fetch.max_redirects"
    yield Case("redirect to itself", Kind.REDIRECTS, many, moved("/x"))
    yield Case("1,000 redirects", Kind.REDIRECTS, many, hops(1000))
    yield Case("6 redirects", Kind.REDIRECTS, many, hops(6))
    yield Case("5 redirects", None, "within fetch.max_redirects", hops(5))
    yield Case(
        "redirect to nowhere",
        Kind.HTTP_STATUS,
        "a status without what it promises",
        sends(good(status="302 Found", body=b"")),
    )
    yield Case("redirect to nothing", Kind.HTTP_STATUS, "as above", moved(""))
    for name, to, asked in (
        ("relative", "y", "/y"), ("with a fragment", "/y#z", "/y"), ("with spaces", "/y z", "/y%20z"), ("with dots", "/a/../y", "/y"),
        ("with no scheme", "//127.0.0.1:{port}/y", "/y"), ("in UTF-8", "/\u00e9", "/%C3%A9"), ("in Latin-1", b"/\xe9", "/%E9"),
        ("with a query", "?a=b", "/x?a=b"), ("of 30 KB", "/" + "y" * 30_000, "/" + "y" * 30_000),
    ):  # fmt: skip
        yield Case(f"redirect {name}", None, "RFC 3986, 5", first_then(moved(to), asked))
    two = "RFC 9110, 10.2.2: there is one"
    yield Case("redirect to two places", Kind.CONNECT, two, moved("/x1", "Location: /x2"))
    early = head("Location: /x1", status="103 Early Hints")
    yield Case("redirect to another place than early hints", Kind.CONNECT, two,
               sends(early, good("Location: /x2", status="302 Found", body=b"")))  # fmt: skip
    yield Case("redirect to one place twice", None, two, first_then(moved("/y", "Location: /y"), "/y"))
    for to in (
        "http://127.0.0.1../x",
        "http://u@h@127.0.0.1/x",
        "http://127.0.0.08/x",
        "http://127.0.0.1;/x",
    ):
        yield Case(f"redirect to {to}", Kind.REDIRECTS, "no host", moved(to))
    body = "a redirect's body is not needed"
    for name, lines, act in (
        ("an endless body", (), lambda peer: peer.repeat(bytes(65536))),
        ("10 GB", ("Content-Length: 10000000000",), cut),
        (
            "a gzip bomb",
            ("Content-Encoding: gzip", f"Content-Length: {len(BOMB)}"),
            lambda peer: peer.send(BOMB),
        ),
        ("a body that is cut", ("Content-Length: 500",), cut),
    ):
        yield Case(
            f"redirect with {name}",
            None,
            body,
            first_then(then(head("Location: /y", *lines, status="302 Found"), b"<html>", act=act), "/y"),
        )
    yield Case(
        "redirect to a host of bytes", Kind.REDIRECTS, "neither UTF-8 nor a name", moved(b"http://\xff\xfe/x")
    )
    for name, host in {"an IDN": "m\u00fcnchen.test", "an encoded name": "good%2Etest"}.items():
        to = f"http://{host}:{{port}}/y"
        yield Case(f"redirect to {name}", None, "as in a task's URL", first_then(moved(to), "/y"))
    user = "http://u:p@127.0.0.1:{port}/x"
    yield Case(
        "redirect to a user",
        None,
        "sent as Basic credentials",
        asks_for_user("u:p@127.0.0.1", "127.0.0.1", True),
    )
    yield Case(
        "redirect of a user to another host",
        None,
        "what is for one host is not told to another",
        asks_for_user("good.test", "good.test", False),
        user,
    )
    yield Case("redirect that sets cookies", None, "no cookie is kept", asks_for_no_cookie)


def asks_for_user(to: str, host: str, told: bool) -> Handler:
    """A redirect to `to`; the picture for who then asks `host`, with credentials or without."""

    def serve(peer: Peer) -> None:
        asked = peer.request()
        port = peer.sock.getsockname()[1]
        if b" /y " not in asked:
            to_y = f"Location: http://{to}:{port}/y"
            peer.send(good(to_y, "Connection: close", status="302 Found", body=b""))
            return
        right = (
            f"Host: {host}:{port}\r\n".encode() in asked and (b"Authorization: Basic dTpw" in asked) == told
        )
        peer.send(good("Connection: close") if right else good(status="418 No", body=b""))

    return serve


def asks_for_no_cookie(peer: Peer) -> None:
    asked = peer.request()
    if b" /y " not in asked:
        peer.send(
            good("Location: /y", "Set-Cookie: a=b; Path=/", "Connection: close", status="302 Found", body=b"")
        )
    else:
        peer.send(good("Connection: close") if b"cookie" not in asked.lower() else good(status="418 No"))


def tls() -> Iterator[Case]:
    trust = "a certificate that is not to be trusted"
    https = "https://127.0.0.1:{port}/x"
    yield Case("tls: sound", None, "signed by the authority of fetch.ca_file", sends(good()), https, "good")
    yield Case(
        "tls: a name",
        None,
        "the certificate is for the URL's name",
        sends(good()),
        "https://good.test:{port}/x",
        "good",
    )
    for name in ("expired", "not yet valid", "wrong host", "self-signed", "unknown authority", "tls 1.1"):
        yield Case(f"tls: {name}", Kind.TLS, trust, sends(good()), https, name)
    yield Case("tls: another name", Kind.TLS, trust, sends(good()), "https://bad.test:{port}/x", "good")
    broken = "no handshake"
    yield Case("tls: closed at once", Kind.TLS, broken, cut, https)
    yield Case(
        "tls: closed after the hello",
        Kind.TLS,
        broken,
        lambda peer: (peer.sock.recv(9999), cut(peer))[0],
        https,
    )
    yield Case(
        "tls: reset after the hello",
        Kind.TLS,
        broken,
        lambda peer: (peer.sock.recv(9999), reset(peer))[0],
        https,
    )
    yield Case(
        "tls: plain HTTP", Kind.TLS, broken, lambda peer: (peer.sock.recv(9999), peer.send(good()))[0], https
    )
    yield Case("tls: noise", Kind.TLS, broken, lambda peer: peer.send(b"\x99" * 4096), https)
    yield Case("tls: alert", Kind.TLS, broken, lambda peer: peer.send(b"\x15\x03\x03\x00\x02\x02\x28"), https)
    yield Case(
        "tls: unfinished handshake",
        Kind.TIMEOUT,
        "the handshake counts towards the connect timeout",
        hang,
        https,
        slow=True,
    )
    yield Case(
        "tls: stuttered handshake",
        Kind.TIMEOUT,
        "as above",
        lambda peer: peer.stutter(b"\x16\x03\x03\x40\x00" + bytes(9999)),
        https,
        slow=True,
    )
    yield Case(
        "tls: http on its port",
        Kind.CONNECT,
        "a TLS alert is no status line",
        sends(good()),
        "http://127.0.0.1:{port}/x",
        "good",
    )
    goodbye = "RFC 9112, 9.8: an end without TLS's goodbye is no end"
    yield Case(
        "tls: cut in the body",
        Kind.TRUNCATED,
        goodbye,
        then(head(SIZED), PICTURE[:300], act=cut),
        https,
        "good",
    )
    yield Case(
        "tls: cut behind a body without length",
        Kind.TRUNCATED,
        goodbye,
        then(head(), PICTURE, act=cut),
        https,
        "good",
    )

    gone = "the connection broke"
    for name, act in {"cut": cut, "reset": reset}.items():
        yield Case(f"tls: {name} before the answer", Kind.CONNECT, gone, then(act=act), https, "good")
    yield Case(
        "tls: reset in the body",
        Kind.CONNECT,
        gone,
        then(head(SIZED), PICTURE[:300], act=lambda peer: (peer.wait(0.1), reset(peer))[0]),
        https,
        "good",
    )
    yield Case(
        "tls: noise in the body",
        Kind.CONNECT,
        gone,
        then(head(SIZED), PICTURE[:300], act=noise),
        https,
        "good",
    )


def noise(peer: Peer) -> None:
    """Bytes past TLS, which are no record of it."""
    with socket.socket(fileno=os.dup(peer.sock.fileno())) as plain:
        plain.sendall(b"\x99" * 4096)
        hang(peer)


def http2() -> Iterator[Case]:
    yield Case(
        "http/2: status line", Kind.CONNECT, "HTTP/1.1 was asked for", sends(b"HTTP/2 200\r\n\r\n", PICTURE)
    )
    settings, goaway = b"\0\0\0\4\0\0\0\0\0", b"\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\x0d"
    yield Case("http/2: frames", Kind.CONNECT, "as above", sends(settings, goaway))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield Case("http/2: preface", Kind.CONNECT, "as above", sends(preface, settings))
    yield Case(
        "http/2: 421", Kind.HTTP_STATUS, "a status like any other", sends(good(status="421 Misdirected"))
    )
    yield Case(
        "http/2: 505",
        Kind.HTTP_STATUS,
        "a status like any other",
        sends(good(status="505 HTTP Version Not Supported")),
    )
    yield Case(
        "http/2: 426",
        Kind.HTTP_STATUS,
        "a status like any other",
        sends(good("Upgrade: h2c", status="426 Upgrade Required")),
    )
    yield Case("http/2: 464", Kind.HTTP_STATUS, "what load balancers say", sends(good(status="464 ")))
    yield Case(
        "http/2: TLS with h2 only",
        None,
        "a server that takes no ALPN for HTTP/1.1",
        sends(good()),
        "https://127.0.0.1:{port}/x",
        "h2",
    )
    yield Case(
        "http/2: TLS that insists on it",
        Kind.TLS,
        "RFC 7301, 3.2: the alert no_application_protocol",
        lambda peer: (peer.sock.recv(9999), peer.send(b"\x15\x03\x03\x00\x02\x02\x78"))[0],
        "https://127.0.0.1:{port}/x",
    )
    yield Case(
        "http/2: frames over TLS",
        Kind.CONNECT,
        "as without TLS",
        sends(settings, goaway),
        "https://127.0.0.1:{port}/x",
        "h2",
    )
    yield Case(
        "http/2: TLS with both",
        None,
        "HTTP/1.1 is what we ask for",
        sends(good()),
        "https://127.0.0.1:{port}/x",
        "h2 and 1.1",
    )
    switching = head("Upgrade: h2c", "Connection: Upgrade", status="101 X")
    yield Case("switching protocols, closed", Kind.CONNECT, "no answer came", sends(switching))
    unasked = "RFC 9110, 15.2.2: not asked for, and no answer comes behind it"
    yield Case("switching protocols", Kind.CONNECT, unasked, then(switching, act=hang))
    yield Case(
        "switching protocols, and a picture", Kind.CONNECT, unasked, then(switching, PICTURE, act=hang)
    )


def resets() -> Iterator[Case]:
    gone = "the connection broke"
    for name, pieces in {
        "after the request": (),
        "in the status line": (b"HTTP/1.1 20",),
        "behind the status line": (b"HTTP/1.1 200 OK\r\n",),
        "in the headers": (b"HTTP/1.1 200 OK\r\nContent-Length: 99",),
        "behind a header": (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n",),
        "in a header behind a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nX: y",),
        "in a 404's headers": (b"HTTP/1.1 404 No\r\nX: y\r\n",),
    }.items():
        yield Case(f"reset {name}", Kind.CONNECT, gone, then(*pieces, act=reset))
        yield Case(f"closed {name}", Kind.CONNECT, gone, sends(*pieces))
    yield Case("reset at once", Kind.CONNECT, gone, reset)
    yield Case("closed at once", Kind.CONNECT, gone, cut)
    for name, pieces in {
        "body": (head(SIZED), PICTURE[:300]),
        "chunk": (head(CHUNKED), chunk(PICTURE)[:300]),
    }.items():
        yield Case(
            f"reset in the {name}",
            Kind.CONNECT,
            gone,
            then(*pieces, act=lambda peer: (peer.wait(0.1), reset(peer))[0]),
        )
        yield Case(f"closed in the {name}", Kind.TRUNCATED, "less came than was said", sends(*pieces))
    yield Case("nobody listens", Kind.CONNECT, "refused", url="http://127.0.0.1:1/x")


NAMES: dict[str, tuple[str, ...]] = {
    "good.test": (OPEN,),
    "bad.test": (OPEN,),
    "xn--mnchen-3ya.test": (OPEN,),
    "shut.test": (SHUT,),
    "meta.test": ("169.254.169.254",),
    "both.test": (SHUT, OPEN),
    "empty.test": (),
}
"""What the name server of the tests knows; of `silent.test` it says nothing, of others that there are none."""


def names() -> Iterator[Case]:
    serve = expects(b"GET /x ")
    yield Case("dns: no such name", Kind.DNS, "NXDOMAIN", url="http://none.test/x")
    yield Case("dns: no address", Kind.DNS, "the name has none", url="http://empty.test/x")
    yield Case("dns: silence", Kind.DNS, "dns.timeout_s", url="http://silent.test/x", slow=True)
    yield Case(
        "dns: a private address",
        Kind.BLOCKED_ADDRESS,
        "the address counts, not the name",
        url="http://shut.test/x",
    )
    yield Case("dns: the metadata service", Kind.BLOCKED_ADDRESS, "as above", url="http://meta.test/x")
    yield Case(
        "dns: one that refuses, one that may not be asked",
        Kind.BLOCKED_ADDRESS,
        "whichever comes first",
        url="http://both.test:1/x",
    )
    yield Case(
        "dns: one that may, one that may not",
        None,
        "the one that may is used",
        serve,
        "http://both.test:{port}/x",
    )
    yield Case(
        "dns: redirect to a private address",
        Kind.BLOCKED_ADDRESS,
        "as above",
        moved("http://shut.test/x"),
        "http://good.test:{port}/x",
    )
    for host in (
        "m\u00fcnchen.test",
        "M%C3%9CNCHEN.test",
        "xn--mnchen-3ya.test",
        "good%2Etest",
        "GOOD.test",
        "good.test.",
        "good\u3002test",
        "\uff47ood.test",
        "u:p@good.test",
    ):
        yield Case(f"host {host}", None, "one name in several spellings", serve, f"http://{host}:{{port}}/x")
    for host in (
        "%31%32%37.0.0.2",
        "127.0.0%2e2",
        "\uff11\uff12\uff17.0.0.2",
        "127.0.0.\u2461",
        "\u2081\u2082\u2087.0.0.2",
        "0177.0.0.2",
        "127.2",
    ):
        yield Case(f"host {host}", Kind.BLOCKED_ADDRESS, "an address in disguise", url=f"http://{host}/x")
    for host in (
        "127.0.0.1..",
        "u@h@127.0.0.1",
        "127.0.0.08",
        "00x7f.1",
        "4294967297",
        "1.2.3.4.5",
        "0x.",
        "127.0.0.1;",
        "a*b",
        "[v1.x]",
        "..",
        "%",
        "a%00b",
        "a b",
        "a%20b",
        "a%2Fb",
        "[::1",
        "\ufffd",
        "a%ff",
    ):
        yield Case(f"host {host}", Kind.BAD_TASK, "no host", url=f"http://{host}/x")
    yield Case("host with empty labels", Kind.DNS, "no name that there is", url="http://a..b/x")
    yield Case("host that is no punycode", Kind.BAD_TASK, "no host", url="http://xn--a-\u00e9.test/x")
    yield Case(
        "host of 300 letters", Kind.BAD_TASK, "no host is longer than 253", url="http://" + "a" * 300 + "/x"
    )


def urls() -> Iterator[Case]:
    untouched = "the server is asked for what the URL says; escapes in capitals, RFC 3986, 6.2.2"
    for name, path, asked in (
        ("of 64 KB", "/" + "x" * 65536, "/" + "x" * 65536),
        ("not UTF-8", "/%ff%FE.jpg", "/%FF%FE.jpg"),
        ("with a query of 64 KB", "/x?" + "y" * 65536, "/x?" + "y" * 65536),
        ("with a fragment of 64 KB", "/x#" + "y" * 65536, "/x"),
        ("with a query that is not UTF-8", "/x?%ff=%FE", "/x?%ff=%FE"),
        ("with a bad escape", "/%zz%7e%", "/%zz%7E%"),
        ("with dots", "/a/b/.././%2e%2E/c", "/c"),
        ("with two slashes", "//a//b", "//a//b"),
        ("with a query only", "?a=b", "/?a=b"),
        ("with a fragment", "/x#y", "/x"),
        ("not ASCII", "/\u00e9 \u732b", "/%C3%A9%20%E7%8C%AB"),
        ("with brackets", "/[x]{y}|z", "/[x]{y}|z"),
    ):
        yield Case(
            f"url {name}",
            None,
            untouched,
            expects(b"GET " + asked.encode() + b" HTTP/1.1\r\n"),
            "http://127.0.0.1:{port}" + path,
        )
    yield Case("url with a user", None, "sent as Basic credentials, as browsers do",
               expects(b"Authorization: Basic dTpwQHc=\r\n"), "http://u:p%40w@127.0.0.1:{port}/x")  # fmt: skip
    yield Case("url with a user of bytes", None, "unescaped, whatever they are",
               expects(b"Authorization: Basic //46/g==\r\n"), "http://%ff%fe:%FE@127.0.0.1:{port}/x")  # fmt: skip
    yield Case("url with a user of 64 KB", None, "as above",
               expects(b"Authorization: Basic dXV1"), "http://" + "u" * 65536 + "@127.0.0.1:{port}/x")  # fmt: skip
    yield Case("url with a user that is not ASCII", None, "as UTF-8",
               expects(b"Authorization: Basic w7w6cA==\r\n"), "http://\u00fc:p@127.0.0.1:{port}/x")  # fmt: skip
    yield Case(
        "url with a NUL for a password", Kind.BAD_TASK, "no credentials", url="http://u:%00@127.0.0.1/x"
    )
    yield Case("url without a user", None, "no .netrc", expects(without=b"authorization"))
    yield Case(
        "url with an address for a user",
        Kind.BLOCKED_ADDRESS,
        "the host is behind the @",
        url=f"http://{OPEN}@{SHUT}/x",
    )
    yield Case("url with a backslash", Kind.BLOCKED_ADDRESS, "as above", url=f"http://{OPEN}\\@{SHUT}/x")
    yield Case(
        "url with a user that looks like a host",
        Kind.BLOCKED_ADDRESS,
        "as above",
        url=f"http://good.test:80@{SHUT}:80/x",
    )
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/x", "//127.0.0.1/x", "http:/127.0.0.1/x", "http://", "http://127.0.0.1:99999/",
                "http://127.0.0.1:0/x", "http://127.0.0.1:x/", "http://127.0.0.1/\ud83d", ""):  # fmt: skip
        yield Case(
            f"url {url.encode('ascii', 'backslashreplace').decode()}", Kind.BAD_TASK, "no http URL", url=url
        )


def all_cases() -> list[Case]:
    parts = (
        status_lines,
        stutters,
        headers,
        lengths,
        chunks,
        bodies,
        redirects,
        tls,
        http2,
        resets,
        names,
        urls,
    )
    cases = [case for part in parts for case in part()]
    assert len({case.name for case in cases}) == len(cases)
    return cases


def make_contexts(folder: Path) -> tuple[Path, Contexts]:
    """The file of the authority to trust, and a server's context for each kind of certificate."""
    from datetime import UTC, datetime, timedelta

    authority, other = trustme.CA(), trustme.CA()
    now, day = datetime.now(UTC), timedelta(days=1)
    ours = partial(authority.issue_cert, OPEN, "good.test")
    leaves = {
        "good": ours(),
        "h2": ours(),
        "h2 and 1.1": ours(),
        "tls 1.1": ours(),
        "expired": ours(not_before=now - 9 * day, not_after=now - day),
        "not yet valid": ours(not_before=now + day, not_after=now + 9 * day),
        "wrong host": authority.issue_cert("elsewhere.test", "127.0.0.9"),
        "unknown authority": other.issue_cert(OPEN),
    }
    contexts = {name: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for name in (*leaves, "self-signed")}
    for name, leaf in leaves.items():
        leaf.configure_cert(contexts[name])
    with other.cert_pem.tempfile() as cert, other.private_key_pem.tempfile() as key:
        contexts["self-signed"].load_cert_chain(cert, key)
    contexts["h2"].set_alpn_protocols(["h2"])
    contexts["h2 and 1.1"].set_alpn_protocols(["h2", "http/1.1"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
        contexts["tls 1.1"].minimum_version = ssl.TLSVersion.TLSv1
        contexts["tls 1.1"].maximum_version = ssl.TLSVersion.TLSv1_1
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder / "ca.pem", contexts
