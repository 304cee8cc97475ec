"""A Redis without memory, legacy workers beside ours, a task that kills."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis
import requests
from faults_support import KEYS, Fleet, assert_nothing_lost_or_doubled, counts, feed, is_done, item, until

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


def test_maxmemory_reached_while_eight_workers_run_then_raised(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    feed(client, [item(web, i, "404" if i % 10 == 0 else "good") for i in range(4000)])
    for _ in range(4):
        fleet.start("--processes", "2", "--concurrency", "8")
    until(lambda: counts(client)["stored"] > 200)
    client.config_set("maxmemory", "1")
    until(lambda: counts(client)["stored"] > 2000)  # what frees memory goes on
    client.config_set("maxmemory", "0")
    until(lambda: is_done(client))
    assert fleet.stop() == [0] * 4
    now = assert_nothing_lost_or_doubled(client, fleet, 4000)
    assert now["failed"] == 400


class LegacyWorker:
    """What the legacy script does: pop, fetch in a pool of threads, count; stops at a sentinel."""

    def __init__(self, client: redis.Redis, store: Path) -> None:
        self.client = client
        self.store = store
        self.stopped = threading.Event()
        self.taken: list[bytes] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            while True:
                raw = self.client.rpop(KEYS.task)
                if raw is None:
                    if self.stopped.wait(0.02):
                        return
                    continue
                if b"stop_this_task" in raw:
                    return
                self.taken.append(raw)
                pool.submit(self._one, raw)

    def _one(self, raw: bytes) -> None:
        try:
            task = json.loads(raw)
            answer = requests.get(task["img_url"], timeout=5)
            status = answer.status_code
            answer.raise_for_status()
            path = self.store / task["img_path"].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(answer.content)
        except Exception as error:
            fields = task if isinstance(task := decoded(raw), dict) else {"raw": repr(raw)}
            status = getattr(getattr(error, "response", None), "status_code", 900)
            self.client.lpush(KEYS.error, json.dumps(fields | {"status": status, "error_msg": str(error)}))
            self.client.incr(KEYS.failed)
        else:
            self.client.incr(KEYS.stored)


def decoded(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def test_a_mixed_fleet_shares_one_queue(fleet: Fleet, client: redis.Redis, web: SimulatedWeb) -> None:
    good = [item(web, i, "404" if i % 20 == 0 else "good") for i in range(1200)]
    odd = [b"", b"not json", b"[1, 2]", b'{"img_path": "/x"}', b"null"]
    unknown = json.dumps(
        json.loads(item(web, 5000, "404")) | {"caption": "a \u65e5", "similarity": 0.25}
    ).encode()
    feed(client, [*good[:600], *odd, unknown, *good[600:]])
    legacy = LegacyWorker(client, fleet.store)
    fleet.start("--processes", "2", "--concurrency", "8")
    until(lambda: is_done(client))
    legacy.stopped.set()
    legacy.thread.join()
    assert fleet.stop() == [0]
    assert legacy.taken
    now = counts(client)
    assert now["stored"] == 1140
    assert now["stored"] + now["failed"] == 1206
    assert now["error_list"] == now["failed"]
    errors = [json.loads(raw) for raw in client.lrange(KEYS.error, 0, -1)]
    (kept,) = [e for e in errors if e.get("n") == 5000]
    assert kept["caption"] == "a \u65e5" and kept["similarity"] == 0.25 and kept["status"] == 404
    assert len(fleet.files) == 1140


def test_each_sentinel_ends_one_worker_ours_or_legacy(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    legacy = LegacyWorker(client, fleet.store)
    ours = fleet.start("--concurrency", "4")
    until(lambda: client.hlen(KEYS.workers) == 1)
    client.rpush(KEYS.task, b"stop_this_task")
    until(lambda: ours.poll() is not None or not legacy.thread.is_alive())
    client.rpush(KEYS.task, b"stop_this_task")
    assert ours.wait(30) == 0
    legacy.thread.join(30)
    assert not legacy.thread.is_alive()
    assert client.llen(KEYS.task) == 0


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


def test_a_task_that_kills_ends_after_three_deaths_and_all_others_finish(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    killer = Killer(lambda: fleet.workers)
    poison = json.dumps({"img_path": "/ds/poison.jpg", "img_url": killer.url, "n": -1}).encode()
    good = [item(web, i) for i in range(300)]
    feed(client, [*good[:40], poison, *good[40:]])
    fleet.start("--processes", "2", "--concurrency", "8", WORKER__BATCH="50")
    until(lambda: is_done(client))
    killer.close()
    assert fleet.stop() == [0]
    now = assert_nothing_lost_or_doubled(client, fleet, 301)
    assert killer.deaths == 3
    assert (now["stored"], now["failed"]) == (300, 1)
    (error,) = [json.loads(raw) for raw in client.lrange(KEYS.error, 0, -1)]
    assert error["n"] == -1 and error["error_msg"].startswith("crashed:")


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
