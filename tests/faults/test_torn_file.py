"""Redis starts on a file that ends at any byte of what a fleet's last calls wrote: every task is in one place."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from faults_support import (
    FULL,
    KEYS,
    Fleet,
    aof,
    assert_every_task_is_in_one_place,
    assert_nothing_lost_or_doubled,
    counts,
    feed,
    item,
    until,
    until_written,
)
from torn import commands, transactions

from dlconsole.demo.web import SimulatedWeb
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.queue import Session, new_session_id


class Files:
    """The files of a stopped server, to be put back as often as wanted."""

    def __init__(self, server: PrivateRedis) -> None:
        self._server = server
        self._last = aof(server)
        self._kept = {path: path.read_bytes() for path in self._all()}

    def put_back(self, length: int) -> None:
        """All as they were, but the one that is appended to ends after `length` bytes."""
        for path in self._all():
            path.unlink()
        for path, content in self._kept.items():
            path.write_bytes(content[:length] if path == self._last else content)

    def _all(self) -> Iterator[Path]:
        yield from self._server.directory.glob("appendonly.aof")
        yield from self._server.directory.glob("appendonlydir/*")


@pytest.mark.parametrize(
    ("tasks", "last", "samples", "finished"),
    [(600, 3, 5, 1), *(pytest.param(1500, 8, 40, 3, id=f"full-{n}", marks=FULL) for n in range(2))],
)
def test_a_file_that_ends_at_any_byte_has_every_task_in_one_place(
    tasks: int,
    last: int,
    samples: int,
    finished: int,
    fleet: Fleet,
    server: PrivateRedis,
    client: redis.Redis,
    web: SimulatedWeb,
    rng: random.Random,
) -> None:
    """Cut at each end of a command, and at `samples` more bytes, of the `last` transactions; from some of
    these on, `finished` in all, workers do the rest.
    """
    feed(client, [item(web, i, ["500", "404"][i % 2] if i % 20 < 2 else "good") for i in range(tasks)])
    safe = aof(server).stat().st_size
    options = ("--processes", "2", "--concurrency", "8")
    fleet.start(*options, WORKER__BATCH="12")
    goal = rng.randrange(tasks // 3, 2 * tasks // 3)
    until(lambda: counts(client)["stored"] >= goal)
    server.kill()
    fleet.end()
    first = transactions(aof(server), safe)[-last]
    ends = commands(aof(server), first)
    assert len(ends) > 3 * last
    cuts = [*ends, *(rng.randrange(first, aof(server).stat().st_size) for _ in range(samples))]
    to_finish = set(rng.sample(range(len(cuts)), finished))
    files = Files(server)
    for number, cut in enumerate(cuts):
        files.put_back(cut)
        server.restart()
        assert_every_task_is_in_one_place(client, tasks)
        session = Session(client, KEYS, new_session_id("t"), lease_s=1, url=server.url)
        session.open()
        taken = session.claim(5).items
        until_written(client)
        server.kill()
        server.restart()  # what was torn must not take in what came after it
        assert_every_task_is_in_one_place(client, tasks)
        assert client.hlen(KEYS.in_flight(session.id)) == len(taken) + 1
        if number in to_finish:
            assert fleet.start("--until-empty", *options).wait(80) == 0
            assert_nothing_lost_or_doubled(client, fleet, tasks)
        server.kill()
