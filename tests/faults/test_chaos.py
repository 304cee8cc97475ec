"""Workers and Redis die at random; no task is lost, none is counted twice, no file is half."""

from __future__ import annotations

import json
import random
import time

import psutil
import pytest
import redis
from faults_support import (
    FULL,
    KEYS,
    LEASE_S,
    Fleet,
    assert_nothing_lost_or_doubled,
    counts,
    feed,
    is_done,
    item,
    until,
    until_written,
)
from torn import PowerLoss
from wire import Fault, Wire

from dlconsole.demo.web import SimulatedWeb
from dlconsole.services import upkeep
from dlconsole.services.private_redis import PrivateRedis


class Kill:
    """Kills a server, which is away for a moment."""

    def __init__(self, server: PrivateRedis, rng: random.Random) -> None:
        self._server = server
        self._rng = rng

    def __call__(self) -> None:
        self._server.kill()
        time.sleep(self._rng.uniform(0, 0.3))  # part of the fault, not a wait for anything
        self._server.restart()


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
    dies: type[Kill | PowerLoss] = Kill,
) -> None:
    feed(client, [item(web, i) for i in range(tasks)])
    redis_dies = dies(server, rng)

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
                redis_dies()
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
    run_chaos(fleet, server, client, web, rng, tasks=4_000, worker_kills=6, redis_kills=2)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_random_deaths_of_workers_and_redis_in_full(
    fleet: Fleet, server: PrivateRedis, client: redis.Redis, web: SimulatedWeb, rng: random.Random
) -> None:
    run_chaos(fleet, server, client, web, rng, tasks=40_000, worker_kills=32, redis_kills=6)


@pytest.mark.parametrize(
    ("tasks", "worker_kills", "losses"),
    [(3_000, 0, 3), pytest.param(12_000, 6, 20, id="full", marks=FULL)],
)
def test_a_redis_that_loses_power_again_and_again(
    tasks: int,
    worker_kills: int,
    losses: int,
    fleet: Fleet,
    server: PrivateRedis,
    client: redis.Redis,
    web: SimulatedWeb,
    rng: random.Random,
) -> None:
    """What it had answered is undone at any byte: claims, acks, whole sessions."""
    run_chaos(
        fleet,
        server,
        client,
        web,
        rng,
        tasks=tasks,
        worker_kills=worker_kills,
        redis_kills=losses,
        dies=PowerLoss,
    )


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
    """Also where somebody who was not cut off reaps them."""
    for _ in range(2):
        fleet.start("--processes", "2", "--concurrency", "4")
    workers = 4
    reaped = 0
    for outage in range(3):
        feed(client, [item(web, 100 * outage + i, "slow") for i in range(100)])
        until(lambda: client.zcard(KEYS.lease) == workers and counts(client)["in_flight"] > 10)
        client.hset(KEYS.control, "paused", "1")  # nobody finishes what is reaped, and so forgets the death
        until_written(client)
        server.kill()
        time.sleep(LEASE_S + 0.2)  # the fault itself
        server.restart()
        reaped += upkeep.keep(client, KEYS, server.url).given_back
        replaced = workers * (outage + 1)
        until(lambda n=replaced: sum(e["event"] == "session replaced" for e in fleet.events) == n)
        until(lambda: not client.exists(KEYS.crash))
        client.delete(KEYS.control)
    assert reaped
    until(lambda: is_done(client))
    assert not any(e["event"] == "worker died and is replaced" for e in fleet.events)
    assert fleet.stop() == [0, 0]
    now = assert_nothing_lost_or_doubled(client, fleet, 300)
    assert now["failed"] == 0


@pytest.mark.parametrize(
    ("tasks", "workers", "suspensions"),
    [(120, 2, 2), pytest.param(700, 5, 8, id="full", marks=FULL)],
)
def test_suspended_workers_count_nothing_twice_and_their_tasks_are_not_to_blame(
    tasks: int,
    workers: int,
    suspensions: int,
    fleet: Fleet,
    client: redis.Redis,
    web: SimulatedWeb,
    rng: random.Random,
) -> None:
    """Reaped by others, rightly; they come back, one by one, while up to half of them are held."""
    feed(client, [item(web, i, "slow") for i in range(tasks)])
    for _ in range(workers):
        fleet.start("--concurrency", "4", WORKER__BATCH="20")
    until(lambda: client.hlen(KEYS.workers) == workers and counts(client)["stored"] >= 1)
    held: list[psutil.Process] = []
    for number in range(suspensions):
        feed(client, [item(web, tasks + 40 * number + i, "slow") for i in range(40)])  # never idle
        victim = rng.choice([worker for worker in fleet.workers if worker not in held])
        session = until(lambda pid=victim.pid: session_of(client, pid))
        until(lambda s=session: client.hlen(KEYS.in_flight(s)) > 4)
        victim.suspend()
        client.hset(KEYS.control, "paused", "1")  # nobody finishes what is reaped, and so forgets the death
        held.append(victim)
        until(lambda s=session: not client.sismember(KEYS.sessions, s), within_s=LEASE_S + 20)
        assert client.exists(KEYS.crash)
        if number == suspensions - 1 or len(held) > (workers - 1) // 2 or rng.random() < 0.3:
            while held:
                held.pop(rng.randrange(len(held))).resume()
            until(lambda n=number + 1: sum(e["event"] == "session replaced" for e in fleet.events) == n)
            until(lambda: not client.exists(KEYS.crash))
        client.delete(KEYS.control)
    until(lambda: is_done(client))
    assert fleet.stop() == [0] * workers
    fed = tasks + 40 * suspensions
    assert assert_nothing_lost_or_doubled(client, fleet, fed)["failed"] == 0


def session_of(client: redis.Redis, pid: int) -> str | None:
    """The session of a process, as its heartbeat says, if it has its lease."""
    for session, record in client.hgetall(KEYS.workers).items():
        if json.loads(record)["pid"] == pid and client.zscore(KEYS.lease, session) is not None:
            return session.decode()
    return None
