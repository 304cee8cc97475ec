"""What a robots.txt means for a URL: RFC 9309, and files that nobody should write."""

from __future__ import annotations

import gzip
import random
import time
import tracemalloc
from collections.abc import Callable

import pytest
from bombs import gzip_bomb
from unit_support import Clock

from dlconsole.model import Failure, FailureKind
from dlconsole.workers.fetch.engine import Fetched
from dlconsole.workers.fetch.robots import KEEP_S, MAX_BYTES, MAX_ORIGINS, RETRY_S, Robots
from dlconsole.workers.fetch.robots_rules import MAX_RULES, parse
from dlconsole.workers.fetch.urls import ROBOTS_TXT_BYTES, Origin, Target, origin_of, target_of

OURS = "dlconsole"


def robots_of(body: bytes) -> Robots:
    robots = Robots("dlconsole/1.0 (tests)")
    robots.learn(Origin("http", "a.example", 80), Fetched("", 200, bytearray(body)))
    return robots


def refusal(robots: Robots, url: str) -> Failure | None:
    target = target_of(url)
    assert target is not None
    known = robots.known(origin_of(target))
    assert known is not None
    return known.refusal(target)


def allows(body: bytes, path: str) -> bool:
    failure = refusal(robots_of(body), f"http://a.example{path}")
    assert failure is None or failure.kind is FailureKind.OPT_OUT
    return failure is None


ALL = b"User-agent: *\n"

ONE_GROUP = [
    # (rules, path, allowed); those of Google's table first
    (b"allow: /p\ndisallow: /", "/page", True),
    (b"allow: /folder\ndisallow: /folder", "/folder/page", True),
    (b"allow: /page\ndisallow: /*.htm", "/page.htm", False),
    (b"allow: /page\ndisallow: /*.ph", "/page.php5", True),
    (b"allow: /$\ndisallow: /", "/", True),
    (b"allow: /$\ndisallow: /", "/page.htm", False),
    (b"disallow: /fish", "/fish.html", False),
    (b"disallow: /fish", "/Fish", True),
    (b"disallow: /fish*", "/fishheads/yummy.html", False),
    (b"disallow: /fish/", "/fish", True),
    (b"disallow: /*.php", "/folder/any.php.file.html", False),
    (b"disallow: /*.php$", "/filename.php", False),
    (b"disallow: /*.php$", "/filename.php?parameters", True),
    (b"disallow: /fish*.php", "/fishheads/catfish.php?parameters", False),
    (b"disallow: /fish*.php", "/Fish.PHP", True),
    # nothing, everything
    (b"", "/x", True),
    (b"disallow:", "/x", True),
    (b"disallow: /", "", False),
    (b"disallow: *", "/x", False),
    (b"disallow: x", "/x", True),
    (b"disallow: /*/$", "/a/b", True),
    (b"disallow: /*/$", "/a/", False),
    (b"disallow: /a$b", "/a$b", False),
    (b"disallow: /**a**b**", "/xaxb", False),
    (b"disallow: /a*a$", "/a", True),
    # which of two
    (b"disallow: /a*\nallow: /a", "/ab", False),
    (b"disallow: /a\nallow: /a*", "/ab", True),
    (b"allow: /a*b\ndisallow: /a\n", "/ab", True),
    (b"allow: /i/ok\ndisallow: /i/*/x.jpg", "/i/ok/x.jpg", False),
    # how URLs are written
    (b"disallow: /?id=", "?id=7", False),
    (b"disallow: /?id=", "/?id=7", False),
    (b"disallow: /*?", "/a.jpg?x", False),
    (b"disallow: /*?", "/a.jpg#?x", True),
    (b"disallow: /%7Ejoe", "/~joe/x", False),
    (b"disallow: /~joe", "/%7ejoe/x", False),
    (b"disallow: /a%2fb", "/a%2Fb", False),
    (b"disallow: /a/b", "/a%2Fb", True),
    (b"disallow: /a b", "/a b/x", False),
    (b"disallow: /a%20b", "/a b/x", False),
    ("disallow: /bücher".encode(), "/b%c3%bccher/1.jpg", False),
    ("disallow: /bücher".encode(), "/bücher/1.jpg", False),
    (b"disallow: /private", "/public/../private/x", False),
    (b"disallow: /private", "/./private/x", False),
    (b"disallow: /private", "/public/%2e%2E/private/x", False),
    (b"disallow: /100%", "/100%/x", False),
    # how lines are written
    (b"DISALLOW :\t/a # not this", "/a", False),
    (b"disallow: /a#b", "/a", False),
    (b"disalow: /a", "/a", False),
    (b"disallow /a", "/a", True),
    (b"crawl-delay: 5\nsitemap: http://x/\nhost: y\ndisallow: /a", "/a", False),
]


@pytest.mark.parametrize(("rules", "path", "allowed"), ONE_GROUP)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_a_rule_means_what_it_says(rules: bytes, path: str, allowed: bool, end: bytes) -> None:
    body = (ALL + rules).replace(b"\n", end)
    assert allows(body, path) is allowed
    assert allows(b"\xef\xbb\xbf" + body, path) is allowed
    assert allows(gzip.compress(body), path) is allowed


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        ("User-agent: *\nDisallow: /\n\nUser-agent: dlconsole\nDisallow:", True),
        ("User-agent: dlconsole\nDisallow: /\n\nUser-agent: *\nAllow: /", False),
        ("User-agent: DLConsole/2.0\nDisallow: /", False),
        ("User-agent: dl\nDisallow: /", True),
        ("User-agent: dlconsolebot\nDisallow: /", True),
        ("User-agent: Mozilla dlconsole\nDisallow: /", True),
        ("User-agent: other\nUser-agent: dlconsole\nDisallow: /", False),
        ("User-agent: dlconsole\nUser-agent: *\nDisallow: /", False),
        ("User-agent: dlconsole\nSitemap: x\nUser-agent: other\nDisallow: /", False),
        ("User-agent: dlconsole\nDisallow: /a\nUser-agent: other\nDisallow: /", True),
        # groups that name us are one
        ("User-agent: dlconsole\nAllow: /x\nUser-agent: *\nDisallow:\nUser-agent: dlconsole\nDisallow: /", False),
        ("Disallow: /", True),
        ("User-agent:\nDisallow: /", True),
    ],
)  # fmt: skip
def test_the_group_that_names_us_counts_else_that_of_everyone(body: str, allowed: bool) -> None:
    assert allows(body.encode(), "/pictures/1.jpg") is allowed


def test_a_refusal_names_the_rule_and_its_file() -> None:
    failure = refusal(robots_of(ALL + b"Disallow: /a*.jpg$\n"), "http://a.example/abc.jpg")
    assert failure is not None and not failure.retryable
    assert failure.message == "robots.txt of http://a.example: disallow: /a*.jpg$"


@pytest.mark.parametrize(
    ("url", "robots_txt"),
    [
        ("HTTP://A.example:80/x", "http://a.example/robots.txt"),
        ("https://u:p@a.example/x", "https://a.example/robots.txt"),
        ("https://a.example:80/x", "https://a.example:80/robots.txt"),
        ("http://[2001:DB8::1]:8080/x", "http://[2001:db8::1]:8080/robots.txt"),
    ],
)
def test_each_scheme_host_and_port_has_its_own(url: str, robots_txt: str) -> None:
    target = target_of(url)
    assert target is not None
    wanted = Target(robots_txt, target.host, target.port, target.is_address)
    assert origin_of(target).robots_txt == wanted


# -- files that mean harm --------------------------------------------------------------------------


HALF = ROBOTS_TXT_BYTES // 2
HARMFUL: dict[str, Callable[[], bytes]] = {
    "binary": lambda: random.Random(4).randbytes(ROBOTS_TXT_BYTES),
    "agents times rules": lambda: (
        b"".join(b"User-agent:%d\n" % n for n in range(100_000))[:HALF] + b"\n" + ALL + b"Allow:/a\n" * (HALF // 9)
    ),
    "one agent often": lambda: b"user-agent:*\n" * (HALF // 13) + b"Disallow:/*a*b\n" * (HALF // 15),
    "long line": lambda: ALL + b"Disallow: /" + b"*a" * HALF,
    "long name": lambda: b"a" * ROBOTS_TXT_BYTES + b": b",
    "many rules": lambda: ALL + b"".join(b"Disallow:/%d\n" % i for i in range(40_000)),
    "many lengths": lambda: ALL + b"".join(b"Disallow:/%s\n" % (b"a" * i) for i in range(950)),
    "many wildcards": lambda: ALL + b"".join(b"Disallow:/*%d*z\n" % i for i in range(40_000)),
    "stars": lambda: ALL + b"Disallow: /" + b"*a" * 2000 + b"z\n" + (b"Disallow: /" + b"*a" * 200 + b"z\n") * 900,
    "gzip bomb": lambda: gzip_bomb(200),
    "gzip of lines": lambda: gzip.compress((ALL + b"Disallow: /x\n") * 2**20),
    "gzip, broken": lambda: gzip.compress(ALL + b"Disallow: /")[:20],
    "nul": lambda: ALL + b"Disallow: /a\0b\n" * 1000,
}  # fmt: skip
"""Each is made where it is needed: all together take a second, and every process of a run reads this module."""


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_file_costs_little(name: str) -> None:
    body = bytearray(HARMFUL[name]()[:ROBOTS_TXT_BYTES])
    tracemalloc.start()
    try:
        rules = parse(body, OURS)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16 * 2**20
    assert kept <= 2 * rules.size_bytes + 2**16
    began = time.thread_time()
    for path in ("/" + "a" * 8000, "/" + "0123456789" * 10):
        rules.disallowed_by(path)
    assert time.thread_time() - began < 0.5


def test_of_too_many_rules_the_first_count() -> None:
    body = ALL + b"".join(b"Disallow: /%d/\n" % i for i in range(MAX_RULES + 1))
    assert not allows(body, f"/{MAX_RULES - 1}/")
    assert allows(body, f"/{MAX_RULES}/")


# -- what is remembered ----------------------------------------------------------------------------


def origin(number: int) -> Origin:
    return Origin("http", f"h{number}.example", 80)


def failed(kind: FailureKind, status: int | None = None) -> Failure:
    return Failure(kind, "so it is", status)


@pytest.mark.parametrize(
    ("outcome", "allowed"),
    [
        (failed(FailureKind.HTTP_STATUS, 404), True),
        (failed(FailureKind.HTTP_STATUS, 401), True),
        (failed(FailureKind.HTTP_STATUS, 403), True),
        (failed(FailureKind.HTTP_STATUS, 204), True),
        (failed(FailureKind.HTTP_STATUS, 304), True),
        (failed(FailureKind.REDIRECTS), True),
        (failed(FailureKind.HTTP_STATUS, 500), False),
        (failed(FailureKind.HTTP_STATUS, 599), False),
        (failed(FailureKind.TIMEOUT), False),
        (failed(FailureKind.CONNECT), False),
        (failed(FailureKind.DNS), False),
        (failed(FailureKind.TRUNCATED, 200), False),
        (failed(FailureKind.BLOCKED_ADDRESS), False),
    ],
)
def test_a_file_that_is_not_there_allows_all_and_one_that_cannot_be_had_nothing(
    outcome: Failure, allowed: bool
) -> None:
    clock = Clock()
    robots = Robots(OURS, clock)
    robots.learn(origin(0), outcome)
    failure = refusal(robots, "http://h0.example/x")
    assert (failure is None) is allowed
    if failure is not None:
        assert (failure.kind, failure.status, failure.retry_after_s) == (
            outcome.kind,
            outcome.status,
            RETRY_S,
        )
        assert failure.message == "robots.txt of http://h0.example: so it is"
    clock.now += (KEEP_S if allowed else RETRY_S) - 1
    assert robots.known(origin(0)) is not None
    clock.now += 1
    assert robots.known(origin(0)) is None


def test_what_is_remembered_is_bounded_in_number_and_size() -> None:
    robots = Robots(OURS)
    nothing = failed(FailureKind.HTTP_STATUS, 404)
    for number in range(MAX_ORIGINS):
        robots.learn(origin(number), nothing)
    assert robots.known(origin(0)) is not None  # asked about: the last to be forgotten
    robots.learn(origin(MAX_ORIGINS), nothing)
    assert robots.known(origin(0)) is not None and robots.known(origin(1)) is None
    large = Fetched("", 200, bytearray(ALL + b"".join(b"Disallow: /%d\n" % i for i in range(8000))))
    for number in range(40):
        robots.learn(origin(number), large)
    assert robots._size_bytes <= MAX_BYTES
    assert robots._size_bytes == sum(known.size_bytes for known in robots._known.values())
    assert robots.known(origin(39)) is not None and robots.known(origin(2)) is None
    assert len(robots._known) < 40
