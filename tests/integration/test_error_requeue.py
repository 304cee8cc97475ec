"""Errors → tasks again, on a real Redis."""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import redis
from integration_support import KEYS
from test_error_export import ODD_COLUMNS, error, export, odd_error, run

from dlconsole.errors import FeedError, ReadOnlyError
from dlconsole.model import Failure, FailureKind
from dlconsole.services import error_requeue, retries
from dlconsole.services.error_items import Filter, parse, task_again
from dlconsole.services.error_requeue import RequeueReport
from dlconsole.services.error_source import CHUNK, ExportedFile
from dlconsole.services.queue import Session, error_item, new_session_id
from dlconsole.services.tasks import decode_task
from dlconsole.settings import Settings

SEED = 20240131
WHY = ["dns: x", "tls: x"]
NOT_FOUND = Failure(FailureKind.HTTP_STATUS, "HTTP 404", 404)


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {"redis": redis_url, "dataset": "ds", "errors": {"dir": tmp_path / "out", "batch": 10}}
    )


def order(limit: int | None = None, **chosen: Any) -> error_requeue.Order:
    return error_requeue.Order(
        Filter(**chosen), threading.Event(), lambda _text: None, lambda _report: None, limit
    )


def requeue(settings: Settings, paths: list[Path] | None = None, **options: Any) -> RequeueReport:
    return error_requeue.requeue(settings, order(**options), paths or [])


def queued(client: redis.Redis) -> list[bytes]:
    return list(reversed(client.lrange(KEYS.task, 0, -1)))


def failed(client: redis.Redis, items: list[bytes]) -> None:
    """As workers leave them: counted as fed and as failed."""
    client.lpush(KEYS.error, *items)
    client.set(KEYS.fed, len(items))
    client.set(KEYS.failed, len(items))


def files(settings: Settings) -> list[Path]:
    return sorted(settings.errors.dir.glob("*.txt"))


# -- what becomes of an item ------------------------------------------------------------------------


def test_a_task_comes_back_byte_for_byte_with_its_failure_as_history() -> None:
    raw = b'{"img_path": "/a",  "img_url": "u",  "caption": "\\u65e5 \\"status\\": 1"}'
    again = task_again(parse(error_item(raw, NOT_FOUND)))
    assert again.startswith(raw[:-1] + b", ")
    assert json.loads(again)["_retry"] == {
        "n": 0,
        "status": 404,
        "error_msg": "http_status: HTTP 404",
        "requeued": 1,
    }
    assert retries.attempts_of(again) == 0
    tried = retries.with_history(again, 2, NOT_FOUND)
    twice = task_again(parse(error_item(tried, NOT_FOUND)))
    assert twice.startswith(raw[:-1] + b", ") and twice.count(b"_retry") == 1
    assert json.loads(twice)["_retry"]["requeued"] == 2


@pytest.mark.parametrize(
    "raw",
    [
        b'{"status": 404, "img_url": "u", "error_msg": "x", "img_path": "/a"}',
        b'{"img_url": "u", "img_path": "/a"}',
        b'{"img_url": "u", "img_path": "/a", "_retry": 5, "status": 1, "error_msg": "x"}',
        b'{"img_url": ", \\"status\\": ", "img_path": "/a", "status": 1}',
    ],
)
def test_odd_error_items_become_sound_tasks(raw: bytes) -> None:
    again = json.loads(task_again(parse(raw)))
    assert {"img_url", "img_path", "_retry"} == set(again)
    assert again["img_url"] == json.loads(raw)["img_url"]


ESCAPED = b'"img_url": "http://a.example/stop\\u005fthis_task"'


@pytest.mark.parametrize(
    "raw",
    [
        b'{"img_path": "/a", ' + ESCAPED + b', "status": 404, "c": 1, "error_msg": "http_status: x"}',
        b'{"img_path": "/a", ' + ESCAPED + b', "_retry": {"n": 1}, "c": "\\ud83d", "status": 404}',
        b'{"img_path": "/a", '
        + ESCAPED
        + b', "status": 404, "error_msg": "at http://a.example/stop_this_task"}',
    ],
)
def test_a_requeue_makes_no_sentinel(settings: Settings, redis_client: redis.Redis, raw: bytes) -> None:
    """Neither where it writes an item anew, without the escape, nor by what the error says."""
    failed(redis_client, [raw])
    assert requeue(settings).requeued == 1
    (again,) = queued(redis_client)
    assert b"stop_this_task" not in again
    assert json.loads(again)["img_url"] == json.loads(raw)["img_url"]


def test_a_worker_makes_no_sentinel_of_what_it_writes_anew() -> None:
    raw = b'{"_retry": {"n": 1}, "img_path": "/a", "status": 404, ' + ESCAPED + b"}"
    moved = Failure(FailureKind.REDIRECTS, "at http://a.example/stop_this_task")
    for item in (retries.with_history(raw, 2, moved), error_item(raw, moved), error_item(b"[]", moved)):
        assert b"stop_this_task" not in item
        assert "stop_this_task" in str(json.loads(item))


# -- from the list --------------------------------------------------------------------------------


def test_the_chosen_are_tasks_again_the_others_keep_their_order_and_the_sum_is_right(
    settings: Settings, redis_client: redis.Redis
) -> None:
    items = [error(i, "dns: x" if i % 4 else "tls: x") for i in range(35)]
    failed(redis_client, items)
    redis_client.lpush(KEYS.task, b"waiting")
    report = requeue(settings, kinds=["tls"])
    assert queued(redis_client) == [b"waiting", *(task_again(parse(i)) for i in items[::4])]
    assert list(reversed(redis_client.lrange(KEYS.error, 0, -1))) == [i for i in items if b"dns" in i]
    assert (report.read, report.matched, report.requeued) == (35, 9, 9)
    assert redis_client.get(KEYS.failed) == b"26" and redis_client.get(KEYS.fed) == b"35"
    assert requeue(settings, kinds=["tls"]).requeued == 0


def test_filters_must_all_hold_and_at_most_so_many_move(
    settings: Settings, redis_client: redis.Redis
) -> None:
    failed(redis_client, [error(i, "http_status: x", 503 if i % 2 else 404) for i in range(60)])
    chosen = {"statuses": [503], "hosts": ["example", "h1.example"]}
    assert error_requeue.count(settings, order(limit=17, **chosen)).requeued == 17
    assert redis_client.llen(KEYS.error) == 60
    assert requeue(settings, limit=17, **chosen).requeued == 17
    assert requeue(settings, hosts=["h1.exampl"]).requeued == 0
    assert requeue(settings, **chosen).requeued == 13


def test_what_is_no_task_stays(settings: Settings, redis_client: redis.Redis) -> None:
    odd = [b"", b"stop_this_task", b'{"raw": "x", "status": 900}', b'{"img_url": "u"}', b"\xff"]
    odd.append(b'{"img_path": "/a", "img_url": "http://a.example/stop_this_task", "status": 404}')
    failed(redis_client, odd)
    report = requeue(settings)
    assert (report.requeued, report.not_tasks) == (0, 6)
    assert list(reversed(redis_client.lrange(KEYS.error, 0, -1))) == odd


@pytest.mark.parametrize("column", ODD_COLUMNS, ids=range(len(ODD_COLUMNS)))
def test_a_task_with_an_odd_column_comes_back_byte_for_byte(
    settings: Settings, redis_client: redis.Redis, column: bytes
) -> None:
    """From the list, and from an exported file."""
    raw = odd_error(column)
    task = raw[: raw.index(b', "status"')]
    failed(redis_client, [raw, raw])
    report = requeue(settings, limit=1, kinds=["http_status"])
    assert (report.requeued, report.not_tasks) == (1, 0)
    export(settings)
    assert requeue(settings, files(settings), hosts=["h0.example"]).requeued == 1
    one, two = queued(redis_client)
    assert one == two and one.startswith(task + b', "_retry": {"n": 0, "status": 404, ')
    assert decode_task(one) is not None


def test_errors_that_were_never_counted_do_not_make_counts_negative(
    settings: Settings, redis_client: redis.Redis
) -> None:
    redis_client.lpush(KEYS.error, *(error(i) for i in range(5)))
    redis_client.set(KEYS.failed, 2)
    redis_client.set(KEYS.fed, 2)
    assert requeue(settings).requeued == 5
    assert redis_client.get(KEYS.failed) == b"0" and redis_client.get(KEYS.fed) == b"5"


def test_a_requeued_task_is_tried_as_a_new_one_and_fails_into_the_list_again(
    settings: Settings, redis_client: redis.Redis
) -> None:
    failed(redis_client, [error(1)])
    requeue(settings)
    session = Session(redis_client, KEYS, new_session_id("h"), lease_s=30, url=settings.redis)
    session.open()
    (held,) = session.claim(5).items
    assert retries.attempts_of(held.raw) == 0
    session.ack([], [(held.field, error_item(held.raw, NOT_FOUND))])
    assert redis_client.get(KEYS.failed) == b"1"
    (back,) = redis_client.lrange(KEYS.error, 0, -1)
    assert json.loads(back)["_retry"]["error_msg"] == "timeout: why"


def test_a_read_only_context_requeues_nothing(settings: Settings, redis_client: redis.Redis) -> None:
    failed(redis_client, [error(1)])
    with pytest.raises(ReadOnlyError):
        requeue(settings.model_copy(update={"read_only": True}))
    assert redis_client.llen(KEYS.error) == 1


# -- from files -----------------------------------------------------------------------------------


def test_lines_of_a_file_move_once_whatever_the_filter_and_wherever_the_file_goes(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    failed(redis_client, [b"{}", *(error(i, "dns: x" if i % 2 else "tls: x") for i in range(40))])
    export(settings)
    (path,) = files(settings)
    assert requeue(settings, [path], kinds=["dns"]).requeued == 20
    again = requeue(settings, [path], kinds=["dns"])
    assert (again.requeued, again.already) == (0, 20)
    moved = path.rename(tmp_path / "moved")
    assert error_requeue.count(settings, order(), [moved]).requeued == 20
    assert requeue(settings, [moved], limit=5).requeued == 5
    rest = requeue(settings, [moved])
    assert (rest.requeued, rest.already, rest.not_tasks) == (15, 25, 1)
    assert sorted(queued(redis_client)) == sorted(
        task_again(parse(line)) for line in moved.read_bytes().splitlines()[1:]
    )
    assert redis_client.get(KEYS.failed) == b"1"


def test_lines_that_come_to_a_file_later_are_requeued_then(
    settings: Settings, redis_client: redis.Redis
) -> None:
    failed(redis_client, [error(i) for i in range(5)])
    export(settings)
    path = files(settings)[0]
    assert requeue(settings, [path]).requeued == 5
    with path.open("ab") as file:
        file.write(error(9) + b"\n" + error(10))
    assert requeue(settings, [path]).requeued == 1


def file_of(path: Path, *items: bytes) -> Path:
    path.write_bytes(b"".join(item + b"\n" for item in items))
    return path


def test_two_files_that_begin_alike_differ_from_the_first_line_that_differs(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    one = file_of(tmp_path / "one", error(1), error(2), error(3))
    two = file_of(tmp_path / "two", error(1), error(4), error(3))
    assert requeue(settings, [one]).requeued == 3
    report = requeue(settings, [two])
    assert (report.requeued, report.already) == (2, 1)
    assert queued(redis_client)[3:] == [task_again(parse(error(4))), task_again(parse(error(3)))]


def test_what_fails_again_and_is_exported_again_is_requeued_again(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """Also where the other file begins with an error that was not requeued, and comes as it came before."""
    stays, timeouts = error(0, "http_status: HTTP 404", 404), [error(i) for i in range(1, 4)]
    failed(redis_client, [stays, *timeouts])
    export(settings)
    (first,) = files(settings)
    assert requeue(settings, [first], kinds=["timeout"]).requeued == 3
    redis_client.lpush(KEYS.error, stays)
    session = Session(redis_client, KEYS, new_session_id("h"), lease_s=30, url=settings.redis)
    session.open()
    why = Failure(FailureKind.TIMEOUT, "why", 900)
    session.ack([], [(held.field, error_item(held.raw, why)) for held in session.claim(5).items])
    second = settings.model_copy(
        update={"errors": settings.errors.model_copy(update={"dir": tmp_path / "second"})}
    )
    assert export(second).exported == 4
    report = requeue(settings, files(second))
    assert (report.requeued, report.already) == (4, 0)
    assert [json.loads(item)["_retry"]["requeued"] for item in queued(redis_client)] == [1, 2, 2, 2]


def test_equal_lines_of_one_file_are_errors_of_their_own(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = file_of(tmp_path / "file", *[error(1)] * 700)
    assert [requeue(settings, [path]).requeued for _ in range(2)] == [700, 0]
    assert len(queued(redis_client)) == 700


def test_files_that_grow_copies_and_parts_of_them_give_each_line_once(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """Against a model: a line is what the file holds up to its end."""
    draw = random.Random(SEED)
    tree = [tmp_path / "0"]
    tree[0].touch()
    once: set[bytes] = set()
    for step in range(150):
        path = draw.choice(tree)
        held = path.read_bytes().splitlines()
        what = draw.choice(["grow", "grow", "copy", "requeue", "requeue"])
        if what == "grow":
            new = [draw.choice([error(draw.randrange(3), k), b"", b"{}"]) for k in draw.choices(WHY, k=400)]
            file_of(path, *held, *new[: draw.randrange(400)])
        elif what == "copy":
            tree.append(file_of(tmp_path / f"{step}", *held[: draw.randrange(len(held) + 1)]))
        else:
            kinds, limit = draw.choice([["dns"], ["tls"], []]), draw.choice([None, 100])
            meant = [
                (at, prefix)
                for at, prefix in enumerate(prefixes(held))
                if parse(held[at]).is_task and (not kinds or parse(held[at]).kind in kinds)
            ]
            new_ones = [(at, prefix) for at, prefix in meant if prefix not in once][:limit]
            redis_client.delete(KEYS.task)
            assert requeue(settings, [path], kinds=kinds, limit=limit).requeued == len(new_ones)
            assert queued(redis_client) == [task_again(parse(held[at])) for at, _ in new_ones]
            once |= {prefix for _, prefix in new_ones}
    assert len(once) > 2000 and max(path.read_bytes().count(b"\n") for path in tree) > 3 * CHUNK


def prefixes(lines: list[bytes]) -> list[bytes]:
    """What a file holds up to the end of each line, as a digest."""
    held = hashlib.sha256()
    found = []
    for line in lines:
        held.update(line + b"\n")
        found.append(held.digest())
    return found


def test_what_is_remembered_is_small_and_ends_some_time_after_it_was_last_asked_for(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = file_of(tmp_path / "file", *(error(i) for i in range(5000)))
    requeue(settings, [path])
    keys = redis_client.keys(KEYS.requeued("*"))
    assert sum(redis_client.memory_usage(key, samples=0) for key in keys) < 10 * 5000
    for key in keys:
        redis_client.pexpire(key, 1_000_000)
    assert requeue(settings, [path]).already == 5000
    assert all(redis_client.pttl(key) > error_requeue.FILE_MEMORY_MS - 1_000_000 for key in keys)


def test_a_last_line_without_its_newline_is_named_and_left_until_it_has_one(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = file_of(tmp_path / "whole", error(1))
    path = file_of(tmp_path / "file", error(2))
    with path.open("ab") as file:
        file.write(error(3))
    words = ["requeue", "--file", str(whole), str(path)]
    said = f"2 of 2 errors of 'ds'\n{path}: the last line is unfinished (it has no newline); left out\n"
    assert run(settings, *words, "--dry-run") == 0
    assert capsys.readouterr().out == f"would requeue {said}"
    assert run(settings, *words, "--yes") == 0
    assert capsys.readouterr().out == f"requeued {said}"
    assert run(settings, *words, "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["unfinished"] == [str(path)]
    with path.open("ab") as file:
        file.write(b"\n")
    assert run(settings, *words, "--yes", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["unfinished"], report["requeued"], report["already"]) == ([], 1, 2)


class Growing(io.RawIOBase):
    """A file whose end comes, and then some more."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = iter(parts)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = next(self._parts, b"")
        buffer[: len(part)] = part
        return len(part)


def test_a_line_whose_rest_comes_while_it_is_read_waits_for_the_next_time(tmp_path: Path) -> None:
    file = ExportedFile(tmp_path / "file")
    found = file._lines(io.BufferedReader(Growing(b"one\ntw", b"", b"o\nthree\n")))
    assert [line.raw for line in found] == [b"one"]
    assert file.unfinished


def test_a_file_without_a_task_or_none_at_all(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"{}\n" + b"x" * 20_000_000 + b"\n5\n")
    assert requeue(settings, [path]).requeued == 0
    with pytest.raises(FeedError, match="no such file"):
        requeue(settings, [tmp_path / "absent"])


# -- the command ----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_asks_with_the_count_and_does_nothing_without_a_yes(
    settings: Settings,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed(redis_client, [error(i) for i in range(6)])
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    assert run(settings, "requeue", "--host", "h1.example") == 1
    assert "Put 2 of 6 errors back into the queue of 'ds'? [y/N]" in capsys.readouterr().out
    assert redis_client.llen(KEYS.error) == 6
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert run(settings, "requeue", "--host", "H1.example") == 0
    assert redis_client.llen(KEYS.task) == 2


def test_without_a_terminal_it_wants_yes_or_a_dry_run(
    settings: Settings,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed(redis_client, [error(i) for i in range(6)])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run(settings, "requeue") == 2
    assert run(settings, "requeue", "--kind", "typo", "--dry-run") == 2
    assert "no such kind: typo" in capsys.readouterr().err
    assert run(settings, "requeue", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["requeued"] == 6
    assert redis_client.llen(KEYS.error) == 6
    assert run(settings, "requeue", "--yes", "--max", "4") == 0
    assert capsys.readouterr().out == "requeued 4 of 6 errors of 'ds'\n"
