"""One worker process's work, on a real Redis, real files and a simulated web."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from integration_support import KEYS, Running, changed, errors_of, stored_files, task, until
from PIL import Image

from dlconsole import log
from dlconsole.demo.behaviour import Behaviour, Shares, behaviour_of
from dlconsole.demo.web import SimulatedWeb, demo_urls
from dlconsole.errors import ConfigError, RedisUnusable
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.settings import Settings
from dlconsole.workers.downloader import Downloader
from dlconsole.workers.guard import StoreGuard


def run(settings: Settings) -> Downloader:
    downloader = Downloader(settings, log.configure(settings.log, io.StringIO()), until_empty=True)
    assert downloader.run()
    return downloader


@pytest.mark.parametrize("behaviour", list(Behaviour))
def test_every_behaviour_of_the_web_gets_its_kind(
    behaviour: Behaviour, settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    raw = task(f"http://{web.address}/as/{behaviour}/x", "/ds/x.jpg", caption="cät", id=7)
    redis_client.lpush(KEYS.task, raw)
    run(settings)
    if behaviour.failure_kind is None:
        assert redis_client.get(KEYS.stored) == b"1"
        assert redis_client.llen(KEYS.error) == 0
        with Image.open(settings.worker.store_dir / "ds/x.jpg") as image:
            image.load()
        return
    assert redis_client.get(KEYS.failed) == b"1"
    assert redis_client.get(KEYS.stored) is None
    assert stored_files(settings) == []
    (error,) = errors_of(redis_client)
    assert error["error_msg"].partition(":")[0] == behaviour.failure_kind
    if behaviour.status:
        assert error["status"] == behaviour.status
    assert {k: error[k] for k in json.loads(raw)} == json.loads(raw)


def test_totals_agree_with_what_the_web_was_asked_to_do(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "worker", concurrency=64)
    # What is only slow must not end in the deadline; the web is one host, which stays open.
    settings = changed(settings, "fetch", deadline_s=6, per_host=64, park_s=0)
    settings = changed(settings, "retry", retry_after_s=0)
    urls = list(demo_urls(f"http://{web.address}", 1500))
    redis_client.lpush(KEYS.task, *(task(url, f"/ds/{i % 7}/{i}.jpg") for i, url in enumerate(urls)))
    run(settings)
    expected = Counter(behaviour_of(url, Shares(), 0).failure_kind for url in urls)
    stored = expected.pop(None)
    assert int(redis_client.get(KEYS.stored) or 0) == stored == len(stored_files(settings))
    assert Counter(e["error_msg"].partition(":")[0] for e in errors_of(redis_client)) == expected
    assert int(redis_client.get(KEYS.failed) or 0) == sum(expected.values())
    assert redis_client.llen(KEYS.task) == 0
    left = {key.decode() for key in redis_client.keys("*:dl:*")}
    assert left <= {KEYS.hosts, KEYS.history, KEYS.history_turn}  # no session, no lease, nothing in flight


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/../x.jpg", "bad_path"), ("//etc/x", "bad_path"), ("/a/\0.jpg", "bad_path"), ("", "bad_path"),
     ("/link/x.jpg", "bad_path"), ("/a/../../x", "bad_path")],
)  # fmt: skip
def test_paths_that_lead_out_are_refused(
    path: str, kind: str, settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    settings.worker.store_dir.mkdir()
    (settings.worker.store_dir / "link").symlink_to(outside)
    raw = json.dumps({"img_path": path, "img_url": f"http://{web.address}/as/good/x"})
    redis_client.lpush(KEYS.task, raw)
    run(settings)
    assert [e["error_msg"].partition(":")[0] for e in errors_of(redis_client)] == [kind]
    assert list(outside.iterdir()) == []
    assert {p.name for p in tmp_path.iterdir()} == {"outside", "store"}


@pytest.mark.parametrize(
    "raw",
    [b"", b"nonsense", b"null", b"[]", b'{"img_path": "/a.jpg"}', b"\xff\xfe", b'{"img_url": 5, "img_path": "/a"}',
     b'{"img_path": "/a.jpg", "img_url": "UNLIKELY"}', b'{"img_path": "/a.jpg", "img_url": "file:///etc/passwd"}',
     b'{"img_path": "/a.jpg", "img_url": "http://[::1"}', b'{"img_path": "/a.jpg", "img_url": "http://x:99999/"}',
     b'{"img_path": "/a.jpg", "img_url": "http://\\u0000/"}', b'{"img_path": "/a.jpg", "img_url": ""}'],
)  # fmt: skip
def test_odd_items_fail_as_bad_task_and_do_not_stop_the_worker(
    raw: bytes, settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    redis_client.lpush(KEYS.task, raw, task(f"http://{web.address}/as/good/x"))
    run(settings)
    assert [e["error_msg"].partition(":")[0] for e in errors_of(redis_client)] == ["bad_task"]
    assert redis_client.get(KEYS.stored) == b"1"


def test_a_body_that_our_checks_fail_on_ends_its_task_only(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here: a library that refuses to hash, as OpenSSL does with MD5 where rules forbid it."""

    def refuses(*_: object, **__: object) -> object:
        raise ValueError("disabled")

    monkeypatch.setattr(hashlib, "new", refuses)
    settings = changed(settings, "worker", verify_hash="md5")
    hashed = [task(f"http://{web.address}/as/good/{i}", f"/ds/{i}.jpg", hash="0" * 32) for i in range(3)]
    redis_client.lpush(KEYS.task, *hashed, task(f"http://{web.address}/as/good/x", "/ds/x.jpg"))
    lines = io.StringIO()
    assert Downloader(settings, log.configure(settings.log, lines), until_empty=True).run()
    assert redis_client.get(KEYS.stored) == b"1"
    errors = errors_of(redis_client)
    assert [e["error_msg"].partition(":")[0] for e in errors] == ["crashed"] * 3
    assert all("ValueError('disabled')" in e["error_msg"] for e in errors)
    assert lines.getvalue().count("Traceback") == 1


def test_retries_are_counted_and_end(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "retry", max_attempts=3, base_s=0.05)
    redis_client.lpush(KEYS.task, task(f"http://{web.address}/as/500/x", "/ds/x.jpg", caption="\ud83d"))
    run(settings)
    (error,) = errors_of(redis_client)
    assert error["_retry"]["n"] == 2 and error["status"] == 500
    assert redis_client.get(KEYS.failed) == b"1"


def test_retry_after_is_honoured(settings: Settings, redis_client: redis.Redis, web: SimulatedWeb) -> None:
    settings = changed(settings, "retry", max_attempts=2, base_s=0.01, retry_after_s=1)
    redis_client.lpush(KEYS.task, task(f"http://{web.address}/as/429/x"))
    started = time.monotonic()
    run(settings)
    assert time.monotonic() - started >= 1
    (error,) = errors_of(redis_client)
    assert error["status"] == 429


def test_until_empty_waits_for_what_others_hold(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "worker", lease_s=2, heartbeat_s=0.5)
    redis_client.sadd(KEYS.sessions, "other")
    redis_client.zadd(KEYS.lease, {"other": 2**50})
    redis_client.hset(KEYS.in_flight("other"), "1:0", task(f"http://{web.address}/as/good/x"))
    worker = Running(settings, until_empty=True)
    until(lambda: any(b'"idle"' in record for record in redis_client.hvals(KEYS.workers)))
    assert worker.thread.is_alive()
    redis_client.zadd(KEYS.lease, {"other": 1})  # it died: its task is ours now
    worker.thread.join(20)
    assert worker.outcome is True
    assert redis_client.get(KEYS.stored) == b"1"


def test_a_fault_in_the_loop_leaves_what_it_worked_on_to_the_reaper(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    """So that its death counts for that, and only for that."""
    settings = changed(settings, "worker", concurrency=2)
    redis_client.lpush(KEYS.task, *(task(f"http://{web.address}/as/slow/{i}") for i in range(50)))
    worker = Running(settings)
    until(lambda: worker.downloader._engine.running == 2)
    worker.downloader._fill = None  # type: ignore[assignment,method-assign]
    worker.thread.join(20)
    assert isinstance(worker.outcome, TypeError)
    (held,) = [redis_client.hlen(key) - 1 for key in redis_client.keys("*:dl:if:*")]
    assert 1 <= held <= 2
    assert redis_client.llen(KEYS.task) + held + int(redis_client.get(KEYS.stored) or 0) == 50


def test_a_refused_address_is_never_connected_to(settings: Settings, redis_client: redis.Redis) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        hosts = ("127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0")
        redis_client.lpush(KEYS.task, *(task(f"http://{host}:{port}/x") for host in hosts))
        run(changed(settings, "fetch", allow_networks=()))
        with pytest.raises(BlockingIOError):
            server.accept()
    kinds = [e["error_msg"].partition(":")[0] for e in errors_of(redis_client)]
    assert kinds == ["blocked_address"] * len(hosts)


def test_behind_a_proxy_a_refused_host_is_refused_all_the_same(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    urls = ["http://169.254.169.254/latest/meta-data", "http://localhost/x", "http://10.0.0.1/as/good/x"]
    urls += ["http://%31%30.0.0.1/as/good/x", "http://x:y@%6cocalhost/x", "https://%31%36%39.254.169.254/x"]
    good = "http://a.example/as/good/x"
    redis_client.lpush(KEYS.task, *map(task, [*urls, good]))
    run(changed(settings, "fetch", proxy=f"http://{web.address}", allow_networks=()))
    assert [e["error_msg"].partition(":")[0] for e in errors_of(redis_client)] == ["blocked_address"] * 6
    assert redis_client.get(KEYS.stored) == b"1"


def redirecting_server(location: str) -> tuple[socket.socket, str]:
    """A server that redirects everything to `location`; closed by its socket."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.recv(65536)
                client.sendall(
                    f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
                )

    threading.Thread(target=serve, daemon=True).start()
    return server, f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.mark.parametrize(
    ("location", "kind"),
    [("file:///etc/passwd", "redirects"), ("http://10.255.255.1/x", "blocked_address"), ("gopher://x/", "redirects"),
     ("http://[::1]:1/x", "blocked_address"), ("/again", "redirects")],
)  # fmt: skip
def test_every_hop_of_a_redirect_is_checked(
    location: str, kind: str, settings: Settings, redis_client: redis.Redis
) -> None:
    server, url = redirecting_server(location)
    redis_client.lpush(KEYS.task, task(url))
    run(settings)
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    assert [e["error_msg"].partition(":")[0] for e in errors_of(redis_client)] == [kind]


def test_garbage_from_a_server_is_the_servers_fault(settings: Settings, redis_client: redis.Redis) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(b"this is no answer at all\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        redis_client.lpush(KEYS.task, task(f"http://127.0.0.1:{server.getsockname()[1]}/x"))
        run(settings)
    assert [e["error_msg"].partition(":")[0] for e in errors_of(redis_client)] == ["connect"]


def test_a_file_that_holds_no_authorities_is_refused_at_the_start(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    for name in ("junk.pem", "none.pem"):
        with pytest.raises(ConfigError, match=name):
            Downloader(changed(settings, "fetch", ca_file=tmp_path / name), log.configure(settings.log))


def test_proxy_variables_of_the_environment_are_ignored(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    redis_client.lpush(KEYS.task, task(f"http://{web.address}/as/good/x"))
    run(settings)
    assert redis_client.get(KEYS.stored) == b"1"


def test_untrusted_certificates_are_refused_and_trusted_ones_taken(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    through = changed(settings, "fetch", proxy=f"http://{web.address}")
    redis_client.lpush(KEYS.task, task("https://a.example/as/good/x"))
    run(through)
    assert errors_of(redis_client)[0]["error_msg"].startswith("tls:")
    redis_client.lpush(KEYS.task, task("https://a.example/as/good/x"))
    run(changed(through, "fetch", ca_file=web.ca_path))
    assert redis_client.get(KEYS.stored) == b"1"


def test_a_deadline_holds_over_all_redirects_and_trickles(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    redis_client.lpush(KEYS.task, *(task(f"http://{web.address}/as/never_ending/{i}") for i in range(10)))
    started = time.monotonic()
    run(settings)
    assert time.monotonic() - started < 6
    assert {e["error_msg"].partition(":")[0] for e in errors_of(redis_client)} == {"timeout"}


def test_what_a_new_session_claims_before_the_loop_sees_it_is_not_dropped_with_the_old_ones(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is at a slow disk while the session is fenced and replaced."""
    settings = changed(settings, "worker", lease_s=30, heartbeat_s=0.1)
    redis_client.lpush(KEYS.task, *(task(f"http://{web.address}/as/good/{i}") for i in range(40)))
    redis_client.hset(KEYS.control, "paused", "1")
    look, waited = StoreGuard.look, threading.Event()

    def slow_look(guard: StoreGuard) -> str:
        sessions = redis_client.zrange(KEYS.lease, 0, -1)
        if guard.reading is not None and sessions and not waited.is_set():  # claiming begins behind a look
            waited.set()
            redis_client.zrem(KEYS.lease, sessions[0])
            redis_client.delete(KEYS.control)
            until(
                lambda: any(
                    redis_client.hlen(KEYS.in_flight(s.decode()))
                    for s in redis_client.zrange(KEYS.lease, 0, -1)
                )
            )
        return look(guard)

    monkeypatch.setattr(StoreGuard, "look", slow_look)
    worker = Running(settings, until_empty=True)
    worker.thread.join(30)
    assert waited.is_set()
    assert worker.outcome is True
    assert redis_client.get(KEYS.stored) == b"40"


def test_stopping_finishes_what_runs_and_gives_back_the_rest_in_order(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "worker", concurrency=4, batch=50)
    raws = [task(f"http://{web.address}/as/slow/{i}", f"/ds/{i}.jpg") for i in range(200)]
    redis_client.lpush(KEYS.task, *raws)
    worker = Running(settings)
    until(lambda: int(redis_client.get(KEYS.stored) or 0) >= 4)
    assert worker.stop() is True
    stored = int(redis_client.get(KEYS.stored) or 0)
    left = list(reversed(redis_client.lrange(KEYS.task, 0, -1)))
    assert stored + len(left) == 200
    assert left == raws[stored:]
    assert len(stored_files(settings)) == stored
    assert redis_client.llen(KEYS.error) == 0
    assert redis_client.exists(KEYS.lease, KEYS.sessions, KEYS.workers) == 0


def test_stopping_does_not_wait_longer_than_the_drain_deadline(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(changed(settings, "worker", drain_s=0.3), "fetch", deadline_s=60)
    redis_client.lpush(KEYS.task, *(task(f"http://{web.address}/as/never_ending/{i}") for i in range(5)))
    worker = Running(settings)
    until(lambda: worker.downloader._engine.running == 5)
    started = time.monotonic()
    assert worker.stop() is True
    assert time.monotonic() - started < 5
    assert redis_client.llen(KEYS.task) == 5
    assert redis_client.llen(KEYS.error) == 0


def test_a_sentinel_ends_one_worker_after_its_tasks(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    good = [task(f"http://{web.address}/as/good/{i}") for i in range(4)]
    redis_client.lpush(KEYS.task, good[0], good[1], b"stop_this_task", good[2], good[3])
    worker = Running(settings)
    worker.thread.join(20)
    assert worker.outcome is True
    assert redis_client.get(KEYS.stored) == b"2"
    assert list(reversed(redis_client.lrange(KEYS.task, 0, -1))) == good[2:]


def test_heartbeats_report_the_session_and_its_host(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/{b}/{b}") for b in ("good", "404", "html"))
    )
    worker = Running(settings)

    def stats() -> dict[str, object]:
        records = [json.loads(record) for record in redis_client.hvals(KEYS.workers)]
        return next((r for r in records if r.get("stored") == 1 and r.get("failed") == 2), {})

    record = until(stats)
    assert record["kinds"] == {"http_status": 1, "not_image": 1}
    assert record["bytes"] == sum(p.stat().st_size for p in stored_files(settings))
    assert record["rss_bytes"] > 1 << 20
    (host,) = redis_client.hgetall(KEYS.hosts).values()
    disk = json.loads(host)
    assert disk["disk_total_bytes"] >= disk["disk_used_bytes"] > 0
    legacy = redis_client.hgetall("tongji_worker_disk")
    assert legacy == {disk["ip"].replace(".", "_").encode(): str(disk["disk_used_bytes"] // 2**30).encode()}
    assert worker.stop() is True
    assert redis_client.hlen(KEYS.workers) == 0


def test_a_paused_fleet_starts_nothing_until_it_is_resumed(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    redis_client.hset(KEYS.control, mapping={"paused": "1"})
    redis_client.lpush(KEYS.task, task(f"http://{web.address}/as/good/x"))
    worker = Running(settings)
    until(lambda: any(b'"paused"' in record for record in redis_client.hvals(KEYS.workers)))
    assert redis_client.llen(KEYS.task) == 1
    redis_client.delete(KEYS.control)
    until(lambda: redis_client.get(KEYS.stored) == b"1")
    assert worker.stop() is True


def test_a_fenced_session_starts_anew_and_nothing_is_lost_or_counted_twice(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "worker", concurrency=12, batch=20)
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/slow/{i}", f"/ds/{i}.jpg") for i in range(60))
    )
    worker = Running(settings, until_empty=True)
    for _ in range(3):
        (session,) = until(lambda: redis_client.zrange(KEYS.lease, 0, -1))
        redis_client.zadd(KEYS.lease, {session: 1})
        until(lambda old=session: redis_client.zscore(KEYS.lease, old) is None)
    worker.thread.join(40)
    assert worker.outcome is True
    assert "session replaced" in worker.log.getvalue()
    assert int(redis_client.get(KEYS.stored) or 0) == 60 == len(stored_files(settings))
    assert redis_client.llen(KEYS.task) == 0
    assert redis_client.exists(KEYS.sessions, KEYS.lease, KEYS.error) == 0


def test_redis_going_away_and_coming_back_is_survived(settings: Settings, web: SimulatedWeb) -> None:
    with PrivateRedis() as server:
        settings = changed(
            settings.model_copy(update={"redis": server.url}), "worker", concurrency=2, batch=10
        )
        client = redis.Redis.from_url(server.url)
        client.lpush(
            KEYS.task, *(task(f"http://{web.address}/as/slow/{i}", f"/ds/{i}.jpg") for i in range(30))
        )
        worker = Running(settings, until_empty=True)
        until(lambda: int(client.get(KEYS.stored) or 0) >= 4)
        server.kill()
        until(lambda: "redis is away" in worker.log.getvalue())
        server.restart()
        worker.thread.join(60)
        assert worker.outcome is True
        assert "redis is back" in worker.log.getvalue()
        assert int(client.get(KEYS.stored) or 0) == 30 == len(stored_files(settings))
        assert client.llen(KEYS.task) == 0
        client.close()


def test_a_key_of_another_type_ends_the_worker_with_a_plain_error(
    settings: Settings, redis_client: redis.Redis
) -> None:
    redis_client.set(KEYS.task, "x")
    worker = Running(settings)
    worker.thread.join(20)
    assert isinstance(worker.outcome, RedisUnusable)
    assert "another type" in str(worker.outcome)


def test_a_store_that_fails_loses_no_task(
    settings: Settings,
    redis_client: redis.Redis,
    web: SimulatedWeb,
    no_room: Callable[[bool], None],
) -> None:
    settings = changed(settings, "guard", check_s=0.2)
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/good/{i}", f"/ds/{i}.jpg") for i in range(20))
    )
    no_room(True)
    worker = Running(settings)
    until(lambda: "downloads wait for the store" in worker.log.getvalue())
    until(lambda: redis_client.llen(KEYS.task) == 20)  # given back, for others to take
    until(lambda: any(b'"no store"' in record for record in redis_client.hvals(KEYS.workers)))
    assert redis_client.llen(KEYS.error) == 0
    assert stored_files(settings) == []
    no_room(False)
    until(lambda: redis_client.get(KEYS.stored) == b"20")
    assert worker.stop() is True
    assert len(stored_files(settings)) == 20
