"""Each kind of call that a worker makes is cut, lost or doubled, or Redis dies at it: the first time, the n-th.

In the short forms the worker is one of this process: what is struck is its calls, and two processes for each of
some fifty of them would cost more than all else. In full they are a supervisor's, two at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from faults_support import (
    FULL,
    KEYS,
    Fleet,
    assert_nothing_lost_or_doubled,
    feed,
    is_done,
    item,
    until_written,
)
from torn import PowerLoss
from wire import Fault, Strikes, Wire

from dlconsole.demo.web import SimulatedWeb
from dlconsole.services.private_redis import PrivateRedis

CALLS = ["open", "claim", "ack", "renew", "reap", "promote", "give_back", "close", "counts"]
SHORT_TURNS = {"counts": (1, 2)}  # for the fleet's history, and for whether the queue is empty for good

FULL_TURNS = {
    "open": (1, 2),  # two workers make no more calls than that of these
    "close": (1, 2),
    "counts": (1, 2),
    "reap": (1, 3),
    "promote": (2, 3, 5),
    "give_back": (2, 3, 5),
    "claim": (2, 3, 5, 9),
    "ack": (2, 5, 9, 14),
    "renew": (2, 5, 9, 14),
}
DEAD = 150  # tasks that a dead session holds, so that reaping takes two steps
FAILING = 40  # one task in so many fails for good


def cases(faults: list[Fault]) -> Iterator[object]:
    """(name, fault, turns, tasks, processes): each call with each fault, in short and in full."""
    for name in CALLS:
        for fault in faults:
            key = f"{name}-{fault.name.lower()}"
            yield pytest.param(name, fault, SHORT_TURNS.get(name, (1,)), 400, 1, id=key)
            yield pytest.param(name, fault, FULL_TURNS[name], 1200, 2, id=f"{key}-full", marks=FULL)


def lose_folders(store: Path) -> None:
    """Take away the folders that images are written to, as somebody who tidies up; the images stay.

    A worker that has them open meets a disk that fails, and gives back what it holds.
    """
    aside = store / "aside"
    aside.mkdir(exist_ok=True)
    for folder in store.glob("ds/images/*"):
        try:
            for path in folder.iterdir():
                path.rename(aside / path.name)
            folder.rmdir()
        except OSError:  # an image came meanwhile, or another connection is at it
            continue


def feed_with_failing(client: redis.Redis, web: SimulatedWeb, tasks: int, name: str) -> int:
    """Tasks of which some fail, and more that a dead session holds where `name` is reaping; how many in all."""
    held = DEAD if name == "reap" else 0
    items = [item(web, i, "500" if i % FAILING == 0 else "good") for i in range(tasks + held)]
    feed(client, items[:tasks])
    if held:
        client.sadd(KEYS.sessions, "dead")
        client.hset(KEYS.in_flight("dead"), mapping={f"1:{i}": raw for i, raw in enumerate(items[tasks:])})
        client.incrby(KEYS.fed, held)
        until_written(client)
    return len(items)


def work_off(fleet: Fleet, url: str, *, processes: int) -> None:
    """Until the queue is empty; nothing may end before, or otherwise than it should."""
    options = ("--until-empty", "--concurrency", "16", "--processes", str(processes))
    batch = str(100 // processes)
    if processes == 1:
        assert fleet.worker_here(*options, url=url, WORKER__BATCH=batch).run()
        return
    assert fleet.start(*options, url=url, WORKER__BATCH=batch).wait(80) == 0
    assert not any(event["event"] == "worker died and is replaced" for event in fleet.events)


def run_struck(
    fleet: Fleet,
    server: PrivateRedis,
    strikes: Strikes,
    *,
    processes: int,
    returns: bool,
    redis_dies: Callable[[], object],
) -> None:
    """Work the queue off through a wire that strikes; `returns`: tasks are to be given back on the way."""

    def decide(name: str) -> Fault:
        if returns and name == "ack" and strikes.left:
            lose_folders(fleet.store)
        return strikes(name)

    with Wire(str(server.directory / "redis.sock"), decide, kill=redis_dies) as wire:
        work_off(fleet, wire.url, processes=processes)
    assert not strikes.left


@pytest.mark.parametrize(
    ("name", "fault", "turns", "tasks", "processes"),
    cases([Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.TWICE]),
)
def test_a_fault_at_each_kind_of_call(
    name: str,
    fault: Fault,
    turns: tuple[int, ...],
    tasks: int,
    processes: int,
    fleet: Fleet,
    server: PrivateRedis,
    client: redis.Redis,
    web: SimulatedWeb,
) -> None:
    """Redis killed just before it sees the call, or when it ran it and before the reply is out; the
    connection cut at either time; the call doubled.
    """

    def die() -> None:
        server.kill()
        server.restart()
        client.config_set("appendfsync", "always")

    # Else, while the disk is busy, what was answered within the last two seconds may be undone: after the
    # worker's last ack nobody would be left to do it again.
    client.config_set("appendfsync", "always")
    fed = feed_with_failing(client, web, tasks, name)
    run_struck(
        fleet,
        server,
        Strikes(name, fault, turns),
        processes=processes,
        returns=name == "give_back",
        redis_dies=die,
    )
    now = assert_nothing_lost_or_doubled(client, fleet, fed)
    assert now["failed"] == len(range(0, fed, FAILING))
    assert client.exists(KEYS.lease, KEYS.sessions, KEYS.workers) == 0


@pytest.mark.parametrize(("name", "fault", "turns", "tasks", "processes"), cases([Fault.KILL_AFTER]))
def test_a_power_loss_at_each_kind_of_call(
    name: str,
    fault: Fault,
    turns: tuple[int, ...],
    tasks: int,
    processes: int,
    fleet: Fleet,
    server: PrivateRedis,
    client: redis.Redis,
    web: SimulatedWeb,
    rng: random.Random,
) -> None:
    """The file ends somewhere inside what this call wrote, or one of the two before it."""
    fed = feed_with_failing(client, web, tasks, name)
    run_struck(
        fleet,
        server,
        Strikes(name, fault, turns),
        processes=processes,
        returns=name == "give_back",
        redis_dies=PowerLoss(server, rng),
    )
    # Undone were perhaps the last acks of workers that saw an empty queue and have ended.
    while not is_done(client):
        work_off(fleet, server.url, processes=processes)
    now = assert_nothing_lost_or_doubled(client, fleet, fed)
    assert now["failed"] == len(range(0, fed, FAILING))
