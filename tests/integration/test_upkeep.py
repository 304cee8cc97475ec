"""Reaping dead sessions and promoting retries, on a real Redis."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

import pytest
import redis
from integration_support import KEYS, task

from dlconsole.errors import FencedError
from dlconsole.model import Failure, FailureKind, SessionStats
from dlconsole.services import retries, upkeep
from dlconsole.services.queue import MAX_DEATHS, Retry, Session, new_session_id
from dlconsole.services.scripts import script
from dlconsole.services.upkeep import Kept
from dlconsole.settings import RetrySettings

TIMEOUT = Failure(FailureKind.TIMEOUT, "too late")


@pytest.fixture
def opened(redis_client: redis.Redis, redis_url: str):
    def open_session(**options: int) -> Session:
        session = Session(redis_client, KEYS, new_session_id("h"), lease_s=30, url=redis_url, **options)
        session.open()
        return session

    return open_session


def keep(client: redis.Redis) -> Kept:
    return upkeep.keep(client, KEYS, "redis://test")


def expire(client: redis.Redis, *sessions: Session) -> None:
    for session in sessions:
        client.zadd(KEYS.lease, {session.id: 1})


def feed(client: redis.Redis, count: int) -> list[bytes]:
    items = [task(f"http://a.example/{i}", f"/ds/{i}.jpg") for i in range(count)]
    client.lpush(KEYS.task, *items)
    return items


def queued(client: redis.Redis) -> list[bytes]:
    return list(reversed(client.lrange(KEYS.task, 0, -1)))


def test_a_dead_sessions_tasks_are_next_in_their_order(redis_client: redis.Redis, opened) -> None:
    items = feed(redis_client, 600)
    dead, alive = opened(), opened()
    first = dead.claim(200)
    dead.claim(50)
    held = alive.claim(10)
    dead.ack([first.items[5].field])
    dead.renew(SessionStats(host="h", pid=1, started_ms=0))
    expire(redis_client, dead)
    kept = keep(redis_client)
    assert kept == Kept((dead.id,), given_back=249)
    assert queued(redis_client) == items[:5] + items[6:250] + items[260:]
    assert redis_client.smembers(KEYS.sessions) == {alive.id.encode()}
    assert redis_client.hlen(KEYS.workers) == 0
    assert redis_client.exists(KEYS.in_flight(dead.id)) == 0
    assert alive.ack([c.field for c in held.items]).stored == 10
    assert keep(redis_client) == Kept()


def test_a_fenced_session_counts_nothing_and_claims_nothing(redis_client: redis.Redis, opened) -> None:
    feed(redis_client, 5)
    session = opened()
    items = session.claim(5).items
    expire(redis_client, session)
    keep(redis_client)
    late = session.ack([items[0].field], [(items[1].field, b"{}")], [Retry(items[2].field, 0, b"{}")])
    assert (late.stored, late.failed, late.delayed, late.fenced) == (0, 0, 0, True)
    with pytest.raises(FencedError):
        session.claim(1)
    assert redis_client.llen(KEYS.task) == 5
    assert redis_client.exists(KEYS.stored, KEYS.failed, KEYS.error, KEYS.delayed) == 0


def test_a_session_without_any_lease_is_found(redis_client: redis.Redis, opened) -> None:
    items = feed(redis_client, 3)
    session = opened()
    session.claim(3)
    redis_client.zrem(KEYS.lease, session.id)
    assert keep(redis_client).given_back == 3
    assert queued(redis_client) == items


def test_many_dead_sessions_are_reaped_in_one_round(redis_client: redis.Redis, opened) -> None:
    feed(redis_client, 500)
    sessions = [opened() for _ in range(40)]
    for session in sessions:
        session.claim(10)
    expire(redis_client, *sessions[:20])
    for session in sessions[20:]:
        redis_client.zrem(KEYS.lease, session.id)
    kept = keep(redis_client)
    assert kept.given_back == 400 and len(kept.reaped) == 40
    assert redis_client.llen(KEYS.task) == 500


def test_an_item_that_kills_three_sessions_is_to_be_ended_and_its_neighbours_are_not(
    redis_client: redis.Redis, opened
) -> None:
    poison = task("http://a.example/poison", caption="c } {")
    redis_client.lpush(
        KEYS.task, *(task(f"http://a.example/{i}") for i in range(5)), poison, task("http://a.example/9")
    )
    done = ended = deaths = 0
    for _ in range(50):
        session = opened()
        claim = session.claim(100)
        if not claim.items:
            break
        if claim.items[0].crashed:
            assert [c.raw for c in claim.items] == [poison] and not claim.solo
            ended += session.ack([], [(claim.items[0].field, b"error")]).failed
        elif any(c.raw == poison for c in claim.items):
            deaths += 1
            expire(redis_client, session)
            keep(redis_client)
        else:
            done += session.ack([c.field for c in claim.items]).stored
            session.close()
    assert (done, ended, deaths) == (6, 1, MAX_DEATHS)
    assert redis_client.lrange(KEYS.error, 0, -1) == [b"error"]
    assert redis_client.get(KEYS.failed) == b"1"
    assert redis_client.llen(KEYS.task) == 0
    assert not redis_client.exists(KEYS.crash)


def test_a_suspect_is_claimed_alone_and_says_so_again_when_replayed(
    redis_client: redis.Redis, opened
) -> None:
    items = feed(redis_client, 4)
    for _ in range(MAX_DEATHS - 1):
        session = opened()
        session.claim(1)
        expire(redis_client, session)
        keep(redis_client)
    session = opened()
    claim = session.claim(4)
    assert claim.solo and [c.raw for c in claim.items] == items[:1]
    session._claim_answered = False
    assert session.claim(4) == claim
    after = session.claim(4)
    assert not after.solo and [c.raw for c in after.items] == items[1:]


def deaths(client: redis.Redis) -> list[int]:
    return sorted(len(names.split()) for names in client.hvals(KEYS.crash))


def test_a_session_that_was_taken_for_dead_and_lives_takes_its_death_back(
    redis_client: redis.Redis, opened
) -> None:
    feed(redis_client, 3)
    dead = opened()
    dead.claim(3)
    expire(redis_client, dead)
    keep(redis_client)
    suspended = opened()
    held = [c.raw for c in suspended.claim(3).items]
    expire(redis_client, suspended)
    keep(redis_client)
    assert deaths(redis_client) == [2, 2, 2]
    suspended.close()
    assert suspended.forgive(held) == 3
    assert deaths(redis_client) == [1, 1, 1]
    assert suspended.forgive(held) == 0
    assert deaths(redis_client) == [1, 1, 1]
    assert dead.forgive(held[:2]) == 2
    assert deaths(redis_client) == [1]
    assert opened().claim(3).solo is False


def test_the_deaths_of_what_was_finished_are_forgotten(redis_client: redis.Redis, opened) -> None:
    feed(redis_client, 4)
    dead = opened()
    dead.claim(4)
    expire(redis_client, dead)
    keep(redis_client)
    session = opened()
    a, b, c, _ = session.claim(4).items
    counted = session.ack([a.field], [(b.field, b"{}")], [Retry(c.field, 0, b"{}")])
    assert (counted.stored, counted.failed, counted.delayed) == (1, 1, 1)
    assert deaths(redis_client) == [1]
    session.close()
    assert deaths(redis_client) == [1]  # given back is not finished


def test_equal_items_in_one_session_count_one_death(redis_client: redis.Redis, opened) -> None:
    redis_client.lpush(KEYS.task, *[task("http://a.example/1")] * 3)
    session = opened()
    session.claim(3)
    expire(redis_client, session)
    keep(redis_client)
    assert deaths(redis_client) == [1]


def test_a_dead_session_whose_key_is_somebody_elses_is_passed_over(redis_client: redis.Redis, opened) -> None:
    feed(redis_client, 3)
    dead = opened()
    dead.claim(3)
    expire(redis_client, dead)
    redis_client.zadd(KEYS.lease, {"foreign": 0})
    redis_client.sadd(KEYS.sessions, "foreign")
    redis_client.set(KEYS.in_flight("foreign"), "not ours")
    fields = script("counts").run(redis_client, KEYS.counted, KEYS.in_flight_prefix)
    assert fields[2] == 3
    assert set(keep(redis_client).reaped) == {"foreign", dead.id}
    assert redis_client.llen(KEYS.task) == 3
    assert redis_client.get(KEYS.in_flight("foreign")) == b"not ours"
    assert keep(redis_client) == Kept()


def test_who_was_away_promotes_but_does_not_reap(redis_client: redis.Redis, opened) -> None:
    feed(redis_client, 2)
    session = opened()
    item, _ = session.claim(2).items
    session.ack([], [], [Retry(item.field, 0, b"now")])
    expire(redis_client, session)
    assert upkeep.keep(redis_client, KEYS, "redis://test", reap=False) == Kept(promoted=1)
    assert keep(redis_client).given_back == 1


def killed(client: redis.Redis, opened, raw: bytes, times: int = MAX_DEATHS) -> None:
    """Sessions die holding an item."""
    client.lpush(KEYS.task, raw)
    for _ in range(times):
        session = opened()
        assert session.claim(1).items[0].raw == raw
        expire(client, session)
        keep(client)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff\xfe", b"nonsense", b"[1]", b'{"status": 5, "error_msg": "x", "a": "b"}', b"{}",
     b' {"img_path": "/stop_this_task", "img_url": "u", "c": "\\ud83d"}'],
)  # fmt: skip
def test_odd_items_that_kill_are_to_be_ended_too(raw: bytes, redis_client: redis.Redis, opened) -> None:
    killed(redis_client, opened, raw)
    (claimed,) = opened().claim(1).items
    assert claimed.crashed and claimed.raw == raw


def test_the_death_of_who_was_to_end_a_crashed_item_counts_for_nothing(
    redis_client: redis.Redis, opened
) -> None:
    """It did not work on it: the item stays at its three deaths, one of which may still be taken off."""
    (raw,) = feed(redis_client, 1)
    redis_client.delete(KEYS.task)
    killed(redis_client, opened, raw, MAX_DEATHS - 1)
    suspended = opened()
    assert suspended.claim(1).solo
    expire(redis_client, suspended)
    keep(redis_client)
    for _ in range(2):
        session = opened()
        claim = session.claim(5)
        assert claim.items[0].crashed
        session._claim_answered = False
        assert session.claim(5) == claim
        expire(redis_client, session)
        keep(redis_client)
        assert deaths(redis_client) == [MAX_DEATHS]
    assert session.forgive([raw]) == 0
    assert suspended.forgive([raw]) == 1
    assert opened().claim(5).solo


def test_crashed_items_come_one_by_one_and_behind_others_of_a_batch(
    redis_client: redis.Redis, opened
) -> None:
    items = feed(redis_client, 2)
    redis_client.hset(KEYS.crash, mapping={hashlib.sha1(raw).hexdigest(): "a b c" for raw in items})
    redis_client.rpush(KEYS.task, task("http://a.example/next"))
    session = opened()
    claims = [session.claim(10) for _ in range(3)]
    assert [[c.crashed for c in claim.items] for claim in claims] == [[False], [True], [True]]
    assert [claim.items[0].raw for claim in claims[1:]] == items


def test_a_retry_waits_and_is_then_next(redis_client: redis.Redis, opened) -> None:
    items = feed(redis_client, 3)
    session = opened()
    a, b = session.claim(2).items
    counted = session.ack([], [], [Retry(a.field, 0, b"now:1"), Retry(b.field, 60_000, b"later")])
    assert (counted.failed, counted.delayed) == (0, 2)
    assert session.ack([], [], [Retry(a.field, 0, b"now:1")]).delayed == 0
    assert redis_client.zcard(KEYS.delayed) == 2
    assert keep(redis_client).promoted == 1
    assert queued(redis_client) == [b"now:1", items[2]]
    assert redis_client.zcard(KEYS.delayed) == 1
    redis_client.zadd(KEYS.delayed, {redis_client.zrange(KEYS.delayed, 0, 0)[0]: 1})
    assert keep(redis_client).promoted == 1
    assert queued(redis_client)[0] == b"later"


def test_two_equal_items_wait_as_two(redis_client: redis.Redis, opened) -> None:
    redis_client.lpush(KEYS.task, b"{}", b"{}")
    session = opened()
    session.ack([], [], [Retry(c.field, 0, c.raw) for c in session.claim(2).items])
    assert redis_client.zcard(KEYS.delayed) == 2
    assert keep(redis_client).promoted == 2


def test_many_due_retries_keep_the_order_in_which_they_were_due(redis_client: redis.Redis, opened) -> None:
    redis_client.zadd(KEYS.delayed, {f"x/{i}:item {i}": i for i in range(350)})
    assert keep(redis_client).promoted == 350
    first_hundred = queued(redis_client)[:50]
    assert first_hundred == [f"item {i}".encode() for i in range(300, 350)]


def test_retries_beyond_the_cap_stay_in_flight_and_are_named(redis_client: redis.Redis, opened) -> None:
    """So that their worker ends them, its ledger first. An ack that is sent twice finds no more room."""
    feed(redis_client, 3)
    dead = opened()
    dead.claim(3)
    expire(redis_client, dead)
    keep(redis_client)
    session = opened(max_delayed=1)
    items = session.claim(3).items
    late = [Retry(c.field, 60_000, c.raw) for c in items]
    for delayed in (1, 0):
        counted = session.ack([], [], late)
        assert (counted.delayed, counted.failed, counted.put_back) == (delayed, 0, 0)
        assert counted.refused == {c.field for c in items[1:]}
    assert deaths(redis_client) == [1, 1]  # they are not finished
    assert redis_client.exists(KEYS.error, KEYS.failed) == 0
    redis_client.delete(KEYS.delayed)
    found_room = session.ack([], [(items[2].field, b"error")], late)
    assert (found_room.delayed, found_room.failed, found_room.refused) == (1, 1, frozenset())
    assert redis_client.hkeys(KEYS.in_flight(session.id)) == [b"_last"]
    assert not redis_client.exists(KEYS.crash)


def test_what_was_only_put_off_waits_unchanged_and_never_fails(redis_client: redis.Redis, opened) -> None:
    feed(redis_client, 4)
    session = opened(max_delayed=1)
    items = session.claim(3).items
    put_off = [Retry(c.field, 0, c.raw, tried=False) for c in items]
    counted = session.ack([], [], put_off)
    assert (counted.delayed, counted.failed, counted.put_back) == (1, 0, 2)
    again = session.ack([], [], put_off)
    assert (again.delayed, again.failed, again.put_back) == (0, 0, 0)
    assert redis_client.exists(KEYS.error, KEYS.failed, KEYS.stored) == 0
    last_of_all = [c.raw for c in items[1:]]
    assert queued(redis_client)[1:] == last_of_all
    assert keep(redis_client).promoted == 1
    assert queued(redis_client)[0] == items[0].raw


def test_what_was_only_put_off_keeps_its_deaths(redis_client: redis.Redis, opened) -> None:
    """It was not worked on, so it may still be what killed them."""
    feed(redis_client, 1)
    for _ in range(MAX_DEATHS - 1):
        dead = opened()
        dead.claim(1)
        expire(redis_client, dead)
        keep(redis_client)
    session = opened()
    claim = session.claim(1)
    assert claim.solo
    session.ack([], [], [Retry(claim.items[0].field, 0, claim.items[0].raw, tried=False)])
    keep(redis_client)
    assert session.claim(1).solo


def test_upkeep_works_when_redis_is_out_of_memory(redis_client: redis.Redis, opened) -> None:
    feed(redis_client, 4)
    session = opened()
    session.claim(4)
    expire(redis_client, session)
    redis_client.zadd(KEYS.delayed, {"x:late": 1})
    redis_client.config_set("maxmemory", "1")
    try:
        assert keep(redis_client).promoted == 1
    finally:
        redis_client.config_set("maxmemory", "0")
    assert redis_client.llen(KEYS.task) == 5


def test_history_is_added_and_replaced_without_touching_the_tasks_bytes() -> None:
    raw = b'{"img_path": "/a",  "img_url": "u",  "caption": "\\u65e5"}'
    assert retries.attempts_of(raw) == 0
    once = retries.with_history(raw, 1, TIMEOUT)
    assert once.startswith(raw[:-1] + b", ")
    assert retries.attempts_of(once) == 1
    twice = retries.with_history(once, 2, Failure(FailureKind.HTTP_STATUS, "HTTP 503", 503))
    assert twice.startswith(raw[:-1] + b", ")
    assert twice.count(b"_retry") == 1
    assert json.loads(twice)["_retry"] == {"n": 2, "status": 503, "error_msg": "http_status: HTTP 503"}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"_retry": {"n": 1}, "img_url": "u"}',
        b'{"_retry": 5}',
        b'{"a": "x, \\"_retry\\": {"}',
        b"{}",
        b'{"_retry": {"n": true}}',
    ],
)
def test_odd_histories_do_no_harm(raw: bytes) -> None:
    again = json.loads(retries.with_history(raw, 2, TIMEOUT))
    assert again["_retry"]["n"] == 2
    assert {k: v for k, v in again.items() if k != "_retry"} == {
        k: v for k, v in json.loads(raw).items() if k != "_retry"
    }
    assert retries.attempts_of(raw) in {0, 1}


@pytest.mark.parametrize("odd", [b'"\\ud83d"', b'"\xff"', b"1e999", b"1" * 5000])
def test_the_attempts_of_items_with_odd_columns_are_counted(odd: bytes) -> None:
    raw = b'{"img_path": "/a", "img_url": "u", "c": ' + odd + b"}"
    item = raw
    for attempt in (1, 2, 3):
        assert retries.attempts_of(item) == attempt - 1
        item = retries.with_history(item, attempt, TIMEOUT)
        assert item.startswith(raw[:-1] + b", ") and item.count(b"_retry") == 1


def test_an_item_that_cannot_be_read_is_tried_twice_at_most() -> None:
    deep = b'{"img_path": "/a", "d": ' + b"[" * 3000 + b"]" * 3000 + b"}"
    assert retries.attempts_of(deep) == 0
    assert retries.attempts_of(retries.with_history(deep, 1, TIMEOUT)) is None


def test_delays_grow_with_full_jitter_and_honour_retry_after_up_to_a_cap() -> None:
    settings = RetrySettings(base_s=10, max_s=60, retry_after_s=120)
    for attempt, most in ((1, 10), (2, 20), (3, 40), (4, 60), (50, 60)):
        drawn = [retries.delay_s(attempt, TIMEOUT, settings) for _ in range(300)]
        assert all(0 <= d <= most for d in drawn)
        assert max(drawn) > most * 0.8 and min(drawn) < most * 0.2
    asked = Failure(FailureKind.HTTP_STATUS, "HTTP 429", 429, retry_after_s=90)
    assert retries.delay_s(1, asked, settings) == 90
    greedy = Failure(FailureKind.HTTP_STATUS, "HTTP 429", 429, retry_after_s=1e9)
    assert retries.delay_s(1, greedy, settings) == 120


@pytest.fixture
def no_memory(redis_client: redis.Redis) -> Iterator[Callable[[], object]]:
    yield lambda: redis_client.config_set("maxmemory", "1")
    redis_client.config_set("maxmemory", "0")


def test_a_claim_whose_reply_was_lost_is_repeated_without_memory(
    redis_client: redis.Redis, opened, no_memory: Callable[[], object]
) -> None:
    feed(redis_client, 20)
    session = opened()
    first = session.claim(10)
    session._claim_answered = False
    no_memory()
    assert session.claim(10) == first
    assert session.ack([]).fenced is False


def test_a_paused_session_and_an_empty_ack_need_no_memory(
    redis_client: redis.Redis, opened, no_memory: Callable[[], object]
) -> None:
    feed(redis_client, 20)
    session = opened()
    redis_client.hset(KEYS.control, "paused", "1")
    no_memory()
    assert session.claim(10).paused
    assert session.ack([]).fenced is False


def test_a_fenced_session_comes_back_without_memory(
    redis_client: redis.Redis, opened, no_memory: Callable[[], object]
) -> None:
    feed(redis_client, 3)
    for _ in range(2):
        session = opened()
        held = [c.raw for c in session.claim(3).items]
        expire(redis_client, session)
        keep(redis_client)
    no_memory()
    session.close()
    assert session.forgive(held) == 3
    assert deaths(redis_client) == [1, 1, 1]
    opened()


@pytest.mark.parametrize("deaths_before", [0, MAX_DEATHS - 1])
def test_what_an_unanswered_claim_took_goes_back_and_its_repeat_brings_nothing(
    deaths_before: int, redis_client: redis.Redis, opened
) -> None:
    items = feed(redis_client, 1)
    for _ in range(deaths_before):
        dead = opened()
        dead.claim(1)
        expire(redis_client, dead)
        keep(redis_client)
    session = opened()
    assert session.claim(5).solo == bool(deaths_before)
    session._claim_answered = False
    assert session.give_back_strays({}) == 1
    assert session.claim(5).items == ()
    assert [c.raw for c in session.claim(5).items] == items


def test_a_round_ends_in_time_and_says_that_there_is_more(redis_client: redis.Redis, opened) -> None:
    feed(redis_client, 1000)
    session = opened()
    session.claim(1000)
    expire(redis_client, session)
    redis_client.zadd(KEYS.delayed, {f"{i}:x": 1 for i in range(1000)})
    kept = upkeep.keep(redis_client, KEYS, "redis://test", within_s=0)
    assert kept == Kept(promoted=upkeep.STEP, more=True)
    rounds = 0
    while kept.more:
        kept = upkeep.keep(redis_client, KEYS, "redis://test", within_s=0.001)
        rounds += 1
    assert rounds > 2
    assert redis_client.llen(KEYS.task) == 2000
