"""`dlconsole --worker` as a process: supervision, signals, exit statuses, no secrets in sight."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from integration_support import KEYS, task, until

from dlconsole.demo.web import SimulatedWeb, WebConfig
from dlconsole.services.connection import connect
from dlconsole.services.embedded import EmbeddedRedis
from dlconsole.services.private_redis import PrivateRedis

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, redis_url: str) -> Iterator[Start]:
    """Start a worker on the test's Redis; what still runs at the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "dlconsole",
            "--worker",
            "--dataset",
            "ds",
            "--store",
            str(tmp_path / "s"),
        ]
        command += ["--allow-network", "127.0.0.0/8", *arguments]
        env = {
            **os.environ,
            "DLCONSOLE_REDIS": redis_url,
            "DLCONSOLE_WORKER__HEARTBEAT_S": "0.2",
            **environment,
        }
        log = (tmp_path / f"log-{len(started)}").open("w")
        process = subprocess.Popen(
            command, stderr=log, stdout=log, text=True, env=env, start_new_session=True
        )
        log.close()
        process.log = Path(log.name)  # type: ignore[attr-defined]
        started.append(process)
        return process

    yield run
    for process in started:
        for child in children_of(process):
            child.kill()
        if process.poll() is None:
            process.kill()
        process.wait()


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def events(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    lines = process.log.read_text().splitlines()  # type: ignore[attr-defined]
    return [json.loads(line) for line in lines]


def stored(client: redis.Redis) -> int:
    return int(client.get(KEYS.stored) or 0)


def test_processes_share_the_queue_and_end_when_it_is_empty(
    start: Start, redis_client: redis.Redis, web: SimulatedWeb, tmp_path: Path
) -> None:
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/good/{i}", f"/ds/{i}.jpg") for i in range(1000))
    )
    worker = start("--processes", "2", "--until-empty")
    assert worker.wait(60) == 0
    assert stored(redis_client) == 1000 == len(list((tmp_path / "s/ds").glob("*.jpg")))
    opened = {e["worker"] for e in events(worker) if e["event"] == "session opened"}
    assert opened == {0, 1}
    assert redis_client.exists(KEYS.lease, KEYS.sessions, KEYS.task) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly_within_the_deadline(
    number: signal.Signals, start: Start, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/slow/{i}", f"/ds/{i}.jpg") for i in range(500))
    )
    worker = start("--processes", "2", "--concurrency", "8", "--drain", "3s")
    until(lambda: stored(redis_client) > 4)
    children = children_of(worker)
    worker.send_signal(number)
    assert worker.wait(15) == 0
    assert not any(child.is_running() for child in children)
    assert stored(redis_client) + redis_client.llen(KEYS.task) == 500
    assert redis_client.exists(KEYS.lease, KEYS.sessions, KEYS.workers, KEYS.error) == 0


def test_under_nohup_a_hang_up_is_ignored(start: Start, redis_client: redis.Redis, web: SimulatedWeb) -> None:
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        worker = start()
    finally:
        signal.signal(signal.SIGHUP, old)
    until(lambda: redis_client.hlen(KEYS.workers) == 1)
    worker.send_signal(signal.SIGHUP)
    redis_client.lpush(KEYS.task, task(f"http://{web.address}/as/good/x"))
    until(lambda: stored(redis_client) == 1)
    assert worker.poll() is None
    worker.terminate()
    assert worker.wait(15) == 0


def test_a_second_signal_ends_it_at_once_and_loses_nothing(
    start: Start, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    redis_client.lpush(KEYS.task, *(task(f"http://{web.address}/as/never_ending/{i}") for i in range(20)))
    worker = start("--concurrency", "8", "--drain", "10m", "--deadline", "10m")
    until(lambda: any(b'"fetching":8' in record for record in redis_client.hvals(KEYS.workers)))
    worker.terminate()
    until(
        lambda: (
            redis_client.llen(KEYS.task) == 0
            and any(b"draining" in r for r in redis_client.hvals(KEYS.workers))
        )
    )
    worker.terminate()
    assert worker.wait(10) != 0
    held = sum(redis_client.hlen(key) - 1 for key in redis_client.keys("*:dl:if:*"))
    assert held + redis_client.llen(KEYS.task) == 20


def test_a_signal_to_the_whole_group_is_one_signal(
    start: Start, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    """As a service manager sends it: to the supervisor and, beside it, to the workers."""
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/slow/{i}", f"/ds/{i}.jpg") for i in range(500))
    )
    worker = start("--processes", "2", "--concurrency", "8", "--drain", "3s")
    until(lambda: stored(redis_client) > 4)
    for process in [*children_of(worker), psutil.Process(worker.pid)]:
        process.terminate()
    assert worker.wait(15) == 0
    assert stored(redis_client) + redis_client.llen(KEYS.task) == 500
    assert redis_client.exists(KEYS.lease, KEYS.sessions) == 0


@pytest.mark.parametrize("started", [1, 4, 9])
def test_a_signal_while_workers_are_being_started_reaches_them_all(started: int, start: Start) -> None:
    worker = start("--processes", "12", "--drain", "2s")
    until(lambda: sum(event["event"] == "worker started" for event in events(worker)) >= started)
    worker.terminate()
    assert worker.wait(12) == 0
    assert not any("killed" in str(event["event"]) for event in events(worker))


def test_a_worker_that_never_reached_its_redis_ends_well(start: Start) -> None:
    worker = start(DLCONSOLE_REDIS="redis://127.0.0.1:1/0")
    until(lambda: any("waiting" in str(event["event"]) for event in events(worker)))
    worker.terminate()
    assert worker.wait(25) == 0


def test_a_host_whose_workers_ended_in_order_is_not_silent(start: Start, redis_client: redis.Redis) -> None:
    worker = start()
    (record,) = until(lambda: redis_client.hvals(KEYS.hosts))
    assert "ended" not in json.loads(record)
    worker.terminate()
    assert worker.wait(15) == 0
    (record,) = redis_client.hvals(KEYS.hosts)
    assert json.loads(record)["ended"] is True


def test_a_closed_log_costs_lines_not_the_worker(
    redis_url: str, redis_client: redis.Redis, web: SimulatedWeb, tmp_path: Path
) -> None:
    redis_client.lpush(KEYS.task, *(task(f"http://{web.address}/as/good/{i}") for i in range(50)))
    read, write = os.pipe()
    command = [
        sys.executable,
        "-m",
        "dlconsole",
        "--worker",
        "--until-empty",
        "--redis",
        redis_url,
        "--dataset",
        "ds",
    ]
    command += ["--store", str(tmp_path / "s"), "--allow-network", "127.0.0.0/8"]
    worker = subprocess.Popen(command, stderr=write)
    os.close(write)
    os.close(read)
    assert worker.wait(30) == 0
    assert stored(redis_client) == 50


def test_a_read_only_context_starts_no_worker(start: Start, redis_client: redis.Redis) -> None:
    redis_client.lpush(KEYS.task, b"{}")
    worker = start(DLCONSOLE_READ_ONLY="true")
    assert worker.wait(20) == 2
    assert "read-only: downloading is refused" in worker.log.read_text()  # type: ignore[attr-defined]
    assert redis_client.llen(KEYS.task) == 1


def test_a_dead_child_is_replaced_and_logged(
    start: Start, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    worker = start("--processes", "2")
    until(lambda: redis_client.hlen(KEYS.workers) == 2)
    first = {child.pid for child in children_of(worker)}
    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len({c.pid for c in children_of(worker)} - first) == 1)
    (died,) = [e for e in events(worker) if e["event"] == "worker died and is replaced"]
    assert died["child"] == victim and died["cause"] == "signal 9"
    redis_client.lpush(KEYS.task, task(f"http://{web.address}/as/good/x"))
    until(lambda: stored(redis_client) == 1)
    worker.terminate()
    assert worker.wait(15) == 0


def test_children_drain_when_their_supervisor_is_killed(
    start: Start, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/slow/{i}", f"/ds/{i}.jpg") for i in range(300))
    )
    worker = start("--concurrency", "4")
    until(lambda: stored(redis_client) > 2)
    children = children_of(worker)
    worker.kill()
    worker.wait()
    until(lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children))
    assert stored(redis_client) + redis_client.llen(KEYS.task) == 300
    assert redis_client.exists(KEYS.lease, KEYS.sessions) == 0


def test_what_only_a_person_can_mend_ends_it_with_a_plain_error(
    start: Start, redis_client: redis.Redis, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    worker = start("--store", str(tmp_path / "file/below"))
    assert worker.wait(20) == 1
    (error,) = [e for e in events(worker) if e["level"] == "error"]
    assert "--store" in str(error["error"])
    worker = start("--ca-file", str(tmp_path / "none.pem"))
    assert worker.wait(20) == 1
    assert any("ca_file" in str(e.get("error")) for e in events(worker))
    redis_client.set(KEYS.task, "x")
    worker = start()
    assert worker.wait(20) == 1
    assert any("another type" in str(e.get("error")) for e in events(worker))


def test_a_wrong_limit_is_refused_before_anything_starts(start: Start) -> None:
    worker = start("--concurrency", "many")
    assert worker.wait(20) == 2
    said = worker.log.read_text()  # type: ignore[attr-defined]
    assert (
        said == "dlconsole: command line: key 'worker.concurrency': accepted: a whole number from 1 to 4096\n"
    )


def test_no_password_in_the_process_list_or_the_log(start: Start) -> None:
    with PrivateRedis() as server, connect(server.url, name="test") as client:
        client.config_set("requirepass", "s3cret")
        worker = start(DLCONSOLE_REDIS=server.url.replace("unix://", "unix://:s3cret@"))
        with connect(server.url.replace("unix://", "unix://:s3cret@"), name="test") as inside:
            until(lambda: inside.hlen(KEYS.workers) == 1)
        shown = [part for p in (psutil.Process(worker.pid), *children_of(worker)) for part in p.cmdline()]
        assert not any("s3cret" in part for part in shown)
        worker.terminate()
        assert worker.wait(15) == 0
        assert "s3cret" not in worker.log.read_text()  # type: ignore[attr-defined]
        assert "***" in worker.log.read_text()  # type: ignore[attr-defined]


def test_without_a_configured_redis_workers_share_the_own_one(
    start: Start, home: Path, web: SimulatedWeb
) -> None:
    own = EmbeddedRedis(home / ".local/state/dlconsole/redis")
    first = start(DLCONSOLE_REDIS="")
    second = start(DLCONSOLE_REDIS="")
    until(own.is_running)
    own.ensure_running()  # waits until the one that they started answers
    with connect(own.url, name="test") as client:
        until(lambda: client.hlen(KEYS.workers) == 2)
        client.lpush(KEYS.task, task(f"http://{web.address}/as/good/x"))
        until(lambda: stored(client) == 1)
    for worker in (first, second):
        worker.terminate()
        assert worker.wait(15) == 0
    assert own.is_running()  # it outlives them
    assert own.stop()


def test_nothing_is_imported_from_the_working_directory(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that anybody may write to, such as /tmp, is no place to run code from."""
    for name in ("redis", "PIL", "msgspec", "pycurl"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'executed')!r}, 'w'); raise SystemExit(9)\n"
        )
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-P", "-m", "dlconsole", "--worker", "--redis", redis_url, "--dataset", "ds"]
    command += ["--store", str(tmp_path / "s"), "--verify", "decode", "--until-empty"]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, log = worker.communicate(timeout=120)
    finally:
        worker.kill()
        worker.wait()
    assert worker.returncode == 0, log
    with SimulatedWeb(WebConfig(latency_s=0.0)):
        pass
    assert not (tmp_path / "executed").exists()
