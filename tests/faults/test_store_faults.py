"""A store without room, without inodes, read-only, failing, unmounted, removed: downloads wait, no task fails."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from faults_support import (
    FULL,
    KEYS,
    Fleet,
    assert_ledger_agrees,
    assert_nothing_lost_or_doubled,
    counts,
    feed,
    is_done,
    item,
    until,
)
from hung_disk import HungDisk

from dlconsole.demo.web import SimulatedWeb
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.workers.files import PARTIAL

_EXT4_SHUTDOWN = 0x8004587D
"""ioctl(2): sync the filesystem, then fail everything with EIO, as after a disk that broke."""


def mount(*words: str | Path) -> bool:
    return subprocess.run(["mount", *words], check=False, capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", folder):
        pytest.skip("mounting a small filesystem needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def real_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 32 MiB that can be unmounted and mounted again: its image is beside it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with image_of(folder).open("wb") as image:
        image.truncate(32 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", image_of(folder)], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mkfs.ext4")
    if not mount("-o", "loop", image_of(folder), folder):
        pytest.skip("mounting a filesystem in a file needs root and a loop device")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=False, capture_output=True)


def image_of(folder: Path) -> Path:
    return folder.with_suffix(".ext4")


def waiting_for(client: redis.Redis) -> set[str]:
    """Why the sessions wait; empty unless every one says that it does, and works on nothing. It may still hold
    tasks that have ended, and whose lines it could not write.
    """
    records = [json.loads(record) for record in client.hvals(KEYS.workers)]
    reasons = {r.get("waits", "") for r in records if r.get("state") == "no store" and not r.get("fetching")}
    return reasons if len(records) == len([r for r in records if r.get("waits")]) else set()


def said(fleet: Fleet, words: str) -> bool:
    """Whether a worker's log says that it waits, and that it is for this."""
    events = [e for e in fleet.events if e["event"] == "downloads wait for the store"]
    return any(words in event["why"] for event in events)


def unfinished(fleet: Fleet) -> list[Path]:
    return [path for path in (fleet.store / PARTIAL).rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("options", "settings", "words"),
    [
        ("size=8m", {"MAX_USED_PERCENT": "60"}, "guard.max_used_percent"),
        ("size=8m", {"MAX_USED_BYTES": "5MiB"}, "guard.max_used_bytes"),
        ("size=8m", {"MIN_FREE_BYTES": "3MiB"}, "guard.min_free_bytes"),
        ("size=64m,nr_inodes=6000", {"MARGIN_PERCENT": "0.2"}, "of 6,000 inodes free"),
    ],
)
def test_a_limit_that_is_reached_pauses_the_workers_before_the_disk_is_full(
    options: str,
    settings: dict[str, str],
    words: str,
    fleet: Fleet,
    client: redis.Redis,
    web: SimulatedWeb,
    small_disk: Path,
) -> None:
    """The answers are slow, so that a look at the disk comes in time."""
    assert mount("-o", f"remount,{options}", small_disk)
    (small_disk / "ballast").write_bytes(bytes(4 << 20))
    for i in range(5830):
        (small_disk / f"{i}").touch()
    fleet.store = small_disk / "store"
    work_off_while_room_is_made(fleet, client, [item(web, i, "slow") for i in range(60)], settings)
    assert said(fleet, words)
    assert not said(fleet, "No space left")


@pytest.mark.parametrize(("count", "processes"), [(600, 2), pytest.param(3000, 6, id="full", marks=FULL)])
def test_a_disk_that_fills_pauses_the_workers_and_costs_no_task(
    count: int, processes: int, fleet: Fleet, client: redis.Redis, web: SimulatedWeb, small_disk: Path
) -> None:
    """By itself: the guard is off, or too slow."""
    fleet.store = small_disk / "store"
    tasks = [item(web, i) for i in range(count)]
    work_off_while_room_is_made(fleet, client, tasks, {"MAX_USED_PERCENT": "100"}, processes=processes)
    assert said(fleet, "No space left on device")


def work_off_while_room_is_made(
    fleet: Fleet, client: redis.Redis, tasks: list[bytes], settings: dict[str, str], *, processes: int = 2
) -> None:
    """What is stored is taken away each time that all workers wait; it is whole, and nothing fails."""
    feed(client, tasks)
    guard = {f"GUARD__{name}": value for name, value in settings.items()}
    fleet.start("--processes", str(processes), "--concurrency", "8", **guard)
    freed = 0
    while not is_done(client):
        until(lambda: is_done(client) or waiting_for(client))
        assert counts(client)["failed"] == 0
        for path in fleet.files:
            assert path.stat().st_size > 1000
            path.unlink()
            freed += 1
    assert fleet.stop() == [0]
    now = counts(client)
    assert (now["stored"], now["failed"], now["queued"]) == (len(tasks), 0, 0)
    assert freed + len(fleet.files) == len(tasks)
    assert client.llen(KEYS.error) == 0
    assert unfinished(fleet) == []
    assert_ledger_agrees(client, fleet, len(tasks))


def test_a_worker_that_starts_on_a_read_only_disk_waits_for_it(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb, small_disk: Path
) -> None:
    """And is seen in the fleet while it does."""
    fleet.store = small_disk / "store"
    feed(client, [item(web, i) for i in range(20)])
    assert mount("-o", "remount,ro", small_disk)
    worker = fleet.start("--until-empty")
    until(lambda: said(fleet, "Read-only file system"))
    until(lambda: waiting_for(client))
    assert mount("-o", "remount,rw", small_disk)
    assert worker.wait(60) == 0
    assert assert_nothing_lost_or_doubled(client, fleet, 20)["failed"] == 0


def test_a_disk_that_becomes_read_only_pauses_the_workers_and_status_says_why(
    fleet: Fleet, client: redis.Redis, server: PrivateRedis, web: SimulatedWeb, small_disk: Path
) -> None:
    fleet.store = small_disk / "store"
    feed(client, [item(web, i, "slow") for i in range(40)])
    fleet.start("--processes", "2", "--concurrency", "8", WORKER__HOST_NAME="web-1")
    until(lambda: counts(client)["stored"] > 10)
    until(lambda: mount("-o", "remount,ro", small_disk))  # refused while a file is being written
    until(lambda: waiting_for(client))
    words = ["status", "--dataset", "ds", "--redis", server.url]
    status = subprocess.run([sys.executable, "-m", "dlconsole", *words], capture_output=True, check=False)
    why = f"web-1 for its store: store {fleet.store}: Read-only file system"
    assert why in " ".join(status.stdout.decode().split())
    assert mount("-o", "remount,rw", small_disk)
    until(lambda: is_done(client))
    assert fleet.stop() == [0]
    assert assert_nothing_lost_or_doubled(client, fleet, 40)["failed"] == 0
    assert unfinished(fleet) == []


def test_a_disk_that_fails_is_let_go_mended_and_mounted_again_while_the_workers_wait(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb, real_disk: Path
) -> None:
    fleet.store = real_disk / "store"
    feed(client, [item(web, i, "slow") for i in range(40)])
    fleet.start("--processes", "2", "--concurrency", "8")
    until(lambda: counts(client)["stored"] > 10)
    break_down(real_disk)
    until(lambda: waiting_for(client))
    assert said(fleet, "Input/output error")
    # Nothing of it is held open, but for the moment of a trial.
    until(lambda: subprocess.run(["umount", real_disk], check=False).returncode == 0)
    subprocess.run(["e2fsck", "-p", image_of(real_disk)], check=False)
    assert mount("-o", "loop", image_of(real_disk), real_disk)
    until(lambda: is_done(client))
    assert fleet.stop() == [0]
    assert assert_nothing_lost_or_doubled(client, fleet, 40)["failed"] == 0
    assert unfinished(fleet) == []


def break_down(disk: Path) -> None:
    folder = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(folder, _EXT4_SHUTDOWN, struct.pack("I", 0))
    finally:
        os.close(folder)


def test_a_store_that_is_unmounted_is_waited_for_and_the_disk_below_stays_empty(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb, real_disk: Path
) -> None:
    """The store is the mount point itself: its folder is still there."""
    fleet.store = real_disk
    feed(client, [item(web, i, "slow") for i in range(40)])
    fleet.start("--processes", "2", "--concurrency", "8")
    until(lambda: counts(client)["stored"] > 10)
    subprocess.run(["umount", "--lazy", real_disk], check=True)
    until(lambda: waiting_for(client))
    until(lambda: said(fleet, "another filesystem is there now"))
    assert list(real_disk.iterdir()) == []
    assert mount("-o", "loop", image_of(real_disk), real_disk)
    until(lambda: is_done(client))
    assert fleet.stop() == [0]
    assert assert_nothing_lost_or_doubled(client, fleet, 40)["failed"] == 0


def test_a_store_that_is_removed_is_waited_for_until_it_is_back(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    feed(client, [item(web, i, "slow") for i in range(40)])
    fleet.start("--processes", "2", "--concurrency", "8")
    until(lambda: counts(client)["stored"] > 10)
    until(lambda: subprocess.run(["rm", "-rf", fleet.store], check=False).returncode == 0)
    until(lambda: waiting_for(client))
    assert said(fleet, "No such file or directory")
    assert not fleet.store.exists()
    before = counts(client)["stored"]
    fleet.store.mkdir()
    until(lambda: is_done(client))
    assert fleet.stop() == [0]
    now = counts(client)
    assert (now["stored"], now["failed"], now["fed"]) == (40, 0, 40)
    # The images that were removed are gone, also those that were stored and could not be written down yet.
    lines = fleet.ledger.values()
    written_late = [line for line in lines if not (fleet.store / line.path.lstrip("/")).exists()]
    assert 0 < len(lines) <= 40 - before
    assert len(fleet.files) == len(lines) - len(written_late)
    assert len(written_late) <= 2 * 8
    assert unfinished(fleet) == []
    assert not any(e["event"] in {"worker ended hard", "worker failed"} for e in fleet.events)


def test_a_disk_that_hangs_costs_a_worker_its_lease_and_no_task(
    fleet: Fleet, client: redis.Redis, server: PrivateRedis, web: SimulatedWeb
) -> None:
    """Every call to it hangs, `stat` and `statvfs` as well. The worker's successors wait for it too, and say so."""
    feed(client, [item(web, i, "slow") for i in range(60)])
    fleet.store.mkdir()
    fleet.start("--concurrency", "4", GUARD__STALL_S="15", WORKER__HOST_NAME="web-1")
    until(lambda: counts(client)["stored"] >= 5)
    until(lambda: host(client)["disk_total_bytes"])
    (session,) = client.zrange(KEYS.lease, 0, -1)
    (worker,) = fleet.workers
    with HungDisk(fleet.store):
        until(lambda: any(e.get("cause") == "exit status 4" for e in fleet.events))
        assert any(e["event"] == "the fetch loop has stalled; giving up" for e in fleet.events)
        until(lambda: [w for w in fleet.workers if w.pid != worker.pid])
        until(lambda: client.zscore(KEYS.lease, session) is None)
        until(lambda: waiting_for(client) == {"the store is not open yet"})
        seen = host(client)
        until(lambda: host(client)["at_ms"] > seen["at_ms"] + 1000)
        now = host(client)
        assert now["disk_total_bytes"] == seen["disk_total_bytes"] > 0
        assert now["disk_at_ms"] == seen["disk_at_ms"] < now["at_ms"] - 10_000
        words = ["doctor", "--store", str(fleet.store), "--redis", server.url]
        doctor = subprocess.run(
            [sys.executable, "-m", "dlconsole", *words], capture_output=True, check=False, timeout=60
        )
        assert doctor.returncode == 1 and b"its disk hangs" in doctor.stdout
    until(lambda: is_done(client))
    assert fleet.stop() == [0]
    assert assert_nothing_lost_or_doubled(client, fleet, 60)["failed"] == 0


def host(client: redis.Redis) -> dict[str, Any]:
    """What the only host says of itself."""
    (record,) = client.hvals(KEYS.hosts)
    return {"disk_total_bytes": 0} | json.loads(record)


def test_a_worker_that_cannot_even_be_killed_does_not_keep_its_supervisor(
    fleet: Fleet, client: redis.Redis, web: SimulatedWeb
) -> None:
    """The kernel holds it in a call to a disk that hangs; here it is the call that opens the store."""
    feed(client, [item(web, i) for i in range(20)])
    fleet.store.mkdir()
    with HungDisk(fleet.store) as disk:
        fleet.start(WORKER__DRAIN_S="0.5")
        until(lambda: waiting_for(client) == {"the store is not open yet"})
        disk.take_request()
        assert fleet.stop() == [1]
        assert any(e["event"].startswith("a killed worker stays") for e in fleet.events)
    assert counts(client)["queued"] == 20
