"""Legacy workers beside ours on one queue: each item has one outcome, whoever takes it."""

from __future__ import annotations

import json
import random

import psutil
import pytest
import redis
from faults_support import FULL, KEYS, Fleet, counts, feed, is_done, item, until
from legacy_worker import StartLegacy

from dlconsole.demo.web import SimulatedWeb
from dlconsole.services.error_items import parse, task_again
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.retries import attempts_of
from dlconsole.services.upkeep import keep

ODD = [b"", b"not json", b"[1, 2]", b'{"img_path": "/x"}', b"null"]


def with_columns(web: SimulatedWeb, i: int, behaviour: str) -> bytes:
    """A task with columns that nobody here knows."""
    columns = {"caption": f"a \u65e5 {i}", "similarity": i / 8, "tags": [], "id": 2**53 + i}
    return json.dumps(json.loads(item(web, i, behaviour)) | columns).encode()


def has_columns(error: dict[str, object]) -> bool:
    i = error["n"]
    return (error["caption"], error["similarity"], error["tags"], error["id"]) == (
        f"a \u65e5 {i}",
        i / 8,
        [],
        2**53 + i,
    )


@pytest.mark.parametrize(
    ("tasks", "odd", "legacy", "kills"),
    [(1200, 1, 1, 0), *(pytest.param(12_000, 40, 3, 8, id=f"full-{n}", marks=FULL) for n in range(2))],
)
def test_a_mixed_fleet_shares_one_queue(
    tasks: int,
    odd: int,
    legacy: int,
    kills: int,
    fleet: Fleet,
    client: redis.Redis,
    web: SimulatedWeb,
    rng: random.Random,
    start_legacy: StartLegacy,
) -> None:
    """Odd items among the tasks, each kind `odd` times; of our workers `kills` die."""
    behaviours = {0: "404", 10: "500"}
    items = [with_columns(web, i, behaviours.get(i % 20, "good")) for i in range(tasks)] + ODD * odd
    rng.shuffle(items)
    feed(client, items)
    others = [start_legacy() for _ in range(legacy)]
    fleet.start("--processes", str(2 * legacy), "--concurrency", "8")
    good = tasks - tasks // 10
    for number in range(kills):
        goal = good * (number + 1) // (kills + 2)
        until(lambda goal=goal: counts(client)["stored"] >= goal)
        victim = rng.choice(until(lambda: fleet.workers))
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    until(lambda: is_done(client))
    for other in others:
        other.stopped.set()
        other.thread.join()
    assert fleet.stop() == [0]
    assert all(other.taken for other in others)
    now = counts(client)
    assert now["stored"] == good
    assert now["stored"] + now["failed"] == len(items) == now["fed"]
    assert now["error_list"] == now["failed"]
    errors = [json.loads(raw) for raw in client.lrange(KEYS.error, 0, -1)]
    assert sorted(e["n"] for e in errors if "n" in e) == list(range(0, tasks, 10))
    assert all(has_columns(e) and e["status"] in {404, 500} for e in errors if "n" in e)
    assert len(fleet.files) == good


def test_a_legacy_worker_that_takes_a_task_that_ours_tried_keeps_its_history(
    fleet: Fleet,
    server: PrivateRedis,
    client: redis.Redis,
    web: SimulatedWeb,
    start_legacy: StartLegacy,
) -> None:
    """And what it reports is read, requeued and tried again by ours."""
    feed(client, [with_columns(web, 7, "500")])
    fleet.start("--concurrency", "2", RETRY__MAX_ATTEMPTS="5")
    until(lambda: client.zcard(KEYS.delayed))
    assert fleet.stop() == [0]
    until(lambda: keep(client, KEYS, server.url).promoted or client.llen(KEYS.task))
    (raw,) = client.lrange(KEYS.task, 0, -1)
    attempts = attempts_of(raw)
    assert attempts and json.loads(raw)["_retry"]["status"] == 500
    legacy = start_legacy()
    legacy.stopped.set()
    legacy.thread.join()
    assert legacy.taken == [raw]
    (error,) = client.lrange(KEYS.error, 0, -1)
    fields = json.loads(error)
    assert fields["_retry"] == json.loads(raw)["_retry"] and has_columns(fields) and fields["status"] == 500
    again = json.loads(task_again(parse(error)))
    assert again["_retry"]["requeued"] == 1 and has_columns(again) and "status" not in again


@pytest.mark.parametrize(
    ("each", "tasks", "sentinels"), [(1, 0, 1), pytest.param(3, 3000, 4, id="full", marks=FULL)]
)
def test_each_sentinel_ends_one_worker_ours_or_legacy(
    each: int,
    tasks: int,
    sentinels: int,
    fleet: Fleet,
    client: redis.Redis,
    web: SimulatedWeb,
    rng: random.Random,
    start_legacy: StartLegacy,
) -> None:
    """`each` of both kinds; some sentinels stand among the tasks, the others come when these are done."""
    legacy = [start_legacy() for _ in range(each)]
    ours = [fleet.start("--concurrency", "4") for _ in range(each)]
    until(lambda: client.hlen(KEYS.workers) == each)

    def ended() -> int:
        return sum(o.poll() is not None for o in ours) + sum(not o.thread.is_alive() for o in legacy)

    items = [item(web, i) for i in range(tasks)]
    for at in rng.sample(range(tasks + 1), sentinels):
        items.insert(at, b"stop_this_task")
    client.lpush(KEYS.task, *items)
    until(lambda: ended() == sentinels and counts(client)["stored"] == tasks)
    assert len(fleet.files) == tasks
    for n in range(sentinels + 1, 2 * each + 1):
        client.lpush(KEYS.task, b"stop_this_task")
        until(lambda n=n: ended() == n)
    assert fleet.stop() == [0] * each
    assert client.llen(KEYS.task) == 0
