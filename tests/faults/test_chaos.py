"""Workers and Redis die at random; no task is lost, none is counted twice, no file is half."""

from __future__ import annotations

import json
import random
import time

import psutil
import pytest
import redis
from faults_support import (
    KEYS,
    LEASE_S,
    Fleet,
    assert_nothing_lost_or_doubled,
    counts,
    feed,
    is_done,
    item,
    until,
)
from wire import Fault, Wire

from dlconsole.demo.web import SimulatedWeb
from dlconsole.services.private_redis import PrivateRedis


def run_chaos(
    fleet: Fleet,
    server: PrivateRedis,
    client: redis.Redis,
    web: SimulatedWeb,
    rng: random.Random,
    *,
    tasks: int,
    worker_kills: int,
    redis_kills: int,
) -> None:
    feed(client, [item(web, i) for i in range(tasks)])

    def one_ack_in_ten_twice(name: str) -> Fault:
        return Fault.TWICE if name == "ack" and rng.random() < 0.1 else Fault.NONE

    with Wire(str(server.directory / "redis.sock"), one_ack_in_ten_twice) as wire:
        for _ in range(2):
            fleet.start("--processes", "2", "--concurrency", "16", url=wire.url)
        deaths = ["worker"] * worker_kills + ["redis"] * redis_kills
        rng.shuffle(deaths)
        for number, death in enumerate(deaths, start=1):
            # Spread over the run: the next death comes when this much more is done.
            goal = tasks * number // (len(deaths) + 2)
            until(lambda goal=goal: counts(client)["stored"] >= goal, within_s=120)
            if death == "redis":
                server.kill()
                time.sleep(rng.uniform(0, 0.3))  # part of the fault, not a wait for anything
                server.restart()
            else:
                victim = rng.choice(until(lambda: fleet.workers))
                try:
                    victim.kill()
                except psutil.NoSuchProcess:
                    continue
        until(lambda: is_done(client), within_s=120)
        assert wire.seen["ack"] > tasks / 200
        assert set(fleet.stop()) == {0}
    now = assert_nothing_lost_or_doubled(client, fleet, tasks)
    assert now["failed"] <= worker_kills  # only what three deaths hit
    assert client.exists(KEYS.lease, KEYS.sessions, KEYS.workers) == 0


def test_random_deaths_of_workers_and_redis(
    fleet: Fleet, server: PrivateRedis, client: redis.Redis, web: SimulatedWeb, rng: random.Random
) -> None:
    run_chaos(fleet, server, client, web, rng, tasks=6_000, worker_kills=6, redis_kills=2)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_random_deaths_of_workers_and_redis_in_full(
    fleet: Fleet, server: PrivateRedis, client: redis.Redis, web: SimulatedWeb, rng: random.Random
) -> None:
    run_chaos(fleet, server, client, web, rng, tasks=40_000, worker_kills=32, redis_kills=6)


def test_a_suspended_worker_learns_that_it_is_fenced_and_counts_nothing_twice(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    feed(client, [item(web, i, "slow") for i in range(120)])
    fleet.start("--concurrency", "8")
    until(lambda: counts(client)["stored"] >= 8)
    (suspended,) = fleet.workers
    suspended.suspend()
    (session,) = client.zrange(KEYS.lease, 0, -1)
    fleet.start("--concurrency", "32")
    until(lambda: client.zscore(KEYS.lease, session) is None, within_s=LEASE_S + 20)
    suspended.resume()
    until(lambda: any(e["event"] == "session replaced" for e in fleet.events))
    until(lambda: is_done(client))
    assert suspended.is_running()
    assert fleet.stop() == [0, 0]
    now = assert_nothing_lost_or_doubled(client, fleet, 120)
    assert now["failed"] == 0


def test_outages_longer_than_the_lease_count_as_nobodys_death(
    fleet: Fleet, server: PrivateRedis, client: redis.Redis, web: SimulatedWeb
) -> None:
    for _ in range(2):
        fleet.start("--processes", "2", "--concurrency", "4")
    workers = 4
    for outage in range(3):
        feed(client, [item(web, 100 * outage + i, "slow") for i in range(100)])
        until(lambda: client.zcard(KEYS.lease) == workers and counts(client)["in_flight"] > 10)
        server.kill()
        time.sleep(LEASE_S + 0.2)  # the fault itself
        server.restart()
        replaced = workers * (outage + 1)
        until(lambda n=replaced: sum(e["event"] == "session replaced" for e in fleet.events) == n)
        until(lambda: not client.exists(KEYS.crash))
    until(lambda: is_done(client))
    assert not any(e["event"] == "worker died and is replaced" for e in fleet.events)
    assert fleet.stop() == [0, 0]
    now = assert_nothing_lost_or_doubled(client, fleet, 300)
    assert now["failed"] == 0


def test_a_suspended_workers_tasks_are_not_to_blame(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    """Reaped by another worker, rightly; it comes back, three times."""
    fleet.start("--concurrency", "4")
    (suspended,) = until(lambda: fleet.workers)
    fleet.start("--concurrency", "4")
    for outage in range(3):
        feed(client, [item(web, 100 * outage + i, "slow") for i in range(100)])
        sessions = until(lambda: (found := client.zrange(KEYS.lease, 0, -1)) and len(found) == 2 and found)
        (session,) = (s for s in sessions if is_of(client, s, suspended.pid))
        until(lambda s=session: client.hlen(KEYS.in_flight(s.decode())) > 4)
        suspended.suspend()
        until(lambda s=session: not client.sismember(KEYS.sessions, s), within_s=LEASE_S + 20)
        suspended.resume()
        until(lambda n=outage + 1: sum(e["event"] == "session replaced" for e in fleet.events) == n)
        until(lambda: not client.exists(KEYS.crash))
    until(lambda: is_done(client))
    assert fleet.stop() == [0, 0]
    assert assert_nothing_lost_or_doubled(client, fleet, 300)["failed"] == 0


def is_of(client: redis.Redis, session: bytes, pid: int) -> bool:
    """Whether a session is this process's; waits for its first heartbeat."""
    return json.loads(until(lambda: client.hget(KEYS.workers, session)))["pid"] == pid


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ["claim", "ack", "renew", "reap", "promote", "close"])
def test_redis_dies_at_a_call(
    name: str, moment: str, fleet: Fleet, server: PrivateRedis, client: redis.Redis, web: SimulatedWeb
) -> None:
    """Killed just before the server sees the call, or just after it ran and before the reply is out."""
    feed(client, [item(web, i, "500" if i % 40 == 0 else "good") for i in range(400)])
    if name == "reap":
        a_dead_session(client, item(web, 400))
    killed = False

    def decide(seen: str) -> Fault:
        nonlocal killed
        if seen != name or killed:
            return Fault.NONE
        killed = True
        return Fault.KILL_BEFORE if moment == "before" else Fault.KILL_AFTER

    with Wire(
        str(server.directory / "redis.sock"), decide, kill=lambda: (server.kill(), server.restart())
    ) as wire:
        worker = fleet.start("--until-empty", "--concurrency", "16", url=wire.url)
        assert worker.wait(60) == 0
    assert killed
    now = assert_nothing_lost_or_doubled(client, fleet, 401 if name == "reap" else 400)
    assert now["failed"] == 10


def a_dead_session(client: redis.Redis, held: bytes) -> None:
    """Work for the reaper."""
    client.sadd(KEYS.sessions, "dead")
    client.hset(KEYS.in_flight("dead"), "1:0", held)
    client.incrby(KEYS.fed, 1)


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.TWICE])
@pytest.mark.parametrize("name", ["open", "claim", "ack", "renew", "close", "reap", "promote", "give_back"])
def test_a_fault_at_each_kind_of_call(
    name: str, fault: Fault, fleet: Fleet, server: PrivateRedis, client: redis.Redis, web: SimulatedWeb
) -> None:
    """Twice in a row at that call, somewhere in the run."""
    feed(client, [item(web, i, "500" if i % 40 == 0 else "good") for i in range(400)])
    left = 2

    def decide(seen: str) -> Fault:
        nonlocal left
        if seen == name and left:
            left -= 1
            return fault
        return Fault.NONE

    with Wire(str(server.directory / "redis.sock"), decide) as wire:
        if name == "reap":
            a_dead_session(client, item(web, 400))
        worker = fleet.start("--until-empty", "--concurrency", "16", url=wire.url)
        if name == "give_back":
            until(lambda: counts(client)["stored"] > 0)
        assert worker.wait(60) == 0
        assert wire.seen[name] or name == "give_back"
    now = assert_nothing_lost_or_doubled(client, fleet, 401 if name == "reap" else 400)
    assert now["failed"] == 10
