"""What sites see of us: how many fetches at once, how soon again, who asks."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
from dns_server import NameServer, Reply as Named
from host_web import Host, HostWeb, Reply
from integration_support import KEYS, Hosts, Running, changed, errors_of, fence, stored_files, task, until

from dlconsole import log
from dlconsole.errors import RedisUnusable
from dlconsole.services import parked
from dlconsole.services.connection import connect
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.scripts import script
from dlconsole.settings import DnsSettings, FetchSettings, Settings
from dlconsole.workers.fetch.curl import CurlEngine
from dlconsole.workers.fetch.engine import Engine
from dlconsole.workers.fetch.requests_engine import RequestsEngine
from dlconsole.workers.fetch.urls import target_of
from dlconsole.workers.shared_parks import SharedParks


def tasks_of(host: Host, count: int, name: str = "p") -> list[bytes]:
    return [
        task(f"{host.origin}/{name}/{i}", f"/ds/{host.origin[-9:-6]}{name}/{i}.jpg") for i in range(count)
    ]


def stored(client: redis.Redis) -> int:
    return int(client.get(KEYS.stored) or 0)


def in_flight(client: redis.Redis) -> int:
    return sum(client.hlen(key) - client.hexists(key, "_last") for key in client.scan_iter("*:dl:if:*"))


def feed(client: redis.Redis, tasks: list[bytes]) -> None:
    """The first one is the first to be taken."""
    client.lpush(KEYS.task, *tasks)
    client.incrby(KEYS.fed, len(tasks))


def assert_all_accounted(client: redis.Redis) -> None:
    names = ("at_ms", "queued", "in_flight", "delayed", "stored", "failed", "fed", "error_list")
    now = dict(zip(names, script("counts").run(client, KEYS.counted, KEYS.in_flight_prefix), strict=True))
    assert (now["queued"], now["in_flight"], now["delayed"]) == (0, 0, 0)
    assert now["stored"] + now["failed"] == now["fed"]
    assert now["failed"] == now["error_list"]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a held host waits for; opened at the end, so that no thread is left."""
    gate = threading.Event()
    yield gate
    gate.set()


ON_EACH_ENGINE = pytest.mark.parametrize("engine", ["curl", "requests"])


@pytest.fixture
def engine() -> str:
    return "curl"


@pytest.fixture
def polite(settings: Settings, engine: str) -> Settings:
    """Settings for servers that hold on to requests until the test says."""
    settings = changed(settings, "fetch", per_host=3, deadline_s=60, min_bytes_per_s=0, max_bytes="1MiB")
    return changed(settings, "worker", engine=engine, concurrency=16, batch=20)


def held_by(gate: threading.Event) -> Host:
    def answer(_path: str) -> Reply:
        gate.wait(60)
        return Reply()

    return Host(answer)


# -- turns ------------------------------------------------------------------------------------


@ON_EACH_ENGINE
def test_a_slow_host_gets_its_limit_and_holds_up_nobody(
    polite: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    with HostWeb(held_by(gate), Host(), Host()) as web:
        slow, *others = web.hosts
        feed(redis_client, tasks_of(slow, 40) + tasks_of(others[0], 100) + tasks_of(others[1], 100))
        worker = Running(polite, until_empty=True)
        until(lambda: stored(redis_client) == 200)
        assert (slow.running, slow.most) == (3, 3)
        gate.set()
        worker.thread.join(30)
        assert worker.outcome is True
        assert stored(redis_client) == 240 == len(stored_files(polite))
        assert max(host.most for host in web.hosts) == 3
        assert_all_accounted(redis_client)


def test_what_waits_for_one_host_is_bounded(
    polite: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    polite = changed(polite, "worker", batch=5)
    with HostWeb(held_by(gate)) as web:
        feed(redis_client, tasks_of(web.hosts[0], 300))
        worker = Running(polite, until_empty=True)
        until(lambda: worker.downloader._engine.waiting == 20)
        bound = 3 + 20 + 5 + 5
        assert until(lambda: in_flight(redis_client)) <= bound
        assert redis_client.llen(KEYS.task) >= 300 - bound
        gate.set()
        worker.thread.join(30)
        assert stored(redis_client) == 300


def test_a_rate_holds(polite: Settings, redis_client: redis.Redis) -> None:
    polite = changed(polite, "fetch", per_host=8, per_host_per_s=10)
    with HostWeb(Host(), Host()) as web:
        feed(redis_client, tasks_of(web.hosts[0], 12) + tasks_of(web.hosts[1], 12))
        worker = Running(polite, until_empty=True)
        worker.thread.join(30)
        for host in web.hosts:  # a machine under load can make gaps only longer, up to a few ms
            gaps = [b - a for a, b in zip(host.times, host.times[2:], strict=False)]
            assert host.times[-1] - host.times[0] >= 1.0
            assert sorted(gaps)[len(gaps) // 2] >= 0.15
    assert stored(redis_client) == 24


def test_a_loop_without_a_free_slot_does_not_spin_for_a_host_that_is_due(
    polite: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    polite = changed(changed(polite, "fetch", per_host_per_s=5), "worker", concurrency=2)
    with HostWeb(Host(), held_by(gate), held_by(gate)) as web:
        due, *held = web.hosts
        feed(redis_client, tasks_of(due, 2) + tasks_of(held[0], 1) + tasks_of(held[1], 1))
        worker = Running(polite, until_empty=True)
        loop = worker.downloader
        until(lambda: loop._engine.waiting == 1 and not loop._engine.free and loop._turns.due_in_s() == 0)
        assert loop._wait_s() > 0.1
        gate.set()
        worker.thread.join(30)
    assert stored(redis_client) == 4


@ON_EACH_ENGINE
def test_a_rate_holds_where_the_name_took_long(polite: Settings, redis_client: redis.Redis) -> None:
    with HostWeb(Host()) as web, NameServer(lambda _: Named(("127.0.1.1",), after_s=1.5)) as names:
        polite = changed(polite, "fetch", per_host=8, per_host_per_s=5)
        polite = changed(polite, "dns", resolvers=[names.address], timeout_s=30)
        url = web.hosts[0].origin.replace("127.0.1.1", "late.example")
        feed(redis_client, [task(f"{url}/{i}", f"/ds/late/{i}.jpg") for i in range(6)])
        worker = Running(polite, until_empty=True)
        worker.thread.join(60)
        times = web.hosts[0].times
        assert len(times) == 6 and times[-1] - times[0] >= 0.9
    assert stored(redis_client) == 6


@ON_EACH_ENGINE
def test_the_host_that_others_lead_to_gets_its_limit_too(polite: Settings, redis_client: redis.Redis) -> None:
    def late(_path: str) -> Reply:
        time.sleep(0.05)
        return Reply()

    target = Host(late)

    def lead(path: str) -> Reply:
        return Reply(302, (("Location", f"{target.origin}{path}"),))

    with HostWeb(target, *(Host(lead) for _ in range(5))) as web:
        for number, host in enumerate(web.hosts):
            feed(redis_client, tasks_of(host, 10, f"q{number}"))
        worker = Running(polite, until_empty=True)
        worker.thread.join(60)
        assert worker.outcome is True
        assert len(target.times) == 60 and target.most == 3
    assert stored(redis_client) == 60
    assert_all_accounted(redis_client)


@ON_EACH_ENGINE
def test_a_host_in_the_middle_of_redirects_is_heard_like_any_other(
    polite: Settings, redis_client: redis.Redis
) -> None:
    """One that refuses now and then is not given up, nor kept at one at a time."""
    polite = changed(changed(polite, "fetch", park_s=0.1), "retry", max_attempts=5, base_s=0.01)
    target = Host()
    asked = itertools.count(1)

    def lead(path: str) -> Reply:
        if next(asked) % 20 == 0:
            return Reply(429)
        time.sleep(0.005)
        return Reply(302, (("Location", f"{target.origin}{path}"),))

    middle = Host(lead)
    with HostWeb(
        Host(lambda path: Reply(302, (("Location", f"{middle.origin}{path}"),))), middle, target
    ) as web:
        feed(redis_client, tasks_of(web.hosts[0], 200))
        worker = Running(polite, until_empty=True)
        worker.thread.join(60)
        assert worker.outcome is True
        assert middle.most > 1
    assert stored(redis_client) == 200
    refusals = redis_client.zrange(KEYS.refused, 0, -1, withscores=True)
    assert all(count <= 2 for _, count in refusals)  # those since its last good answer
    assert_all_accounted(redis_client)


@ON_EACH_ENGINE
def test_a_redirect_within_a_host_keeps_its_rate(polite: Settings, redis_client: redis.Redis) -> None:
    def lead(path: str) -> Reply:
        return Reply() if "far" in path else Reply(302, (("Location", f"/far{path}"),))

    with HostWeb(Host(lead)) as web:
        polite = changed(polite, "fetch", per_host=1, per_host_per_s=10)
        feed(redis_client, tasks_of(web.hosts[0], 6))
        worker = Running(polite, until_empty=True)
        worker.thread.join(60)
        times, paths = web.hosts[0].times, web.hosts[0].paths
        assert len(times) == 12 and times[-1] - times[0] >= 1.0
        assert paths.index("/far/p/0") <= 3  # others go ahead, but not all of them
    assert stored(redis_client) == 6


@ON_EACH_ENGINE
def test_stopping_gives_back_what_waits_in_its_order(
    polite: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    polite = changed(polite, "worker", drain_s=0.2)
    with HostWeb(held_by(gate)) as web:
        tasks = tasks_of(web.hosts[0], 30)
        feed(redis_client, tasks)
        worker = Running(polite)
        until(lambda: worker.downloader._engine.waiting == 27)
        assert worker.stop() is True
    assert list(reversed(redis_client.lrange(KEYS.task, 0, -1))) == tasks
    assert redis_client.exists(KEYS.lease, KEYS.sessions, KEYS.error) == 0


def test_what_waits_is_given_back_while_the_store_is_unwell(
    polite: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    with HostWeb(held_by(gate)) as web:
        feed(redis_client, tasks_of(web.hosts[0], 30))
        worker = Running(polite, until_empty=True)
        until(lambda: worker.downloader._engine.waiting == 27)
        well = worker.downloader._guard._disk
        worker.downloader._guard._disk = Unwell()  # type: ignore[assignment]
        until(lambda: redis_client.llen(KEYS.task) == 27)
        assert worker.downloader._engine.waiting == 0
        worker.downloader._guard._disk = well
        gate.set()
        worker.thread.join(30)
        assert stored(redis_client) == 30
        assert_all_accounted(redis_client)


class Unwell:
    def look(self, _usage: object) -> str:
        return "too full for this test"


@ON_EACH_ENGINE
def test_a_fenced_session_forgets_what_waits_and_nothing_is_doubled(
    polite: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    with HostWeb(held_by(gate)) as web:
        feed(redis_client, tasks_of(web.hosts[0], 30))
        worker = Running(polite, until_empty=True)
        until(lambda: worker.downloader._engine.waiting == 27)
        fence(redis_client)
        gate.set()
        worker.thread.join(40)
        assert worker.outcome is True
        assert stored(redis_client) == 30 == len(stored_files(polite))
        assert_all_accounted(redis_client)


def test_a_fault_in_the_loop_gives_back_what_waits(
    polite: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    with HostWeb(held_by(gate)) as web:
        feed(redis_client, tasks_of(web.hosts[0], 30))
        worker = Running(polite)
        until(lambda: worker.downloader._engine.waiting == 27)
        worker.downloader._fill = None  # type: ignore[assignment,method-assign]
        worker.thread.join(20)
        assert isinstance(worker.outcome, TypeError)
        assert (redis_client.llen(KEYS.task), in_flight(redis_client)) == (27, 3)


# -- parked hosts ------------------------------------------------------------------------------


def refusing(times: int, *, status: int = 429, retry_after: str = "") -> Callable[[str], Reply]:
    """Refuse the first requests, then answer."""
    left = iter(range(times))
    headers = (("Retry-After", retry_after),) if retry_after else ()
    lock = threading.Lock()

    def answer(_path: str) -> Reply:
        with lock:
            return Reply(status, headers) if next(left, None) is not None else Reply()

    return answer


@ON_EACH_ENGINE
@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_host_is_left_alone_and_its_tasks_end_stored(
    status: int, polite: Settings, redis_client: redis.Redis
) -> None:
    """Also with one attempt a task: only what was refused has used it up."""
    polite = changed(polite, "fetch", per_host=1)
    with HostWeb(Host(refusing(1, status=status, retry_after="2")), Host()) as web:
        refused, other = web.hosts
        feed(redis_client, tasks_of(refused, 30) + tasks_of(other, 100))
        worker = Running(polite, until_empty=True)
        worker.thread.join(40)
        assert worker.outcome is True
        first, second, *_ = refused.times
        assert second - first >= 2
        assert len(refused.times) == 30
        assert stored(redis_client) == 129
        (error,) = errors_of(redis_client)
        assert error["status"] == status
        assert_all_accounted(redis_client)


def test_a_pause_without_retry_after_is_our_own_and_grows(
    polite: Settings, redis_client: redis.Redis
) -> None:
    polite = changed(changed(polite, "fetch", park_s=0.4), "retry", max_attempts=5, base_s=0.01)
    with HostWeb(Host(refusing(3))) as web:
        feed(redis_client, tasks_of(web.hosts[0], 1))
        worker = Running(polite, until_empty=True)
        worker.thread.join(40)
        gaps = [b - a for a, b in zip(web.hosts[0].times, web.hosts[0].times[1:], strict=False)]
        assert len(gaps) == 3
        for gap, least in zip(gaps, (0.4, 0.8, 1.6), strict=True):
            assert gap >= least
    assert stored(redis_client) == 1


@ON_EACH_ENGINE
def test_the_host_that_answered_is_parked_not_the_one_that_led_there(
    polite: Settings, redis_client: redis.Redis
) -> None:
    polite = changed(changed(polite, "fetch", per_host=1), "retry", max_attempts=2, base_s=0.01)
    target = Host(refusing(1, retry_after="2"))

    def lead(path: str) -> Reply:
        return Reply(302, (("Location", target.origin + path),)) if "far" in path else Reply()

    with HostWeb(target, Host(lead)) as web:
        far, near = tasks_of(web.hosts[1], 20, "far"), tasks_of(web.hosts[1], 50, "near")
        feed(redis_client, far + near)
        worker = Running(polite, until_empty=True)
        until(lambda: stored(redis_client) == 50)  # the one that led there answers all the while
        assert len(target.times) == 1
        worker.thread.join(40)
        assert target.times[1] - target.times[0] >= 2
        assert len(target.times) == 21
    assert stored(redis_client) == 70
    assert_all_accounted(redis_client)


def test_a_host_that_never_answers_otherwise_does_not_keep_its_tasks_for_ever(
    polite: Settings, redis_client: redis.Redis
) -> None:
    polite = changed(polite, "fetch", per_host=1, park_s=0.05)
    polite = changed(polite, "retry", max_attempts=2, base_s=0.01, max_s=0.1)
    with HostWeb(Host(lambda _path: Reply(503)), Host()) as web:
        dead, other = web.hosts
        feed(redis_client, tasks_of(dead, 200) + tasks_of(other, 20))
        worker = Running(polite, until_empty=True)
        worker.thread.join(50)
        assert worker.outcome is True
        assert 6 <= len(dead.times) < 100
    assert stored(redis_client) == 20
    assert {error["status"] for error in errors_of(redis_client)} == {503}
    assert_all_accounted(redis_client)


def test_a_host_that_redirects_to_itself_and_then_refuses_is_given_up(
    polite: Settings, redis_client: redis.Redis
) -> None:
    """As sites do that lead from http to https, or from a name to a path."""
    polite = changed(polite, "fetch", per_host=1, park_s=0.05)
    polite = changed(polite, "retry", max_attempts=2, base_s=0.01, max_s=0.1)

    def answer(path: str) -> Reply:
        return Reply(302, (("Location", f"/to{path}"),)) if path.startswith("/p") else Reply(429)

    with HostWeb(Host(answer)) as web:
        feed(redis_client, tasks_of(web.hosts[0], 40))
        worker = Running(polite, until_empty=True)
        worker.thread.join(20)
        assert worker.outcome is True
    assert len(errors_of(redis_client)) == 40
    assert_all_accounted(redis_client)


CHAINS = {
    "200": "",
    "a/200": "",
    "a/429": "",
    "b/200": "a",
    "b/429": "a",
    "b/a/429": "b",
    "b/c/b/429": "ac",
    "b/c/200": "ab",
    "a/a/b/200": "a",
    "ftp": "a",
    "b/ftp": "ba",
    "a/ftp": "a",
    "a/a/a/a/a/a/200": "a",
    "a/cut": "",
    "parka/200": "",
    "b/parka/200": "b",
    "parkc/200": "a",
}
"""Where `a` leads to, hop by hop → which hosts are told to have answered beside what the result says."""


@ON_EACH_ENGINE
def test_a_redirect_forgives_unless_its_host_has_the_last_word(engine: str) -> None:
    """A host that redirects and then refuses has refused, also where others stand between."""
    hosts = Hosts(parked := set())

    def answer(path: str) -> Reply:
        here, _, onward = path[1:].partition("/")
        if here.startswith("park"):
            here = here[4:]
            parked.add(f"127.0.1.{'abc'.index(here) + 1}")
        if here in origins:
            return Reply(302, (("Location", f"{origins[here]}/{onward}"),))
        if here == "ftp":
            return Reply(302, (("Location", "ftp://x/"),))
        if here == "cut":
            raise ConnectionError  # the connection ends without an answer
        return Reply(int(here))

    engines: dict[str, Callable[..., Engine[int]]] = {"curl": CurlEngine, "requests": RequestsEngine}
    settings = FetchSettings(allow_networks=("127.0.0.0/8",))
    found = {}
    with (
        HostWeb(*(Host(answer) for _ in "abc")) as web,
        closing(engines[engine](settings, DnsSettings(), 4, hosts)) as one,
    ):
        origins = dict(zip("abc", (host.origin for host in web.hosts), strict=True))
        for chain in CHAINS:
            target = target_of(f"{origins['a']}/{chain}")
            assert target is not None
            one.start(0, target)
            until(lambda: one.poll(0.1))
            found[chain] = "".join("abc"[int(host[-1]) - 1] for host in hosts.answered)
            hosts.answered.clear()
            parked.clear()
    assert found == CHAINS


def test_put_off_tasks_that_find_the_delayed_set_full_stay_in_the_queue(
    polite: Settings, redis_client: redis.Redis
) -> None:
    polite = changed(
        changed(polite, "fetch", per_host=1), "retry", max_attempts=2, base_s=0.01, max_delayed=5
    )
    with HostWeb(Host(refusing(1, retry_after="5")), Host()) as web:
        refused, other = web.hosts
        feed(redis_client, tasks_of(refused, 60) + tasks_of(other, 60))
        worker = Running(polite, until_empty=True)
        until(lambda: stored(redis_client) >= 60)
        assert len(refused.times) == 1
        assert redis_client.zcard(KEYS.delayed) <= 5
        worker.thread.join(40)
        assert worker.outcome is True
        assert refused.times[1] - refused.times[0] >= 5
    assert len(errors_of(redis_client)) <= 1  # the one that was refused may have found the set full
    assert stored(redis_client) >= 119
    assert_all_accounted(redis_client)


@ON_EACH_ENGINE
def test_of_those_under_way_when_a_host_refuses_only_one_loses_an_attempt(
    polite: Settings, redis_client: redis.Redis
) -> None:
    together = threading.Barrier(3, timeout=60)
    first = iter(range(3))

    def answer(_path: str) -> Reply:
        if next(first, None) is None:
            return Reply()
        together.wait()
        return Reply(429, (("Retry-After", "1"),))

    with HostWeb(Host(answer)) as web:
        feed(redis_client, tasks_of(web.hosts[0], 30))
        worker = Running(polite, until_empty=True)  # with one attempt a task
        worker.thread.join(60)
        assert worker.outcome is True
        assert len(web.hosts[0].times) == 32
    assert stored(redis_client) == 29
    assert len(errors_of(redis_client)) == 1
    assert_all_accounted(redis_client)


@pytest.mark.parametrize("retry_after", ["1", ""])
def test_a_site_that_allows_few_at_once_gets_few_and_no_task_is_lost(
    retry_after: str, polite: Settings, redis_client: redis.Redis
) -> None:
    polite = changed(polite, "fetch", per_host=8, park_s=0.5)
    polite = changed(polite, "retry", max_attempts=3, base_s=0.5, max_s=4)
    lock, running, refused = threading.Lock(), 0, 0
    headers = (("Retry-After", retry_after),) if retry_after else ()

    def answer(_path: str) -> Reply:
        nonlocal running, refused
        with lock:
            if running >= 3:
                refused += 1
                return Reply(429, headers)
            running += 1
        time.sleep(0.1)
        with lock:
            running -= 1
        return Reply()

    with HostWeb(Host(answer)) as web:
        feed(redis_client, tasks_of(web.hosts[0], 100))
        workers = [Running(polite, until_empty=True) for _ in range(2)]
        for worker in workers:
            worker.thread.join(120)
            assert worker.outcome is True
    assert stored(redis_client) == 100
    assert refused < 50  # 16 at the first moment, then two or so a pause
    assert_all_accounted(redis_client)


def test_a_host_that_only_redirects_is_not_kept_at_one_at_a_time(
    polite: Settings, redis_client: redis.Redis, gate: threading.Event
) -> None:
    polite = changed(polite, "retry", max_attempts=2, base_s=0.01)
    target = Host()
    first = refusing(1, retry_after="1")

    def lead(path: str) -> Reply:
        reply = first(path)
        if reply.status == 200:
            reply = Reply(302, (("Location", target.origin + path),))
        return reply

    with HostWeb(target, Host(lead)) as web:
        feed(redis_client, tasks_of(web.hosts[1], 1))
        worker = Running(polite)
        until(lambda: stored(redis_client) == 1)
        target.answer = held_by(gate).answer
        feed(redis_client, tasks_of(web.hosts[1], 9, "q"))
        until(lambda: worker.downloader._engine.waiting == 9 - 3)  # for the host that they were led to
        gate.set()
        until(lambda: stored(redis_client) == 10)
        assert worker.downloader._turns._slowed["127.0.1.2"].limit > 1.5
        assert worker.stop() is True


# -- shared by the fleet ------------------------------------------------------------------------


@pytest.fixture
def worker_process(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        environment = {
            "DLCONSOLE_REDIS": redis_url,
            "DLCONSOLE_DATASET": "ds",
            "DLCONSOLE_WORKER__HEARTBEAT_S": "0.2",
            "DLCONSOLE_WORKER__DRAIN_S": "1",
            "DLCONSOLE_RETRY__BASE_S": "0.01",
            "DLCONSOLE_FETCH__ALLOW_NETWORKS": "127.0.0.0/8",
        }
        command = [
            sys.executable,
            "-m",
            "dlconsole",
            "--worker",
            "--store",
            str(tmp_path / "store"),
            *arguments,
        ]
        with (tmp_path / f"worker-{len(started)}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
    for process in started:
        assert process.wait(30) == 0


def test_a_host_that_refused_one_worker_is_not_asked_by_another(
    redis_client: redis.Redis, worker_process: Callable[..., subprocess.Popen[bytes]]
) -> None:
    with HostWeb(Host(refusing(1, retry_after="8")), Host(), Host()) as web:
        refused, *others = web.hosts
        feed(redis_client, tasks_of(refused, 1, "first"))
        worker_process()
        until(lambda: redis_client.zcard(KEYS.parked) == 1)
        assert len(refused.times) == 1
        tasks = [raw for host in others for raw in tasks_of(host, 150)]
        feed(redis_client, tasks_of(refused, 40) + tasks)
        worker_process("--processes", "2")
        until(lambda: stored(redis_client) >= 300, within_s=40)
        rest_done = time.monotonic()
        until(lambda: stored(redis_client) == 341, within_s=60)
        assert refused.times[1] - refused.times[0] >= 8
        assert rest_done < refused.times[1]
        assert max(host.most for host in web.hosts) <= 3 * 8
    assert_all_accounted(redis_client)


def test_a_running_worker_learns_within_a_heartbeat(
    polite: Settings, redis_client: redis.Redis, redis_url: str, gate: threading.Event
) -> None:
    """What waits for the host when the word comes is put off as well."""
    with HostWeb(held_by(gate)) as web:
        feed(redis_client, tasks_of(web.hosts[0], 30))
        worker = Running(polite)
        until(lambda: worker.downloader._engine.waiting == 27)
        parked.exchange(redis_client, KEYS, redis_url, [("127.0.1.1", 60)])
        until(lambda: redis_client.zcard(KEYS.delayed) == 27)
        assert redis_client.llen(KEYS.task) == 0
        assert web.hosts[0].most == 3
        gate.set()
        until(lambda: stored(redis_client) == 3)
        assert worker.stop() is True


def test_news_of_hosts_that_redis_was_not_there_for_are_told_when_it_is_back(
    settings: Settings,
) -> None:
    with PrivateRedis() as server:
        settings = settings.model_copy(update={"redis": server.url})
        with connect(server.url, name="tests") as client:
            log_file = io.StringIO()
            shared = SharedParks(settings, client, log.configure(settings.log, log_file))
            server.kill()
            shared.park("a", 500)
            shared.park("b", 600)
            shared.exchange()
            assert shared.has_news
            server.restart()
            client.zadd(KEYS.refused, {"c": 4})
            shared.answered("c")
            shared.exchange()
            assert not shared.has_news
            assert {host: round(found.left_s, -1) for host, found in shared.learnt} == {"a": 500, "b": 600}
            assert client.zrange(KEYS.parked, 0, -1) == [b"a", b"b"]
            assert client.zscore(KEYS.refused, "c") is None
            shared.exchange()
            assert client.zscore(KEYS.refused, "a") == 1  # told once


def test_parked_hosts_are_told_learnt_and_forgotten(redis_client: redis.Redis, redis_url: str) -> None:
    def exchange(**parked_s: float) -> dict[str, float]:
        found = parked.exchange(redis_client, KEYS, redis_url, parked_s.items())
        return {host: shared.left_s for host, shared in found.items() if shared.left_s}

    assert exchange() == {}
    assert redis_client.exists(KEYS.parked) == 0
    assert exchange(a=60)["a"] == pytest.approx(60, abs=1)
    assert exchange(a=30)["a"] > 50  # an end only moves later
    found = exchange(b=120, c=0.001)
    until(lambda: "c" not in exchange())
    assert found["b"] == pytest.approx(120, abs=2)
    assert set(exchange()) == {"a", "b"}
    assert redis_client.pttl(KEYS.parked) <= 121_000


def test_parked_hosts_are_bounded(redis_client: redis.Redis, redis_url: str) -> None:
    names = {f"h{i}": 100.0 + i for i in range(parked.MAX_SHARED + 50)}
    parked.exchange(redis_client, KEYS, redis_url, names.items())
    found = parked.exchange(redis_client, KEYS, redis_url)
    assert redis_client.zcard(KEYS.refused) == parked.MAX_SHARED
    found = {host: shared for host, shared in found.items() if shared.left_s}
    assert len(found) == parked.MAX_SHARED == redis_client.zcard(KEYS.parked)
    assert set(names) - set(found) == {f"h{i}" for i in range(50)}


def test_hostile_entries_are_left_out_or_cut(redis_client: redis.Redis, redis_url: str) -> None:
    redis_client.zadd(
        KEYS.parked,
        {b"x" * 100_000: 2**60, b"\xff\xfe": 2**60, "far": float("inf"), "past": float("-inf")},
    )
    redis_client.zadd(KEYS.refused, {b"y" * 100_000: 3, b"\xff": 1, "far": float("inf"), "b": float("-inf")})
    found = parked.exchange(redis_client, KEYS, redis_url, [("a", 5), ("z" * 300, 5)])
    assert set(found) == {"far", "a", "b"}
    assert max(shared.left_s for shared in found.values()) <= 10 * 86_400
    assert [found[host].refusals for host in ("far", "a", "b")] == [1000, 1, 0]
    assert all(len(name) < 300 for name in redis_client.zrange(KEYS.refused, 0, -1))
    assert redis_client.zscore(KEYS.parked, "far") < 2**50
    assert all(len(name) < 300 for name in redis_client.zrange(KEYS.parked, 0, -1))


def test_refusals_are_counted_once_a_pause_by_the_whole_fleet(
    redis_client: redis.Redis, redis_url: str
) -> None:
    def exchange(*news: tuple[str, float]) -> int:
        found = parked.exchange(redis_client, KEYS, redis_url, news)
        return found["a"].refusals if "a" in found else 0

    assert exchange(("a", 60)) == 1
    assert exchange(("a", 90)) == 1  # another worker, or the same call again
    redis_client.delete(KEYS.parked)  # the pause ends
    assert exchange() == 1
    assert exchange(("a", 60), ("a", 60)) == 2
    assert 0 < redis_client.pttl(KEYS.refused) <= 86_400_000
    redis_client.delete(KEYS.parked)
    assert exchange(("a", parked.ANSWERED), ("a", 60)) == 1
    assert exchange(("a", parked.ANSWERED)) == 0
    assert exchange() == 0
    assert redis_client.exists(KEYS.refused) == 0
    assert redis_client.zcard(KEYS.parked) == 1  # what was asked before the pause may still be answered


def test_the_refusals_of_a_fleet_give_a_host_up_at_once(polite: Settings, redis_client: redis.Redis) -> None:
    """A worker that begins, or has had no refusal of its own, knows of those before it."""
    polite = changed(changed(polite, "fetch", per_host=1, park_s=2), "retry", max_attempts=1)
    with HostWeb(Host(lambda _path: Reply(503)), Host()) as web:
        dead, other = web.hosts
        redis_client.zadd(KEYS.refused, {"127.0.1.1": 6})
        feed(redis_client, tasks_of(dead, 30) + tasks_of(other, 20))
        worker = Running(polite, until_empty=True)
        worker.thread.join(60)
        assert worker.outcome is True
        assert len(dead.times) <= 2  # the second, where the first came before the count was learnt
    assert stored(redis_client) == 20
    assert sum("was not asked" in error["error_msg"] for error in errors_of(redis_client)) >= 28
    assert redis_client.zscore(KEYS.refused, "127.0.1.1") >= 7
    assert_all_accounted(redis_client)


def test_what_one_worker_was_refused_the_next_one_counts_on(
    polite: Settings, redis_client: redis.Redis
) -> None:
    polite = changed(polite, "fetch", park_s=0.1)

    def refused() -> float | None:
        return redis_client.zscore(KEYS.refused, "127.0.1.1")

    with HostWeb(Host(lambda _path: Reply(503))) as web:
        feed(redis_client, tasks_of(web.hosts[0], 1))
        first = Running(polite)
        until(lambda: refused() == 1)
        assert first.stop() is True
        until(lambda: not redis_client.exists(KEYS.parked))
        feed(redis_client, tasks_of(web.hosts[0], 1, "q"))
        second = Running(polite)
        until(lambda: refused() == 2)
        park = until(lambda: second.downloader._parks._parks.get("127.0.1.1"))
        until(lambda: park.refusals == 2)
        assert park.length_s >= 0.2
        assert second.stop() is True


def test_an_answer_forgives_for_the_whole_fleet(polite: Settings, redis_client: redis.Redis) -> None:
    with HostWeb(Host()) as web:
        redis_client.zadd(KEYS.refused, {"127.0.1.1": 5, "elsewhere": 2})
        worker = Running(polite)
        until(lambda: worker.downloader._parks._parks)  # learnt
        feed(redis_client, tasks_of(web.hosts[0], 3))
        until(lambda: redis_client.zrange(KEYS.refused, 0, -1) == [b"elsewhere"])
        assert worker.stop() is True


def test_a_worker_goes_on_where_the_key_is_another_type_or_redis_is_full(
    polite: Settings, redis_client: redis.Redis, redis_url: str
) -> None:
    redis_client.set(KEYS.parked, "x")
    with pytest.raises(RedisUnusable):
        parked.exchange(redis_client, KEYS, redis_url, [("a", 5)])
    with HostWeb(Host()) as web:
        feed(redis_client, tasks_of(web.hosts[0], 20))
        worker = Running(polite, until_empty=True)
        worker.thread.join(30)
    assert worker.outcome is True
    assert stored(redis_client) == 20
    assert worker.log.getvalue().count("parked hosts are not shared") == 1
    redis_client.delete(KEYS.parked)
    redis_client.config_set("maxmemory", "1")
    try:
        assert set(parked.exchange(redis_client, KEYS, redis_url, [("a", 5)])) == {"a"}
    finally:
        redis_client.config_set("maxmemory", "0")


# -- who asks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contact", "agent"),
    [("", "tests"), ("a@example.org", "tests (+mailto:a@example.org)"),
     ("https://example.org/bot", "tests (+https://example.org/bot)")],
)  # fmt: skip
def test_the_user_agent_names_a_contact(
    contact: str, agent: str, polite: Settings, redis_client: redis.Redis
) -> None:
    with HostWeb(Host()) as web:
        feed(redis_client, tasks_of(web.hosts[0], 1))
        worker = Running(changed(polite, "fetch", user_agent="tests", contact=contact), until_empty=True)
        worker.thread.join(20)
        assert web.hosts[0].agents == {agent}


def test_a_worker_without_a_contact_says_so_at_its_start(
    redis_client: redis.Redis, worker_process: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    workers = [worker_process("--until-empty"), worker_process("--until-empty", "--contact", "a@example.org")]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    logs = [tmp_path / f"worker-{i}.log" for i in range(2)]
    assert ["fetch.contact" in log.read_text() for log in logs] == [True, False]
