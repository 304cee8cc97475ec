"""A Redis without memory, a task that kills, a loop that hangs."""

from __future__ import annotations

import ctypes
import json
import os
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis
from faults_support import (
    FULL,
    KEYS,
    Fleet,
    assert_nothing_lost_or_doubled,
    counts,
    feed,
    is_done,
    item,
    until,
)

from dlconsole.demo.web import SimulatedWeb


def test_a_fleet_works_its_queue_off_while_redis_has_no_memory(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    """For many heartbeats and leases: what frees memory must not wait for memory."""
    feed(client, [item(web, i, "slow") for i in range(150)])
    fleet.start("--processes", "2", "--concurrency", "6", "--until-empty")
    until(lambda: counts(client)["stored"] > 5)
    client.config_set("maxmemory", "1")
    until(lambda: is_done(client))
    until(lambda: not fleet.workers)
    client.config_set("maxmemory", "0")
    assert fleet.stop() == [0]
    now = assert_nothing_lost_or_doubled(client, fleet, 150)
    assert now["failed"] == 0


@pytest.mark.parametrize(
    ("tasks", "squeezes"),
    [(2500, 1), *(pytest.param(16_000, 8, id=f"full-{n}", marks=FULL) for n in range(2))],
)
def test_maxmemory_reached_while_eight_workers_run_then_raised(
    tasks: int, squeezes: int, fleet: Fleet, client: redis.Redis, web: SimulatedWeb, rng: random.Random
) -> None:
    """At random moments; far below what is used, or a little."""
    feed(client, [item(web, i, ("404", "500")[i % 20 == 0] if i % 10 == 0 else "good") for i in range(tasks)])
    for _ in range(2):
        fleet.start("--processes", "4", "--concurrency", "8")
    part = tasks // (squeezes + 1)
    for number in range(squeezes):
        goal = part * number + rng.randrange(part // 20, part // 3)
        until(lambda goal=goal: counts(client)["stored"] > goal)
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", rng.choice([1, used - 1000, used + 20_000]) if number else 1)
        goal += part // 3
        until(lambda goal=goal: counts(client)["stored"] > goal)  # what frees memory goes on
        client.config_set("maxmemory", "0")
    until(lambda: is_done(client))
    assert fleet.stop() == [0] * 2
    now = assert_nothing_lost_or_doubled(client, fleet, tasks)
    assert now["failed"] == tasks // 10


class Killer:
    """A web server that kills whichever worker asks it for anything."""

    def __init__(self, workers: Callable[[], list[psutil.Process]]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._workers = workers
        self.deaths = 0
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}/poison.jpg"

    def _serve(self) -> None:
        while True:
            try:
                connection, (_, port) = self._server.accept()
            except OSError:
                return
            for worker in self._workers():
                try:
                    if any(c.laddr.port == port for c in worker.net_connections()):
                        worker.kill()
                        self.deaths += 1
                except psutil.Error:
                    continue
            connection.close()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.mark.parametrize(
    ("poisons", "tasks", "processes"), [(1, 300, 2), pytest.param(6, 5000, 6, id="full", marks=FULL)]
)
def test_a_task_that_kills_ends_after_three_deaths_and_all_others_finish(
    poisons: int,
    tasks: int,
    processes: int,
    fleet: Fleet,
    client: redis.Redis,
    web: SimulatedWeb,
    rng: random.Random,
) -> None:
    killer = Killer(lambda: fleet.workers)
    items = [item(web, i) for i in range(tasks)]
    for at in sorted(rng.sample(range(tasks // 8, tasks), poisons), reverse=True):
        items.insert(at, json.dumps({"img_path": f"/ds/{-at}.jpg", "img_url": killer.url, "n": -at}).encode())
    feed(client, items)
    # A lease that no busy machine lets run out: a session that is fenced as it is killed has its death forgiven.
    fleet.start("--processes", str(processes), "--concurrency", "8", WORKER__BATCH="50", WORKER__LEASE_S="5")
    until(lambda: is_done(client), within_s=300)
    killer.close()
    assert fleet.stop() == [0]
    now = assert_nothing_lost_or_doubled(client, fleet, tasks + poisons)
    # Where a poison kills, another that waits beside it dies as well.
    assert 3 <= killer.deaths <= 3 * poisons
    assert (now["stored"], now["failed"]) == (tasks, poisons)
    errors = [json.loads(raw) for raw in client.lrange(KEYS.error, 0, -1)]
    assert all(error["n"] < 0 and error["error_msg"].startswith("crashed:") for error in errors)


def test_a_worker_whose_loop_hangs_gives_its_tasks_back_and_is_replaced(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    """Its main thread is held where it waits, as a disk that does not answer would hold it."""
    feed(client, [item(web, i, "slow") for i in range(60)])
    fleet.start("--concurrency", "4", GUARD__STALL_S="15")
    until(lambda: counts(client)["stored"] >= 2)
    (worker,) = fleet.workers
    waits_at = Path(f"/proc/{worker.pid}/task/{worker.pid}/wchan")
    until(lambda: "poll" in waits_at.read_text())  # not while it holds the interpreter's lock
    hold_thread(worker.pid)
    until(lambda: any("has stalled" in e["event"] for e in fleet.events))
    until(lambda: has_ended(worker.pid))
    until(lambda: any(e.get("cause") == "exit status 4" for e in fleet.events))
    until(lambda: is_done(client))
    assert fleet.stop() == [0]
    now = assert_nothing_lost_or_doubled(client, fleet, 60)
    assert now["failed"] == 0


def has_ended(traced: int) -> bool:
    """Whether a process that we trace has ended: its tracer is told before its parent."""
    pid, status = os.waitpid(traced, os.WNOHANG | 0x40000000)  # __WALL
    return pid == traced and os.WIFEXITED(status)


def hold_thread(thread_id: int) -> None:
    """Stop one thread of another process, and only that one (ptrace(2): SEIZE, then INTERRUPT)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for request in (0x4206, 0x4207):
        if libc.ptrace(request, thread_id, None, None):
            pytest.skip(f"threads cannot be traced here: {os.strerror(ctypes.get_errno())}")


@pytest.mark.parametrize(("limit", "concurrency", "folders"), [(256, 64, 1000), (640, 256, 700)])
def test_too_few_open_files_make_a_worker_slower_and_nothing_fails(
    limit: int, concurrency: int, folders: int, fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    """More folders and fetches than may be open: neither a task nor the store is to blame."""
    feed(client, [in_folder(web, i, folders) for i in range(1500)])
    fleet.under = ("prlimit", f"--nofile={limit}:{limit}")
    worker = fleet.start("--until-empty", "--concurrency", str(concurrency), WORKER__BATCH="500")
    assert worker.wait(120) == 0
    now = assert_nothing_lost_or_doubled(client, fleet, 1500)
    assert (now["stored"], now["failed"]) == (1500, 0)
    assert any(e["event"].startswith("fewer fetches at once") for e in fleet.events)
    assert not any(e["event"] == "downloads wait for the store" for e in fleet.events)


def test_a_worker_raises_its_limit_of_open_files_as_far_as_it_may(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    feed(client, [item(web, i) for i in range(10)])
    fleet.under = ("prlimit", "--nofile=128:4000")
    fleet.start("--concurrency", "64")
    until(lambda: is_done(client))
    (worker,) = fleet.workers
    assert worker.rlimit(psutil.RLIMIT_NOFILE) == (4000, 4000)
    assert fleet.stop() == [0]
    assert not any(e["event"].startswith("fewer fetches at once") for e in fleet.events)


def in_folder(web: SimulatedWeb, i: int, folders: int) -> bytes:
    path = f"/ds/{i % folders:04}/{i}.jpg"
    return json.dumps({"img_path": path, "img_url": f"http://{web.address}/as/good/{i}", "n": i}).encode()
