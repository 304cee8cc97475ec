"""The scripts on a real Redis: what a session may rely on, beside legacy workers."""

from __future__ import annotations

import json

import pytest
import redis

from dlconsole.errors import FencedError, RedisUnusable
from dlconsole.model import Failure, FailureKind, SessionStats
from dlconsole.services.keys import Keys
from dlconsole.services.queue import Session, error_item, new_session_id
from dlconsole.services.tasks import decode_task

KEYS = Keys("ds")


def item(i: int) -> bytes:
    return json.dumps({"img_path": f"/ds/images/{i}.jpg", "img_url": f"http://a.example/{i}"}).encode()


def feed(client: redis.Redis, count: int) -> list[bytes]:
    items = [item(i) for i in range(count)]
    if items:
        client.lpush(KEYS.task, *items)
    return items


@pytest.fixture
def session(redis_client: redis.Redis, redis_url: str) -> Session:
    return opened(redis_client, redis_url)


def opened(client: redis.Redis, url: str, *, lease_s: float = 30) -> Session:
    session = Session(client, KEYS, new_session_id("host"), lease_s=lease_s, url=url)
    session.open()
    return session


def expire(client: redis.Redis, session: Session) -> None:
    client.zadd(KEYS.lease, {session.id: 1})


def in_flight(client: redis.Redis, session: Session) -> dict[bytes, bytes]:
    return {k: v for k, v in client.hgetall(KEYS.in_flight(session.id)).items() if k != b"_last"}


def test_a_claim_takes_the_oldest_in_order(redis_client: redis.Redis, session: Session) -> None:
    items = feed(redis_client, 10)
    claim = session.claim(4)
    assert [c.raw for c in claim.items] == items[:4]
    assert redis_client.llen(KEYS.task) == 6
    assert in_flight(redis_client, session) == {c.field.encode(): c.raw for c in claim.items}
    assert [c.raw for c in session.claim(100).items] == items[4:]
    assert session.claim(5).items == ()


def test_a_lost_reply_neither_strands_nor_doubles(redis_client: redis.Redis, session: Session) -> None:
    items = feed(redis_client, 10)
    first = session.claim(4)
    session._claim_answered = False  # as after a reply that never came
    again = session.claim(2)  # another size: the batch keeps its own
    assert again.items == first.items
    assert redis_client.llen(KEYS.task) == 6
    assert [c.raw for c in session.claim(4).items] == items[4:8]


def test_a_replay_leaves_out_what_was_acked(redis_client: redis.Redis, session: Session) -> None:
    feed(redis_client, 3)
    first = session.claim(3)
    session.ack([first.items[1].field], [])
    session._claim_answered = False
    assert session.claim(3).items == (first.items[0], first.items[2])


def test_a_late_duplicate_of_an_old_claim_takes_nothing(redis_client: redis.Redis, session: Session) -> None:
    feed(redis_client, 10)
    session.claim(2)
    session.claim(2)
    session.batch, session._claim_answered = 1, False
    assert session.claim(2).items == ()
    assert redis_client.llen(KEYS.task) == 6


def test_a_repeated_empty_claim_stays_empty(redis_client: redis.Redis, session: Session) -> None:
    assert session.claim(2).items == ()
    feed(redis_client, 2)
    session._claim_answered = False
    assert session.claim(2).items == ()
    assert len(session.claim(2).items) == 2


def test_a_task_that_no_reader_can_take_apart_is_no_sentinel(
    redis_client: redis.Redis, session: Session
) -> None:
    deep = (
        b'{"img_path": "/a", "img_url": "u", "d": ' + b"[" * 1500 + b'"stop_this_task"' + b"]" * 1500 + b"}"
    )
    redis_client.lpush(KEYS.task, deep)
    claim = session.claim(1)
    assert not claim.stop and claim.items[0].raw == deep
    assert decode_task(deep) is None
    assert json.loads(error_item(deep, Failure(FailureKind.BAD_TASK, "not a task")))["raw"] == deep.decode()


@pytest.mark.parametrize("odd", [b'"\\ud83d"', b'"\xff"', b"1e999", b"1" * 5000])
def test_an_odd_column_does_not_make_a_task_less_of_one(odd: bytes) -> None:
    raw = b'{"img_path": "/a", "img_url": "u", "c": ' + odd + b"}"
    task = decode_task(raw)
    assert task is not None and task.img_url == "u"
    got = error_item(raw, Failure(FailureKind.HTTP_STATUS, "HTTP 404", 404))
    assert got.startswith(raw[:-1] + b", ")


def test_large_batches_come_whole(redis_client: redis.Redis, session: Session) -> None:
    items = feed(redis_client, 5000)
    claim = session.claim(5000)
    assert [c.raw for c in claim.items] == items
    counted = session.ack([c.field for c in claim.items], [])
    assert (counted.stored, counted.failed) == (5000, 0)


def test_an_ack_counts_once_however_often_it_is_sent(redis_client: redis.Redis, session: Session) -> None:
    feed(redis_client, 4)
    items = session.claim(4).items
    failure = Failure(FailureKind.HTTP_STATUS, "HTTP 404", 404)
    stored = [items[0].field, items[1].field]
    failed = [(items[2].field, error_item(items[2].raw, failure))]
    first = session.ack(stored, failed)
    assert (first.stored, first.failed, first.fenced) == (2, 1, False)
    again = session.ack(stored, failed)
    assert (again.stored, again.failed) == (0, 0)
    assert redis_client.get(KEYS.stored) == b"2"
    assert redis_client.get(KEYS.failed) == b"1"
    assert redis_client.llen(KEYS.error) == 1
    assert list(in_flight(redis_client, session).values()) == [items[3].raw]


def test_acks_of_what_was_never_claimed_count_nothing(redis_client: redis.Redis, session: Session) -> None:
    counted = session.ack(["7:0", "_last"], [("9:9", b"{}")])
    assert (counted.stored, counted.failed) == (0, 0)
    assert redis_client.exists(KEYS.stored, KEYS.failed, KEYS.error) == 0


def test_claim_and_renew_are_refused_without_a_lease(redis_client: redis.Redis, session: Session) -> None:
    feed(redis_client, 3)
    items = session.claim(1).items
    expire(redis_client, session)
    with pytest.raises(FencedError):
        session.claim(1)
    with pytest.raises(FencedError):
        session.renew(SessionStats(host="h", pid=1, started_ms=0))
    assert redis_client.llen(KEYS.task) == 2
    assert redis_client.hlen(KEYS.workers) == 0
    assert session.ack([items[0].field], []).fenced


def test_claims_acks_and_renewals_extend_the_lease(redis_client: redis.Redis, redis_url: str) -> None:
    session = opened(redis_client, redis_url, lease_s=30)
    feed(redis_client, 1)

    def shorten() -> float:
        now_ms = redis_client.time()[0] * 1000
        redis_client.zadd(KEYS.lease, {session.id: now_ms + 5000})
        return now_ms + 6000

    soon = shorten()
    claimed = session.claim(1).items
    assert redis_client.zscore(KEYS.lease, session.id) > soon
    soon = shorten()
    session.ack([claimed[0].field], [])
    assert redis_client.zscore(KEYS.lease, session.id) > soon
    soon = shorten()
    session.renew(SessionStats(host="h", pid=1, started_ms=0))
    assert redis_client.zscore(KEYS.lease, session.id) > soon


def test_a_paused_fleet_claims_nothing_and_keeps_its_lease(
    redis_client: redis.Redis, session: Session
) -> None:
    feed(redis_client, 2)
    redis_client.hset(KEYS.control, mapping={"paused": "1"})
    claim = session.claim(2)
    assert claim.paused and not claim.items
    redis_client.hset(KEYS.control, "paused", "0")
    assert len(session.claim(2).items) == 2


def test_a_batch_ends_at_the_first_sentinel_and_consumes_only_that_one(
    redis_client: redis.Redis, session: Session
) -> None:
    for raw in (item(0), item(1), b"stop_this_task", item(2), b'"stop_this_task"', item(3)):
        redis_client.lpush(KEYS.task, raw)
    claim = session.claim(10)
    assert claim.stop
    assert [c.raw for c in claim.items] == [item(0), item(1)]
    left = [redis_client.rpop(KEYS.task) for _ in range(redis_client.llen(KEYS.task))]
    assert left == [item(2), b'"stop_this_task"', item(3)]


def test_a_replayed_batch_still_says_that_it_took_a_sentinel(
    redis_client: redis.Redis, session: Session
) -> None:
    redis_client.lpush(KEYS.task, item(0), b"stop_this_task", item(1))
    session.claim(3)
    session._claim_answered = False
    again = session.claim(3)
    assert again.stop and [c.raw for c in again.items] == [item(0)]
    assert redis_client.llen(KEYS.task) == 1


def test_a_task_whose_url_has_the_sentinels_text_is_a_task(
    redis_client: redis.Redis, session: Session
) -> None:
    raw = json.dumps({"img_path": "/a", "img_url": "http://a.example/stop_this_task"}).encode()
    redis_client.lpush(KEYS.task, raw)
    claim = session.claim(1)
    assert not claim.stop and claim.items[0].raw == raw


def test_odd_items_pass_through_untouched(redis_client: redis.Redis, session: Session) -> None:
    odd = [b"", b"\xff\xfe", b"null", b"[]", b"{", b'"x"', b"\0" * 10, "日本".encode()]
    redis_client.lpush(KEYS.task, *odd)
    assert [c.raw for c in session.claim(100).items] == odd


@pytest.mark.parametrize("key", [KEYS.task, KEYS.lease, KEYS.control])
def test_a_key_of_another_type_stops_a_claim_before_it_takes_anything(
    redis_client: redis.Redis, session: Session, key: str
) -> None:
    feed(redis_client, 3)
    redis_client.delete(key)
    redis_client.set(key, "x")
    with pytest.raises(RedisUnusable, match="another type"):
        session.claim(2)
    if key != KEYS.task:
        assert redis_client.llen(KEYS.task) == 3


@pytest.mark.parametrize(("key", "value"), [(KEYS.stored, "many"), (KEYS.error, "x"), (KEYS.failed, "1.5")])
def test_a_counter_or_list_of_another_kind_stops_an_ack_before_it_counts_anything(
    redis_client: redis.Redis, session: Session, key: str, value: str
) -> None:
    feed(redis_client, 2)
    items = session.claim(2).items
    redis_client.set(key, value)
    with pytest.raises(RedisUnusable):
        session.ack([items[0].field], [(items[1].field, b"{}")])
    assert len(in_flight(redis_client, session)) == 2


def test_close_gives_back_in_order_and_leaves_no_trace(redis_client: redis.Redis, session: Session) -> None:
    items = feed(redis_client, 12)
    first = session.claim(5)
    session.claim(5)
    session.ack([first.items[2].field], [])
    session.renew(SessionStats(host="h", pid=1, started_ms=0))
    assert session.close() == 9
    assert session.close() == 0
    left = [redis_client.rpop(KEYS.task) for _ in range(redis_client.llen(KEYS.task))]
    assert left == [items[i] for i in (0, 1, *range(3, 12))]
    assert set(redis_client.keys()) == {KEYS.stored.encode()}


def test_what_redis_brought_back_is_given_back_in_its_order(
    redis_client: redis.Redis, session: Session
) -> None:
    """A Redis that lost its last second has undone acks of a session that lives on."""
    feed(redis_client, 20)
    claimed = [*session.claim(2).items, *session.claim(12).items]
    fields = [c.field for c in claimed]
    held = dict.fromkeys(fields[5:])
    before = in_flight(redis_client, session)
    session.ack(fields[:5])
    redis_client.hset(KEYS.in_flight(session.id), mapping=before)
    assert session.give_back_strays(held) == 5
    assert session.give_back_strays(held) == 0
    assert redis_client.lrange(KEYS.task, -5, -1)[::-1] == [c.raw for c in claimed[:5]]
    assert {f.decode() for f in in_flight(redis_client, session)} - {"_last"} == set(fields[5:])


def test_scripts_are_loaded_again_after_the_server_forgot_them(
    redis_client: redis.Redis, session: Session
) -> None:
    feed(redis_client, 2)
    redis_client.script_flush()
    assert len(session.claim(1).items) == 1


def test_claims_and_acks_go_on_when_redis_is_out_of_memory(
    redis_client: redis.Redis, session: Session
) -> None:
    feed(redis_client, 4)
    redis_client.config_set("maxmemory", "1")
    try:
        items = session.claim(4).items
        assert len(items) == 4
        counted = session.ack([items[0].field], [(items[1].field, b"{}")])
        assert (counted.stored, counted.failed) == (1, 1)
        assert session.close() == 2
    finally:
        redis_client.config_set("maxmemory", "0")
    assert redis_client.llen(KEYS.task) == 2


def test_long_session_ids_and_batches_stay_what_they_are(redis_client: redis.Redis, redis_url: str) -> None:
    session = Session(redis_client, KEYS, "9" * 40, lease_s=30, url=redis_url, batch=2**50)
    session.open()
    feed(redis_client, 1)
    claimed = session.claim(1).items[0]
    assert claimed.field == f"{2**50 + 1}:0"
    assert redis_client.hexists(KEYS.in_flight("9" * 40), claimed.field)


def test_the_error_item_is_the_task_byte_for_byte_with_two_fields_more() -> None:
    raw = b'{"img_path": "/a/b.jpg",  "img_url": "http://x/1",  "caption": "\\u65e5 \xe6\x97\xa5", "n": 12345678901234567890123}'
    got = error_item(raw, Failure(FailureKind.HTTP_STATUS, 'HTTP 404 "quoted"', 404))
    assert got.startswith(raw[:-1] + b", ")
    assert json.loads(got) == json.loads(raw) | {"status": 404, "error_msg": 'http_status: HTTP 404 "quoted"'}


def test_without_an_http_status_the_legacy_900_stands() -> None:
    got = json.loads(error_item(item(1), Failure(FailureKind.DNS, "no such host")))
    assert got["status"] == 900


def test_a_requeued_error_item_gets_its_new_status_not_a_second_one() -> None:
    raw = b'{"img_path": "/a", "img_url": "u", "status": 500, "error_msg": "old", "id": 7}'
    got = error_item(raw, Failure(FailureKind.TIMEOUT, "late"))
    assert got.count(b'"status"') == 1
    assert json.loads(got) == {
        "img_path": "/a", "img_url": "u", "status": 900, "error_msg": "timeout: late", "id": 7,
    }  # fmt: skip


def test_a_lone_surrogate_costs_no_columns() -> None:
    raw = b'{"img_path": "/a", "img_url": "u", "caption": "\\ud800", "id": 7}'
    got = error_item(raw, Failure(FailureKind.BAD_TASK, "not a task"))
    assert got.startswith(raw[:-1] + b", ")
    assert json.loads(got)["id"] == 7


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"[1]", b"\xff", b"null", b"{}"])
def test_what_is_no_object_is_wrapped(raw: bytes) -> None:
    got = json.loads(error_item(raw, Failure(FailureKind.BAD_TASK, "not a task")))
    assert got["status"] == 900 and got["error_msg"] == "bad_task: not a task"
    if raw != b"{}":
        assert got["raw"] == raw.decode("utf-8", "backslashreplace")


@pytest.mark.parametrize(
    "raw",
    [b"", b"x", b"[]", b"null", b'{"img_path": "/a"}', b'{"img_path": 1, "img_url": "u"}', b'{"img_url": "u"}',
     b'{"img_path": "/a", "img_url": null}', b"\xff", b'{"img_path": "\xff", "img_url": "u"}'],
)  # fmt: skip
def test_what_is_no_task_is_none(raw: bytes) -> None:
    assert decode_task(raw) is None


def test_session_ids_differ_and_are_safe_in_key_and_file_names() -> None:
    ids = {new_session_id("we/ird host:{x}") for _ in range(100)}
    assert len(ids) == 100
    assert all(set(i) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for i in ids)
