"""A running legacy fleet is changed over as docs/migrating.md says, host by host, and back: no task is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import redis
from faults_support import KEYS, Fleet, counts, is_done, item, until
from legacy_worker import StartLegacy

from dlconsole.cli import main
from dlconsole.demo.web import SimulatedWeb
from dlconsole.services.keys import LEGACY_DISK
from dlconsole.services.private_redis import PrivateRedis

SETTING = """\
redis_ip = "10.0.0.5"
dataset_name = "ds"
class RedisKey:
    task_key = f"{dataset_name}_task"
store_dir = %r
stop_threshold = 5000
thread_num = 8
"""


def test_a_legacy_fleet_is_changed_over_host_by_host_and_back(
    fleet: Fleet,
    server: PrivateRedis,
    client: redis.Redis,
    web: SimulatedWeb,
    tmp_path: Path,
    start_legacy: StartLegacy,
) -> None:
    setting, config = tmp_path / "setting.py", tmp_path / "dlconsole.toml"
    setting.write_text(SETTING % f"{fleet.store}/")
    assert main(["config", "import-legacy", str(setting), "--output", str(config)]) == 0
    fed: list[bytes] = []

    def feed_as_legacy(count: int) -> None:
        items = [item(web, n, "404" if n % 10 == 0 else "good") for n in range(len(fed), len(fed) + count)]
        fed.extend(items)
        client.lpush(KEYS.task, *items)

    def start_ours() -> None:
        """With the imported settings; then it is seen to have finished something."""
        before = client.hlen(KEYS.workers)
        fleet.start("--config", str(config))
        until(lambda: client.hlen(KEYS.workers) == before + 1)
        feed_as_legacy(20)

    fields = {"10_0_0_1": 700, "10_0_0_2": 800}
    client.hset(LEGACY_DISK, mapping=fields)
    hosts = [start_legacy(field) for field in fields]
    feed_as_legacy(40)
    until(lambda: all(host.taken for host in hosts))

    # The first host, whichever that is, by a stop sentinel: only legacy workers run.
    assert main(["stop-legacy", "1", "--yes", "--redis", server.url, "--dataset", "ds"]) == 0
    (ended,) = until(lambda: [host for host in hosts if not host.thread.is_alive()])
    assert ended.in_hand == 0
    start_ours()

    # The other one while ours run, so not by a sentinel: by its disk.
    (last,) = [host for host in hosts if host is not ended]
    until(lambda: feed_as_legacy(10) or last.in_hand)
    client.hset(LEGACY_DISK, last.field, 999_999_999)
    until(lambda: last.asleep.is_set() and last.in_hand == 0)
    last.kill()
    start_ours()
    until(lambda: is_done(client))
    assert fleet.stop() == [0, 0]
    assert client.hlen(LEGACY_DISK) > len(fields)  # ours report their host's disk as well

    # And back.
    feed_as_legacy(20)
    again = start_legacy(ended.field)
    again.stopped.set()
    again.thread.join()

    errors = [json.loads(raw)["n"] for raw in client.lrange(KEYS.error, 0, -1)]
    stored = [path.relative_to(fleet.store).as_posix() for path in fleet.files if path.suffix == ".jpg"]
    assert sorted(errors) == list(range(0, len(fed), 10))
    assert sorted(int(Path(path).stem) for path in stored) == [n for n in range(len(fed)) if n % 10]
    assert all(re.fullmatch(r"\d{10}/ds/images/\d\d/\d+\.jpg", path) for path in stored)
    assert {host for host in (*hosts, again) if not host.taken} == set()
    check_the_counts(client, server, len(fed))


def check_the_counts(client: redis.Redis, server: PrivateRedis, fed: int) -> None:
    """No feeder counted; said once what was fed, the sum holds again."""
    now = counts(client)
    assert (now["stored"] + now["failed"], now["error_list"], now["fed"]) == (fed, now["failed"], 0)
    client.set(KEYS.fed, now["stored"] + now["failed"])
    assert main(["status", "--redis", server.url, "--dataset", "ds"]) == 0
