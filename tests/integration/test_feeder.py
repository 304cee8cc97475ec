"""URL lists → queue, on a real Redis."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from conftest import KEYS

from dlconsole.cli import main
from dlconsole.errors import FeedError, RedisUnavailable
from dlconsole.services.feeder import FeedReport, feed, preview
from dlconsole.settings import Settings


def queued(client: redis.Redis) -> list[bytes]:
    """The queue in the order in which workers take it."""
    return list(reversed(client.lrange(KEYS.task, 0, -1)))


def legacy_item(url: str) -> bytes:
    """As the legacy feeder makes it."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return json.dumps({"img_path": f"/ds/images/{digest}.jpg", "img_url": url}).encode()


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(redis=redis_url, dataset="ds")


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
    assert [line for line, _ in report.samples] == [2, 3, 4, 5]
    assert "stop_this_task" in report.samples[0][1]


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


@pytest.mark.parametrize("skip", [0, 1, 5, 1999, 2000, 2001, 4999, 5000, 6000])
def test_skipping_goes_on_exactly_where_it_says(
    skip: int, settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    lines = [b"" if i % 10 == 3 else b"http://a.example/%d" % i for i in range(5000)]
    report = feed(written(tmp_path, b"\n".join(lines) + b"\n"), settings, skip=skip)
    assert queued(redis_client) == [legacy_item(line.decode()) for line in lines[skip:] if line]
    assert report.lines == 5000


def test_stopping_between_blocks_says_where_to_go_on(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path, b"".join(b"http://a.example/%d\n" % i for i in range(9000)))
    blocks = 0

    def stop_after_two(_report: FeedReport) -> bool:
        nonlocal blocks
        blocks += 1
        return blocks < 2

    first = feed(path, settings, on_progress=stop_after_two)
    assert first.stopped and first.fed == first.lines == redis_client.llen(KEYS.task) == 4000
    feed(path, settings, skip=first.lines)
    assert queued(redis_client) == [legacy_item(f"http://a.example/{i}") for i in range(9000)]
    assert redis_client.get(KEYS.fed) == b"9000"


def test_a_push_that_redis_refuses_feeds_and_counts_nothing_of_its_block(
    settings: Settings, redis_client: redis.Redis, tmp_path: Path
) -> None:
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(RedisUnavailable, match="maxmemory"):
            feed(written(tmp_path, b"http://a.example/1\n"), settings)
    finally:
        redis_client.config_set("maxmemory", "0")
    assert redis_client.exists(KEYS.task, KEYS.fed) == 0


def test_missing_files_and_folders_are_said(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="No such file"):
        feed(tmp_path / "none.txt", settings)
    with pytest.raises(FeedError, match="directory"):
        feed(tmp_path, settings)


def test_a_preview_touches_nothing(settings: Settings, redis_client: redis.Redis, tmp_path: Path) -> None:
    path = written(tmp_path, b"http://a.example/1\nhttp://a.example/2\nhttp://a.example/3\n")
    assert preview(path, settings, 2) == [
        legacy_item("http://a.example/1"),
        legacy_item("http://a.example/2"),
    ]
    assert redis_client.keys() == []


def test_the_command_feeds_several_files_and_prints_json(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("a", 3), ("b", 4)):
        (tmp_path / name).write_text("".join(f"http://{name}.example/{i}\n" for i in range(count)))
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
