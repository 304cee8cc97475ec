"""`fetch.robots`: whole workers, of both engines, and sites with a robots.txt of every sort."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import pytest
import redis
from host_web import PICTURE, Host, HostWeb, Reply
from integration_support import KEYS, Hosts, Running, changed, errors_of, fence, stored_files, task, until

from dlconsole.model import Failure, FailureKind
from dlconsole.services.scripts import script
from dlconsole.settings import DnsSettings, FetchSettings, Settings
from dlconsole.workers.fetch.curl import CurlEngine
from dlconsole.workers.fetch.engine import IN_MEMORY, Buffers, Engine, Fetched, Result, TurnedAway
from dlconsole.workers.fetch.requests_engine import RequestsEngine
from dlconsole.workers.fetch.urls import ROBOTS_TXT_BYTES, target_of

ENGINES: dict[str, Callable[..., Engine[int]]] = {"curl": CurlEngine, "requests": RequestsEngine}
ROBOTS = "/robots.txt"
NOBODY = b"User-agent: *\nDisallow: /\n"


@pytest.fixture(params=list(ENGINES), autouse=True)
def engine_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def heeding(settings: Settings, engine_name: str) -> Settings:
    """Settings of a worker that reads robots.txt, with limits that only broken sites reach."""
    settings = changed(settings, "fetch", robots=True, per_host=3, deadline_s=60, max_bytes="64KiB")
    return changed(settings, "worker", engine=engine_name, concurrency=16, batch=50)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def site(robots: bytes | Iterable[bytes] | Reply | Callable[[], Reply]) -> Host:
    """A host with pictures and this robots.txt."""

    def answer(path: str) -> Reply:
        if path != ROBOTS:
            return Reply()
        if callable(robots):
            return robots()
        return robots if isinstance(robots, Reply) else Reply(body=robots)

    return Host(answer)


def status(code: int, *headers: tuple[str, str]) -> Reply:
    return Reply(code, headers)


def held(gate: threading.Event, robots: bytes = b"") -> Host:
    def answer() -> Reply:
        gate.wait(90)
        return Reply(body=robots)

    return site(answer)


def feed(client: redis.Redis, *urls: str) -> None:
    """The first one is the first to be taken."""
    client.lpush(KEYS.task, *(task(url, f"/ds/{number}.jpg") for number, url in enumerate(urls)))
    client.incrby(KEYS.fed, len(urls))


def stored(client: redis.Redis) -> int:
    return int(client.get(KEYS.stored) or 0)


def assert_all_accounted(client: redis.Redis) -> None:
    names = ("at_ms", "queued", "in_flight", "delayed", "stored", "failed", "fed", "error_list")
    now = dict(zip(names, script("counts").run(client, KEYS.counted, KEYS.in_flight_prefix), strict=True))
    assert (now["queued"], now["in_flight"], now["delayed"]) == (0, 0, 0)
    assert now["stored"] + now["failed"] == now["fed"]
    assert now["failed"] == now["error_list"]


def work_off(settings: Settings, client: redis.Redis, *urls: str) -> dict[str, dict[str, Any]]:
    """Fetch them with one worker; the errors by URL."""
    feed(client, *urls)
    worker = Running(settings, until_empty=True)
    worker.thread.join(120)
    assert worker.outcome is True
    assert_all_accounted(client)
    return {error["img_url"]: error for error in errors_of(client)}


ENDLESS = b"# without end\n" * 1000
SITES: dict[str, tuple[Callable[[], Host], str]] = {
    "allows all": (lambda: site(b"User-agent: *\nDisallow:\n"), "stored"),
    "empty": (lambda: site(b""), "stored"),
    "disallows all": (lambda: site(NOBODY), "opt_out: robots.txt of {origin}: disallow: /"),
    "disallows others": (lambda: site(b"User-agent: other\nDisallow: /\n"), "stored"),
    "disallows us": (
        lambda: site(b"User-agent: *\nAllow: /\n\nUser-agent: DLConsole/1\nDisallow: /pi\n"),
        "opt_out: robots.txt of {origin}: disallow: /pi",
    ),
    "allows us": (lambda: site(NOBODY + b"User-agent: dlconsole\nAllow: /\n"), "stored"),
    "wildcard": (
        lambda: site(b"User-agent: *\nDisallow: /*/1.jp*g$\n"),
        "opt_out: robots.txt of {origin}: disallow: /*/1.jp*g$",
    ),
    "other wildcard": (lambda: site(b"User-agent: *\nDisallow: /*.png$\n"), "stored"),
    "404": (lambda: site(status(404)), "stored"),
    "403": (lambda: site(status(403)), "stored"),
    "204": (lambda: site(status(204)), "stored"),
    "500": (lambda: site(status(500)), "http_status: robots.txt of {origin}: HTTP 500"),
    "BOM, CRLF": (lambda: site(b"\xef\xbb\xbf" + NOBODY.replace(b"\n", b"\r\n")), "opt_out: "),
    "gzip": (
        lambda: site(Reply(headers=(("Content-Encoding", "gzip"),), body=gzip.compress(NOBODY))),
        "opt_out: ",
    ),
    "binary": (lambda: site(bytes(range(256)) * 100), "stored"),
    "a picture": (lambda: site(PICTURE), "stored"),
    "headers that mean pictures": (
        lambda: site(Reply(headers=(("X-Robots-Tag", "noindex"),), body=b"User-agent: *\nAllow: /\n")),
        "stored",
    ),
    "10 MB": (lambda: site(NOBODY + bytes(10 * 2**20)), "opt_out: "),
    "more than is stored": (lambda: site(b"#\n" * 50_000 + NOBODY), "opt_out: "),
    "more than is read": (lambda: site(b"#\n" * (ROBOTS_TXT_BYTES // 2) + NOBODY), "stored"),
    "endless": (lambda: site(itertools.chain([NOBODY], itertools.repeat(ENDLESS))), "opt_out: "),
    "redirect without end": (lambda: site(status(302, ("Location", ROBOTS))), "stored"),
    "redirect to a file": (lambda: site(status(302, ("Location", "file:///etc/passwd"))), "stored"),
    "redirect to a private address": (
        lambda: site(status(302, ("Location", "http://10.0.0.1/robots.txt"))),
        "blocked_address: robots.txt of {origin}: ",
    ),
    "redirect to the metadata": (
        lambda: site(status(307, ("Location", "http://169.254.169.254/robots.txt"))),
        "blocked_address: robots.txt of {origin}: ",
    ),
}


def test_each_sort_of_robots_txt_has_its_outcome_and_is_asked_for_once(
    heeding: Settings, redis_client: redis.Redis
) -> None:
    with HostWeb(*(make() for make, _ in SITES.values())) as web:
        urls = [f"{host.origin}/pictures/1.jpg" for _ in range(2) for host in web.hosts]
        errors = work_off(heeding, redis_client, *urls)
        found: dict[str, str] = {}
        for name, host, (_, expected) in zip(SITES, web.hosts, SITES.values(), strict=True):
            error = errors.get(f"{host.origin}/pictures/1.jpg")
            found[name] = error["error_msg"] if error else "stored"
            assert found[name].startswith(expected.format(origin=host.origin)), name
            asked = 6 if name == "redirect without end" else 1
            assert host.paths[0] == ROBOTS and host.paths.count(ROBOTS) == asked, name
            assert len(host.paths) == (asked + 2 if expected == "stored" else asked), name


def test_off_it_is_never_asked_for(heeding: Settings, redis_client: redis.Redis) -> None:
    with HostWeb(site(NOBODY), site(NOBODY)) as web:
        urls = [f"{host.origin}/{i}.jpg" for i in range(5) for host in web.hosts]
        assert work_off(changed(heeding, "fetch", robots=False), redis_client, *urls) == {}
        assert [host.paths.count(ROBOTS) for host in web.hosts] == [0, 0]
    assert stored(redis_client) == 10


def test_a_redirected_robots_txt_speaks_for_the_site_that_redirected(
    heeding: Settings, redis_client: redis.Redis
) -> None:
    """Not for the one that it is at; and whether that one may be fetched from is no matter here."""
    there = Host(lambda path: Reply(body=b"User-agent: *\nDisallow: /a\n" if path == "/r" else NOBODY))
    with HostWeb(there, site(b"")) as web:
        here = web.hosts[1]
        here.answer = lambda path: (
            status(301, ("Location", f"{there.origin}/r")) if path == ROBOTS else Reply()
        )
        a, b = f"{here.origin}/a", f"{here.origin}/b"
        errors = work_off(heeding, redis_client, a, b)
        assert list(errors) == [a]
        assert errors[a]["error_msg"] == f"opt_out: robots.txt of {here.origin}: disallow: /a"
        assert there.paths == ["/r"]


def test_the_target_of_a_redirect_is_checked_as_well(heeding: Settings, redis_client: redis.Redis) -> None:
    with HostWeb(site(b"User-agent: *\nDisallow: /no\n"), Host()) as web:
        there, here = web.hosts
        here.answer = lambda path: (
            status(404) if path == ROBOTS else status(302, ("Location", there.origin + path))
        )
        urls = [f"{here.origin}/{name}/{i}" for i in range(10) for name in ("yes", "no")]
        errors = work_off(heeding, redis_client, *urls)
        assert set(errors) == {url for url in urls if "/no/" in url}
        messages = {error["error_msg"] for error in errors.values()}
        assert messages == {f"opt_out: robots.txt of {there.origin}: disallow: /no"}
        assert Counter(path[:3] for path in there.paths) == {"/ro": 1, "/ye": 10}


def test_a_site_is_told_by_scheme_host_and_port(heeding: Settings, redis_client: redis.Redis) -> None:
    with HostWeb(site(NOBODY), site(b"")) as web:
        closed, opened = (host.origin for host in web.hosts)
        urls = [f"{closed}/a", f"{opened}/a", f"{closed.replace('http', 'HTTP')}/b"]
        errors = work_off(heeding, redis_client, *urls)
        assert set(errors) == {urls[0], urls[2]}
        assert [host.paths.count(ROBOTS) for host in web.hosts] == [1, 1]


def test_what_waits_for_slow_ones_holds_no_slot_and_nobody_up(
    heeding: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    with HostWeb(*(held(gate, NOBODY) for _ in range(6)), Host(), Host()) as web:
        slow, others = web.hosts[:6], web.hosts[6:]
        others[0].answer = others[1].answer = lambda path: status(404) if path == ROBOTS else Reply()
        waiting = [f"{host.origin}/{i}" for i in range(5) for host in slow]
        feed(redis_client, *waiting, *(f"{host.origin}/{i}" for i in range(60) for host in others))
        worker = Running(heeding, until_empty=True)
        until(lambda: stored(redis_client) == 120, within_s=60)
        engine = worker.downloader._engine
        until(lambda: engine.free == 16 - len(slow))
        assert worker.downloader._engine.waiting == 6 * 2  # three of each host wait in the engine
        assert [host.paths for host in slow] == [[ROBOTS]] * 6
        gate.set()
        worker.thread.join(60)
        assert worker.outcome is True
    assert len(errors_of(redis_client)) == 30
    assert_all_accounted(redis_client)


def test_the_time_that_a_fetch_waited_is_not_its_own(heeding: Settings, redis_client: redis.Redis) -> None:
    """Four redirects behind four slow files, each in time, which take longer than one deadline together."""
    heeding = changed(heeding, "fetch", deadline_s=3.5)

    def slow(onward: list[str]) -> Host:
        def answer(path: str) -> Reply:
            if path == ROBOTS:
                time.sleep(1)
                return Reply(body=b"")
            return status(302, ("Location", onward[0])) if onward else Reply()

        return Host(answer)

    onward: list[list[str]] = [[] for _ in range(4)]
    with HostWeb(*map(slow, onward)) as web:
        for here, there in itertools.pairwise(range(4)):
            onward[here].append(f"{web.hosts[there].origin}/x")
        assert work_off(heeding, redis_client, f"{web.hosts[0].origin}/x") == {}
    assert stored(redis_client) == 1


def test_one_that_never_comes_ends_as_a_timeout(
    heeding: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    heeding = changed(heeding, "fetch", deadline_s=1.5)
    with HostWeb(held(gate)) as web:
        urls = [f"{web.hosts[0].origin}/{i}" for i in range(7)]
        errors = work_off(heeding, redis_client, *urls)
        assert set(errors) == set(urls)
        assert {error["error_msg"].partition(" of ")[0] for error in errors.values()} == {
            "timeout: robots.txt"
        }
        assert web.hosts[0].paths == [ROBOTS]  # what is known for now is not asked again


def test_a_robots_txt_that_is_refused_parks_its_host(heeding: Settings, redis_client: redis.Redis) -> None:
    """One task of those that waited has used up an attempt by it, as a refused picture's would."""
    answers = itertools.chain([status(429, ("Retry-After", "2"))], itertools.repeat(Reply(body=b"")))
    with HostWeb(site(lambda: next(answers))) as web:
        host = web.hosts[0]
        errors = work_off(heeding, redis_client, *(f"{host.origin}/{i}" for i in range(20)))
        assert [error["status"] for error in errors.values()] == [429]
        assert host.paths[:2] == [ROBOTS, ROBOTS] and host.paths.count(ROBOTS) == 2
        assert host.times[1] - host.times[0] >= 2
    assert stored(redis_client) == 19


def test_the_site_is_told_that_asks_for_the_pause(heeding: Settings, redis_client: redis.Redis) -> None:
    """Of a robots.txt that is redirected, that is the one it is at."""
    answers = itertools.chain([status(503, ("Retry-After", "2"))], itertools.repeat(Reply(body=b"")))
    there = Host(lambda path: next(answers) if path == "/r" else Reply())
    with HostWeb(there, Host()) as web:
        here = web.hosts[1]
        here.answer = lambda path: (
            status(301, ("Location", f"{there.origin}/r")) if path == ROBOTS else Reply()
        )
        feed(redis_client, *(f"{here.origin}/{i}" for i in range(8)))
        worker = Running(heeding, until_empty=True)
        until(lambda: redis_client.zrange(KEYS.parked, 0, -1) == [b"127.0.1.1"])
        worker.thread.join(60)
        assert there.times[1] - there.times[0] >= 2
    assert (stored(redis_client), len(errors_of(redis_client))) == (7, 1)
    assert_all_accounted(redis_client)


def test_stopping_gives_back_what_waits(
    heeding: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    heeding = changed(heeding, "worker", drain_s=0.2)
    with HostWeb(held(gate)) as web:
        urls = [f"{web.hosts[0].origin}/{i}" for i in range(20)]
        feed(redis_client, *urls)
        worker = Running(heeding)
        until(lambda: worker.downloader._engine.waiting == 17)
        assert worker.stop() is True
    assert redis_client.llen(KEYS.task) == 20
    assert redis_client.exists(KEYS.lease, KEYS.sessions, KEYS.error) == 0


@pytest.mark.parametrize("answers_s", [0.3, 90])
def test_stopping_fetches_nothing_more_of_what_waits_for_a_robots_txt(
    answers_s: float, heeding: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    """Whether the file comes while something else goes on, or never: nobody waits for it any more."""
    heeding = changed(heeding, "worker", drain_s=60)
    asked = threading.Event()

    def robots() -> Reply:
        asked.set()
        gate.wait(answers_s)
        return Reply(body=b"")

    slow = threading.Event()

    def picture(path: str) -> Reply:
        if path == ROBOTS:
            return status(404)
        slow.set()
        time.sleep(1.5)
        return Reply()

    with HostWeb(site(robots), Host(picture)) as web:
        feed(redis_client, f"{web.hosts[1].origin}/x", *(f"{web.hosts[0].origin}/{i}" for i in range(20)))
        worker = Running(heeding)
        assert asked.wait(30) and slow.wait(30)
        began = time.monotonic()
        assert worker.stop() is True
        assert time.monotonic() - began < 30
        assert web.hosts[0].paths == [ROBOTS]
    assert (stored(redis_client), redis_client.llen(KEYS.task)) == (1, 20)
    assert redis_client.exists(KEYS.lease, KEYS.sessions, KEYS.error) == 0


def test_a_pace_holds_behind_a_slow_robots_txt(heeding: Settings, redis_client: redis.Redis) -> None:
    heeding = changed(heeding, "fetch", per_host=8, per_host_per_s=5)

    def robots() -> Reply:
        time.sleep(1.5)
        return Reply(body=b"")

    with HostWeb(site(robots)) as web:
        (host,) = web.hosts
        feed(redis_client, *(f"{host.origin}/{i}" for i in range(6)))
        worker = Running(heeding, until_empty=True)
        worker.thread.join(60)
        pictures = [at for at, path in zip(host.times, host.paths, strict=True) if path != ROBOTS]
        assert len(pictures) == 6 and pictures[-1] - pictures[0] >= 0.9
    assert stored(redis_client) == 6


def test_many_that_hang_hold_up_only_their_own_sites(
    heeding: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    heeding = changed(heeding, "worker", concurrency=128)
    heeding = changed(heeding, "fetch", min_bytes_per_s=0)
    with HostWeb(*(held(gate) for _ in range(100)), *(site(b"") for _ in range(10))) as web:
        good = [f"{host.origin}/{i}" for i in range(3) for host in web.hosts[100:]]
        feed(redis_client, *(f"{host.origin}/x" for host in web.hosts[:100]), *good)
        worker = Running(heeding, until_empty=True)
        until(lambda: stored(redis_client) == 30, within_s=60)
        assert sum(len(host.paths) for host in web.hosts[:100]) >= 100
        gate.set()
        worker.thread.join(60)
        assert worker.outcome is True
    assert stored(redis_client) == 130


def test_the_host_that_files_redirect_to_gets_its_limit(heeding: Settings, redis_client: redis.Redis) -> None:
    def late(_path: str) -> Reply:
        time.sleep(0.05)
        return Reply(body=b"")

    target = Host(late)
    moved = [site(lambda: status(302, ("Location", f"{target.origin}/r"))) for _ in range(20)]
    with HostWeb(target, *moved) as web:
        feed(redis_client, *(f"{host.origin}/{i}" for i in range(2) for host in web.hosts[1:]))
        worker = Running(heeding, until_empty=True)
        worker.thread.join(60)
        assert worker.outcome is True
        assert (len(target.times), target.most) == (20, 3)
    assert stored(redis_client) == 40


def test_more_files_may_lie_with_one_host_than_may_wait(heeding: Settings, redis_client: redis.Redis) -> None:
    heeding = changed(heeding, "dns", lookups=20)
    target = Host(lambda _path: Reply(body=b""))
    moved = [site(lambda: status(302, ("Location", f"{target.origin}/r"))) for _ in range(100)]
    with HostWeb(target, *moved) as web:
        feed(redis_client, *(f"{host.origin}/0" for host in web.hosts[1:]))
        worker = Running(heeding, until_empty=True)
        worker.thread.join(60)
        assert worker.outcome is True
    assert stored(redis_client) == 100


def test_a_host_of_files_that_refuses_now_and_then_is_not_given_up(
    heeding: Settings, redis_client: redis.Redis
) -> None:
    heeding = changed(changed(heeding, "fetch", park_s=0.1), "retry", max_attempts=5, base_s=0.01)
    asked = itertools.count(1)
    target = Host(lambda _path: status(429) if next(asked) % 10 == 0 else Reply(body=b""))
    moved = [site(lambda: status(302, ("Location", f"{target.origin}/r"))) for _ in range(100)]
    with HostWeb(target, *moved) as web:
        feed(redis_client, *(f"{host.origin}/0" for host in web.hosts[1:]))
        worker = Running(heeding, until_empty=True)
        worker.thread.join(90)
        assert worker.outcome is True
    assert stored(redis_client) == 100
    refusals = redis_client.zrange(KEYS.refused, 0, -1, withscores=True)
    assert all(count <= 2 for _, count in refusals)  # those since its last good answer


def test_sites_whose_files_lie_with_each_other_wait_for_no_turn(
    heeding: Settings, redis_client: redis.Redis
) -> None:
    heeding = changed(heeding, "fetch", per_host=1)
    origins: list[str] = []

    def other(mine: int) -> Reply:
        return status(302, ("Location", f"{origins[1 - mine]}/r"))

    def answer(mine: int) -> Callable[[str], Reply]:
        return lambda path: other(mine) if path == ROBOTS else Reply(body=b"" if path == "/r" else PICTURE)

    with HostWeb(Host(answer(0)), Host(answer(1))) as web:
        origins += [host.origin for host in web.hosts]
        feed(redis_client, *(f"{origin}/{i}" for i in range(5) for origin in origins))
        worker = Running(heeding, until_empty=True)
        worker.thread.join(60)
        assert worker.outcome is True
    assert stored(redis_client) == 10


def test_a_refusal_without_a_time_parks_as_that_of_an_image_does(
    heeding: Settings, redis_client: redis.Redis
) -> None:
    heeding = changed(changed(heeding, "fetch", park_s=0.2), "retry", max_attempts=5, base_s=0.01)
    refused = itertools.count()

    def robots() -> Reply:
        return status(429) if next(refused) < 2 else Reply(body=b"")

    with HostWeb(site(robots)) as web:
        feed(redis_client, *(f"{web.hosts[0].origin}/{i}" for i in range(5)))
        worker = Running(heeding, until_empty=True)
        worker.thread.join(40)
        assert worker.outcome is True
    assert stored(redis_client) == 5


def test_one_goes_ahead_behind_a_pause_also_where_others_ask_for_nothing(
    heeding: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    first = itertools.count()

    def answer(path: str) -> Reply:
        if path == ROBOTS:
            return Reply(body=b"User-agent: *\nDisallow: /no\n")
        if next(first) == 0:
            return status(429, ("Retry-After", "1"))
        gate.wait(60)
        return Reply()

    with HostWeb(Host(answer)) as web:
        (host,) = web.hosts
        feed(redis_client, f"{host.origin}/x")
        worker = Running(heeding)
        until(lambda: redis_client.exists(KEYS.parked))
        until(lambda: not worker.downloader.is_parked("127.0.1.1"))
        feed(
            redis_client,
            *(f"{host.origin}/no/{i}" for i in range(9)),
            *(f"{host.origin}/{i}" for i in range(9)),
        )
        until(lambda: len(errors_of(redis_client)) == 10)
        until(lambda: worker.downloader._engine.waiting == 8)
        assert host.running == 1
        gate.set()
        until(lambda: stored(redis_client) == 9)
        assert worker.stop() is True


def test_a_large_file_is_read_although_memory_is_small(heeding: Settings, redis_client: redis.Redis) -> None:
    """It goes on in a file, as any body does."""
    heeding = changed(heeding, "worker", buffer_bytes="1MiB")
    assert heeding.worker.body_bytes < 100_000
    text = b"#\n" * 200_000 + NOBODY
    with HostWeb(site(text), site(b"#" * 300_000 + b"\n")) as web:
        errors = work_off(heeding, redis_client, *(f"{host.origin}/0" for host in web.hosts))
        assert list(errors) == [f"{web.hosts[0].origin}/0"]
    assert stored(redis_client) == 1
    assert [path.parent.name for path in stored_files(heeding)] == ["ds"]


def test_what_is_remembered_of_a_robots_txt_is_no_answer_of_its_host(
    heeding: Settings, redis_client: redis.Redis
) -> None:
    """The refusals that the fleet has counted stay counted until the host itself gives another answer."""
    with HostWeb(site(status(500)), Host()) as web:
        bad, other = web.hosts
        other.answer = lambda path: status(404) if path == ROBOTS else Reply()
        feed(redis_client, f"{bad.origin}/0")
        worker = Running(heeding)
        until(lambda: len(errors_of(redis_client)) == 1)
        redis_client.zadd(KEYS.refused, {"127.0.1.1": 3, "127.0.1.2": 3})
        until(lambda: {"127.0.1.1", "127.0.1.2"} <= set(worker.downloader._parks._parks))
        feed(redis_client, f"{bad.origin}/1", f"{other.origin}/2")
        until(lambda: stored(redis_client) == 1 and len(errors_of(redis_client)) == 2)
        until(lambda: redis_client.zrange(KEYS.refused, 0, -1) == [b"127.0.1.1"])
        assert bad.paths == [ROBOTS]
        assert worker.stop() is True


def test_a_fenced_session_forgets_what_waits_and_nothing_is_doubled(
    heeding: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    with HostWeb(held(gate)) as web:
        feed(redis_client, *(f"{web.hosts[0].origin}/{i}" for i in range(20)))
        worker = Running(heeding, until_empty=True)
        until(lambda: worker.downloader._engine.waiting == 17)
        fence(redis_client)
        gate.set()
        worker.thread.join(60)
        assert worker.outcome is True
    assert stored(redis_client) == 20 == len(stored_files(heeding))
    assert_all_accounted(redis_client)


# -- many origins ------------------------------------------------------------------------------


class ManySites:
    """Answers on all of 127.0.0.0/8 at one port. No robots.txt is answered before `together` are asked for at once,
    each at another address.
    """

    def __init__(self, together: int) -> None:
        self.robots: Counter[str] = Counter()
        self._together = together
        self._held = 0
        self._running = 0
        self.most = 0
        """How many were asked for at once."""
        self._loop = asyncio.new_event_loop()
        self._enough = asyncio.Event()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "0.0.0.0", 0, backlog=2000)
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            body = PICTURE
            if request.startswith(b"GET /robots.txt "):
                host = writer.get_extra_info("sockname")[0]
                self.robots[host] += 1
                self._held += 1
                self._running += 1
                self.most = max(self.most, self._running)
                if self._held >= self._together:
                    self._enough.set()
                await self._enough.wait()
                self._running -= 1
                body = NOBODY if int(host.rpartition(".")[2]) % 2 else b""
            writer.write(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def stop(self) -> None:
        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


def test_a_thousand_sites_are_asked_side_by_side(
    heeding: Settings, redis_client: redis.Redis, engine_name: str
) -> None:
    """As many as there are slots."""
    fetches = 200 if engine_name == "curl" else 100
    heeding = changed(heeding, "worker", concurrency=fetches, batch=500)
    sites = ManySites(fetches)
    try:
        hosts = [f"127.2.{i // 250}.{i % 250}" for i in range(1000)]
        work_off(heeding, redis_client, *(f"http://{host}:{sites.port}/x.jpg" for host in hosts))
        assert sites.robots == Counter(hosts)
        assert sites.most == fetches
    finally:
        sites.stop()
    assert stored(redis_client) == 500
    assert {error["error_msg"][:20] for error in errors_of(redis_client)} == {"opt_out: robots.txt "}


# -- the engines alone -------------------------------------------------------------------------


@pytest.fixture
def make(engine_name: str) -> Iterator[Callable[..., Engine[int]]]:
    opened: list[Engine[int]] = []

    def start(
        parked: Collection[str] | Hosts = (),
        resolver: str = "127.0.0.1:1",
        buffers: Buffers = IN_MEMORY,
        **fetch: object,
    ) -> Engine[int]:
        base = {"allow_networks": ["127.0.0.0/8"], "deadline_s": 60, "robots": True}
        settings = FetchSettings.model_validate(base | fetch)
        dns = DnsSettings.model_validate({"resolvers": resolver, "timeout_s": 60})
        hosts = parked if isinstance(parked, Hosts) else Hosts(parked)
        opened.append(ENGINES[engine_name](settings, dns, 4, hosts, buffers))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def begin(engine: Engine[int], *urls: str) -> None:
    for number, url in enumerate(urls):
        target = target_of(url)
        assert target is not None
        engine.start(number, target)


def finish(engine: Engine[int], count: int) -> dict[int, Result[int]]:
    results: dict[int, Result[int]] = {}
    deadline = time.monotonic() + 60
    while len(results) < count:
        assert time.monotonic() < deadline
        results |= {result.token: result for result in engine.poll(0.1)}
    return results


def test_each_that_waits_is_under_way_and_is_cancelled_once(
    make: Callable[..., Engine[int]], gate: threading.Event
) -> None:
    with HostWeb(held(gate), held(gate)) as web:
        engine = make()
        urls = [f"{web.hosts[i % 2].origin}/{i}" for i in range(7)]
        begin(engine, *urls)
        until(lambda: engine.poll(0.01) == [] and [host.paths for host in web.hosts] == [[ROBOTS], [ROBOTS]])
        assert engine.free == 2 and engine.running >= 7
        assert sorted(engine.cancel_all()) == list(range(7))
        assert (engine.free, engine.running) == (4, 0)
        gate.set()
        begin(engine, urls[0])
        assert isinstance(finish(engine, 1)[0].outcome, Fetched)


def test_what_waits_for_a_robots_txt_that_waits_for_a_name_is_cancelled_once(
    make: Callable[..., Engine[int]],
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        engine = make(resolver=f"127.0.0.1:{silent.getsockname()[1]}")
        begin(engine, *(f"http://{name}.example/{i}" for i in range(3) for name in "ab"))
        assert engine.poll(0) == [] and engine.free
        assert sorted(engine.cancel_all()) == list(range(6))
        assert engine.running == 0


def test_a_robots_txt_at_a_parked_host_turns_away(make: Callable[..., Engine[int]]) -> None:
    with HostWeb(site(b""), Host()) as web:
        there, here = web.hosts
        here.answer = lambda _path: status(302, ("Location", f"{there.origin}/r"))
        engine = make(parked=["127.0.1.1"])
        begin(engine, f"{here.origin}/0", f"{here.origin}/1")
        results = finish(engine, 2)
        assert all(isinstance(result.outcome, TurnedAway) for result in results.values())
        assert {result.host for result in results.values()} == {"127.0.1.1"}
        assert there.paths == []


def test_what_waited_is_turned_away_where_its_host_was_parked_meanwhile(
    make: Callable[..., Engine[int]],
) -> None:
    parked: set[str] = set()
    robots = Reply(body=b"")

    def answer() -> Reply:
        parked.add("127.0.1.1")
        return robots

    with HostWeb(site(answer)) as web:
        engine = make(parked=parked)
        begin(engine, f"{web.hosts[0].origin}/0")
        result = finish(engine, 1)[0]
        assert isinstance(result.outcome, TurnedAway) and result.host == "127.0.1.1"
        assert web.hosts[0].paths == [ROBOTS]


def test_an_origin_at_a_refused_address_or_without_a_name_is_not_asked(
    make: Callable[..., Engine[int]],
) -> None:
    engine = make()
    begin(engine, "http://10.0.0.1/x", "http://nobody.invalid/x", "http://127.0.0.1:1/x")
    outcomes = [result.outcome for _, result in sorted(finish(engine, 3).items())]
    assert [outcome.kind for outcome in outcomes if isinstance(outcome, Failure)] == [
        FailureKind.BLOCKED_ADDRESS, FailureKind.DNS, FailureKind.CONNECT,
    ]  # fmt: skip


def test_five_redirects_of_a_robots_txt_are_followed_whatever_the_settings_say(
    make: Callable[..., Engine[int]],
) -> None:
    """RFC 9309, 2.3.1.2: else what it forbids would be fetched."""
    onward = dict(itertools.pairwise([ROBOTS, *(f"/r{i}" for i in range(5))]))

    def answer(path: str) -> Reply:
        return status(301, ("Location", onward[path])) if path in onward else Reply(body=NOBODY)

    with HostWeb(Host(answer), Host()) as web:
        here, other = web.hosts
        other.answer = lambda path: status(404) if path == ROBOTS else status(302, ("Location", "/x"))
        engine = make(max_redirects=0)
        begin(engine, f"{here.origin}/0", f"{other.origin}/1")
        outcomes = [result.outcome for _, result in sorted(finish(engine, 2).items())]
        assert [outcome.kind for outcome in outcomes if isinstance(outcome, Failure)] == [
            FailureKind.OPT_OUT, FailureKind.REDIRECTS,
        ]  # fmt: skip
        assert here.paths == [ROBOTS, *onward.values()]


def test_files_at_one_host_are_not_paced(make: Callable[..., Engine[int]]) -> None:
    """What waits for them takes up room that the tasks of others need."""
    with HostWeb(site(b""), *(Host() for _ in range(4))) as web:
        there, *moved = web.hosts
        for host in moved:
            host.answer = lambda path: (
                status(301, ("Location", f"{there.origin}/robots.txt")) if path == ROBOTS else Reply()
            )
        engine = make(per_host_per_s=0.2)
        began = time.monotonic()
        begin(engine, *(f"{host.origin}/0" for host in moved))
        results = finish(engine, 4)
        assert all(isinstance(result.outcome, Fetched) for result in results.values())
        assert time.monotonic() - began < 10  # three pauses are 15 s


class Unreadable:
    """A file that is written, and whose reading brings a fault of ours to light."""

    def __len__(self) -> int:
        return 70_000

    def append(self, data: bytes | bytearray) -> None:
        """Keep nothing."""

    def read(self) -> bytes:
        raise ZeroDivisionError


def broken() -> Unreadable:
    raise ZeroDivisionError


@pytest.mark.parametrize("new_spill", [Unreadable, broken])
def test_a_fault_of_ours_in_a_robots_txt_ends_one_task(
    new_spill: Callable[[], Unreadable], make: Callable[..., Engine[int]], gate: threading.Event
) -> None:
    """Those that wait with it ask again, and so does whoever comes later."""
    bodies = itertools.chain([b"#" * 70_000] * 2, itertools.repeat(NOBODY))

    def robots() -> Reply:
        gate.wait(60)
        return Reply(body=next(bodies))

    with HostWeb(site(robots)) as web:
        (host,) = web.hosts
        engine = make(buffers=Buffers(65536, new_spill))
        begin(engine, *(f"{host.origin}/{i}" for i in range(4)))
        until(lambda: engine.poll(0.01) == [] and host.paths == [ROBOTS])
        gate.set()
        kinds = Counter(
            result.outcome.kind
            for result in finish(engine, 4).values()
            if isinstance(result.outcome, Failure)
        )
        assert kinds == {FailureKind.CRASHED: 2, FailureKind.OPT_OUT: 2}
        assert host.paths == [ROBOTS] * 3
        assert (engine.running, engine.free) == (0, 4)


def test_a_redirect_forgives_no_refusal_behind_it(make: Callable[..., Engine[int]]) -> None:
    def answer(path: str) -> Reply:
        if path == ROBOTS:
            return status(301, ("Location", "/r"))
        return status(429) if path == "/r" else Reply()

    def lead(path: str) -> Reply:
        if path == ROBOTS:
            return status(301, ("Location", f"{web.hosts[2].origin}/r"))
        return status(302, ("Location", "/no")) if path != "/no" else Reply()

    rules = b"User-agent: *\nDisallow: /no\n"
    with HostWeb(Host(answer), Host(lead), Host(lambda _path: Reply(body=rules))) as web:
        hosts = Hosts()
        engine = make(hosts)
        begin(engine, f"{web.hosts[0].origin}/0")
        assert finish(engine, 1)[0].outcome.status == 429
        assert hosts.answered == []
        begin(engine, f"{web.hosts[1].origin}/0")
        assert finish(engine, 1)[0].outcome.kind is FailureKind.OPT_OUT
        # Of its robots.txt, where that lies, and of the picture that leads to what may not be asked for.
        assert hosts.answered == ["127.0.1.2", "127.0.1.3", "127.0.1.2"]


def test_a_refusal_parks_its_host_also_where_nobody_waits_any_more(
    heeding: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    def robots() -> Reply:
        gate.wait(60)
        return status(429, ("Retry-After", "60"))

    with HostWeb(site(robots)) as web:
        feed(redis_client, f"{web.hosts[0].origin}/0")
        worker = Running(heeding)
        until(lambda: web.hosts[0].paths == [ROBOTS])
        well, worker.downloader._guard._disk = worker.downloader._guard._disk, Unwell()  # type: ignore[assignment]
        until(lambda: redis_client.llen(KEYS.task) == 1)
        gate.set()
        until(lambda: redis_client.zrange(KEYS.parked, 0, -1) == [b"127.0.1.1"])
        worker.downloader._guard._disk = well
        until(lambda: redis_client.zcard(KEYS.delayed) == 1)
        assert worker.stop() is True
        assert web.hosts[0].paths == [ROBOTS]


class Unwell:
    def look(self, _usage: object) -> str:
        return "too full for this test"
