"""URL lists → queue, on a real Redis."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from integration_support import KEYS, until

from dlconsole.cli import main
from dlconsole.errors import FeedError, RedisUnusable
from dlconsole.services.connection import connect
from dlconsole.services.done_list import DoneList
from dlconsole.services.feed_run import FeedRun
from dlconsole.services.feeder import FeedReport, count, feed
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.scripts import script
from dlconsole.settings import Settings


def queued(client: redis.Redis) -> list[bytes]:
    """The queue in the order in which workers take it."""
    return list(reversed(client.lrange(KEYS.task, 0, -1)))


def legacy_item(url: str) -> bytes:
    """As the legacy feeder makes it."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return json.dumps({"img_path": f"/ds/images/{digest}.jpg", "img_url": url}).encode()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of done lists is made where feeding was started; items are compared with legacy ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLCONSOLE_FEED__LAYOUT", "flat")


def flat(url: str, **feed_settings: object) -> Settings:
    """Settings for images in the legacy layout."""
    return Settings.model_validate(
        {"redis": url, "dataset": "ds", "feed": {"layout": "flat", **feed_settings}}
    )


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return flat(redis_url, done_file=tmp_path / "done_part.txt")


def urls(count: int, first: int = 0) -> bytes:
    return b"".join(b"http://a.example/%d\n" % i for i in range(first, first + count))


def items(count: int) -> list[bytes]:
    return [legacy_item(f"http://a.example/{i}") for i in range(count)]


def stop_after(blocks: int) -> Callable[[FeedReport], bool]:
    seen = 0

    def on_progress(_report: FeedReport) -> bool:
        nonlocal seen
        seen += 1
        return seen < blocks

    return on_progress


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "urls.txt"
    path.write_bytes(content)
    return path


def test_items_and_counters_are_the_legacy_ones_bit_for_bit(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    urls = [
        "http://a.example/1.jpg",
        "https://b.example/%E6%97%A5?x=1&y=%22",
        "http://c.example/日本.jpg",
        'http://d.example/"quoted"\\back',
        "http://e.example/a b",
        "http://f.example/emoji/😀",
        "HTTP://G.example/100%",
        "UNLIKELY",
    ]
    report = feed(written(tmp_path, "\n".join(urls).encode()), settings)
    assert queued(redis_client) == [legacy_item(url) for url in urls]
    assert redis_client.get(KEYS.fed) == b"8"
    assert (report.fed, report.tasks, report.lines, report.bad, report.not_http) == (8, 8, 8, 0, 1)
    assert redis_client.exists(KEYS.stored, KEYS.failed) == 0


def test_bom_crlf_blank_lines_and_a_missing_last_newline(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    content = b"\xef\xbb\xbfhttp://a.example/1\r\n\r\n  http://a.example/2  \n\n\nhttp://a.example/3"
    report = feed(written(tmp_path, content), settings)
    assert queued(redis_client) == [legacy_item(f"http://a.example/{i}") for i in (1, 2, 3)]
    assert (report.lines, report.blank, report.bad) == (6, 3, 0)


def test_bad_rows_are_left_out_counted_and_sampled(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    bad = [
        b"http://a.example/stop_this_task",
        b"http://a.example/\xff",
        b"http://a.example/a\x01b",
        b"h" * 9000,
    ]
    report = feed(
        written(tmp_path, b"\n".join([b"http://a.example/1", *bad, b"http://a.example/2"])), settings
    )
    assert queued(redis_client) == [legacy_item("http://a.example/1"), legacy_item("http://a.example/2")]
    assert report.bad == 4
    assert list(report.samples) == [2, 3, 4, 5]
    assert "stop_this_task" in report.samples[2]


@pytest.mark.parametrize("line_bytes", [1 << 20, (1 << 20) + 1, 3 << 20])
def test_an_endless_line_is_one_bad_row_and_what_follows_is_fed(
    line_bytes: int, settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    content = b"http://a.example/1\n" + b"x" * line_bytes + b"\nhttp://a.example/2\n"
    report = feed(written(tmp_path, content), settings)
    assert queued(redis_client) == [legacy_item("http://a.example/1"), legacy_item("http://a.example/2")]
    assert (report.bad, report.lines) == (1, 3)


def test_lines_across_chunks_are_whole(settings: Settings, redis_client: redis.Redis, tmp_path: Path) -> None:
    urls = [f"http://host-{i % 977}.example/{'p' * (i % 301)}/{i}.jpg" for i in range(20_000)]
    path = written(tmp_path, "".join(f"{url}\n" for url in urls).encode())
    assert path.stat().st_size > 3 << 20
    report = feed(path, settings)
    assert report.fed == 20_000
    assert queued(redis_client) == [legacy_item(url) for url in urls]
    assert report.position == path.stat().st_size


def test_the_template_places_files(redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> None:
    template = '{ds}/im%s"ages/{ab}/{cd}/{sha256}.{ext}'
    settings = Settings.model_validate(
        {"redis": redis_url, "dataset": "ds", "feed": {"path_template": template}}
    )
    urls = ["http://a.example/x.PNG?y=1", "http://a.example/x.php", "http://a.example/noext"]
    feed(written(tmp_path, "\n".join(urls).encode()), settings)
    for url, raw, ext in zip(urls, queued(redis_client), ("png", "jpg", "jpg"), strict=True):
        digest = hashlib.sha256(url.encode()).hexdigest()
        path = f'/ds/im%s"ages/{digest[:2]}/{digest[2:4]}/{digest}.{ext}'
        assert json.loads(raw) == {"img_path": path, "img_url": url}


def test_images_are_spread_over_folders_unless_legacy_names_are_asked_for(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DLCONSOLE_FEED__LAYOUT")
    url = "http://a.example/é.png"  # one that is looked at closely, and one that is not
    path = written(tmp_path, f"http://a.example/1\n{url}\n".encode())
    words = ["feed", str(path), "--redis", redis_url, "--dataset", "ds"]
    assert main(words) == main([*words, "--again", "--layout", "flat"]) == 0
    for raw, wanted in zip(queued(redis_client), ["http://a.example/1", url] * 2, strict=True):
        digest = hashlib.sha256(wanted.encode()).hexdigest()
        sharded = raw in queued(redis_client)[:2]
        folder = f"{digest[:2]}/{digest[2:4]}/" if sharded else ""
        assert json.loads(raw) == {"img_path": f"/ds/images/{folder}{digest}.jpg", "img_url": wanted}


@pytest.mark.parametrize("skip", [0, 1, 5, 1999, 2000, 2001, 4999, 5000, 6000])
def test_skipping_lines_of_a_stream_goes_on_exactly_there(
    skip: int, settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    lines = [
        b"" if i % 10 == 3 else b"x" * 9000 if i % 1000 == 7 else b"http://a.example/%d" % i
        for i in range(5000)
    ]
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"\n".join(lines) + b"\n",))
    writer.start()
    report = feed(tmp_path / "pipe", settings, skip=skip)
    writer.join()
    fed = [line.decode() for line in lines[skip:] if line and len(line) < 9000]
    assert queued(redis_client) == [legacy_item(url) for url in fed]
    assert report.lines == max(5000, skip)
    assert redis_client.exists(KEYS.feed) == 0  # nobody can go on with a stream


def test_a_list_that_was_stopped_goes_on_exactly_there(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, urls(9000))
    first = feed(path, settings, on_progress=stop_after(2))
    assert first.stopped and first.fed == first.lines == redis_client.llen(KEYS.task) == 4000
    path = path.rename(tmp_path / "moved.txt")
    second = feed(path, settings)
    assert (second.fed, second.fed_before, second.began_line, second.lines) == (5000, 4000, 4000, 9000)
    assert queued(redis_client) == items(9000)
    assert redis_client.get(KEYS.fed) == b"9000"


def test_a_list_that_is_done_is_fed_once_more_only_when_asked_to(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, urls(5000))
    feed(path, settings)
    again = feed(path, settings)
    assert (again.fed, again.fed_as) == (0, str(path))
    assert redis_client.get(KEYS.fed) == b"5000"
    first = feed(path, settings, again=True, on_progress=stop_after(1))
    rest = feed(path, settings, again=True)
    assert (first.fed, rest.fed, rest.fed_before) == (2000, 3000, 2000)
    assert queued(redis_client) == items(5000) * 2
    assert redis_client.get(KEYS.fed) == b"10000"


def test_lists_with_equal_content_are_one_list_and_others_are_not(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    content = urls(100_000)
    one, copy, other = tmp_path / "one", tmp_path / "copy", tmp_path / "other"
    one.write_bytes(content)
    copy.write_bytes(content)
    other.write_bytes(content[:-2] + b"x\n")
    assert feed(one, settings).fed == 100_000
    assert feed(copy, settings).fed_as == str(one)
    assert feed(other, settings).fed == 100_000


def test_bad_lines_of_earlier_runs_are_not_counted_again(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, b"bad\xff\n\nodd\n" + urls(3000) + b"bad\xff\n")
    first = feed(path, settings, on_progress=stop_after(1))
    second = feed(path, settings)
    assert (first.bad, first.blank, first.not_http, first.fed) == (1, 1, 1, 1998)
    assert (second.bad, second.blank, second.not_http, second.fed) == (1, 0, 0, 1003)
    assert list(second.samples) == [3004]


def test_a_list_that_changes_while_it_is_fed_is_said(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, urls(5000))

    def grow(_report: FeedReport) -> bool:
        with path.open("ab") as file:
            file.write(b"http://a.example/more\n")
        return True

    with pytest.raises(FeedError, match="was changed"):
        feed(path, settings, on_progress=grow)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n", b"\n\n\n", b"x" * 20_000, b"\xff\n"])
def test_a_list_without_any_task_is_done(
    content: bytes, settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, content)
    run = FeedRun(settings)
    assert run.run([path])
    assert redis_client.exists(KEYS.task, KEYS.fed) == 0
    assert DoneList(settings.feed.done_file).has(path)


def test_a_redis_that_is_full_is_waited_for(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, urls(5000))
    redis_client.config_set("maxmemory", "1")
    waited = []

    def raise_it_then(report: FeedReport) -> bool:
        if report.waiting:
            waited.append(report.waiting)
            assert redis_client.exists(KEYS.task, KEYS.fed, KEYS.feed) == 0
            redis_client.config_set("maxmemory", "0")
        return True

    try:
        report = feed(path, settings, on_progress=raise_it_then)
    finally:
        redis_client.config_set("maxmemory", "0")
    assert "maxmemory" in waited[0]
    assert report.fed == 5000 and not report.waiting
    assert queued(redis_client) == items(5000)


def test_waiting_for_redis_can_be_ended(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    redis_client.config_set("maxmemory", "1")
    try:
        report = feed(written(tmp_path, urls(10)), settings, on_progress=lambda report: not report.waiting)
    finally:
        redis_client.config_set("maxmemory", "0")
    assert report.stopped and report.fed == 0


# -- a Redis that is in trouble before anything is fed ---------------------------------------------


@pytest.fixture
def own_redis() -> Iterator[PrivateRedis]:
    """One that may be hurt."""
    with PrivateRedis() as server:
        yield server


@contextmanager
def away(server: PrivateRedis) -> Iterator[None]:
    server.kill()
    yield
    server.restart()


@contextmanager
def busy(server: PrivateRedis) -> Iterator[None]:
    with connect(server.url, name="test") as client, connect(server.url, name="loops") as other:
        client.config_set("lua-time-limit", "1")
        with ThreadPoolExecutor() as pool:
            loop = pool.submit(other.eval, "while true do end", 0)
            until(lambda: "BUSY" in str(error_of(client.ping)))
            yield
            client.script_kill()
            assert "killed" in str(loop.exception())


@contextmanager
def full(server: PrivateRedis) -> Iterator[None]:
    with connect(server.url, name="test") as client:
        client.config_set("maxmemory", "1")
        yield
        client.config_set("maxmemory", "0")


@contextmanager
def without_its_primary(server: PrivateRedis) -> Iterator[None]:
    with connect(server.url, name="test") as client:
        client.config_set("replica-serve-stale-data", "no")
        client.replicaof("127.0.0.1", "1")
        yield
        client.replicaof("NO", "ONE")


@contextmanager
def a_replica(server: PrivateRedis) -> Iterator[None]:
    with connect(server.url, name="test") as client:
        client.replicaof("127.0.0.1", "1")
        yield
        client.replicaof("NO", "ONE")


def error_of(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except redis.RedisError as error:
        return error
    return None


def feeding(path: Path, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dlconsole", "feed", str(path), "--redis", url, "--dataset", "ds"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said_until(process: subprocess.Popen[str], words: str) -> list[str]:
    """What it says up to a line with these words."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return lines
    pytest.fail(f"never said: {words}; but: {lines}")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (away, "cannot be reached"),
        (busy, "BUSY"),
        (full, "maxmemory"),
        (without_its_primary, "Link with MASTER is down"),
        (a_replica, "read only"),
    ],
)
def test_redis_in_trouble_at_the_start_is_waited_for_and_said_once(
    trouble: Callable[[PrivateRedis], AbstractContextManager[None]],
    words: str,
    own_redis: PrivateRedis,
    tmp_path: Path,
) -> None:
    with ExitStack() as hurt:
        hurt.enter_context(trouble(own_redis))
        process = feeding(written(tmp_path, urls(5000)), own_redis.url)
        *_, said = said_until(process, "waiting for it")
        assert own_redis.url in said and words in said and "Ctrl-C" in said
    out, rest = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "dlconsole: Redis is back\n")
    assert "fed 5,000 tasks" in out
    with connect(own_redis.url, name="test") as client:
        assert queued(client) == items(5000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis://no-such-host.invalid/0"])
def test_waiting_for_redis_at_the_start_ends_when_asked_to(
    url: str, number: signal.Signals, tmp_path: Path
) -> None:
    process = feeding(written(tmp_path, urls(5)), url)
    said_until(process, "waiting for it")
    process.send_signal(number)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (130, "", "dlconsole: stopped; nothing was fed\n")
    assert not (tmp_path / "done_part.txt").exists()


def test_the_wait_for_redis_is_shown_at_the_start(own_redis: PrivateRedis, tmp_path: Path) -> None:
    settings = flat(own_redis.url)
    shown = set()

    def on_progress(waiting: str) -> bool:
        shown.add(waiting.partition(own_redis.url)[2][:25])
        if waiting and not own_redis_runs():
            own_redis.restart()
        return True

    def own_redis_runs() -> bool:
        with connect(own_redis.url, name="test") as client:
            return error_of(client.ping) is None

    own_redis.kill()
    assert FeedRun(settings, on_progress).run([written(tmp_path, urls(5))])
    assert " cannot be reached: Error" in shown


def test_what_a_person_must_see_to_ends_a_feed_at_once(
    own_redis: PrivateRedis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["feed", str(written(tmp_path, urls(5))), "--redis", own_redis.url, "--dataset", "ds"]
    with connect(own_redis.url, name="test") as client:
        client.set(KEYS.fed, "many")
        assert main(words) == 3
        assert "another type" in (said := capsys.readouterr().err) and said.count("\n") == 1
        client.config_set("requirepass", "secret")
    assert main(words) == 3
    assert "password" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_a_fault_in_the_middle_says_what_is_fed_and_how_to_go_on(
    redis_url: str, redis_client: redis.Redis
) -> None:
    command = [sys.executable, "-m", "dlconsole", "feed", "-", "--redis", redis_url, "--dataset", "ds"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(urls(2))
        process.stdin.flush()
        until(lambda: redis_client.llen(KEYS.task) == 2)
        redis_client.set(KEYS.fed, "many")
        process.stdin.write(urls(1))
        process.stdin.close()
        said = process.stderr.read()
        assert process.wait(15) == 3
    assert said.endswith(b"dlconsole: 2 tasks were fed before that; go on with --skip 2\n")


def test_two_feeders_of_one_list_feed_it_once_between_them(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, urls(60_000))
    threads = [threading.Thread(target=feed, args=(path, settings)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queued(redis_client) == items(60_000)
    assert redis_client.get(KEYS.fed) == b"60000"


def test_a_block_that_arrives_twice_or_late_changes_nothing(redis_client: redis.Redis) -> None:
    names = [KEYS.task, KEYS.fed, KEYS.feed]
    push = script("push")
    assert push.run(redis_client, names, "list", b"", b"one", b"a", b"b") == [1, b"one", 2]
    assert push.run(redis_client, names, "list", b"", b"one", b"a", b"b") == [0, b"one", 2]
    assert push.run(redis_client, names, "list", b"two", b"three", b"d") == [
        0,
        b"one",
        2,
    ]  # one was refused before it
    assert push.run(redis_client, names, "list", b"one", b"two", b"c") == [1, b"two", 3]
    assert push.run(redis_client, names, "list", b"", b"one", b"a", b"b") == [0, b"two", 3]
    assert queued(redis_client) == [b"a", b"b", b"c"]
    assert redis_client.get(KEYS.fed) == b"3"


@pytest.mark.parametrize("block", [1, 6999, 7000, 7001, 20_000])
def test_blocks_of_any_size_keep_the_order(
    block: int, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    settings = flat(redis_url, block=block)
    count = 300 if block == 1 else 16_000
    feed(written(tmp_path, urls(count)), settings)
    assert queued(redis_client) == items(count)
    assert redis_client.get(KEYS.fed) == b"%d" % count


def test_scripts_that_the_server_lost_are_loaded_again(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    def flush(_report: FeedReport) -> bool:
        redis_client.script_flush()
        return True

    feed(written(tmp_path, urls(9000)), settings, on_progress=flush)
    assert queued(redis_client) == items(9000)


def test_a_key_of_another_type_is_said_and_nothing_is_half_fed(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    redis_client.set(KEYS.fed, "many")
    with pytest.raises(RedisUnusable, match="another type"):
        feed(written(tmp_path, urls(10)), settings)
    assert redis_client.exists(KEYS.task, KEYS.feed) == 0


# -- lists that are done ---------------------------------------------------------------------------


def test_a_list_is_written_down_as_done_and_left_out_where_redis_does_not_know_it(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, urls(10))
    assert FeedRun(settings).run([path])
    assert settings.feed.done_file.read_text() == f"{path}\n"
    redis_client.flushall()
    run = FeedRun(settings)
    assert run.run([path])
    assert run.reports[path].listed and redis_client.keys() == []
    assert FeedRun(settings, again=True).run([path])
    assert queued(redis_client) == items(10)
    assert settings.feed.done_file.read_text() == f"{path}\n"


def test_a_list_that_has_changed_is_fed_although_its_path_is_named_as_done(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, urls(10))
    assert FeedRun(settings).run([path])
    path.write_bytes(urls(5, first=10))
    assert FeedRun(settings).run([path])
    assert queued(redis_client) == items(15)
    assert FeedRun(settings).run([path])
    assert redis_client.llen(KEYS.task) == 15


def test_a_half_fed_list_goes_on_although_it_is_named_as_done(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, urls(5000))
    settings.feed.done_file.write_text("urls.txt")  # as a legacy feeder writes it, and torn
    feed(path, settings, again=True, on_progress=stop_after(1))
    assert FeedRun(settings).run([path])
    assert queued(redis_client) == items(5000)


def test_a_done_list_keeps_odd_names_and_mends_a_torn_last_line(tmp_path: Path) -> None:
    done = DoneList(tmp_path / "done_part.txt")
    done.path.write_bytes(b"/legacy/one.txt\r\n\n  part-2.txt\n/torn/li")
    odd = tmp_path / os.fsdecode(b"od\xffd name.txt")
    done.add([odd, odd])
    done.add([odd, tmp_path / "part-2.txt", Path("/legacy/one.txt")])
    assert done.path.read_bytes().endswith(b"/torn/li\n" + os.fsencode(odd) + b"\n")
    assert done.has(odd) and done.has(Path("part-2.txt")) and done.has(Path("/legacy/one.txt"))
    assert not done.has(Path("/torn/line.txt"))


def test_a_done_list_that_cannot_be_written_is_a_warning(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, urls(3))
    words = ["--redis", redis_url, "--dataset", "ds", "--done-file", str(tmp_path / "none" / "done.txt")]
    assert main(["feed", str(path), *words]) == 0
    assert "not written down" in capsys.readouterr().err
    assert redis_client.llen(KEYS.task) == 3


def test_the_command_says_why_it_leaves_a_list_out(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, urls(3))
    words = ["feed", str(path), "--redis", redis_url, "--dataset", "ds"]
    assert main(words) == main(words) == 0
    assert "left out: it was fed to 'ds' before" in capsys.readouterr().out
    redis_client.flushall()
    assert main(words) == 0
    assert "left out: it is named" in capsys.readouterr().out
    assert main([*words, "--skip", "3"]) == 2


def test_missing_files_and_folders_are_said(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="No such file"):
        feed(tmp_path / "none.txt", settings)
    with pytest.raises(FeedError, match="directory"):
        feed(tmp_path, settings)


def test_counting_touches_nothing(settings: Settings, redis_client: redis.Redis, tmp_path: Path) -> None:
    path = written(tmp_path, b"http://a.example/1\nhttp://a.example/2\n\n")
    items: list[bytes] = []
    report = count(path, settings, lambda _report: True, items.extend)
    assert items == [legacy_item("http://a.example/1"), legacy_item("http://a.example/2")]
    assert (report.tasks, report.lines, report.blank) == (2, 3, 1)
    assert redis_client.keys() == []


def test_a_dry_run_of_a_stream_counts_what_it_shows() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dlconsole", "feed", "-", "--dry-run"],
        input=b"http://a.example/1\nhttp://a.example/2\n",
        capture_output=True,
        check=True,
    )
    assert b"http://a.example/1" in done.stdout
    assert b"would feed 2 tasks" in done.stdout


def test_ctrl_c_ends_a_feed_that_waits_for_input_and_what_came_is_fed(
    redis_url: str, redis_client: redis.Redis
) -> None:
    command = [sys.executable, "-m", "dlconsole", "feed", "-", "--redis", redis_url, "--dataset", "ds"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as feeding:
        assert feeding.stdin is not None
        feeding.stdin.write(b"http://a.example/1\nhttp://a.example/2\nhttp://a.exam")
        feeding.stdin.flush()
        until(lambda: redis_client.llen(KEYS.task) == 2)
        feeding.send_signal(signal.SIGINT)
        assert feeding.wait(15) == 130
    assert queued(redis_client) == [legacy_item(f"http://a.example/{i}") for i in (1, 2)]


def test_the_command_feeds_several_files_and_prints_json(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, lines in (("a", 3), ("b", 4)):
        (tmp_path / name).write_text("".join(f"http://{name}.example/{i}\n" for i in range(lines)))
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["feed", *files, "--redis", redis_url, "--dataset", "ds", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["fed"], result["lines"], len(result["files"])) == (7, 7, 2)
    assert redis_client.llen(KEYS.task) == 7


def test_a_dry_run_shows_and_counts_but_feeds_nothing(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, b"http://a.example/1\nhttp://a.example/2\n")
    assert main(["feed", str(path), "--redis", redis_url, "--dataset", "ds", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert legacy_item("http://a.example/1").decode() in out
    assert "would feed 2 tasks" in out
    assert redis_client.keys() == []


def test_standard_input_is_a_list(redis_url: str, redis_client: redis.Redis) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dlconsole", "feed", "-", "--redis", redis_url, "--dataset", "ds"],
        input=b"http://a.example/1\n",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert redis_client.llen(KEYS.task) == 1


def test_a_missing_file_is_one_line_and_feeds_nothing_of_the_others(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, b"http://a.example/1\n")
    assert main(["feed", str(path), str(tmp_path / "none"), "--redis", redis_url, "--dataset", "ds"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "none" in captured.err
    assert redis_client.keys() == []


def test_a_read_only_context_refuses_to_feed(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[contexts.prod]\nredis = "{redis_url}"\ndataset = "ds"\nread_only = true\n')
    path = written(tmp_path, b"http://a.example/1\n")
    assert main(["feed", str(path), "--config", str(config), "--context", "prod"]) == 2
    assert "read-only" in capsys.readouterr().err
    assert redis_client.keys() == []


def test_every_real_url_is_fed(settings: Settings, redis_client: redis.Redis, shared_data: Path) -> None:
    report = feed(shared_data / "urls/laion-10k.txt", settings)
    lines = (shared_data / "urls/laion-10k.txt").read_text("utf-8").split("\n")
    assert (report.fed, report.bad, report.not_http) == (10_000, 0, 1)
    assert queued(redis_client) == [legacy_item(line) for line in lines if line]


def test_names_of_lists_and_columns_cannot_steer_the_terminal(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "e\x1b[31mvil\n.csv"
    path.write_text("url,a\x1b[1mb\nhttp://a.example/1,x\n,y\n")
    assert main(["feed", str(path), "--redis", redis_url, "--dataset", "ds"]) == 0
    assert main(["feed", str(path) + "?", "--redis", redis_url, "--dataset", "ds"]) != 0
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said and "e\\x1b[31mvil\\n.csv: fed 1 tasks" in said
