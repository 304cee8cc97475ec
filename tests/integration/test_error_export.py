"""The error list → files, and what a summary says of it, on a real Redis."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from integration_support import KEYS, until

from dlconsole.cli import main
from dlconsole.errors import FencedError, ReadOnlyError, RedisUnusable
from dlconsole.services import error_export, error_summary, spool
from dlconsole.services.error_items import is_sentinel, lines, parse
from dlconsole.services.spool import Drainer
from dlconsole.settings import Settings


def error(number: int, message: str = "timeout: why", status: int = 900) -> bytes:
    fields = {"img_path": f"/ds/{number}.jpg", "img_url": f"http://h{number % 3}.example/{number}"}
    return json.dumps(fields | {"status": status, "error_msg": message}).encode()


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {"redis": redis_url, "dataset": "ds", "errors": {"dir": tmp_path / "out", "batch": 10}}
    )


def export(settings: Settings, **options: Any) -> error_export.ExportReport:
    watcher = error_export.Watcher(threading.Event(), lambda _text: None, lambda _report: None)
    return error_export.export(settings, watcher, **options)


def written(settings: Settings) -> list[bytes]:
    return [
        line for path in sorted(settings.errors.dir.glob("*.txt")) for line in path.read_bytes().splitlines()
    ]


ODD_COLUMNS = [b'"caf\\ud83d"', b"NaN", b"-Infinity", b"1e400", b"1" * 5000]
"""What Python's json writes and reads, and stricter readers refuse."""


def odd_error(column: bytes, url: bytes = b"http://h0.example/1") -> bytes:
    """An error of a task with such a column."""
    task = b'{"img_path": "/a", "img_url": "' + url + b'", "c": ' + column
    return task + b', "status": 404, "error_msg": "http_status: HTTP 404"}'


def drainer(settings: Settings, client: redis.Redis, name: str = "h-1", kind: str = spool.EXPORT) -> Drainer:
    found = Drainer(client, KEYS, name, url=settings.redis)
    found.enlist(kind, "h", "/gone")
    return found


def run(settings: Settings, *words: str) -> int:
    folder = ["--dir", str(settings.errors.dir)] if words[0] == "export" else []
    return main(["errors", *words, *folder, "--redis", settings.redis, "--dataset", "ds"])


# -- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b'{"a":1,  "b":"\\u65e5"}', b'{"a":1,  "b":"\\u65e5"}'),
        (b'{"a":\n1}\r\n', b'{"a": 1}  '),
        (b'{"a": "x\\ny"}', b'{"a": "x\\ny"}'),
        (b'{"a": "x\ny"}', b'{"raw": "{\\"a\\": \\"x\\ny\\"}"}'),
        (b"", b'{"raw": ""}'),
        (b"two\nlines", b'{"raw": "two\\nlines"}'),
        (b"\xff\x00", b'{"raw": "\\\\xff\\u0000"}'),
        (b"5", b"5"),
        *((odd_error(column), odd_error(column)) for column in ODD_COLUMNS),
        (b'"\\udc00"', b'"\\udc00"'),
        (b'{"a": "\xff"}', b'{"raw": "{\\"a\\": \\"\\\\xff\\"}"}'),
        (b"[" * 100_000, None),
    ],
)
def test_an_item_is_one_line_and_json_stays_as_it_is(raw: bytes, line: bytes | None) -> None:
    (found,) = lines([raw])
    assert found.endswith(b"\n") and found.count(b"\n") == 1
    assert line is None or found == line + b"\n"


def test_a_sentinel_is_dropped_and_an_error_that_has_its_text_is_not() -> None:
    assert is_sentinel(b"stop_this_task") and is_sentinel(b'{"a": "stop_this_task"}')
    assert not is_sentinel(b'{"raw": "stop_this_task", "status": 900, "error_msg": "bad_task: no task"}')
    assert not is_sentinel(b'{"img_url": "http://a.example/stop_this_task"}')
    assert is_sentinel(b' "stop_this_task"\n') and is_sentinel(b'{"c": "\\ud83d", "a": "stop_this_task"}')


@pytest.mark.parametrize(
    "raw",
    [
        *(odd_error(column, b"http://h/stop_this_task.jpg") for column in ODD_COLUMNS),
        odd_error(b"[" * 3000 + b"]" * 3000, b"http://h/stop_this_task.jpg"),
        odd_error(b"5", b"http://h/stop_this_task.jpg")[:-1],
        b"{'img_url': 'http://h/stop_this_task.jpg', 'status': 404}",
        b"http://h/stop_this_task.jpg: timed out",
        b'["http://h/stop_this_task.jpg", 404]',
    ],
    ids=range(10),
)
def test_an_error_that_has_a_sentinels_text_is_in_the_files(
    settings: Settings, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str], raw: bytes
) -> None:
    redis_client.lpush(KEYS.error, error(1), raw, b"stop_this_task", error(2))
    assert run(settings, "export", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["exported"], report["sentinels"]) == (3, 1)
    first, odd, last = written(settings)
    assert (first, last) == (error(1), error(2))
    assert odd == raw or json.loads(odd) == {"raw": raw.decode()}


def test_files_are_named_as_the_legacy_drainer_names_them() -> None:
    assert error_export.file_name(time.struct_time((2024, 1, 31, 11, 59, 0, 2, 31, 0))) == "20240131_2.txt"
    assert error_export.file_name(time.struct_time((2024, 1, 31, 0, 0, 0, 2, 31, 0))) == "20240131_0.txt"


# -- exporting ------------------------------------------------------------------------------------


def test_all_errors_go_to_a_file_oldest_first_and_nothing_stays_in_redis(
    settings: Settings, redis_client: redis.Redis
) -> None:
    items = [error(i) for i in range(25)]
    redis_client.lpush(KEYS.error, *items, b"stop_this_task", b"")
    report = export(settings)
    assert written(settings) == [*items, b'{"raw": ""}']
    assert (report.exported, report.sentinels, report.batches) == (26, 1, 3)
    assert redis_client.keys("{ds_task_error}*") == [KEYS.drain_source.encode()]
    assert redis_client.exists(KEYS.failed) == 0


def test_a_torn_line_of_another_is_ended_not_glued_to(settings: Settings, redis_client: redis.Redis) -> None:
    settings.errors.dir.mkdir()
    path = settings.errors.dir / error_export.file_name(time.localtime())
    path.write_bytes(b'{"whole": 1}\n{"torn')
    redis_client.lpush(KEYS.error, error(1))
    export(settings)
    assert written(settings) == [b'{"whole": 1}', b'{"torn', error(1)]


def test_what_a_legacy_drainer_appends_meanwhile_is_never_cut(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes between our look at the file's end and our bytes, and then our fsync fails."""
    redis_client.lpush(KEYS.error, *(error(i) for i in range(3)))
    path = settings.errors.dir / error_export.file_name(time.localtime())

    def fsync(_file: int) -> None:
        with path.open("ab") as file:
            file.write(b'{"legacy": 1}\n')
        monkeypatch.undo()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("dlconsole.services.drain_file.fsync", fsync)
    with pytest.raises(error_export.StoreError, match="stays in Redis"):
        export(settings)
    export(settings)
    assert sorted(written(settings)) == sorted([*(error(i) for i in range(3)), b'{"legacy": 1}'])


def test_at_most_so_many_are_exported(settings: Settings, redis_client: redis.Redis) -> None:
    redis_client.lpush(KEYS.error, *(error(i) for i in range(30)))
    assert export(settings, limit=15).exported == 15
    assert redis_client.llen(KEYS.error) == 15


def test_an_export_frees_a_redis_that_is_out_of_memory(settings: Settings, redis_client: redis.Redis) -> None:
    redis_client.lpush(KEYS.error, *(error(i) for i in range(30)))
    redis_client.config_set("maxmemory", "1")
    try:
        assert export(settings, limit=20).exported == 20
        assert run(settings, "requeue", "--yes") == 0
    finally:
        redis_client.config_set("maxmemory", "0")
    assert redis_client.llen(KEYS.task) == 10


def test_a_batch_of_large_items_is_bounded_in_bytes(settings: Settings, redis_client: redis.Redis) -> None:
    large = [json.dumps({"i": i, "x": "x" * 3_000_000}).encode() for i in range(5)]
    redis_client.lpush(KEYS.error, *large)
    report = export(settings)
    assert report.batches == 3 and written(settings) == large


def test_a_copied_folder_is_not_the_drainer_that_it_was_copied_from(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    redis_client.lpush(KEYS.error, error(1))
    export(settings)
    shutil.copytree(settings.errors.dir, tmp_path / "copy")
    copied = settings.model_copy(
        update={"errors": settings.errors.model_copy(update={"dir": tmp_path / "copy"})}
    )
    export(copied)
    names = {path.name for path in (tmp_path / "copy/.dlconsole").glob("*.drainer")}
    assert len(names) == 2


def test_one_folder_serves_two_datasets(settings: Settings, redis_client: redis.Redis) -> None:
    redis_client.lpush(KEYS.error, error(1))
    redis_client.lpush("other_task_error", error(2))
    export(settings)
    export(settings.model_copy(update={"dataset": "other"}))
    assert written(settings) == [error(1), error(2)]
    assert len(list((settings.errors.dir / ".dlconsole").glob("*.drainer"))) == 2


def test_a_drainer_that_redis_forgot_goes_on(settings: Settings, redis_client: redis.Redis) -> None:
    ours = drainer(settings, redis_client)
    redis_client.lpush(KEYS.error, error(1))
    redis_client.delete(KEYS.drainer("h-1"))
    assert ours.take(1, 5).items == (error(1),)
    redis_client.delete(KEYS.drainer("h-1"))
    assert ours.drop(1) == 0


def test_an_earlier_process_of_the_same_drainer_is_fenced(
    settings: Settings, redis_client: redis.Redis
) -> None:
    redis_client.lpush(KEYS.error, *(error(i) for i in range(5)))
    old = drainer(settings, redis_client)
    assert len(old.take(1, 3).items) == 3
    new = drainer(settings, redis_client)
    assert new.take(9, 1) == new.take(2, 5) == spool.Spool(1, (error(0), error(1), error(2)))
    for late in (lambda: old.take(1, 3), lambda: old.drop(1), lambda: old.requeue(1, [])):
        with pytest.raises(FencedError):
            late()
    assert new.drop(1) == 3
    assert redis_client.llen(KEYS.error) == 2


def test_a_key_of_another_type_takes_nothing(settings: Settings, redis_client: redis.Redis) -> None:
    redis_client.set(KEYS.error, "x")
    with pytest.raises(RedisUnusable, match="another type"):
        export(settings)


def test_a_read_only_context_exports_nothing(settings: Settings, redis_client: redis.Redis) -> None:
    redis_client.lpush(KEYS.error, error(1))
    with pytest.raises(ReadOnlyError):
        export(settings.model_copy(update={"read_only": True}))
    assert redis_client.llen(KEYS.error) == 1 and not settings.errors.dir.exists()


# -- adopting -------------------------------------------------------------------------------------


def test_a_lost_folders_errors_are_named_and_put_back_in_their_order(
    settings: Settings, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [error(i) for i in range(5)]
    redis_client.lpush(KEYS.error, *items)
    drainer(settings, redis_client).take(1, 3)
    assert run(settings, "summary") == 0
    assert "3 more are taken by h-1 (export on h into /gone)" in capsys.readouterr().out
    assert run(settings, "adopt", "h-1", "--yes") == 2
    assert "less than 60 s ago" in capsys.readouterr().err
    redis_client.hset(KEYS.drainer("h-1"), "seen", 1)
    assert run(settings, "adopt", "h-1", "--yes") == 0
    assert list(reversed(redis_client.lrange(KEYS.error, 0, -1))) == items
    assert run(settings, "adopt", "h-1", "--yes") == 2


def test_what_a_dead_requeue_held_is_put_back_by_the_next_command(
    settings: Settings, redis_client: redis.Redis
) -> None:
    redis_client.lpush(KEYS.error, *(error(i) for i in range(5)))
    dead = drainer(settings, redis_client, "requeue-1", spool.REQUEUE)
    dead.take(1, 3)
    assert spool.tidy(redis_client, KEYS, settings.redis) == 0
    redis_client.hset(KEYS.drainer("requeue-1"), "seen", 1)
    assert spool.tidy(redis_client, KEYS, settings.redis) == 3
    with pytest.raises(FencedError):
        dead.requeue(1, [(0, b"{}")])
    assert redis_client.llen(KEYS.error) == 5 and redis_client.exists(KEYS.task) == 0


# -- summary --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "kind", "status", "host"),
    [
        (error(0), "timeout", 900, "h0.example"),
        (error(1, "http_status: HTTP 404", 404), "http_status", 404, "h1.example"),
        (error(2, "('Connection aborted.', x)", 900), "no_answer", 900, "h2.example"),
        (error(3, "", 404), "http_status", 404, "h0.example"),
        (error(4, "cannot identify image", 200), "bad_body", 200, "h1.example"),
        (b'{"img_url": "http://[", "img_path": "/a", "status": "503"}', "http_status", 503, ""),
        (b"{}", "unknown", None, ""),
        (b"", "not_json", None, ""),
        (b'{"status": true, "error_msg": 5, "img_url": 7}', "unknown", None, ""),
        *((odd_error(column), "http_status", 404, "h0.example") for column in ODD_COLUMNS),
        (odd_error(b'"\xff"'), "http_status", 404, "h0.example"),
        (odd_error(b"5", b"http://\\ud83d/"), "http_status", 404, ""),
    ],
)
def test_every_error_has_a_kind_a_status_and_a_host(
    raw: bytes, kind: str, status: int | None, host: str
) -> None:
    found = parse(raw)
    assert (found.kind, found.status, found.host) == (kind, status, host)


def test_a_summary_of_a_long_list_is_a_sample_of_all_ages_and_says_so(
    settings: Settings, redis_client: redis.Redis
) -> None:
    redis_client.lpush(KEYS.error, *(error(0, "dns: x") for _ in range(5000)))
    redis_client.lpush(KEYS.error, *(error(0, "tls: x") for _ in range(5000)))
    few = settings.model_copy(update={"errors": settings.errors.model_copy(update={"sample": 4000})})
    found = error_summary.of_list(few, "kind")
    assert found.is_sample and (found.read, found.total) == (4000, 10_000)
    assert found.counts == {"dns": 2000, "tls": 2000}
    all_of_it = error_summary.of_list(settings, "kind")
    assert not all_of_it.is_sample and all_of_it.counts == {"dns": 5000, "tls": 5000}


def test_the_command_counts_the_list_and_files(
    settings: Settings, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    redis_client.lpush(KEYS.error, *(error(i) for i in range(6)))
    assert run(settings, "summary", "--by", "host") == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "6 errors",
        "  h0.example             2   33.3 %",
    ]
    assert run(settings, "export", "--json") == 0
    assert json.loads(capsys.readouterr().out)["exported"] == 6
    files = [str(path) for path in settings.errors.dir.glob("*.txt")]
    assert run(settings, "summary", "--json", "--file", *files) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"timeout": 6}
    assert run(settings, "summary", "--follow") == 2


def test_a_summary_of_files_names_those_whose_last_line_is_unfinished(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.write_bytes(error(1) + b"\n")
    torn.write_bytes(error(2) + b"\n" + error(3))
    words = ["summary", "--file", str(whole), str(torn)]
    assert run(settings, *words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 errors",
        "  timeout             2  100.0 %",
        f"{torn}: the last line is unfinished (it has no newline); left out",
    ]
    assert run(settings, *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["unfinished"] == [str(torn)]


def test_following_waits_for_more_and_ends_on_sigterm(settings: Settings, redis_client: redis.Redis) -> None:
    words = ["errors", "export", "--follow", "--json", "--dir", str(settings.errors.dir)]
    words += ["--redis", settings.redis, "--dataset", "ds"]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "dlconsole", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    try:
        for number in range(3):
            redis_client.lpush(KEYS.error, error(number))
            until(lambda wanted=number + 1: len(written(settings)) == wanted)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert json.loads(out)["exported"] == 3 and json.loads(out)["stopped"] is True
    assert io.StringIO(out).readline().endswith("}\n")
