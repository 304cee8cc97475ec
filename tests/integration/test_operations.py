"""`dlconsole status`, `pause`, `resume`, `stop-legacy` and `doctor`, on a real Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import redis
from integration_support import KEYS, until

from dlconsole.cli import main
from dlconsole.model import HostStats, SessionStats
from dlconsole.services.connection import connect
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.queue import Session, new_session_id

Said = pytest.CaptureFixture[str]


@pytest.fixture
def words(redis_url: str) -> list[str]:
    return ["--redis", redis_url, "--dataset", "ds"]


@pytest.fixture
def read_only(redis_url: str, tmp_path: Path) -> list[str]:
    config = tmp_path / "config.toml"
    config.write_text(f'[contexts.prod]\nredis = "{redis_url}"\ndataset = "ds"\nread_only = true\n')
    return ["--config", str(config), "--context", "prod"]


def a_fleet(client: redis.Redis, url: str, *, fed: int) -> Session:
    client.lpush(KEYS.task, *(b'{"img_path": "/a", "img_url": "u"}' for _ in range(10)))
    client.set(KEYS.fed, fed)
    session = Session(client, KEYS, new_session_id("web-1"), lease_s=30, url=url)
    session.open()
    items = session.claim(4).items
    session.ack([items[0].field], [])
    session.renew(SessionStats(host="web-1", pid=1, started_ms=0, stored=1))
    now_ms = client.time()[0] * 1000
    record = HostStats(ip="10.0.0.5", at_ms=now_ms, disk_total_bytes=2**40, disk_used_bytes=2**38)
    client.hset(KEYS.hosts, "web-1", msgspec.json.encode(record))
    return session


# -- status ----------------------------------------------------------------------------------------


def test_status_prints_the_snapshot_and_that_it_adds_up(
    words: list[str], redis_client: redis.Redis, redis_url: str, capsys: Said
) -> None:
    session = a_fleet(redis_client, redis_url, fed=10)
    main(["pause", "--why", "moving the store", *words])
    capsys.readouterr()
    assert main(["status", *words]) == 0
    out = capsys.readouterr().out
    assert "every task that was fed is accounted for" in out
    for text in ("moving the store", session.id, "web-1", "10.0.0.5", "256 GiB", "PAUSED"):
        assert text in out, text


def test_status_as_json_has_every_count_and_the_invariant(
    words: list[str], redis_client: redis.Redis, redis_url: str, capsys: Said
) -> None:
    a_fleet(redis_client, redis_url, fed=10)
    assert main(["status", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = {name: found["counts"][name] for name in ("queued", "in_flight", "stored", "failed", "fed")}
    assert counts == {"queued": 6, "in_flight": 3, "stored": 1, "failed": 0, "fed": 10}
    assert found["invariant"]["holds"] is True and found["invariant"]["missing"] == 0
    assert [host["name"] for host in found["hosts"]] == ["web-1"]
    assert found["sessions"][0]["alive"] is True
    assert found["redis"]["aof"] is True and found["warnings"] == [] and found["pause"] is None


def test_status_adds_up_what_fetching_takes_over_the_sessions(
    words: list[str], redis_client: redis.Redis, redis_url: str, capsys: Said
) -> None:
    assert main(["status", "--json", *words]) == 0
    nothing = json.loads(capsys.readouterr().out)["times"]
    assert nothing["parts"]["total"]["p50_s"] is None
    assert nothing["reuse"] is None and nothing["lookup_failures"] is None
    for number, bucket in enumerate(("8", "40")):
        session = Session(redis_client, KEYS, new_session_id("w"), lease_s=30, url=redis_url)
        session.open()
        timings = {"dns": {bucket: 10}, "total": {"20": 5}, "other": {"1": 1}}
        stats = SessionStats(
            host="w", pid=1, started_ms=0, timings=timings, reused=9 * number, opened=1,
            lookups={"found": 6, "not_found": 2, "timeout": 2 * number, "nonsense": 90},
        )  # fmt: skip
        session.renew(stats)
    assert main(["status", "--json", *words]) == 0
    times = json.loads(capsys.readouterr().out)["times"]
    dns = times["parts"]["dns"]
    assert 0 < dns["p50_s"] < 0.001
    assert 0.05 < dns["p95_s"] == dns["p99_s"]
    assert times["parts"]["connect"]["p99_s"] is None and "other" not in times["parts"]
    assert times["reuse"] == pytest.approx(9 / 11)
    assert times["lookups"] == {"found": 12, "not_found": 4, "trouble": 0, "timeout": 2}
    assert times["lookup_failures"] == pytest.approx(1 / 3)
    assert main(["status", *words]) == 0
    out = capsys.readouterr().out
    for text in ("(p50/p95/p99)", "81.8% of requests", "18 looked up, 33.3% failed: 4 not found, 2 timeout"):
        assert text in out, text


@pytest.mark.parametrize(("fed", "status", "missing"), [(12, 1, 2), (7, 1, -3), (0, 0, None)])
def test_the_exit_status_says_whether_tasks_are_missing(
    fed: int,
    status: int,
    missing: int | None,
    words: list[str],
    redis_client: redis.Redis,
    redis_url: str,
    capsys: Said,
) -> None:
    a_fleet(redis_client, redis_url, fed=fed)
    assert main(["status", "--json", *words]) == status
    assert json.loads(capsys.readouterr().out)["invariant"]["missing"] == missing


def test_status_watches_until_it_is_interrupted(words: list[str], redis_client: redis.Redis) -> None:
    command = [sys.executable, "-m", "dlconsole", "status", "--watch", "--json", "--refresh", "0.25", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert json.loads(process.stdout.readline())["counts"]["queued"] == 0
        redis_client.lpush(KEYS.task, b"{}")
        until(lambda: json.loads(process.stdout.readline())["counts"]["queued"] == 1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_status_changes_nothing_in_a_read_only_context(
    read_only: list[str], redis_client: redis.Redis, capsys: Said
) -> None:
    assert main(["status", *read_only]) == 0
    assert redis_client.keys() == []


def test_status_loads_no_textual(words: list[str]) -> None:
    code = (
        "import sys\nfrom dlconsole.cli import main\n"
        f"assert main(['status', *{words!r}]) == 0\nprint('textual' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_what_is_unsafe_about_redis_is_said(
    words: list[str], redis_client: redis.Redis, capsys: Said
) -> None:
    used = redis_client.info("memory")["used_memory"]
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    redis_client.config_set("appendonly", "no")
    redis_client.config_set("maxmemory", int(used * 1.1))
    try:
        assert main(["status", "--json", *words]) == 0
        found = json.loads(capsys.readouterr().out)["warnings"]
        assert main(["doctor", "--json", *words]) == 1
        checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    finally:
        redis_client.config_set("maxmemory", 0)
        redis_client.config_set("maxmemory-policy", "noeviction")
        redis_client.config_set("appendonly", "yes")
        until(lambda: not redis_client.info("persistence")["aof_rewrite_in_progress"])
    assert [finding["name"] for finding in found] == ["aof", "policy", "memory"]
    assert [checks[name]["level"] for name in ("aof", "policy", "memory")] == [
        "warning",
        "failure",
        "warning",
    ]
    assert checks["policy"]["todo"] == "set 'maxmemory-policy noeviction'"


def test_feeding_an_unsafe_redis_is_warned_of(
    words: list[str], redis_client: redis.Redis, tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "urls.txt").write_text("http://a.example/1\n")
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        done = ["--done-file", str(tmp_path / "done.txt")]
        assert main(["feed", str(tmp_path / "urls.txt"), *done, *words]) == 0
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")
    assert "warning: Redis may throw the queue away" in capsys.readouterr().err


# -- control ---------------------------------------------------------------------------------------


def test_pause_and_resume_reach_every_claim_and_say_who_and_why(
    words: list[str], redis_client: redis.Redis, redis_url: str, capsys: Said
) -> None:
    session = a_fleet(redis_client, redis_url, fed=10)
    before_ms = redis_client.time()[0] * 1000
    assert main(["pause", "--why", "a \x1b[31mreason", *words]) == 0
    assert session.claim(5).paused
    control = redis_client.hgetall(KEYS.control)
    assert b"@" in control[b"by"] and control[b"why"] == b"a \x1b[31mreason"
    assert int(control[b"at"]) >= before_ms
    assert main(["pause", *words]) == 0
    assert "it was before" in capsys.readouterr().out
    assert main(["resume", *words]) == 0
    assert len(session.claim(5).items) == 5
    assert main(["resume", *words]) == 0
    assert "was not paused" in capsys.readouterr().out


def test_sentinels_are_what_is_taken_next(words: list[str], redis_client: redis.Redis) -> None:
    redis_client.lpush(KEYS.task, b"first", b"second")
    assert main(["stop-legacy", "2", "--yes", *words]) == 0
    taken = [redis_client.rpop(KEYS.task) for _ in range(4)]
    assert taken == [b"stop_this_task", b"stop_this_task", b"first", b"second"]


@pytest.mark.parametrize("count", ["0", "-1", "10001", "many"])
def test_an_odd_number_of_sentinels_is_refused(
    count: str, words: list[str], redis_client: redis.Redis
) -> None:
    command = [sys.executable, "-m", "dlconsole", "stop-legacy", "--yes", *words, "--", count]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
    assert redis_client.keys() == []


def test_stopping_legacy_workers_is_asked_first(
    words: list[str], redis_client: redis.Redis, capsys: Said
) -> None:
    command = [sys.executable, "-m", "dlconsole", "stop-legacy", "3", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "3 workers of 'ds' will end" in done.stderr
    for answer, status in ((b"\n", 1), (b"y\n", 0)):
        main_end, terminal = os.openpty()
        os.write(main_end, answer)
        done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, check=False)
        os.close(main_end)
        os.close(terminal)
        assert done.returncode == status
        assert "3 workers of 'ds' will end" in done.stdout
    assert redis_client.llen(KEYS.task) == 3


@pytest.mark.parametrize("command", [["pause"], ["resume"], ["stop-legacy", "1", "--yes"]])
def test_a_read_only_context_refuses_control(
    command: list[str], read_only: list[str], redis_client: redis.Redis, capsys: Said
) -> None:
    redis_client.hset(KEYS.control, "paused", "1")
    assert main([*command, *read_only]) == 2
    assert "read-only" in capsys.readouterr().err
    assert redis_client.keys() == [KEYS.control.encode()]


# -- doctor ----------------------------------------------------------------------------------------

EVERY_CHECK = [
    "redis", "aof", "fsync", "policy", "role", "memory", "scripts", "latency", "clock",
    "disk", "inodes", "store", "descriptors", "dns",
]  # fmt: skip


def test_the_doctor_finds_a_sound_host_sound_and_leaves_nothing_behind(
    words: list[str], redis_client: redis.Redis, tmp_path: Path, capsys: Said
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    assert main(["doctor", "--store", str(store), "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in found["checks"]] == EVERY_CHECK
    levels = {check["name"]: check["level"] for check in found["checks"]}
    assert all(
        levels[name] == "ok" for name in ("redis", "aof", "policy", "role", "scripts", "store", "clock")
    )
    assert all(bool(check["todo"]) == (check["level"] != "ok") for check in found["checks"])
    assert list(store.iterdir()) == [] and redis_client.keys() == []


def test_the_doctor_says_what_fails_and_what_to_do(tmp_path: Path, capsys: Said) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()
    config = tmp_path / "config.toml"
    config.write_text('redis = "redis://:s3cret@127.0.0.1:1/0"\n')
    config.chmod(0o666)
    words = ["--config", str(config), "--store", str(not_a_folder), "--concurrency", "4096"]
    assert main(["doctor", *words]) == 1
    out = capsys.readouterr().out
    assert "failure redis" in out and "s3cret" not in out
    assert "failure store" in out
    assert "failure config" in out and f"chmod 600 {config}" in out


@pytest.mark.parametrize(
    ("soft", "hard", "level"), [(256, 256, "failure"), (495, 495, "failure"), (128, 496, "ok")]
)
def test_the_doctor_counts_all_that_a_worker_holds_open(
    soft: int, hard: int, level: str, words: list[str], tmp_path: Path
) -> None:
    """A worker raises its own limit, so the hard one counts."""
    command = ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-m", "dlconsole", "doctor", "--json"]
    command += ["--concurrency", "64", "--store", str(tmp_path), *words]
    said = subprocess.run(command, capture_output=True, check=False).stdout
    (check,) = [check for check in json.loads(said)["checks"] if check["name"] == "descriptors"]
    assert check["level"] == level and check["said"].startswith(f"{hard} open files allowed, 496 wanted")
    assert ("LimitNOFILE=496" in check["todo"]) == (level == "failure")


def test_a_redis_that_never_syncs_by_itself_is_warned_of(
    words: list[str], redis_client: redis.Redis, tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "urls.txt").write_text("http://a.example/1\n")
    redis_client.config_set("appendfsync", "no")
    try:
        main(["doctor", "--json", "--store", str(tmp_path), *words])
        checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
        done = ["--done-file", str(tmp_path / "done.txt")]
        assert main(["feed", str(tmp_path / "urls.txt"), *done, *words]) == 0
        assert "'appendfsync everysec'" in capsys.readouterr().err
        redis_client.delete(KEYS.task)
        command = ["--worker", "--until-empty", "--store", str(tmp_path / "s"), *words]
        said = subprocess.run(
            [sys.executable, "-m", "dlconsole", *command], capture_output=True, check=False, timeout=60
        )
        assert b"'appendfsync everysec'" in said.stderr
        redis_client.execute_command("ACL", "SETUSER", "default", "-config")
        main(["doctor", "--json", "--store", str(tmp_path), *words])
        refused = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    finally:
        redis_client.execute_command("ACL", "SETUSER", "default", "+config")
        redis_client.config_set("appendfsync", "everysec")
    assert checks["fsync"]["level"] == "warning" and checks["fsync"]["todo"] == "set 'appendfsync everysec'"
    assert refused["fsync"]["level"] == "ok"


def test_the_doctor_starts_no_redis(tmp_path: Path, home: Path, capsys: Said) -> None:
    assert main(["doctor", "--store", str(tmp_path)]) == 0
    assert "is started when it is needed" in capsys.readouterr().out
    assert not (home / ".local").exists()


def test_the_doctor_knows_a_replica(capsys: Said, tmp_path: Path) -> None:
    with PrivateRedis() as server, connect(server.url, name="test") as client:
        client.replicaof("127.0.0.1", "1")
        assert main(["doctor", "--json", "--redis", server.url, "--store", str(tmp_path)]) == 1
        checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["role"]["level"] == "failure" and "primary" in checks["role"]["todo"]


def test_a_worker_says_at_its_start_what_is_unsafe(
    words: list[str], redis_client: redis.Redis, tmp_path: Path
) -> None:
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        command = [
            sys.executable,
            "-m",
            "dlconsole",
            "--worker",
            "--until-empty",
            "--store",
            str(tmp_path / "s"),
        ]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")
    assert done.returncode == 0
    assert "Redis may throw the queue away" in done.stdout + done.stderr
