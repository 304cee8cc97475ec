"""Snapshots of real Redis states: ours, legacy, empty, odd."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
import redis

from dlconsole.errors import RedisUnavailable, RedisUnusable
from dlconsole.model import HostStats, SessionStats
from dlconsole.services import history
from dlconsole.services.connection import connect
from dlconsole.services.fleet import FleetReader, read_now
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.queue import Session, new_session_id
from dlconsole.settings import Settings

KEYS = Keys("ds")


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(redis=redis_url, dataset="ds")


@pytest.fixture
async def reader(settings: Settings) -> AsyncIterator[FleetReader]:
    reader = FleetReader(settings)
    yield reader
    await reader.close()


def commands_processed(client: redis.Redis) -> int:
    return int(client.info("stats")["total_commands_processed"])


async def test_an_empty_redis_is_an_empty_fleet(reader: FleetReader) -> None:
    snapshot = await reader.read_snapshot()
    assert snapshot.counts.done == snapshot.counts.outstanding == snapshot.counts.fed == 0
    assert snapshot.hosts == snapshot.sessions == snapshot.history == ()
    assert snapshot.redis.aof and snapshot.redis.policy == "noeviction"
    assert snapshot.pause is None
    assert snapshot.rates.stored_per_s is None


async def test_the_invariant_holds_over_a_sessions_life(
    reader: FleetReader, redis_client: redis.Redis, redis_url: str
) -> None:
    redis_client.lpush(KEYS.task, *(b'{"img_path": "/a", "img_url": "u"}' for _ in range(20)))
    redis_client.incrby(KEYS.fed, 20)
    session = Session(redis_client, KEYS, new_session_id("h"), lease_s=30, url=redis_url)
    session.open()
    items = session.claim(10).items
    session.ack([c.field for c in items[:3]], [(items[3].field, b"{}")])
    session.renew(SessionStats(host="h", pid=1, started_ms=0, stored=3, failed=1, bytes_per_s=5.0))
    snapshot = await reader.read_snapshot()
    counts = snapshot.counts
    assert (counts.queued, counts.in_flight, counts.stored, counts.failed) == (10, 6, 3, 1)
    assert counts.fed == counts.outstanding + counts.done
    (view,) = snapshot.sessions
    assert view.alive and view.stats.stored == 3 and 0 < view.lease_ms <= 30_000
    assert snapshot.rates.bytes_per_s == 5.0


async def test_a_legacy_fleet_shows_its_counters_and_disks(
    reader: FleetReader, redis_client: redis.Redis
) -> None:
    redis_client.lpush(KEYS.task, b"{}", b"{}")
    redis_client.set(KEYS.stored, 900)
    redis_client.set(KEYS.failed, 100)
    redis_client.hset("tongji_worker_disk", mapping={"10_0_0_5": "120", "10_0_0_6": "4999", "odd": "x"})
    await reader.read_snapshot()
    redis_client.incrby(KEYS.stored, 30)
    reader._samples[0] = type(reader._samples[0])(reader._samples[0].at_ms - 10_000, 900, 100)
    snapshot = await reader.read_snapshot()
    assert [(h.name, h.disk_used_bytes, h.disk_total_bytes, h.stats) for h in snapshot.hosts] == [
        ("10.0.0.5", 120 * 2**30, None, None),
        ("10.0.0.6", 4999 * 2**30, None, None),
    ]
    assert snapshot.rates.stored_per_s == pytest.approx(3, rel=0.1)
    assert snapshot.rates.finish_s == pytest.approx(2 / 3, rel=0.1)
    assert snapshot.rates.bytes_per_s is None


async def test_a_host_that_both_sides_know_is_shown_once(
    reader: FleetReader, redis_client: redis.Redis
) -> None:
    now_ms = redis_client.time()[0] * 1000
    record = HostStats(ip="10.0.0.5", at_ms=now_ms, disk_total_bytes=100, disk_used_bytes=25)
    old = HostStats(ip="10.0.0.9", at_ms=now_ms - 48 * 3_600_000)
    redis_client.hset(
        KEYS.hosts, mapping={"web-1": msgspec.json.encode(record), "gone": msgspec.json.encode(old)}
    )
    redis_client.hset("tongji_worker_disk", mapping={"10_0_0_5": "1", "10_0_0_6": "2"})
    snapshot = await reader.read_snapshot()
    assert [h.name for h in snapshot.hosts] == ["web-1", "10.0.0.6"]
    assert snapshot.hosts[0].disk_ratio == 0.25


async def test_records_that_are_not_ours_are_counted_not_fatal(
    reader: FleetReader, redis_client: redis.Redis
) -> None:
    redis_client.hset(
        KEYS.workers, mapping={"a": b"nonsense", "b": b"\xff", b"\xff": b"{}", "c": b"x" * 100_000}
    )
    redis_client.hset(KEYS.hosts, mapping={"h": b'{"ip": 5}'})
    redis_client.zadd(KEYS.lease, {b"\xff\xfe": 1})
    redis_client.xadd(KEYS.history, {"odd": "x"})
    redis_client.hset(KEYS.control, mapping={"paused": "1", "by": b"\xff", "at": "soon"})
    snapshot = await reader.read_snapshot()
    assert snapshot.unreadable == 5
    assert snapshot.sessions == snapshot.hosts == snapshot.history == ()
    assert snapshot.pause is not None and snapshot.pause.at_ms == 0


async def test_history_is_written_by_whoever_has_the_turn_and_read_once(
    reader: FleetReader, settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PERIOD_MS", 3_600_000)  # on a busy machine this takes more than one of 10 s
    redis_client.set(KEYS.stored, 5)
    await reader.read_snapshot()
    assert redis_client.xlen(KEYS.history) == 0
    assert 0 < redis_client.pttl(KEYS.history_turn) <= history.PERIOD_MS
    await reader.read_snapshot()
    assert redis_client.xlen(KEYS.history) == 1
    for _ in range(3):
        snapshot = await reader.read_snapshot()
    assert [(p.stored, p.failed, p.queued) for p in snapshot.history] == [(5, 0, 0)]
    other = FleetReader(settings)
    snapshot = await other.read_snapshot()
    await other.close()
    assert len(snapshot.history) == 1
    assert redis_client.xlen(KEYS.history) == 1


async def test_a_read_only_reader_writes_nothing(settings: Settings, redis_client: redis.Redis) -> None:
    reader = FleetReader(settings.model_copy(update={"read_only": True}))
    for _ in range(3):
        await reader.read_snapshot()
    await reader.close()
    assert redis_client.keys() == []


async def test_one_poll_is_one_round_trip(
    reader: FleetReader, redis_client: redis.Redis, redis_url: str
) -> None:
    """Everything is sent before anything is answered: the server reads it in one go."""
    await reader.read_snapshot()
    (connection,) = reader._client.connection_pool._available_connections
    sent: list[bytes] = []
    writer = connection._writer
    real = writer.writelines
    writer.writelines = lambda chunks: sent.append(b"".join(chunks)) or real(sent[-1:])
    before = commands_processed(redis_client)
    await reader.read_snapshot()
    assert len(sent) == 1
    assert commands_processed(redis_client) - before <= 25  # the commands in the script count too


async def test_redis_that_is_away_or_wrong_is_said_and_comes_back() -> None:
    with PrivateRedis() as server:
        reader = FleetReader(Settings(redis=server.url, dataset="ds"))
        await reader.read_snapshot()
        server.kill()
        with pytest.raises(RedisUnavailable):
            await reader.read_snapshot()
        server.restart()
        assert (await reader.read_snapshot()).counts.fed == 0
        with connect(server.url, name="test") as client:
            client.set(KEYS.lease, "x")
        with pytest.raises(RedisUnusable, match="another type"):
            await reader.read_snapshot()
        await reader.close()


def test_a_password_never_shows_in_an_error() -> None:
    with pytest.raises(RedisUnavailable) as caught:
        read_now(Settings(redis="redis://me:s3cret@127.0.0.1:1/0"))
    assert "s3cret" not in str(caught.value)
    assert "127.0.0.1:1" in str(caught.value)


def test_a_wrong_password_is_said_as_such(redis_url: str) -> None:
    with pytest.raises((RedisUnusable, RedisUnavailable)) as caught:
        read_now(Settings(redis=redis_url.replace("unix://", "unix://me:wr0ng@")))
    assert "wr0ng" not in str(caught.value)
    assert isinstance(caught.value, RedisUnusable)
