"""A console does the fleet's upkeep: the real app, on a real Redis, with no worker alive."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psutil
import pytest
import redis
from fleets import shown, until
from test_pty import running
from textual.pilot import Pilot

from dlconsole.app import DlconsoleApp, LateReader, LateUpkeep
from dlconsole.services.connection import connect
from dlconsole.services.keeper import _Calm
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.queue import Retry, Session, new_session_id
from dlconsole.settings import Settings

KEYS = Keys("ds")
LEASE_S = 2.0


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    with PrivateRedis() as server:
        yield server


@asynccontextmanager
async def console(url: str, *, read_only: bool = False) -> AsyncIterator[tuple[Pilot[None], LateUpkeep]]:
    """As `run_console` makes it, with a short lease."""
    settings = Settings.model_validate(
        {
            "redis": url,
            "dataset": "ds",
            "read_only": read_only,
            "worker": {"lease_s": LEASE_S},
            "console": {"refresh_s": 0.25},
        }
    )
    upkeep = LateUpkeep(settings)
    app = DlconsoleApp(settings, LateReader(settings), redis_name="a test's", upkeep=upkeep)
    async with app.run_test(size=(120, 40)) as pilot:
        yield pilot, upkeep
    assert upkeep._thread is None or not upkeep._thread.is_alive()


def opened(client: redis.Redis) -> Session:
    session = Session(client, KEYS, new_session_id("h"), lease_s=LEASE_S, url="redis://test")
    session.open()
    return session


def die(client: redis.Redis, *, holding: int) -> None:
    """A session claims and is never heard of again; its lease has run out."""
    session = opened(client)
    client.lpush(KEYS.task, *(f'{{"img_path": "/{session.id}/{i}", "img_url": "u"}}' for i in range(holding)))
    assert len(session.claim(holding).items) == holding
    client.zadd(KEYS.lease, {session.id: 1})


def put_off(client: redis.Redis) -> None:
    """A task whose retry is due."""
    session = opened(client)
    client.lpush(KEYS.task, b"{}")
    (claimed,) = session.claim(1).items
    assert session.ack([], retries=[Retry(claimed.field, 0, b'{"retry": 1}')]).delayed == 1
    session.close()


def told(pilot: Pilot[None]) -> list[str]:
    return [notification.message for notification in pilot.app._notifications]


async def test_what_a_dead_session_held_and_due_retries_are_queued_again(
    redis_client: redis.Redis, redis_url: str
) -> None:
    put_off(redis_client)
    die(redis_client, holding=3)
    async with console(redis_url) as (pilot, _):
        await until(pilot, lambda: redis_client.llen(KEYS.task) == 4)
        assert redis_client.exists(KEYS.lease, KEYS.sessions, KEYS.delayed) == 0
        await until(pilot, lambda: told(pilot) == ["1 dead session found; tasks back in the queue: 3"])
        assert "● live" in shown(pilot.app)
    while any(client["name"] == "dlconsole-upkeep" for client in redis_client.client_list()):
        pass  # until the server has noticed that it is gone


async def test_living_sessions_are_left_alone(redis_client: redis.Redis, redis_url: str) -> None:
    alive = opened(redis_client)
    redis_client.zadd(KEYS.lease, {alive.id: 2**53})
    die(redis_client, holding=2)
    async with console(redis_url) as (pilot, _):
        await until(pilot, lambda: redis_client.llen(KEYS.task) == 2)
    assert redis_client.zrange(KEYS.lease, 0, -1) == [alive.id.encode()]


async def test_a_read_only_console_changes_nothing(redis_client: redis.Redis, redis_url: str) -> None:
    put_off(redis_client)
    die(redis_client, holding=3)
    before = contents(redis_client)
    async with console(redis_url, read_only=True) as (pilot, upkeep):
        await until(pilot, lambda: upkeep._thread is not None and not upkeep._thread.is_alive())
    assert contents(redis_client) == before


def contents(client: redis.Redis) -> dict[bytes, bytes | None]:
    return {key: client.dump(key) for key in client.scan_iter()}


async def test_nothing_is_begun_before_there_is_a_picture(server: PrivateRedis) -> None:
    server.kill()
    async with console(server.url) as (pilot, upkeep):
        await until(pilot, lambda: "No answer from Redis yet" in shown(pilot.app))
        assert not upkeep.begun
        server.restart()
        await until(pilot, lambda: upkeep.begun)
        assert "● live" in shown(pilot.app)


async def test_after_an_outage_sessions_get_a_lease_of_time_to_come_back(server: PrivateRedis) -> None:
    with connect(server.url, name="tests") as client:
        die(client, holding=1)
        async with console(server.url) as (pilot, _):
            await until(pilot, lambda: client.llen(KEYS.task) == 1)  # from here on it would reap at once
            server.kill()
            await until(pilot, lambda: "✕ stale" in shown(pilot.app))
            back_s = time.time()
            server.restart()
            client.delete(KEYS.task)
            die(client, holding=2)
            await until(pilot, lambda: client.llen(KEYS.task) == 2)
            assert time.time() - back_s >= LEASE_S
            await until(pilot, lambda: "● live" in shown(pilot.app))


def test_after_it_was_suspended_it_waits_as_well(
    redis_client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real program on a terminal, as `dlconsole` starts it."""
    monkeypatch.setenv("DLCONSOLE_WORKER__LEASE_S", str(LEASE_S))
    die(redis_client, holding=1)
    with running(redis_url) as terminal:
        terminal.until(lambda: redis_client.llen(KEYS.task) == 1)
        terminal.shows("1 dead session found")
        os.kill(terminal.process.pid, signal.SIGTSTP)
        process = psutil.Process(terminal.process.pid)
        terminal.until(lambda: process.status() == psutil.STATUS_STOPPED)
        stopped_s = time.time()
        redis_client.delete(KEYS.task)
        die(redis_client, holding=2)
        terminal.until(lambda: time.time() - stopped_s > LEASE_S)
        continued_s = time.time()
        os.kill(terminal.process.pid, signal.SIGCONT)
        terminal.until(lambda: redis_client.llen(KEYS.task) == 2)
        assert time.time() - continued_s >= LEASE_S
        terminal.press("q")
        assert terminal.ends() == 0
        assert terminal.is_restored()


def test_calm_is_one_server_seen_without_a_gap_for_a_lease() -> None:
    def looks(*seen: tuple[str, int]) -> list[bool]:
        calm = _Calm(lease_s=10)
        return [calm.lasts(server, at_ms) for server, at_ms in seen]

    assert looks(("a", 0), ("a", 4_000), ("a", 8_000), ("a", 10_000)) == [False, False, False, True]
    a_gap = looks(("a", 0), ("a", 5_001), ("a", 10_000), ("a", 15_000), ("a", 15_001))
    assert a_gap == [False, False, False, False, True]
    restarted = looks(("a", 0), ("a", 5_000), ("b", 10_000), ("b", 15_000), ("b", 20_000))
    assert restarted == [False, False, False, False, True]
    clock_set_back = looks(("a", 9_000), ("a", 4_000), ("a", 9_000), ("a", 14_000))
    assert clock_set_back == [False, False, False, True]
