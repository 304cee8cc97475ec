"""The ledger as a worker writes it: a line for every final outcome, before that counts."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from integration_support import (
    KEYS,
    Running,
    changed,
    errors_of,
    fence,
    ledger_of,
    stored_files,
    task,
    until,
)

from dlconsole.demo.web import SimulatedWeb
from dlconsole.errors import StoreError
from dlconsole.model import LedgerLine
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.queue import MAX_DEATHS
from dlconsole.settings import Settings

CAPTION = '"a \\u00e4 cät,  \\"so\\" "'.encode()


def item(web: SimulatedWeb, behaviour: str, name: str, more: bytes = b"") -> bytes:
    """An item as our feeder writes it, with columns."""
    head = f'{{"img_path": "/ds/images/{name}.jpg", "img_url": "http://{web.address}/as/{behaviour}/{name}"'
    return head.encode() + more + b"}"


def work_off(settings: Settings) -> list[LedgerLine]:
    worker = Running(settings, until_empty=True)
    worker.thread.join(30)
    assert worker.outcome is True
    return ledger_of(settings)


def by_name(lines: list[LedgerLine]) -> dict[str, LedgerLine]:
    """Lines by the names of their images, each of which must be there once."""
    found = {Path(line.path).stem: line for line in lines}
    assert len(found) == len(lines)
    return found


def counts(client: redis.Redis) -> tuple[int, int]:
    """Stored and failed."""
    return int(client.get(KEYS.stored) or 0), int(client.get(KEYS.failed) or 0)


@pytest.mark.parametrize("engine", ["curl", "requests"])
def test_every_outcome_has_its_line_with_all_that_came_along(
    engine: str, settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "worker", engine=engine)
    settings = changed(settings, "ledger", digests="both")
    along = (
        b', "key": "0123abcd0123-%d", "caption": '
        + CAPTION
        + b', "id": 7, "hash": null, "columns": {"w" :1.50}'
    )
    names = ["good", "redirect", "404", "html", "redirect_loop"]
    redis_client.lpush(KEYS.task, *(item(web, name, name, along % i) for i, name in enumerate(names)))
    odd = [b"nonsense", b'{"img_path": "/../x", "img_url": "http://a.example/", "n": 1}']
    redis_client.lpush(KEYS.task, *odd)
    before_ms = int(redis_client.time()[0]) * 1000
    lines = work_off(settings)
    assert counts(redis_client) == (2, 5)
    assert len(lines) == 7
    (session,) = {line.worker for line in lines}
    (path,) = (settings.worker.store_dir / "ds/ledger").iterdir()
    assert path.name == f"{session}-1.jsonl"
    found = {line.key: line for line in lines}
    for i, name in enumerate(names):
        line = found[f"0123abcd0123-{i}"]
        assert line.url == f"http://{web.address}/as/{name}/{name}"
        assert line.path == f"/ds/images/{name}.jpg"
        values = [bytes(getattr(line, key)) for key in ("caption", "id", "hash", "columns")]
        assert values == [CAPTION, b"7", b"null", b'{"w" :1.50}']
        assert before_ms <= line.started_ms <= line.ended_ms and line.attempts == 1
    for i, name in enumerate(names[:2]):
        line, body = (
            found[f"0123abcd0123-{i}"],
            (settings.worker.store_dir / f"ds/images/{name}.jpg").read_bytes(),
        )
        assert (line.outcome, line.status, line.kind, line.message) == ("stored", 200, None, "")
        assert (line.bytes, line.format) == (len(body), line.format) and line.width and line.height
        assert line.sha256 == hashlib.sha256(body).hexdigest() and line.md5 == hashlib.md5(body).hexdigest()
    redirected = found["0123abcd0123-1"].final_url
    assert found["0123abcd0123-0"].final_url == "" != redirected and web.address in redirected
    failed = [line for line in lines if line.outcome == "failed"]
    said = {f"{line.kind}: {line.message}": line for line in failed}
    assert said.keys() == {error["error_msg"] for error in errors_of(redis_client)}
    assert {line.status for line in failed} == {404, 200, None}
    assert found[hashlib.sha256(b"nonsense").hexdigest()[:32]].kind == "bad_task"
    (bad,) = [line for line in failed if line.kind == "bad_path"]
    assert (bad.path, bytes(bad.columns)) == ("/../x", b'{"n":1}')  # type: ignore[arg-type]


def test_only_final_outcomes_have_lines_and_say_how_often_it_was_tried(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "retry", max_attempts=3, base_s=0.05)
    redis_client.lpush(KEYS.task, item(web, "500", "x", b', "caption": ' + CAPTION))
    (line,) = work_off(settings)
    assert (line.attempts, line.status, line.kind) == (3, 500, "http_status")
    assert bytes(line.caption) == CAPTION and line.columns is msgspec.UNSET  # type: ignore[arg-type]


def test_retries_that_find_no_room_fail_by_the_normal_way(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "retry", max_attempts=3, base_s=60, max_delayed=0)
    redis_client.lpush(KEYS.task, *(item(web, "500", str(i)) for i in range(5)))
    lines = by_name(work_off(settings))
    assert lines.keys() == set("01234") and {line.attempts for line in lines.values()} == {1}
    assert counts(redis_client) == (0, 5) and len(errors_of(redis_client)) == 5


@pytest.mark.parametrize("ledger", [True, False])
def test_what_killed_three_sessions_is_ended_without_being_asked_for(
    ledger: bool, settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "ledger", enabled=ledger)
    deadly, good = item(web, "good", "deadly"), item(web, "good", "x")
    names = " ".join("abc"[:MAX_DEATHS])
    redis_client.hset(KEYS.crash, hashlib.sha1(deadly).hexdigest(), names)
    redis_client.lpush(KEYS.task, good, deadly)
    lines = work_off(settings)
    assert [path.name for path in stored_files(settings)] == ["x.jpg"]
    (error,) = errors_of(redis_client)
    assert error["error_msg"] == "crashed: 3 sessions died holding it" and error["status"] == 900
    assert counts(redis_client) == (1, 1) and not redis_client.exists(KEYS.crash)
    if ledger:
        assert [(line.kind, line.message) for line in lines if line.kind] == [
            ("crashed", "3 sessions died holding it")
        ]
    else:
        assert not (settings.worker.store_dir / "ds/ledger").exists()


def test_files_are_followed_by_others_before_they_grow_too_large(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "ledger", max_file_bytes=4096)
    along = b', "caption": "%s"' % (b"x" * 900)
    redis_client.lpush(KEYS.task, *(item(web, "404", str(i), along) for i in range(40)))
    assert len(by_name(work_off(settings))) == 40
    files = list((settings.worker.store_dir / "ds/ledger").iterdir())
    assert {int(path.stem.rpartition("-")[2]) for path in files} == set(range(1, len(files) + 1))
    assert len(files) >= 3
    # A round that is larger than a file may be is a file.
    assert all(path.stat().st_size <= 4096 or path.read_bytes().count(b"\n") > 1 for path in files)


def test_layout_and_extension_are_decided_when_an_image_is_stored(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "worker", layout="hourly", ext="real")
    redis_client.lpush(
        KEYS.task, item(web, "good", "x.webp"), task(f"http://{web.address}/as/good/y", "/ledger/y")
    )
    lines = work_off(settings)
    stored, bad = sorted(lines, key=lambda line: line.outcome, reverse=True)
    (path,) = stored_files(settings)
    assert stored.path == f"/{path.relative_to(settings.worker.store_dir)}"
    assert path.parts[-4].isdecimal() and path.parts[-3:-1] == ("ds", "images")
    assert path.name == f"x.webp.{ {'JPEG': 'jpg'}.get(stored.format, stored.format.lower()) }"
    assert bad.kind == "bad_path"


def test_no_link_leads_into_the_ledger_or_the_ledger_out_of_the_store(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, tmp_path: Path
) -> None:
    store = settings.worker.store_dir
    (store / "ds").mkdir(parents=True)
    (store / "alias").symlink_to("ds")
    (store / "hidden").symlink_to("ds/ledger")
    raws = [
        task(f"http://{web.address}/as/good/{i}", path) for i, path in enumerate(["/hidden/x", "/alias/y"])
    ]
    redis_client.lpush(KEYS.task, *raws)
    found = {line.kind: line for line in work_off(settings)}
    assert found["bad_path"].path == "/hidden/x" and found[None].path == "/alias/y"
    assert not (store / "ds/ledger/x").exists()
    for path in (store / "ds/ledger").iterdir():
        path.unlink()
    (store / "ds/ledger").rmdir()
    (store / "ds/ledger").symlink_to(tmp_path)
    worker = Running(settings)
    worker.thread.join(20)
    assert isinstance(worker.outcome, StoreError) and "ledger.enabled" in str(worker.outcome)
    assert not list(tmp_path.glob("*.jsonl"))


def test_what_cannot_be_written_waits_uncounted_until_it_can(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, no_room: Callable[[bool], None]
) -> None:
    settings = changed(settings, "guard", check_s=0.2)
    redis_client.lpush(KEYS.task, *(item(web, "404", str(i)) for i in range(20)))
    no_room(True)
    worker = Running(settings)
    ledger = worker.downloader._ledger
    until(lambda: len(ledger) and redis_client.llen(KEYS.task) == 20 - len(ledger))
    assert counts(redis_client) == (0, 0) and errors_of(redis_client) == [] and ledger_of(settings) == []
    no_room(False)
    until(lambda: counts(redis_client) == (0, 20))
    assert worker.stop() is True
    assert len(by_name(ledger_of(settings))) == 20


def test_a_stop_gives_back_what_could_not_be_written(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, no_room: Callable[[bool], None]
) -> None:
    redis_client.lpush(KEYS.task, *(item(web, "404", str(i)) for i in range(20)))
    no_room(True)
    worker = Running(settings)
    until(lambda: len(worker.downloader._ledger))
    assert worker.stop() is True
    assert redis_client.llen(KEYS.task) == 20 and counts(redis_client) == (0, 0)
    no_room(False)
    assert len(by_name(work_off(settings))) == 20 and counts(redis_client) == (0, 20)


def test_a_fenced_session_writes_nothing_of_what_others_do_now(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, no_room: Callable[[bool], None]
) -> None:
    settings = changed(settings, "guard", check_s=0.2)
    redis_client.lpush(KEYS.task, *(item(web, "404", str(i)) for i in range(20)))
    no_room(True)
    worker = Running(settings)
    until(lambda: len(worker.downloader._ledger))
    fence(redis_client)
    until(lambda: not len(worker.downloader._ledger))
    no_room(False)
    until(lambda: counts(redis_client) == (0, 20))
    assert worker.stop() is True
    assert len(by_name(ledger_of(settings))) == 20  # each once: the first outcomes were dropped


def test_nothing_is_written_while_the_lease_may_have_run_out(settings: Settings, web: SimulatedWeb) -> None:
    """What ends then may have ended otherwise for somebody else meanwhile, whose line must be the last."""
    with PrivateRedis() as server, redis.Redis.from_url(server.url) as client:
        settings = changed(settings.model_copy(update={"redis": server.url}), "worker", concurrency=4)
        client.lpush(KEYS.task, *(item(web, "slow", str(i)) for i in range(16)))
        worker = Running(settings, until_empty=True)
        courier, ledger = worker.downloader._courier, worker.downloader._ledger
        until(lambda: len(ledger_of(settings)) >= 2)
        server.kill()
        until(lambda: "redis is away" in worker.log.getvalue())
        courier._leased_until_s = 0.0  # as when a lease's time has gone by
        until(lambda: len(ledger) and len(by_name(ledger_of(settings))) + len(ledger) == 16)
        server.restart()
        worker.thread.join(60)
        assert worker.outcome is True
        assert (
            counts(client) == (16, 0) and len(ledger_of(settings)) == 16
        )  # it was renewed: nobody else had any


KILLED = """
import os, signal, sys
from dlconsole import log
from dlconsole.settings import Settings
from dlconsole.workers import ledger_folder
from dlconsole.workers.courier import Courier
from dlconsole.workers.downloader import Downloader

settings, at = Settings.model_validate_json(sys.argv[1]), sys.argv[2]
write_all, report = ledger_folder.write_all, Courier.report

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def half(fd, data):
    write_all(fd, data[:-30])
    die()

if at == "written":
    Courier.report = die
else:
    ledger_folder.write_all = half if at == "half" else die
Downloader(settings, log.configure(settings.log), until_empty=True).run()
"""


@pytest.mark.parametrize(("at", "lines"), [("not written", 0), ("half", 9), ("written", 10)])
def test_a_worker_killed_around_its_write_costs_no_line_and_counts_nothing_twice(
    at: str, lines: int, settings: Settings, redis_client: redis.Redis, web: SimulatedWeb
) -> None:
    settings = changed(settings, "worker", concurrency=1, batch=10, lease_s=2)
    redis_client.lpush(KEYS.task, *(b"bad %d" % i for i in range(10)))  # one round ends them all
    words = [sys.executable, "-c", KILLED, settings.model_dump_json(), at]
    died = subprocess.run(words, capture_output=True, check=False, env=os.environ)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert counts(redis_client) == (0, 0)
    (session,) = redis_client.zrange(KEYS.lease, 0, -1)
    redis_client.zadd(KEYS.lease, {session: 1})
    ledger = settings.worker.store_dir / "ds/ledger"
    whole = [
        line for path in ledger.iterdir() for line in path.read_bytes().rpartition(b"\n")[0].splitlines()
    ]
    assert len(whole) == lines
    worker = Running(settings, until_empty=True)
    worker.thread.join(30)
    assert worker.outcome is True and counts(redis_client) == (0, 10)
    keys: list[str] = []
    for path in ledger.iterdir():
        found: list[dict[str, Any]] = [
            json.loads(x) for x in path.read_bytes().rpartition(b"\n")[0].splitlines()
        ]
        keys += [line["key"] for line in found]
    assert len(set(keys)) == 10 and len(keys) == 10 + lines
