"""Many reapers at once on many dead sessions: every task is back once, next in line and in its order."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from faults_support import (
    FULL,
    KEYS,
    assert_every_task_is_in_one_place,
    counts,
    feed,
    until,
    until_written,
)
from wire import Fault, Wire

from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.queue import Session, new_session_id

ROOT = Path(__file__).parents[2]
FAULTS = [Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.TWICE]


@contextmanager
def reapers(url: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are connected and wait for a line."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("reaper.py"), url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            stack.enter_context(process)
            found.append(process)
        for process in found:
            assert process.stdout.readline() == "ready\n"
        try:
            yield found
        finally:
            for process in found:
                process.kill()


def claim_in_turns(
    client: redis.Redis, url: str, rng: random.Random, sessions: int, batches: int
) -> dict[Session, list[int]]:
    """Sessions that claim batches of different sizes, one after the other; each one's tasks in its order."""
    opened = [Session(client, KEYS, new_session_id("h"), lease_s=600, url=url) for _ in range(sessions)]
    held: dict[Session, list[int]] = {session: [] for session in opened}
    for session in opened:
        session.open()
    for _ in range(batches):
        for session in opened:
            held[session] += [json.loads(c.raw)["n"] for c in session.claim(rng.randint(1, 120)).items]
    return held


@pytest.mark.parametrize(
    ("sessions", "batches", "reaping", "share"),
    [(30, 2, 4, 0.0), *(pytest.param(60, 4, 6, 0.06, id=f"full-{n}", marks=FULL) for n in range(3))],
)
def test_many_reapers_give_each_task_back_once_in_its_order(
    sessions: int,
    batches: int,
    reaping: int,
    share: float,
    server: PrivateRedis,
    client: redis.Redis,
    rng: random.Random,
) -> None:
    """`share` of the calls meet a fault: Redis killed, the connection cut, the call doubled."""
    fed = sessions * batches * 130
    feed(client, [json.dumps({"n": n}).encode() for n in range(fed)])
    held = claim_in_turns(client, server.url, rng, sessions, batches)
    dead = rng.sample(list(held), sessions - 5)
    living = [session for session in held if session not in dead]
    for session in dead:  # half of them without a lease, as after a lost second
        client.zadd(KEYS.lease, {session.id: 1}) if rng.random() < 0.5 else client.zrem(
            KEYS.lease, session.id
        )
    until_written(client)
    kept = sum(len(held[session]) for session in living)
    lost = sum(len(held[session]) for session in dead)

    def decide(name: str) -> Fault:
        return rng.choice(FAULTS) if name == "reap" and rng.random() < share else Fault.NONE

    socket_path = str(server.directory / "redis.sock")
    with (
        Wire(socket_path, decide, kill=lambda: (server.kill(), server.restart())) as wire,
        reapers(wire.url, reaping) as processes,
    ):
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        until(lambda: counts(client)["in_flight"] == kept, within_s=200)
        given_back = [int(process.communicate()[0]) for process in processes]
    if not share:
        assert sum(given_back) == lost and sum(n > 0 for n in given_back) > 1
    assert_every_task_is_in_one_place(client, fed)
    queue = [json.loads(raw)["n"] for raw in client.lrange(KEYS.task, 0, -1)][::-1]
    position = {n: at for at, n in enumerate(queue)}
    for session in dead:
        places = [position[n] for n in held[session]]
        assert places == sorted(places)
        assert places[-1] < lost  # next in line, in front of what was never taken
    for session in living:
        assert client.hlen(KEYS.in_flight(session.id)) == len(held[session]) + 1
    assert client.smembers(KEYS.sessions) == {session.id.encode() for session in living}
