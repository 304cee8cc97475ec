"""What a task costs Redis: claim and ack, by batch size and by how much is in flight; and how many
tasks a second one Redis carries with a thousand sessions.

The server's own time comes from `INFO commandstats`. Prints ratios beside a legacy worker's `RPOP` and
`INCR`, one task at a time. Exit status: 0 the bound holds, 1 it does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

import argparse
import hashlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import redis

from dlconsole.services.connection import connect
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.queue import Session

KEYS: Final = Keys("bench")
HELD: Final = Keys("held")
"""A dataset with a million tasks in flight, beside the other."""
HELD_SESSIONS: Final = 1000
REPEATS: Final = 7
BOUND_US: Final = 15.0
FLAT_RATIO: Final = 1.5
"""How much dearer a task may be with a million in flight than with none."""
ERROR_SHARE: Final = 0.12
"""Failed tasks in a real fleet: each costs an LPUSH and its item's bytes."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One measurement. `server_us` is Redis's own time a task, `trips` round trips a batch."""

    label: str
    batch: int
    in_flight: int
    server_us: float
    trips: float
    tasks_per_s: float


def items(count: int) -> list[bytes]:
    """Tasks of a realistic size, 230 bytes or so."""
    return [
        json.dumps(
            {
                "img_path": f"/bench/images/{i:064x}.jpg",
                "img_url": f"https://images.example/{i:x}/{i * 7919:032x}.jpg?w=600",
            }
        ).encode()
        for i in range(count)
    ]


def fill(client: redis.Redis, tasks: list[bytes]) -> None:
    """A fresh queue with these tasks."""
    client.flushall()
    push(client, KEYS, tasks)


def push(client: redis.Redis, keys: Keys, tasks: list[bytes]) -> None:
    """More tasks into a queue."""
    for start in range(0, len(tasks), 5000):
        client.lpush(keys.task, *tasks[start : start + 5000])


def server_us(client: redis.Redis, *commands: str) -> tuple[float, int]:
    """The server's time in these commands so far, and how often they were called."""
    stats = client.info("commandstats")
    found = [stats[f"cmdstat_{name}"] for name in commands if f"cmdstat_{name}" in stats]
    return sum(entry["usec"] for entry in found), sum(entry["calls"] for entry in found)


def sessions(client: redis.Redis, url: str, count: int, keys: Keys = KEYS) -> list[Session]:
    """Open sessions."""
    found = [Session(client, keys, f"bench-{i}", lease_s=600, url=url) for i in range(count)]
    for session in found:
        session.open()
    return found


def remember_deaths(client: redis.Redis, tasks: list[bytes]) -> None:
    """As if a session had died holding each of these tasks."""
    for start in range(0, len(tasks), 5000):
        names = {hashlib.sha1(item).hexdigest(): "dead" for item in tasks[start : start + 5000]}
        client.hset(KEYS.crash, mapping=names)


def work(session: Session, batch: int) -> int:
    """One claim and one ack; how many tasks it was."""
    claimed = session.claim(batch).items
    failed = round(len(claimed) * ERROR_SHARE)
    session.ack(
        [item.field for item in claimed[failed:]],
        [
            (item.field, item.raw[:-1] + b', "status": 404, "error_msg": "http_status: HTTP 404"}')
            for item in claimed[:failed]
        ],
    )
    return len(claimed)


def measure(
    client: redis.Redis, label: str, workers: list[Session], batch: int, tasks: int, in_flight: int
) -> Cost:
    """Work off `tasks` tasks with the sessions in turn."""
    before_us, before_calls = server_us(client, "evalsha")
    started, done, rounds = time.perf_counter(), 0, 0
    while done < tasks:
        count = work(workers[rounds % len(workers)], batch)
        if not count:
            break
        done += count
        rounds += 1
    elapsed_s = time.perf_counter() - started
    after_us, after_calls = server_us(client, "evalsha")
    return Cost(
        label,
        batch,
        in_flight,
        (after_us - before_us) / done,
        (after_calls - before_calls) / rounds,
        done / elapsed_s,
    )


def flatness(client: redis.Redis, url: str, tasks: list[bytes]) -> list[tuple[Cost, Cost]]:
    """What a task costs with none and with a million in flight: the two in turn, several times, so that
    what else the machine does falls on both.
    """
    client.flushall()
    push(client, HELD, items(1_000_000))
    for session in sessions(client, url, HELD_SESSIONS, HELD):
        session.claim(1_000_000 // HELD_SESSIONS)
    part = tasks[: max(2000, len(tasks) // REPEATS)]
    pairs = []
    for number in range(REPEATS):
        costs = []
        for keys, label, in_flight in ((KEYS, "none in flight", 0), (HELD, "a million in flight", 1_000_000)):
            push(client, keys, part)
            session = Session(client, keys, f"late-{number}", lease_s=600, url=url)
            session.open()
            costs.append(measure(client, label, [session], 200, len(part), in_flight))
            session.close()
        pairs.append((costs[0], costs[1]))
    return pairs


def legacy(client: redis.Redis, tasks: int) -> Cost:
    """A legacy worker's calls: RPOP, and INCR for what was stored."""
    before_us, _ = server_us(client, "rpop", "incr")
    started = time.perf_counter()
    for _ in range(tasks):
        client.rpop(KEYS.task)
        client.incr(KEYS.stored)
    elapsed_s = time.perf_counter() - started
    after_us, _ = server_us(client, "rpop", "incr")
    return Cost("legacy RPOP + INCR", 1, 0, (after_us - before_us) / tasks, 2.0, tasks / elapsed_s)


def costs(client: redis.Redis, url: str, tasks: int) -> Iterator[Cost]:
    """All measurements, each on a fresh queue."""
    every = items(tasks)
    for batch in (100, 200, 500):
        fill(client, every)
        yield measure(client, "one session", sessions(client, url, 1), batch, tasks, 0)
    fill(client, every)
    yield measure(client, "1,000 sessions in turn", sessions(client, url, 1000), 200, tasks, 0)
    fill(client, every)
    remember_deaths(client, every)
    yield measure(client, "each was held by a death", sessions(client, url, 1), 200, tasks, 0)
    fill(client, every)
    yield legacy(client, min(tasks, 20_000))


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--tasks", type=int, default=100_000, metavar="N", help="tasks a measurement (100000)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    with PrivateRedis() as server, connect(server.url, name="bench") as client:
        if len(os.sched_getaffinity(0)) > 1:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        pairs = flatness(client, server.url, items(args.tasks))
        found = [sorted((held for _, held in pairs), key=lambda cost: cost.server_us)[REPEATS // 2]]
        for cost in costs(client, server.url, args.tasks):
            found.append(cost)
            print(f"{cost.label} (batch {cost.batch}): {cost.server_us:.2f} us", file=sys.stderr)
    ours = [cost for cost in found if not cost.label.startswith("legacy")]
    flat = statistics.median(held.server_us / none.server_us for none, held in pairs)
    holds = (
        max(cost.server_us for cost in ours) <= BOUND_US
        and flat <= FLAT_RATIO
        and max(c.trips for c in ours) <= 2
    )
    if args.json:
        print(
            json.dumps(
                {
                    "costs": [
                        c.__dict__ if hasattr(c, "__dict__") else {f: getattr(c, f) for f in c.__slots__}
                        for c in found
                    ],
                    "flat": flat,
                    "holds": holds,
                }
            )
        )
        return 0 if holds else 1
    print(f"{'':<24}{'batch':>6}{'Redis us a task':>17}{'trips a batch':>15}{'tasks/s':>11}{'/ legacy':>10}")
    base = found[-1]
    for c in found:
        print(
            f"{c.label:<24}{c.batch:>6}{c.server_us:>17.2f}{c.trips:>15.2f}{c.tasks_per_s:>11,.0f}{c.tasks_per_s / base.tasks_per_s:>10.1f}"
        )
    print(
        f"\nclaim + ack: at most {max(c.server_us for c in ours):.2f} us a task (bound {BOUND_US:g}); a million in flight / none: {flat:.2f} (bound {FLAT_RATIO:g})"
    )
    print(
        f"one Redis could carry {1e6 / statistics.median(c.server_us for c in ours):,.0f} tasks/s: {'PASS' if holds else 'FAIL'}"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
