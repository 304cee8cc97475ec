"""Names are looked up side by side, remembered within bounds, and given up in time."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pycares
import pytest
import redis
from dns_server import NXDOMAIN, REFUSED, SERVFAIL, NameServer, Reply
from integration_support import KEYS, Running, changed, task, until

from dlconsole.demo.web import SimulatedWeb, WebConfig
from dlconsole.errors import ConfigError
from dlconsole.model import Failure, FailureKind, LookupResult, SessionStats
from dlconsole.settings import DnsSettings, FetchSettings, Settings
from dlconsole.workers.fetch import dns
from dlconsole.workers.fetch.curl import CurlEngine
from dlconsole.workers.fetch.dns import Answer, Resolver
from dlconsole.workers.fetch.engine import Engine, Fetched
from dlconsole.workers.fetch.requests_engine import RequestsEngine
from dlconsole.workers.fetch.urls import target_of


class Looker:
    """Drives a resolver as the engine does."""

    def __init__(self, server: NameServer, **settings: object) -> None:
        self.epoll = select.epoll()
        values = {"resolvers": [server.address], "timeout_s": 2, "min_ttl_s": 0} | settings
        self.resolver = Resolver(DnsSettings.model_validate(values), self.epoll)

    def look_up(self, *names: str, within_s: float = 20) -> dict[str, Answer]:
        found = {name: answer for name in names if (answer := self.resolver.resolve(name))}
        by = time.monotonic() + within_s
        while len(found) < len(names):
            assert time.monotonic() < by
            due_s = self.resolver.due_in_s
            for fd, events in self.epoll.poll(0.05 if due_s is None else min(due_s, 0.05)):
                self.resolver.process(fd, events)
            self.resolver.tick()
            found |= dict(self.resolver.take_found())
        return found

    def close(self) -> None:
        self.resolver.close()
        self.epoll.close()


@pytest.fixture
def looker() -> Iterator[Callable[..., Looker]]:
    opened: list[Looker] = []

    def start(server: NameServer, **settings: object) -> Looker:
        opened.append(Looker(server, **settings))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def good(*addresses: str, ttl_s: int = 300) -> Callable[[str], Reply]:
    return lambda _name: Reply(addresses, ttl_s)


def test_addresses_of_both_families_come_as_libcurl_takes_them(looker: Callable[..., Looker]) -> None:
    with NameServer(good("192.0.2.7", "192.0.2.8", "2001:db8::1")) as server:
        found = looker(server).look_up("a.test")
    addresses = found["a.test"].addresses
    assert {"192.0.2.7", "192.0.2.8"} <= set(addresses) <= {"192.0.2.7", "192.0.2.8", "[2001:db8::1]"}


def test_a_thousand_dead_names_hold_up_no_other(looker: Callable[..., Looker]) -> None:
    def answer(name: str) -> Reply | None:
        return None if name.startswith("dead") else Reply(("192.0.2.1",))

    with NameServer(answer) as server:
        look = looker(server, lookups=2000, timeout_s=30)
        for i in range(1000):
            look.resolver.resolve(f"dead{i}.test")
        started = time.monotonic()
        found = {}
        for i in range(100):
            found |= look.look_up(f"good{i}.test")
        assert time.monotonic() - started < 25  # one after the other, in a fraction of one dead name's time
    assert all(found[f"good{i}.test"].addresses for i in range(100))
    assert look.resolver.pending > 0


def test_a_name_is_asked_for_once_while_its_answer_holds(looker: Callable[..., Looker]) -> None:
    with NameServer(good("192.0.2.1", ttl_s=0)) as server:
        look = looker(server, min_ttl_s=60)
        look.look_up("a.test")
        assert look.resolver.resolve("a.test") is not None
        assert server.asked["a.test"] == 1
        fleeting = looker(server, max_ttl_s=0)
        fleeting.look_up("a.test")
        assert fleeting.resolver.resolve("a.test") is None
        fleeting.look_up("a.test")


def test_what_is_not_found_is_remembered_too(looker: Callable[..., Looker]) -> None:
    with NameServer(lambda _: Reply(code=NXDOMAIN)) as server:
        look = looker(server, negative_ttl_s=60)
        answer = look.look_up("a.test")["a.test"]
        assert answer.failure is not None and answer.failure.kind is FailureKind.DNS
        asked = server.asked["a.test"]
        assert look.resolver.resolve("a.test") == answer
        assert server.asked["a.test"] == asked


@pytest.mark.parametrize(
    "reply", [Reply(code=SERVFAIL), Reply(code=NXDOMAIN), Reply(code=5), Reply(()), None], ids=str
)
def test_each_way_not_to_answer_is_a_dns_failure_in_time(
    reply: Reply | None, looker: Callable[..., Looker]
) -> None:
    with NameServer(lambda _: reply) as server:
        started = time.monotonic()
        answer = looker(server, timeout_s=1).look_up("a.test")["a.test"]
        assert time.monotonic() - started < 10
    assert isinstance(answer.failure, Failure)
    assert answer.failure.kind is FailureKind.DNS
    assert answer.failure.message.startswith("a.test: ")


def test_names_of_the_hosts_file_need_no_server(looker: Callable[..., Looker]) -> None:
    with NameServer(lambda _: None) as server:
        look = looker(server)
        answer = look.resolver.resolve("localhost") or look.look_up("localhost")["localhost"]
    assert set(answer.addresses) <= {"127.0.0.1", "[::1]"} and answer.addresses


@pytest.mark.parametrize("name", ["a" * 64 + ".test", ".".join(["a" * 60] * 5), "a..test", "-.test"])
def test_names_that_are_none_fail_as_any_other(name: str, looker: Callable[..., Looker]) -> None:
    with NameServer(lambda _: Reply(code=NXDOMAIN)) as server:
        answer = looker(server).look_up(name)[name]
    assert answer.failure is not None


def test_a_resolver_that_is_none_is_refused() -> None:
    epoll = select.epoll()
    with pytest.raises((ConfigError, ValueError)):
        Resolver(DnsSettings.model_validate({"resolvers": ["nonsense"]}), epoll)
    epoll.close()


@pytest.mark.parametrize("reply", [Reply(code=SERVFAIL), Reply(code=REFUSED), None], ids=str)
def test_trouble_is_not_remembered_as_long_as_a_name_that_does_not_exist(
    reply: Reply | None, looker: Callable[..., Looker]
) -> None:
    """A short outage: the name is asked for again soon, and a task's next attempt is not before that."""
    replies = [reply]
    with NameServer(lambda _: replies[0]) as server:
        look = looker(server, negative_ttl_s=3600, timeout_s=0.5)
        answer = look.look_up("a.test")["a.test"]
        assert answer.until - time.monotonic() <= 5
        replies[0] = Reply(("192.0.2.1",))
        by = time.monotonic() + 20
        while not look.look_up("a.test")["a.test"].addresses:
            assert time.monotonic() < by
            time.sleep(0.05)


def test_trouble_is_kept_longer_the_longer_it_lasts(looker: Callable[..., Looker]) -> None:
    with NameServer(lambda _: Reply(code=SERVFAIL)) as server:
        look = looker(server, negative_ttl_s=3600)
        first = look.look_up("a.test")["a.test"]
        while (known := look.resolver.resolve("a.test")) is not None:
            assert known.failing_since == first.failing_since
            time.sleep(0.05)
        second = look.look_up("a.test")["a.test"]
    assert first.failing_since == second.failing_since > 0
    assert second.until - time.monotonic() <= time.monotonic() - first.failing_since


def test_a_malformed_answer_fails_nobody_elses_lookup(looker: Callable[..., Looker]) -> None:
    """c-ares drops the socket that it came over, with all that was asked there, as often as it tries."""

    def answer(name: str) -> Reply:
        return Reply(("192.0.2.1",), torn=name.startswith("torn"), after_s=0.05)

    torn = [f"torn{i}.test" for i in range(5)]
    names = [name for i in range(5) for name in (torn[i], *(f"a{i}-{j}.test" for j in range(40)))]
    with NameServer(answer) as server:
        look = looker(server, timeout_s=20)
        found = look.look_up(*names)
        assert [name for name in names if not found[name].addresses] == torn
        assert found["torn0.test"].result is LookupResult.TROUBLE
        look.look_up("b.test")
        assert len(look.resolver.fds) <= 2  # what was opened for them is closed


def test_what_is_too_long_for_udp_comes_over_tcp(looker: Callable[..., Looker]) -> None:
    addresses = tuple(f"192.0.2.{i}" for i in range(1, 60))
    with NameServer(lambda _: Reply(addresses, cut=True)) as server:
        answer = looker(server).look_up("a.test")["a.test"]
        assert set(answer.addresses) < set(addresses)
        assert server.over_tcp["a.test"] == 1


@pytest.mark.parametrize("count", [1, 50])
def test_a_server_may_take_most_of_the_time_that_there_is(count: int, looker: Callable[..., Looker]) -> None:
    """Also after it is known as a quick one."""

    def answer(name: str) -> Reply:
        return Reply(("192.0.2.1",), after_s=3.5 if name.startswith("slow") else 0.0)

    with NameServer(answer) as server:
        look = looker(server, timeout_s=5)
        slow = look.look_up(*(f"slow{i}.test" for i in range(count)))
        look.look_up(*(f"quick{i}.test" for i in range(10)))
        slow |= look.look_up(*(f"slow{i}-again.test" for i in range(count)))
    assert {answer.addresses for answer in slow.values()} == {("192.0.2.1",)}
    assert len(slow) == 2 * count


def test_names_that_are_found_late_leave_nothing_open(looker: Callable[..., Looker]) -> None:
    with NameServer(lambda name: Reply(("192.0.2.1",), after_s=0.7)) as server:
        look = looker(server, timeout_s=1)
        by = time.monotonic() + 20
        for i in range(5):
            look.look_up(f"slow{i}.test")
        while len(look.resolver.fds) > 2:
            assert time.monotonic() < by
            look.look_up(f"b{time.monotonic():.0f}.test")


@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_question_is_put_again(lost: int, looker: Callable[..., Looker]) -> None:
    with NameServer(lambda name: Reply(("192.0.2.1",)) if server.asked[name] > lost else None) as server:
        answer = looker(server, timeout_s=10).look_up("a.test")["a.test"]
        assert answer.addresses == ("192.0.2.1",)


def test_who_is_answered_at_once_gets_the_answer_for_its_own_name(
    looker: Callable[..., Looker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """c-ares may have read another's in the same moment."""

    class Busy(pycares.Channel):
        def getaddrinfo(self, host: str, *args: Any, **options: Any) -> None:
            super().getaddrinfo(host, *args, **options)
            while host == "localhost" and look.resolver.pending:
                for fd, _ in look.epoll.poll(0.05):
                    self.process_fd(fd, pycares.ARES_SOCKET_BAD)

    monkeypatch.setattr(pycares, "Channel", Busy)
    with NameServer(good("192.0.2.1")) as server:
        look = looker(server, timeout_s=20)
        assert look.resolver.resolve("a.test") is None
        answer = look.resolver.resolve("localhost")
        assert answer is not None and set(answer.addresses) <= {"127.0.0.1", "[::1]"}
        assert [name for name, _ in look.resolver.take_found()] == ["a.test"]


def test_a_resolv_conf_that_names_nobody_for_a_moment_changes_nothing(tmp_path: Path) -> None:
    """Nor one that is missing; it takes a host of its own to try that."""
    host = ["unshare", "--map-root-user", "--mount", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*host, "true"], check=False).returncode:
        pytest.skip("takes namespaces of users, mounts and networks")
    tried = subprocess.run(
        [*host, sys.executable, str(Path(__file__).parents[1] / "resolv_conf.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert tried.returncode == 0, tried.stderr


def test_a_name_is_asked_for_as_it_stands(
    looker: Callable[..., Looker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the host would make of it: search domains, how many dots it takes, aliases."""
    (tmp_path / "aliases").write_text("intranet evil.test\n")
    monkeypatch.setenv("HOSTALIASES", str(tmp_path / "aliases"))
    monkeypatch.setenv("LOCALDOMAIN", "corp.test")
    monkeypatch.setenv("RES_OPTIONS", "ndots:5")
    with NameServer(lambda _: Reply(code=NXDOMAIN)) as server:
        look = looker(server)
        look.look_up("a.example.test", "intranet")
        assert set(server.asked) == {"a.example.test", "intranet"}


def test_an_address_is_used_no_longer_than_the_settings_say(looker: Callable[..., Looker]) -> None:
    """Nor is it c-ares that answers again."""
    with NameServer(good("192.0.2.1", ttl_s=3000)) as server:
        look = looker(server, max_ttl_s=1)
        look.look_up("a.test")
        by = time.monotonic() + 20
        while server.asked["a.test"] < 2:
            assert time.monotonic() < by
            look.look_up("a.test")
            time.sleep(0.05)


def test_an_alias_may_allow_less_time_than_its_addresses(looker: Callable[..., Looker]) -> None:
    with NameServer(good("192.0.2.1", ttl_s=3000)) as server:
        answer = looker(server).look_up("a.test")["a.test"]
        assert answer.until > time.monotonic() + 2000
    with NameServer(lambda _: Reply(("192.0.2.1",), 3000, alias_ttl_s=60)) as server:
        answer = looker(server).look_up("a.test")["a.test"]
        assert answer.addresses == ("192.0.2.1",)
        assert answer.until <= time.monotonic() + 60


def test_lookups_under_way_are_answered_though_a_new_channel_is_begun(
    looker: Callable[..., Looker],
) -> None:
    with NameServer(lambda name: Reply(("192.0.2.1",), after_s=2.5 * name.startswith("slow"))) as server:
        look = looker(server, max_ttl_s=0, timeout_s=20)
        assert look.resolver.resolve("slow.test") is None
        found: dict[str, Answer] = {}
        number = 0
        while "slow.test" not in found:
            number += 1
            found |= look.look_up(f"a{number}.test")
            time.sleep(0.05)
        assert found["slow.test"].addresses
        assert server.asked["slow.test"] >= 1


def test_what_is_remembered_is_bounded_in_bytes(
    looker: Callable[..., Looker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "MAX_BYTES", 10_000)
    with NameServer(lambda _: Reply(code=NXDOMAIN)) as server:
        look = looker(server)
        names = [f"{i:03}.{'a' * 60}.{'b' * 60}.test" for i in range(100)]
        look.look_up(*names)
        known = [name for name in names if look.resolver.resolve(name) is not None]
        assert 10 <= len(known) <= 20
        assert set(known) <= set(names[-30:]) | set(names)
        asked = sum(server.asked.values())
        assert look.look_up("a" * 60_000 + ".test")  # no name: nobody is asked, and it is not kept
        assert sum(server.asked.values()) <= asked + 100


def fetch(engine: Engine[int], *urls: str) -> list[Fetched | Failure]:
    """What comes of each, in order."""
    outcomes: dict[int, Fetched | Failure] = {}
    for number, url in enumerate(urls):
        target = target_of(url)
        assert target is not None
        engine.start(number, target)
    by = time.monotonic() + 30
    while len(outcomes) < len(urls):
        assert time.monotonic() < by
        outcomes |= {result.token: result.outcome for result in engine.poll(0.1)}
    return [outcomes[number] for number in range(len(urls))]


_FETCHING = FetchSettings(allow_networks=("127.0.0.0/8",), deadline_s=10)


@pytest.fixture(params=[CurlEngine, RequestsEngine])
def engine(request: pytest.FixtureRequest) -> Iterator[Callable[..., Engine[int]]]:
    opened: list[Engine[int]] = []

    def start(server: NameServer, fetching: FetchSettings = _FETCHING, **dns: object) -> Engine[int]:
        settings = DnsSettings.model_validate({"resolvers": [server.address], "timeout_s": 2} | dns)
        opened.append(request.param(fetching, settings, 4))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_name_that_turns_to_a_private_address_is_refused(
    engine: Callable[..., Engine[int]], web: SimulatedWeb
) -> None:
    """DNS rebinding: the address is checked at each connection, not the name once."""
    turns = {"a.test": [Reply(("127.0.0.1",), 0), Reply(("10.0.0.1",), 0)]}

    def answer(name: str) -> Reply | None:
        # A and AAAA are asked for side by side: the second round begins with the second A.
        return turns[name][min(1, max(0, server.asked[name] - 1))]

    with NameServer(answer) as server:
        one = engine(server, min_ttl_s=0, max_ttl_s=0)
        port = web.address.rpartition(":")[2]
        (first,) = fetch(one, f"http://a.test:{port}/as/reset/1")  # so that no connection is used again
        (second,) = fetch(one, f"http://a.test:{port}/as/good/2")
    assert isinstance(first, Failure) and first.kind is FailureKind.CONNECT
    assert isinstance(second, Failure) and second.kind is FailureKind.BLOCKED_ADDRESS


def test_dead_names_hold_no_slot(engine: Callable[..., Engine[int]], web: SimulatedWeb) -> None:
    """Four handles, and forty names that nobody answers for."""

    def answer(name: str) -> Reply | None:
        return None if name.startswith("dead") else Reply(("127.0.0.1",))

    with NameServer(answer) as server:
        one = engine(server, timeout_s=10)
        port = web.address.rpartition(":")[2]
        late_by = time.monotonic() + 30
        for i in range(40):  # as many as are likely to be found soon; the others when those are overdue
            while not one.free:
                assert time.monotonic() < late_by
                assert one.poll(0.1) == []
            target = target_of(f"http://dead{i}.test:{port}/x")
            assert target is not None
            one.start(1000 + i, target)
        outcomes = fetch(one, *(f"http://good{i}.test:{port}/as/good/{i}" for i in range(4)))
        assert all(isinstance(outcome, Fetched) for outcome in outcomes)
        assert one.running == 40
        assert sorted(one.cancel_all()) == [1000 + i for i in range(40)]
        assert one.running == 0


@pytest.mark.parametrize("after_s", [0.0, 0.3])
def test_no_task_loses_its_time_waiting_for_a_slot(
    engine: Callable[..., Engine[int]], after_s: float
) -> None:
    """Four slots, eighty hosts whose names are found at once, and a web that takes its time."""
    with (
        SimulatedWeb(WebConfig(latency_s=0.2, pictures=6)) as slow,
        NameServer(lambda _: Reply(("127.0.0.1",), after_s=after_s)) as server,
    ):
        one = engine(server, FetchSettings(allow_networks=("127.0.0.0/8",), deadline_s=1.5))
        port = slow.address.rpartition(":")[2]
        targets = [target_of(f"http://a{i}.test:{port}/as/good/{i}") for i in range(80)]
        outcomes: dict[int, object] = {}
        started = most = 0
        by = time.monotonic() + 60
        while len(outcomes) < len(targets):
            assert time.monotonic() < by
            while started < len(targets) and one.free:
                target = targets[started]
                assert target is not None
                one.start(started, target)
                started += 1
                most = max(most, one.running)
            outcomes |= {result.token: result.outcome for result in one.poll(0.1)}
        assert [outcome for outcome in outcomes.values() if not isinstance(outcome, Fetched)] == []
        assert most <= 4 + 4 + 16  # what runs, what may start at once, and what is looked up ahead of it


def test_addresses_are_not_started_ahead_of_slots(
    engine: Callable[..., Engine[int]], web: SimulatedWeb
) -> None:
    with NameServer(lambda _: None) as server:
        one = engine(server)
        target = target_of(f"http://{web.address}/as/slow/1")
        assert target is not None
        for token in range(4):
            assert one.free
            one.start(token, target)
        assert one.free == 0


def test_a_worker_that_is_stopped_gives_back_what_it_has_not_begun(
    settings: Settings, redis_client: redis.Redis
) -> None:
    """At once, and not when their names are given up."""
    with NameServer(lambda _: None) as server:
        settings = changed(settings, "dns", resolvers=[server.address], timeout_s=60)
        settings = changed(settings, "worker", drain_s=120)
        redis_client.lpush(KEYS.task, *(task(f"http://dead{i}.test/{i}") for i in range(10)))
        worker = Running(settings)
        until(lambda: len(server.asked) == 10)
        assert worker.stop() is True
        assert redis_client.llen(KEYS.task) == 10


def test_a_worker_tells_how_its_lookups_went(settings: Settings, redis_client: redis.Redis) -> None:
    def answer(name: str) -> Reply | None:
        return {"a": Reply(("127.0.0.1",)), "b": Reply(code=NXDOMAIN), "c": Reply(code=SERVFAIL)}.get(name[0])

    with NameServer(answer) as server:
        settings = changed(settings, "dns", resolvers=[server.address], timeout_s=1)
        redis_client.lpush(
            KEYS.task, *(task(f"http://{name}.test:1/") for name in ("a1", "b1", "c1", "d1", "d2"))
        )
        Running(settings)

        def told() -> dict[str, int] | None:
            records = [
                msgspec.json.decode(raw, type=SessionStats) for raw in redis_client.hvals(KEYS.workers)
            ]
            return next((one.lookups for one in records if sum(one.lookups.values()) == 5), None)

        assert until(told) == {"found": 1, "not_found": 1, "trouble": 1, "timeout": 2}
        (stats,) = (msgspec.json.decode(raw, type=SessionStats) for raw in redis_client.hvals(KEYS.workers))
        assert sum(stats.timings["dns"].values()) == 5


def test_a_task_that_failed_for_trouble_is_not_tried_before_its_name_is_asked_for_again(
    engine: Callable[..., Engine[int]],
) -> None:
    with NameServer(lambda name: Reply(code=NXDOMAIN if name[0] == "n" else SERVFAIL)) as server:
        one = engine(server, negative_ttl_s=3600)
        nobody, trouble = fetch(one, "http://nobody.test/", "http://a.test/")
        assert isinstance(nobody, Failure) and nobody.retry_after_s is None
        assert isinstance(trouble, Failure) and trouble.retry_after_s is not None
        assert 0 < trouble.retry_after_s <= 5
